//! The test guest's heartbeats as seen from outside: when which QEMU let the guest run.
//!
//! The guest writes the low byte of its tick counter to a port, a thousand times a second; QEMU's debug console passes
//! it to a unix socket. Source and destination connect to the same path and are told apart by the pid that
//! the kernel says is at the other end, so that a command line needs no change. A thread reads, stamps and records
//! ([`Observer`](crate::observe::heartbeat::Observer)); what it means is worked out by pure functions
//! ([`Heart`](crate::observe::heartbeat::Heart), [`handover`](fn@crate::observe::heartbeat::handover)).
//!
//! **What is proven.** The tick counter is part of the guest's memory and each tick writes its byte once. If the
//! destination's first byte is the successor of the source's last one (mod 256), no tick was run twice and none was
//! lost; that proof needs no clock. In addition no byte of the source may arrive after the destination's first. What is
//! left is a source that ran on for a multiple of 256 ticks and was silent before the destination began: the 32-bit counter
//! in the guest's memory rules it out, for it must be the sum of the beats of all hearts (one more, if the guest was stopped
//! between counting and beating).
//!
//! **Order within a round.** All sockets that are readable when `poll` returns belong to one round and share one time. A byte of
//! the source that was written before the destination's first must not be taken for a later one, so that a round reads the
//! newest connection first and then drains every other one, readable or not, and records in the reverse order: whatever was
//! written before the destination's byte is in its socket by then. Within one round the order is not known and the
//! ticks decide; across rounds it is.
//!
//! **The error of a gap.** A gap between beats is longer than the pause of the guest by up to two beat periods (2 ms), and is
//! wrong by what the observer's thread was late to wake up, which is estimated from the jitter of the beats around it.
//! That is an estimate, not a bound: a busy host that stops the vCPU or the observer for 20 ms and more shows up in
//! [`Heart::long_gaps`](crate::observe::heartbeat::Heart::long_gaps), and may do so within a handover as well.
//! Under TCG ticks are lost while QEMU is busy, so that counting them measures time only under KVM.
//!
//! QEMU waits for a full socket: the thread must go on reading for as long as a guest should run.

/// One heart: aggregates, the recent beats and the long gaps.
mod heart;
/// The thread that listens.
mod observer;

pub use heart::{Batch, Beat, Gap, Handover, Heart, NoHandover, Overlap, Sequence, handover};
pub use observer::{Observer, ObserverError};
