//! Live migration of bare QEMU guests.

/// Bytes, rates and durations: parsed and shown in one way.
pub mod units;
/// One migration as plain, versioned data; others fill it or draw it.
pub mod record;
/// The QMP protocol: wire, client, words. Knows nothing of migration.
pub mod qmp;
/// Where a QEMU lives: processes, sockets, directories.
pub mod host;
/// One QEMU: its command line, what it is, and starting its twin.
pub mod qemu;
/// Who saw the guest when, on which clock, with which error.
pub mod observe;
/// Will it end, when, at what cost: pure functions on samples.
pub mod converge;
/// Every blocker at once.
pub mod check;
/// Moving one guest.
pub mod migrate;
/// The running engine's own socket.
pub mod control;
/// The embedded test guest: a boot image assembled from this repository's own source.
pub mod guest;
/// Faces of a record: progress, json, summary.
pub mod report;
/// Experiments on top of the engine.
pub mod lab;
