//! The task that reads and writes, and what it shares with the handles.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, oneshot, watch};

use super::error::Closed;
use super::events::{Events, Heard, Listeners};
use super::window::{Answer, Band, Window};
use crate::qmp::Leg;
use crate::qmp::wire::{Decoder, Message};

/// How long is read on after a write failed: what QEMU said before it went may still be on its way.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Which way a line went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To QEMU.
    Sent,
    /// From QEMU.
    Received,
}

/// Is shown each line of a conversation as it goes by, secrets included; it must be quick and must not panic.
pub type Tap = Arc<dyn Fn(Direction, &str) + Send + Sync>;

/// Shows a line to the tap, if there is one.
pub(super) fn show(tap: Option<&Tap>, direction: Direction, line: &[u8]) {
    if let Some(tap) = tap {
        tap(direction, &String::from_utf8_lossy(line));
    }
}

/// What the task shares with the handles.
pub(super) struct Shared {
    pub(super) leg: Leg,
    window: Mutex<Window>,
    listeners: Mutex<Listeners>,
    /// There is something to write, or the connection was let go.
    wake: Notify,
    closed: watch::Sender<Option<Closed>>,
    last_id: AtomicU64,
    connected: Instant,
    /// When bytes came last, counted from `connected`.
    heard_nanoseconds: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("leg", &self.leg).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(leg: Leg) -> Self {
        Self {
            leg,
            window: Mutex::new(Window::new(leg)),
            listeners: Mutex::new(Listeners::new(leg)),
            wake: Notify::new(),
            closed: watch::Sender::new(None),
            last_id: AtomicU64::new(0),
            connected: now(),
            heard_nanoseconds: AtomicU64::new(0),
        }
    }

    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An id that no other command of this connection has; the first is 1.
    pub(super) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn submit(
        &self,
        band: Band,
        id: u64,
        command: &'static str,
        line: Vec<u8>,
    ) -> oneshot::Receiver<Answer> {
        let answer = self.window().submit(band, id, command, line);
        self.wake.notify_one();
        answer
    }

    pub(super) fn listen(&self) -> Events {
        self.listeners().add()
    }

    /// Ends everything, once; the first cause stays.
    pub(super) fn close(&self, cause: &Closed) {
        let first = self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(cause.clone());
            }
            first
        });
        if first {
            tracing::debug!(leg = %self.leg, %cause, "QMP connection closed");
            self.window().close(cause);
            self.listeners().close(cause);
            self.wake.notify_one();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    pub(super) async fn closed(&self) -> Closed {
        let mut receiver = self.closed.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(closed) => closed.clone().unwrap_or(Closed::Stopped),
            Err(_) => Closed::Stopped,
        }
    }

    pub(super) fn last_heard(&self) -> Instant {
        self.connected + Duration::from_nanos(self.heard_nanoseconds.load(Ordering::Relaxed))
    }

    fn heard(&self) {
        let nanoseconds = u64::try_from((now() - self.connected).as_nanos()).unwrap_or(u64::MAX);
        self.heard_nanoseconds.store(nanoseconds, Ordering::Relaxed);
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The two halves of a stream and what is between them and the handles.
pub(super) struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    decoder: Decoder,
    /// Taken from the window and not written yet. It is short: the window lets six commands through, and the few that
    /// are out of band.
    out: BytesMut,
    shared: Arc<Shared>,
    tap: Option<Tap>,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    /// A connection after its negotiation; `decoder` may hold bytes that came behind it.
    pub(super) fn new(stream: S, decoder: Decoder, shared: Arc<Shared>, tap: Option<Tap>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader, writer, decoder, out: BytesMut::new(), shared, tap }
    }

    /// Reads and writes until the end.
    pub(super) async fn run(mut self) {
        let cause = match self.serve().await {
            Ok(()) => Closed::LetGo,
            Err(cause) => cause,
        };
        self.shared.close(&cause);
    }

    async fn serve(&mut self) -> Result<(), Closed> {
        loop {
            self.deliver()?;
            self.take_commands();
            if self.shared.is_closed() {
                return Ok(());
            }
            tokio::select! {
                read = self.reader.read_buf(self.decoder.buffer()) => self.received(read)?,
                written = self.writer.write_buf(&mut self.out), if !self.out.is_empty() => match written {
                    Ok(0) => return Err(self.last_words(io::ErrorKind::WriteZero.into()).await),
                    Ok(_) => (),
                    Err(error) => return Err(self.last_words(error).await),
                },
                () = self.shared.wake.notified() => (),
            }
        }
    }

    fn take_commands(&mut self) {
        let before = self.out.len();
        self.shared.window().take(&mut self.out);
        for line in self.out[before..].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            show(self.tap.as_ref(), Direction::Sent, line);
        }
    }

    fn received(&mut self, read: io::Result<usize>) -> Result<(), Closed> {
        match read {
            Ok(0) if self.decoder.is_inside_line() => Err(Closed::InsideLine),
            Ok(0) => Err(Closed::ByPeer),
            Ok(_) => {
                self.shared.heard();
                Ok(())
            }
            Err(error) => Err(Closed::Broken(Arc::new(error))),
        }
    }

    /// Brings every whole message in the buffer to those who wait for it.
    fn deliver(&mut self) -> Result<(), Closed> {
        let tap = self.tap.as_ref();
        let look = |line: &[u8]| show(tap, Direction::Received, line);
        while let Some(message) = self.decoder.next_message_with(look).map_err(Closed::NotUnderstood)? {
            let leg = self.shared.leg;
            let (id, outcome) = match message {
                Message::Event(event) => {
                    let heard = Heard { event, at: self.shared.last_heard() };
                    self.shared.listeners().tell(&heard);
                    continue;
                }
                Message::Failure { id: None, class, desc } => {
                    return Err(Closed::CommandNotRead { class, desc });
                }
                Message::Success { id, value } => (id, Ok(value)),
                Message::Failure { id, class, desc } => (id, Err((class, desc))),
                Message::Greeting(_) | Message::Unknown(_) => {
                    tracing::debug!(%leg, "a QMP message of no use was dropped");
                    continue;
                }
            };
            let number = id.as_ref().and_then(serde_json::Value::as_u64);
            if !number.is_some_and(|id| self.shared.window().answer(id, outcome)) {
                tracing::debug!(%leg, ?id, "a QMP reply that nobody awaits was dropped");
            }
        }
        Ok(())
    }

    /// Reads on for a moment, so that what came before the end is not lost; then the cause is `error`.
    async fn last_words(&mut self, error: io::Error) -> Closed {
        let read_on = async {
            loop {
                let read = self.reader.read_buf(self.decoder.buffer()).await;
                self.received(read)?;
                self.deliver()?;
            }
        };
        // Whatever ended the reading, the failed write was first.
        let _: Result<Result<(), Closed>, _> = tokio::time::timeout(LAST_WORDS, read_on).await;
        Closed::Broken(Arc::new(error))
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        // Only heard if the task did not come to its own end.
        self.shared.close(&Closed::Stopped);
    }
}
