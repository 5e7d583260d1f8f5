//! Everything that is tested through the public API, in one binary: linking costs more than running.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where something is wrong")]

// Every way to connect to a monitor, and every way in which that fails.
mod qmp_connect;
// The QMP transport against a scripted peer: the window, answers and events, the end.
mod qmp_transport;
// Bytes that come in any pieces, and bytes that are no QMP.
mod qmp_wire;
// A QMP monitor that does what a test says.
mod scripted_peer;
