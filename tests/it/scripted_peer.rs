//! A QMP monitor that does what a test says: it greets, shows what it was asked, and answers what and when it is told.

use std::time::Duration;

use qmigrate::qmp::{Client, Deadlines, Leg};
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf,
    WriteHalf,
};

/// No wait of a test is longer than this.
const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits what must come.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("this must come within 30 s")
}

/// A command as it came over the wire.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) arguments: Value,
    pub(crate) id: Value,
    pub(crate) out_of_band: bool,
}

/// The other side of a connection.
#[derive(Debug)]
pub(crate) struct ScriptedPeer<S = DuplexStream> {
    lines: Lines<BufReader<ReadHalf<S>>>,
    writer: WriteHalf<S>,
}

impl ScriptedPeer {
    /// A peer and the stream that leads to it.
    pub(crate) fn pair() -> (DuplexStream, Self) {
        let (near, far) = tokio::io::duplex(1 << 20);
        (near, Self::over(far))
    }

    /// A peer and a client that have greeted and negotiated out-of-band commands.
    pub(crate) async fn connected() -> (Client, Self) {
        let (stream, mut peer) = Self::pair();
        let client = Client::over(stream, Leg::Source, Deadlines::default(), None);
        let (client, ()) = soon(async { tokio::join!(client, peer.greet(&["oob"])) }).await;
        (client.unwrap(), peer)
    }
}

impl<S: AsyncRead + AsyncWrite> ScriptedPeer<S> {
    pub(crate) fn over(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { lines: BufReader::new(reader).lines(), writer }
    }

    /// Greets as QEMU 10.0.2 does, and answers the negotiation.
    pub(crate) async fn greet(&mut self, capabilities: &[&str]) {
        let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "scripted"});
        self.send(&json!({"QMP": {"version": version, "capabilities": capabilities}})).await;
        let asked = self.asked().await;
        assert_eq!(asked.name, "qmp_capabilities");
        let enabled = if capabilities.contains(&"oob") { json!(["oob"]) } else { Value::Null };
        assert_eq!(asked.arguments.get("enable").unwrap_or(&Value::Null), &enabled);
        self.answer(&asked, json!({})).await;
    }

    /// The next command; none at the end of the connection. Safe to drop while it waits.
    pub(crate) async fn next(&mut self) -> Option<Asked> {
        let line = self.lines.next_line().await.unwrap_or_default()?;
        let mut value: Value = serde_json::from_str(&line).expect("a command is JSON");
        let in_band = value["execute"].as_str();
        let name = in_band.or(value["exec-oob"].as_str()).expect("a command has a name").to_owned();
        let out_of_band = in_band.is_none();
        Some(Asked { name, arguments: value["arguments"].take(), id: value["id"].take(), out_of_band })
    }

    /// The next command, which must come.
    pub(crate) async fn asked(&mut self) -> Asked {
        soon(self.next()).await.expect("a command, and not the end")
    }

    /// Sees that no command comes. Only for tests with a stopped clock: it passes the time when nothing else does.
    pub(crate) async fn hears_nothing(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(1), self.next()).await;
        assert!(next.is_err(), "nothing was to come, and {next:?} did");
    }

    /// Sees the client go.
    pub(crate) async fn hears_the_end(&mut self) {
        assert_eq!(soon(self.next()).await, None);
    }

    pub(crate) async fn answer(&mut self, asked: &Asked, value: Value) {
        self.send(&json!({"return": value, "id": asked.id})).await;
    }

    pub(crate) async fn refuse(&mut self, asked: &Asked, class: &str, desc: &str) {
        self.send(&json!({"error": {"class": class, "desc": desc}, "id": asked.id})).await;
    }

    pub(crate) async fn event(&mut self, name: &str, data: Value) {
        let timestamp = json!({"seconds": 1_700_000_000, "microseconds": 25});
        self.send(&json!({"event": name, "data": data, "timestamp": timestamp})).await;
    }

    pub(crate) async fn send(&mut self, value: &Value) {
        self.send_bytes(format!("{value}\r\n").as_bytes()).await;
    }

    /// Sends to a client that may have gone away; says whether it has not.
    pub(crate) async fn offer(&mut self, bytes: &[u8]) -> bool {
        soon(self.writer.write_all(bytes)).await.is_ok()
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        soon(self.writer.write_all(bytes)).await.expect("the client reads");
    }
}
