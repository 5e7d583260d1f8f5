//! Live migration of bare QEMU guests.

/// Bytes, rates and durations: parsed and shown in one way.
pub mod units;
/// One migration as plain, versioned data; others fill it or draw it.
pub mod record;
