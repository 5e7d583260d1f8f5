//! The engine's end.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use super::protocol::{Question, Said};
use crate::migrate::history::{SharedRecord, Witness, lock};
use crate::migrate::order::{Commander, Request};
use crate::record::{Entry, MigrationId, Record};

/// A question is a short line; one that is longer is none.
const LONGEST_QUESTION_BYTES: u64 = 4096;
/// A client that connects asks at once.
const QUESTION_WITHIN: Duration = Duration::from_secs(5);
/// A watcher that reads slower than this many entries behind misses some.
const WATCHER_BACKLOG: usize = 4096;
/// At the end the last words are given this long to reach those who watch.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// Tells all who watch what is written.
#[derive(Debug, Clone)]
pub struct Watchers(broadcast::Sender<Entry>);

impl Watchers {
    /// Nobody watches yet.
    pub fn new() -> Self {
        Self(broadcast::Sender::new(WATCHER_BACKLOG))
    }
}

impl Default for Watchers {
    fn default() -> Self {
        Self::new()
    }
}

impl Witness for Watchers {
    fn told(&mut self, _: &Record, entry: &Entry) {
        // Nobody may be watching.
        let _ = self.0.send(entry.clone());
    }
}

/// The socket of one engine; it goes away with this.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
    over: tokio::sync::watch::Sender<bool>,
}

impl Server {
    /// Listens in the runtime directory.
    pub fn start(
        runtime_directory: &Path,
        id: &MigrationId,
        record: SharedRecord,
        commander: Commander,
        watchers: Watchers,
    ) -> io::Result<Self> {
        let path = runtime_directory.join(format!("{id}.control"));
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let (over, is_over) = tokio::sync::watch::channel(false);
        let desk = Desk { record, commander, watchers };
        let task = tokio::spawn(serve(listener, desk, is_over));
        Ok(Self { path, task, over })
    }

    /// Ends it, once those who watch have been told the last entry.
    pub async fn finish(self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.over.send(true);
        let _ = tokio::time::timeout(LAST_WORDS_WITHIN, self.task).await;
    }
}

/// What a conversation needs.
#[derive(Clone)]
struct Desk {
    record: SharedRecord,
    commander: Commander,
    watchers: Watchers,
}

async fn serve(listener: UnixListener, desk: Desk, mut over: tokio::sync::watch::Receiver<bool>) {
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(conversations.spawn(converse(stream, desk.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "the control socket takes no more clients");
                    break;
                }
            },
            Some(_) = conversations.join_next() => {}
            _ = over.changed() => break,
        }
    }
    drop(desk);
    while conversations.join_next().await.is_some() {}
}

async fn converse(stream: UnixStream, desk: Desk) {
    let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw());
    if !allowed {
        return;
    }
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LONGEST_QUESTION_BYTES));
    let read = tokio::time::timeout(QUESTION_WITHIN, reader.read_line(&mut line)).await;
    let question = match read {
        Ok(Ok(_)) => serde_json::from_str(&line),
        _ => return,
    };
    let result = match question {
        Ok(question) => reply(question, &desk, &mut writer).await,
        Err(error) => say(&mut writer, &Said::Refused(format!("not a question: {error}"))).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client of the control socket went away");
    }
}

async fn reply(question: Question, desk: &Desk, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let order = match question {
        Question::Status => return say(writer, &record(desk)).await,
        Question::Watch => return watch(desk, writer).await,
        Question::Pause => Request::Pause,
        Question::Cancel => Request::Cancel("cancelled by `qmigrate cancel`".to_owned()),
        Question::Set(limits) => Request::Limits(limits),
    };
    let said = match desk.commander.give(order).await {
        Ok(done) => Said::Done(done),
        Err(refused) => Said::Refused(refused),
    };
    say(writer, &said).await
}

async fn watch(desk: &Desk, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    // First listen, then look: an entry may come twice, none is missed.
    let mut entries = desk.watchers.0.subscribe();
    say(writer, &record(desk)).await?;
    if lock(&desk.record).outcome.is_some() {
        return Ok(());
    }
    loop {
        let entry = match entries.recv().await {
            Ok(entry) => entry,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        };
        let is_last = matches!(entry, Entry::Result(_));
        say(writer, &Said::Entry(entry)).await?;
        if is_last {
            return Ok(());
        }
    }
}

fn record(desk: &Desk) -> Said {
    Said::Record(Box::new(lock(&desk.record).clone()))
}

async fn say(writer: &mut OwnedWriteHalf, said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
