//! From an address to a negotiated connection, and every way in which that fails.

use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use qapi::Execute;
use qapi::qmp::{QMPCapability, qmp_capabilities};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::connection::{Connection, Direction, Shared, Tap, show};
use super::{Client, Handle};
use crate::qmp::wire::{Decoder, Message, WireError, printable};
use crate::qmp::words::VersionInfo;
use crate::qmp::{Address, Leg};
use crate::units::show_duration;

/// How soon a monitor is tried again that has no room for one more client in its queue.
const RETRY: Duration = Duration::from_millis(20);

/// How long the steps of a connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For connecting, greeting and negotiation together.
    pub connect: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5) }
    }
}

/// What a monitor says of itself when a client comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Which QEMU it is.
    pub version: VersionInfo,
    /// What can be negotiated, such as `oob`.
    pub capabilities: Vec<String>,
}

/// With whom a connection was to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Which QEMU.
    pub leg: Leg,
    /// Where; `None` for a stream that was connected already.
    pub address: Option<Address>,
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(formatter, "the {} at {}", self.leg, printable(&address.to_string())),
            None => write!(formatter, "the {}", self.leg),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no such socket.
    #[error("{peer}: there is no such socket")]
    NotFound {
        /// Who.
        peer: Peer,
    },
    /// The socket may not be used by this user.
    #[error("{peer}: this user may not connect")]
    PermissionDenied {
        /// Who.
        peer: Peer,
    },
    /// The socket is there, and nobody behind it.
    #[error("{peer}: nobody listens there; the QEMU that did may have ended")]
    NobodyListens {
        /// Who.
        peer: Peer,
    },
    /// There is something else of that name.
    #[error("{peer}: that is not a socket")]
    NotASocket {
        /// Who.
        peer: Peer,
    },
    /// Connecting worked and then nothing came. A monitor serves one client at a time and lets others wait.
    #[error(
        "{peer}: connected{}, but no greeting came within {}; another client holds this monitor, or QEMU is busy",
        pid.map(|pid| format!(" to process {pid}")).unwrap_or_default(),
        show_duration(*after)
    )]
    NoGreeting {
        /// Who.
        peer: Peer,
        /// The process that owns the socket, where it is known.
        pid: Option<i32>,
        /// How long it was waited for.
        after: Duration,
    },
    /// What came is not QMP.
    #[error("{peer}: not a QMP monitor")]
    NotQmp {
        /// Who.
        peer: Peer,
        /// What came.
        #[source]
        cause: WireError,
    },
    /// QEMU's monitor for people, which speaks no QMP.
    #[error("{peer}: this is QEMU's human monitor; its QMP monitor (-qmp) is needed")]
    HumanMonitor {
        /// Who.
        peer: Peer,
    },
    /// The other side closed the connection without a word.
    #[error("{peer}: the connection was closed before any greeting")]
    ClosedBeforeGreeting {
        /// Who.
        peer: Peer,
    },
    /// QEMU greeted and then refused to enter command mode.
    #[error("{peer}: negotiation was refused: {desc}")]
    NegotiationRefused {
        /// Who.
        peer: Peer,
        /// QEMU's sentence, safe to print.
        desc: String,
    },
    /// Connecting or negotiation took too long.
    #[error("{peer}: {what} took longer than {}", show_duration(*after))]
    Timeout {
        /// Who.
        peer: Peer,
        /// Which step.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// Something else went wrong.
    #[error("{peer}: {what} failed")]
    Io {
        /// Who.
        peer: Peer,
        /// Which step.
        what: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Greeting,
    Negotiating,
}

impl Stage {
    fn what(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Greeting => "waiting for the greeting",
            Self::Negotiating => "negotiation",
        }
    }
}

/// Why one stage failed; with a peer and a stage it becomes a [`ConnectError`].
enum Fault {
    Io(io::Error),
    Wire(WireError),
    Refused(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// One attempt to connect.
struct Attempt {
    peer: Peer,
    pid: Option<i32>,
    stage: Stage,
    tap: Option<Tap>,
}

pub(super) async fn connect(
    address: &Address,
    leg: Leg,
    deadlines: Deadlines,
    tap: Option<Tap>,
) -> Result<Client, ConnectError> {
    let peer = Peer { leg, address: Some(address.clone()) };
    let mut attempt = Attempt { peer, pid: None, stage: Stage::Connecting, tap };
    let outcome = tokio::time::timeout(deadlines.connect, async {
        match address {
            Address::Unix(path) => {
                let stream = loop {
                    match UnixStream::connect(path).await {
                        // The queue of those who wait for this monitor is full (QEMU lets two wait).
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            attempt.stage = Stage::Greeting;
                            tokio::time::sleep(RETRY).await;
                        }
                        Err(error) => {
                            attempt.stage = Stage::Connecting;
                            return Err(Fault::Io(error));
                        }
                        Ok(stream) => break stream,
                    }
                };
                attempt.pid = stream.peer_cred()?.pid().filter(|pid| *pid > 0);
                attempt.negotiate(stream).await
            }
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                // Commands are short and urgent.
                stream.set_nodelay(true)?;
                attempt.negotiate(stream).await
            }
        }
    })
    .await;
    attempt.conclude(outcome, deadlines.connect)
}

pub(super) async fn over<S>(
    stream: S,
    leg: Leg,
    deadlines: Deadlines,
    tap: Option<Tap>,
) -> Result<Client, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Peer { leg, address: None };
    let mut attempt = Attempt { peer, pid: None, stage: Stage::Connecting, tap };
    let outcome = tokio::time::timeout(deadlines.connect, attempt.negotiate(stream)).await;
    attempt.conclude(outcome, deadlines.connect)
}

impl Attempt {
    /// Reads the greeting, negotiates, and starts the task that serves the connection.
    async fn negotiate<S>(&mut self, mut stream: S) -> Result<Client, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.stage = Stage::Greeting;
        let mut decoder = Decoder::default();
        let greeting = self.greeting(&mut stream, &mut decoder).await?;
        self.stage = Stage::Negotiating;
        let out_of_band = greeting.capabilities.iter().any(|capability| capability == "oob");
        let enable = out_of_band.then(|| vec![QMPCapability::oob]);
        // Ids of commands begin with 1.
        let mut line = serde_json::to_vec(&Execute::with_id(qmp_capabilities { enable }, 0))
            .map_err(io::Error::other)?;
        show(self.tap.as_ref(), Direction::Sent, &line);
        line.push(b'\n');
        stream.write_all(&line).await?;
        loop {
            match self.next(&mut stream, &mut decoder).await? {
                Message::Success { .. } => break,
                Message::Failure { desc, .. } => return Err(Fault::Refused(desc)),
                // Events come to whoever listens, and nobody can listen yet.
                Message::Event(_) | Message::Greeting(_) | Message::Unknown(_) => (),
            }
        }
        let shared = Arc::new(Shared::new(self.peer.leg));
        tokio::spawn(Connection::new(stream, decoder, Arc::clone(&shared), self.tap.clone()).run());
        Ok(Client { handle: Arc::new(Handle { shared, greeting, out_of_band, peer_pid: self.pid }) })
    }

    /// The greeting, which is not always the first line: QEMU notes in the thread of its monitors that a client has
    /// come, and until then an event of another thread goes to the connection as to an old client's. Of 3000
    /// connections to a QEMU that was stopped and continued all the time it was 10 on 5.2, 14 on 10.0 and 1 on 11.1;
    /// the greeting followed each time. Nobody can listen to such an event yet.
    async fn greeting<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        decoder: &mut Decoder,
    ) -> Result<Greeting, Fault> {
        loop {
            match self.next(stream, decoder).await? {
                Message::Event(_) => (),
                message => return Ok(read_greeting(&message)?),
            }
        }
    }

    async fn next<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        decoder: &mut Decoder,
    ) -> Result<Message, Fault> {
        loop {
            let look = |line: &[u8]| show(self.tap.as_ref(), Direction::Received, line);
            if let Some(message) = decoder.next_message_with(look)? {
                return Ok(message);
            }
            if stream.read_buf(decoder.buffer()).await? == 0 {
                return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Puts a fault or a timeout into words.
    fn conclude(
        self,
        outcome: Result<Result<Client, Fault>, tokio::time::error::Elapsed>,
        after: Duration,
    ) -> Result<Client, ConnectError> {
        use io::ErrorKind as Kind;
        let Self { peer, pid, stage, .. } = self;
        Err(match (outcome, stage) {
            (Ok(Ok(client)), _) => return Ok(client),
            (Err(_), Stage::Greeting) => ConnectError::NoGreeting { peer, pid, after },
            (Err(_), stage) => ConnectError::Timeout { peer, what: stage.what(), after },
            (Ok(Err(Fault::Refused(desc))), _) => ConnectError::NegotiationRefused { peer, desc },
            (Ok(Err(Fault::Wire(WireError::HumanMonitor { .. }))), _) => ConnectError::HumanMonitor { peer },
            (Ok(Err(Fault::Wire(cause))), _) => ConnectError::NotQmp { peer, cause },
            (Ok(Err(Fault::Io(cause))), stage) => match (stage, cause.kind()) {
                (Stage::Connecting, Kind::NotFound) => ConnectError::NotFound { peer },
                (Stage::Connecting, Kind::PermissionDenied) => ConnectError::PermissionDenied { peer },
                (Stage::Connecting, Kind::ConnectionRefused) if is_no_socket(&peer) => {
                    ConnectError::NotASocket { peer }
                }
                (Stage::Connecting, Kind::ConnectionRefused) => ConnectError::NobodyListens { peer },
                (Stage::Greeting, Kind::UnexpectedEof | Kind::ConnectionReset) => {
                    ConnectError::ClosedBeforeGreeting { peer }
                }
                (stage, _) => ConnectError::Io { peer, what: stage.what(), cause },
            },
        })
    }
}

/// Whether a path leads to something else than a socket, which refuses connections just as a dead socket does.
fn is_no_socket(peer: &Peer) -> bool {
    let path = peer.address.as_ref().and_then(Address::path);
    path.and_then(|path| path.metadata().ok()).is_some_and(|metadata| !metadata.file_type().is_socket())
}

fn read_greeting(message: &Message) -> Result<Greeting, WireError> {
    let strange = || {
        let start: String = format!("{message:?}").chars().take(80).collect();
        WireError::NoGreeting { start: printable(&start) }
    };
    let Message::Greeting(greeting) = message else { return Err(strange()) };
    let version = greeting.get("version").and_then(|version| VersionInfo::deserialize(version).ok());
    let capabilities = greeting.get("capabilities").and_then(Value::as_array);
    let capabilities =
        capabilities.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Greeting { version: version.ok_or_else(strange)?, capabilities })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::error::Error;

    #[test]
    fn all_texts_differ_name_the_leg_and_do_not_repeat_their_source() {
        let peer = || Peer { leg: Leg::Source, address: Address::unix("/run/\u{1b}.sock").ok() };
        let after = Duration::from_secs(2);
        let cause = WireError::LineTooLong { limit_bytes: 5 };
        let errors = [
            ConnectError::NotFound { peer: peer() },
            ConnectError::PermissionDenied { peer: peer() },
            ConnectError::NobodyListens { peer: peer() },
            ConnectError::NotASocket { peer: peer() },
            ConnectError::NoGreeting { peer: peer(), pid: Some(7), after },
            ConnectError::NoGreeting { peer: peer(), pid: None, after },
            ConnectError::NotQmp { peer: peer(), cause },
            ConnectError::HumanMonitor { peer: peer() },
            ConnectError::ClosedBeforeGreeting { peer: peer() },
            ConnectError::NegotiationRefused { peer: peer(), desc: "d".into() },
            ConnectError::Timeout { peer: peer(), what: "connecting", after },
            ConnectError::Io { peer: peer(), what: "connecting", cause: io::Error::other("cable cut") },
        ];
        let mut texts = HashSet::new();
        for error in &errors {
            let text = error.to_string();
            assert!(text.starts_with(r"the source at unix:/run/\u{1b}.sock: "), "{text}");
            assert!(error.source().is_none_or(|source| !text.contains(&source.to_string())), "{text}");
            assert!(texts.insert(text));
        }
    }
}
