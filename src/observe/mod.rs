//! Who saw the guest when, on which clock, with which error.

/// The test guest's heartbeats as seen from outside: when which QEMU let the guest run.
pub mod heartbeat;
