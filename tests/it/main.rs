//! The tests that use qmigrate as its users do: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is wrong")]

/// A QMP peer that plays a script.
mod scripted_peer;
/// A real guest with a heart, the built command, and hold points.
mod lab;
/// A small QEMU, the built command, and what must be as before after a refusal.
mod small_qemu;
/// The helpers that more than one module uses: where QEMU is, how a skip is told.
mod support;

/// Destinations that cannot be had: a sentence, a hint, and the source untouched.
mod bad_destination;
/// Sources that cannot be moved: a sentence, a hint, exit 2, and the source untouched.
mod bad_input;
/// Sizes, rates and times that are none: each flag refuses them before anything is touched.
mod bad_units;

/// Readers that go away and an interrupt before anything moves: the end is the same, and nothing is left.
mod lost_terminal;
/// Connecting to a QMP socket: every way in which it fails.
mod qmp_connect;
/// The QMP transport against a scripted peer.
mod qmp_transport;
/// Recorded conversations with real QEMUs.
mod fixtures;
/// Bytes to lines to messages: arbitrary input.
mod qmp_wire;

/// The embedded guest on a real QEMU: it boots, its heart beats, its memory verifies.
mod guest_boots;
/// A guest moved in every way that the command offers.
mod moves;
/// The demo holds what it shows.
mod demo;
/// The hand-over when something goes wrong in it.
mod handover;
/// People and programs that meddle while a guest is moved.
mod meddling;
