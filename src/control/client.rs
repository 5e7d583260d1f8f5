//! Finds the engine that moves a guest, and speaks to it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

use super::protocol::{Question, Said};
use crate::qemu::QemuName;
use crate::record::Record;

/// An engine answers at once, also in a blackout.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// An engine that runs.
#[derive(Debug)]
pub struct Engine {
    socket: PathBuf,
    /// Its record as it was when it was found.
    pub record: Record,
}

/// An engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It could not be spoken to.
    #[error("the engine at {} cannot be spoken to", socket.display())]
    Io {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said something else than was asked for: it is of another version.
    #[error("the engine at {} speaks another language; is it another version of qmigrate?", socket.display())]
    Language {
        /// Its socket.
        socket: PathBuf,
    },
}

/// All engines that run below this runtime directory. A socket that nobody listens on is what a crash left.
pub async fn engines(runtime_directory: &Path) -> Vec<Engine> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(runtime_directory) else { return found };
    for entry in entries.flatten() {
        let socket = entry.path();
        if socket.extension().is_some_and(|extension| extension == "control")
            && let Ok(Said::Record(record)) = ask(&socket, &Question::Status).await
        {
            found.push(Engine { socket, record: *record });
        }
    }
    found.sort_by_key(|engine| engine.record.started_at);
    found
}

impl Engine {
    /// Whether it moves the guest that goes by this name: its id, the source as it was typed, its monitor, its process.
    pub fn moves(&self, name: &str) -> bool {
        let record = &self.record;
        let process = match name.parse() {
            Ok(QemuName::Process(pid)) => Some(pid),
            _ => None,
        };
        let address = match name.parse() {
            Ok(QemuName::Monitor(address)) => absolute(&address.to_string()),
            _ => name.to_owned(),
        };
        record.id.as_str() == name
            || record.request.source == name
            || record.source.as_ref().is_some_and(|source| {
                absolute(&source.qmp) == address || (process.is_some() && source.pid == process)
            })
    }

    /// Asks for something to be done; gives what was done.
    pub async fn order(&self, question: &Question) -> Result<String, EngineError> {
        match ask(&self.socket, question).await? {
            Said::Done(done) => Ok(done),
            Said::Refused(refused) => Err(EngineError::Refused(refused)),
            Said::Record(_) | Said::Entry(_) => Err(EngineError::Language { socket: self.socket.clone() }),
        }
    }

    /// Follows it: the record, then each entry.
    pub async fn watch(&self) -> Result<Watch, EngineError> {
        let lines = put(&self.socket, &Question::Watch).await?;
        Ok(Watch { lines, socket: self.socket.clone() })
    }
}

/// Follows one engine.
#[derive(Debug)]
pub struct Watch {
    lines: Lines<BufReader<OwnedReadHalf>>,
    socket: PathBuf,
}

impl Watch {
    /// What it says next; `None` when it has ended.
    pub async fn next(&mut self) -> Result<Option<Said>, EngineError> {
        let failed = |source| EngineError::Io { socket: self.socket.clone(), source };
        match self.lines.next_line().await.map_err(failed)? {
            None => Ok(None),
            Some(line) => read(&self.socket, &line).map(Some),
        }
    }
}

async fn ask(socket: &Path, question: &Question) -> Result<Said, EngineError> {
    let failed = |source| EngineError::Io { socket: socket.to_owned(), source };
    let answer = async {
        let mut lines = put(socket, question).await?;
        let line = lines.next_line().await.map_err(failed)?;
        read(socket, &line.unwrap_or_default())
    };
    tokio::time::timeout(ANSWER_WITHIN, answer)
        .await
        .unwrap_or_else(|_| Err(failed(io::ErrorKind::TimedOut.into())))
}

async fn put(socket: &Path, question: &Question) -> Result<Lines<BufReader<OwnedReadHalf>>, EngineError> {
    let failed = |source| EngineError::Io { socket: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(question).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    writer.write_all(&line).await.map_err(failed)?;
    // Dropping the writer closes that half only, once the line is there.
    Ok(BufReader::new(reader).lines())
}

fn read(socket: &Path, line: &str) -> Result<Said, EngineError> {
    serde_json::from_str(line).map_err(|_| EngineError::Language { socket: socket.to_owned() })
}

/// A path as it is from anywhere; what is no path stays as it is.
fn absolute(address: &str) -> String {
    let path = address.strip_prefix("unix:").unwrap_or(address);
    std::path::absolute(path).map_or_else(|_| address.to_owned(), |path| path.display().to_string())
}
