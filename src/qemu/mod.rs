//! One QEMU: its command line, what it is, and starting its twin.

/// A QEMU command line as options in order, read from /proc and rendered back.
pub mod argv;
/// The destination's command line, made from the source's.
pub mod rewrite;
