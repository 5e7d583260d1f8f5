//! One connection to a QMP monitor: connect, send commands, await replies, listen to events.
//!
//! One task per connection reads and writes; it ends with the connection, and the connection ends when the last
//! [`Client`] is dropped. What a caller does with a [`Reply`] or with [`Events`] never harms another caller: replies
//! are routed by id, a reply that nobody awaits any more is dropped when it comes, and each listener has a queue of
//! its own.
//!
//! At most [`client::IN_BAND_COMMANDS`] in-band commands are in flight, the rest wait here, in order. QEMU reads no
//! further while its own queue of eight is full, and then an out-of-band command is stuck with the others: with 7
//! outstanding `yank` was answered, with 13 it was never read (10.0, 11.1).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qapi::{Command, Execute, ExecuteOob};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// From an address to a negotiated connection, and every way in which that fails.
mod connect;
/// The task that reads and writes, and what it shares with the handles.
mod connection;
/// What may go wrong with a command, a connection and a listener.
mod error;
/// Listeners: who is told of events.
mod events;
/// The future of one answer.
mod reply;
/// Which commands wait, which are in flight.
mod window;

pub use connect::{ConnectError, Deadlines, Greeting, Peer};
pub use connection::{Direction, Tap};
pub use error::{CallError, Closed, EventsError};
pub use events::{EVENTS_PER_LISTENER, Events, Heard};
pub use reply::Reply;
pub use window::{IN_BAND_COMMANDS, Load};

use super::words::VersionInfo;
use super::{Address, Leg};
use connection::Shared;
use window::Band;

/// A handle on a connection; clones are cheap and equal.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// What all clones share; the connection ends when it is dropped.
struct Handle {
    shared: Arc<Shared>,
    greeting: Greeting,
    out_of_band: bool,
    peer_pid: Option<i32>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(&Closed::LetGo);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("leg", &self.leg())
            .field("greeting", self.greeting())
            .field("load", &self.load())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the monitor at `address`, waits for its greeting and negotiates, all before one deadline.
    pub async fn connect(address: &Address, leg: Leg, deadlines: Deadlines) -> Result<Self, ConnectError> {
        connect::connect(address, leg, deadlines, None).await
    }

    /// As [`Client::connect`], and shows each line of the conversation to `tap`.
    pub async fn connect_tapped(
        address: &Address,
        leg: Leg,
        deadlines: Deadlines,
        tap: Tap,
    ) -> Result<Self, ConnectError> {
        connect::connect(address, leg, deadlines, Some(tap)).await
    }

    /// Waits for the greeting and negotiates over a stream that is connected already and keeps no bytes back.
    pub async fn over<S>(
        stream: S,
        leg: Leg,
        deadlines: Deadlines,
        tap: Option<Tap>,
    ) -> Result<Self, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        connect::over(stream, leg, deadlines, tap).await
    }

    /// A client of the QEMU in this process, which cannot be reached: its connection has ended, and every command fails
    /// at once.
    pub fn unconnected(leg: Leg, pid: i32) -> Self {
        let shared = Arc::new(Shared::new(leg));
        shared.close(&Closed::LetGo);
        let version = VersionInfo { major: 0, minor: 0, micro: 0, package: String::new() };
        let greeting = Greeting { version, capabilities: Vec::new() };
        Self { handle: Arc::new(Handle { shared, greeting, out_of_band: false, peer_pid: Some(pid) }) }
    }

    /// Puts a command on the wire, or behind those that wait; the order of calls is the order on the wire.
    pub fn send<C: Command>(&self, command: &C) -> Reply {
        self.submit(Band::In, C::NAME, |id| serde_json::to_vec(&Execute::with_id(command, id)))
    }

    /// Sends a command and awaits its answer, at most until the deadline.
    pub async fn call<C: Command>(&self, command: &C, deadline: Duration) -> Result<Value, CallError> {
        self.send(command).within(deadline).await
    }

    /// As [`Client::call`], with the answer read as one of the [`super::words`].
    pub async fn call_as<V: DeserializeOwned, C: Command>(
        &self,
        command: &C,
        deadline: Duration,
    ) -> Result<V, CallError> {
        let answer = self.call(command, deadline).await?;
        serde_json::from_value(answer).map_err(|error| CallError::unreadable(self.leg(), C::NAME, &error))
    }

    /// Sends a command past all that wait, to be answered even while QEMU's main loop stands still (`yank`,
    /// `migrate-pause`, `migrate-recover`). Only commands that QEMU declares `allow-oob` compile here.
    pub fn send_out_of_band<C: Command>(&self, command: &C) -> Reply {
        const { assert!(C::ALLOW_OOB, "QEMU does not take this command out of band") };
        if !self.supports_out_of_band() {
            let error = CallError::NoOutOfBand { leg: self.leg(), command: C::NAME };
            return Reply::failed(Arc::clone(&self.handle.shared), C::NAME, error);
        }
        self.submit(Band::OutOf, C::NAME, |id| serde_json::to_vec(&ExecuteOob::new(command, id)))
    }

    /// Sends a command as [`Client::send_out_of_band`] does and awaits its answer, at most until the deadline.
    pub async fn call_out_of_band<C: Command>(
        &self,
        command: &C,
        deadline: Duration,
    ) -> Result<Value, CallError> {
        self.send_out_of_band(command).within(deadline).await
    }

    /// Listens to all events from now on. There is no replay: listen first, then ask for the state.
    pub fn events(&self) -> Events {
        self.handle.shared.listen()
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> Closed {
        self.handle.shared.closed().await
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.shared.is_closed()
    }

    /// What the monitor said of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.handle.greeting
    }

    /// The process at the other end of the unix socket: the QEMU itself, also when it daemonized; or whoever forwards
    /// the socket. `None` for TCP, and for a process that is not visible from here.
    pub fn peer_pid(&self) -> Option<i32> {
        self.handle.peer_pid
    }

    /// Whether commands can be sent out of band on this connection (QEMU 2.12 and later).
    pub fn supports_out_of_band(&self) -> bool {
        self.handle.out_of_band
    }

    /// When the last bytes came; a proof of life, by the clock that tokio's tests can stop.
    pub fn last_heard(&self) -> Instant {
        self.handle.shared.last_heard()
    }

    /// How many commands wait and how many are in flight.
    pub fn load(&self) -> Load {
        self.handle.shared.window().load()
    }

    /// Which QEMU this is.
    pub fn leg(&self) -> Leg {
        self.handle.shared.leg
    }

    fn submit(
        &self,
        band: Band,
        command: &'static str,
        write: impl FnOnce(u64) -> serde_json::Result<Vec<u8>>,
    ) -> Reply {
        let shared = &self.handle.shared;
        let id = shared.next_id();
        match write(id) {
            Ok(mut line) => {
                line.push(b'\n');
                let answer = shared.submit(band, id, command, line);
                Reply::new(Arc::clone(shared), id, command, answer)
            }
            Err(error) => {
                let error = CallError::unwritable(shared.leg, command, &error);
                Reply::failed(Arc::clone(shared), command, error)
            }
        }
    }
}
