//! The tests that use qmigrate as its users do: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is wrong")]

/// A QMP peer that plays a script.
mod scripted_peer;
/// A real guest with a heart, the built command, and hold points.
mod lab;
/// The helpers that more than one module uses: where QEMU is, how a skip is told.
mod support;

/// Connecting to a QMP socket: every way in which it fails.
mod qmp_connect;
/// The QMP transport against a scripted peer.
mod qmp_transport;
/// Bytes to lines to messages: arbitrary input.
mod qmp_wire;

/// The embedded guest on a real QEMU: it boots, its heart beats, its memory verifies.
mod guest_boots;
/// A guest moved in every way that the command offers.
mod moves;
/// The hand-over when something goes wrong in it.
mod handover;
