//! The QMP protocol: how this engine talks to a QEMU, and nothing of what it wants from it.
//!
//! ```text
//!              commands                                   replies and events
//!   words      qapi-qmp's types, and a few of our own     tolerant views: MigrationInfo, Notice ...
//!     |              |                                         ^
//!   client     Client::send -> queue -> at most six      routed by id -> Reply
//!     |                        in flight (or urgent)     copied to      -> Events, one queue per listener
//!     |              |                                         ^
//!   wire             v   bytes                                 |   lines -> Message
//!   ------------------------------- a unix or TCP socket -------------------------------
//! ```
//!
//! - [`address`](crate::qmp::address) says where a monitor is.
//! - [`wire`](crate::qmp::wire) cuts bytes into lines and lines into messages. It does no I/O and fails only on what
//!   is not QMP at all.
//! - [`client`](crate::qmp::client) owns a connection: one task that reads and writes, a window of commands, listeners
//!   for events.
//! - [`words`](crate::qmp::words) is the vocabulary. What a newer QEMU adds is kept as data and never an error.
//!
//! A QMP socket serves one client at a time, and what a connection negotiated ends with it. QEMU answers in-band
//! commands from its main loop, which stands still for the whole blackout of a migration (5 s were seen): silence is
//! not death. Out-of-band commands are answered even then.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a monitor is: a unix socket or a TCP port.
pub mod address;
/// One connection: connect, send commands, await replies, listen to events.
pub mod client;
/// Bytes to lines to messages, without any I/O.
pub mod wire;
/// The vocabulary: tolerant views of replies and events, and commands that `qapi-qmp` lacks.
pub mod words;

pub use address::{Address, AddressError};
pub use client::{
    CallError, Client, Closed, ConnectError, Deadlines, Direction, Events, EventsError, Greeting, Heard,
    Load, Peer, Reply, Tap,
};
pub use wire::{Event, Message, WireError};

/// Which of the two QEMUs of a migration is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leg {
    /// The one that runs the guest at the start.
    Source,
    /// The one that is to run it at the end.
    Destination,
}

impl fmt::Display for Leg {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}
