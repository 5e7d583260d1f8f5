//! The steps of a migration that happen once, in order; what happens in between is the driver's, which sets limits as
//! the steps do.

/// Looks at the source, and at all that stands in the way.
pub mod survey;
/// A destination that the user has started, as it is found.
pub mod waiting;
/// Starts the destination, or takes the one that the user started.
pub mod destination;
/// Gives a destination that waits what was plugged into its source since that was started.
pub mod repeat;
/// Holds a destination that waits against its source.
pub mod compare;
/// What the source has from this host, and its destination is to have too.
pub mod standing;
/// Gives the destination's processors and I/O threads what those of its source have.
pub mod pin;
/// Taps of the destination's own.
pub mod tap;
/// Sets downtime and bandwidth in the words that a QEMU has.
pub mod limits;
/// Slows the guest down, with consent.
pub mod throttle;
/// What of a source is set besides its limits.
pub mod tuning;
/// Which capabilities both sides need.
pub mod agree;
/// Sets both sides up, and the source back as it was.
pub mod prepare;
/// Ends what is over, and gives the guest its names.
pub mod finish;
