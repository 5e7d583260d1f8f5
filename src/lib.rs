//! Live migration of bare QEMU guests.

/// The embedded test guest: a boot image assembled from this repository's own source.
pub mod guest;
/// Who saw the guest when, on which clock, with which error.
pub mod observe;
/// Sizes, rates and durations: read in one way and shown in one way.
pub mod units;
