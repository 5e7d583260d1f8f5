//! One side of a migration: its connection, its events, its process.

use std::time::Duration;

use crate::host::ProcessHandle;
use crate::qmp::{Address, Client, Deadlines, Events, Heard, Leg};
use crate::record::LimitsBy;

/// A monitor that is free greets at once.
const RECONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Whoever stands in line waits: a new place would be the last one.
const GREETING_WITHIN: Duration = Duration::from_secs(60);
/// How soon a monitor is tried again that nobody serves: first after the one, then after twice as
/// long each time, up to the other.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(80)];
/// A process that closes its monitor as it ends is gone within this.
pub(in crate::migrate) const LAST_BREATH: Duration = Duration::from_millis(200);

/// One side of a migration that is prepared.
#[derive(Debug)]
pub struct Side {
    /// Which.
    pub leg: Leg,
    /// Where its monitor is.
    pub address: Address,
    /// The connection.
    pub client: Client,
    /// Its events since it was connected to.
    pub events: Events,
    /// Its process.
    pub process: ProcessHandle,
    /// How it is told its limits.
    pub limits_by: LimitsBy,
    /// Whether it can still be heard, and lives.
    pub contact: Contact,
}

/// Whether a side can still be heard, and lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// It can be heard.
    Heard,
    /// Its connection has ended, and its process has not been seen to.
    Lost,
    /// Its process has ended.
    Ended,
}

impl Side {
    /// Waits for what it says or does next.
    pub(super) async fn next(&mut self) -> Word {
        tokio::select! {
            biased;
            heard = self.events.next(), if self.contact == Contact::Heard => match heard {
                Ok(heard) => Word::Heard(heard),
                Err(_) => Word::Silence,
            },
            () = self.process.ended(), if self.contact != Contact::Ended => Word::End,
            else => std::future::pending().await,
        }
    }

    /// Connects anew where the connection has ended unnoticed and the process lives on.
    pub(super) async fn heal(&mut self) {
        if !self.client.is_closed() || self.process.ended_within(LAST_BREATH).await {
            return;
        }
        let deadlines = Deadlines { connect: RECONNECT_WITHIN };
        match Client::connect(&self.address, self.leg, deadlines).await {
            Ok(client) if self.peer().is(&client) => self.meet(client),
            Ok(_) => {
                tracing::warn!(leg = %self.leg, address = %self.address, "another process answers there");
            }
            Err(error) => tracing::debug!(leg = %self.leg, %error, "not reconnected"),
        }
    }

    /// Who must be behind a new connection.
    pub(super) fn peer(&self) -> Peer {
        Peer { pid: self.client.peer_pid() }
    }

    /// Goes on by a new connection.
    pub(super) fn meet(&mut self, client: Client) {
        self.events = client.events();
        self.client = client;
        self.contact = Contact::Heard;
    }
}

/// Who was behind a connection: the process itself, or whoever forwards to it. Over TCP that cannot be told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pid: Option<i32>,
}

impl Peer {
    /// Whether it is behind this one; the name of a socket can come to be somebody else's.
    pub(super) fn is(self, client: &Client) -> bool {
        self.pid.is_none_or(|pid| client.peer_pid() == Some(pid))
    }
}

/// Connects anew, however long it takes: until the main loop of a source in the blackout is free, or somebody else's
/// client has gone.
pub(super) async fn connect_anew(address: &Address, leg: Leg, peer: Peer) -> Client {
    let mut pause = RETRY[0];
    loop {
        // At first too: what was read of the old connection has its effect before it is asked for on the new one.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY[1]);
        match Client::connect(address, leg, Deadlines { connect: GREETING_WITHIN }).await {
            Ok(client) if peer.is(&client) => return client,
            Ok(_) => tracing::warn!(%leg, %address, "another process answers there"),
            Err(error) => tracing::debug!(%leg, %error, "not reconnected"),
        }
    }
}

/// What a side says or does.
pub(super) enum Word {
    /// An event.
    Heard(Heard),
    /// Its connection has ended.
    Silence,
    /// Its process has ended.
    End,
}
