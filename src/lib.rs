//! Live migration of bare QEMU guests.

pub mod units;
