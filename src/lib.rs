//! Live migration of bare QEMU guests.

/// Talking to a QEMU: the QMP protocol, its transport and its words.
pub mod qmp;
pub mod units;
