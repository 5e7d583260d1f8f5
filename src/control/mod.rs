//! The running engine's own socket: status, limits and decisions from other shells.
//!
//! A QMP socket serves one client, and while a migration runs that is the engine. So each engine listens on
//! `ID.control` in its runtime directory. A client sends one request as a line of JSON and gets lines of JSON back:
//!
//! ```text
//!   {"verb":"status"}                         {"record":{...}}
//!   {"verb":"watch"}                          {"record":{...}}, then each entry as it is written, until the end
//!   {"verb":"cancel"}  {"verb":"pause"}       {"done":"..."} or {"refused":"..."}
//!   {"verb":"set","max_downtime_ms":200}      likewise
//! ```
//!
//! The directory is private, and the kernel says who connects: only the engine's own user and root are served.

/// Finds the engine that moves a guest, and speaks to it.
mod client;
/// Records of migrations that have ended.
mod past;
/// What is said on the socket.
mod protocol;
/// The engine's end.
mod server;

pub use client::{Engine, EngineError, engines};
pub use past::{PastError, keep, latest};
pub use protocol::{Question, Said};
pub use server::{Server, Watchers};
