//! Live migration of bare QEMU guests.

/// Every blocker at once.
pub mod check;
/// Will it end, when, at what cost: pure functions on samples.
pub mod converge;
/// Where a QEMU lives: processes, sockets, directories.
pub mod host;
/// Moving one guest.
pub mod migrate;
/// One QEMU: its command line, what it is, and starting its twin.
pub mod qemu;
/// The QMP protocol: wire, client, words.
pub mod qmp;
/// One migration as plain, versioned data; others fill it or draw it.
pub mod record;
/// Bytes, rates and durations: parsed and shown in one way.
pub mod units;
