//! Starts a guest from a template.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixStream;

use super::Filled;
use crate::host::{Credentials, Launch, Life, Output, ProcessHandle, listening_process};
use crate::qemu::rewrite::{listening_sockets, qmp_sockets};
use crate::qemu::twin::{TwinError, bring_up};
use crate::qemu::{ANSWER_WITHIN, Inventory};
use crate::qmp::{Address, AddressError, CallError, Client, Leg};

/// A start that waits for another one looks this often whether that is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A guest that has been started.
#[derive(Debug)]
pub struct Started {
    /// Where its monitor is.
    pub address: Address,
    /// The connection.
    pub client: Client,
    /// Its process.
    pub process: ProcessHandle,
    /// What it is.
    pub inventory: Inventory,
    /// Where it writes what it has to say.
    pub log: PathBuf,
}

/// A guest that was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody could speak to it.
    #[error("this guest would have no QMP monitor on a unix socket")]
    NoMonitor,
    /// Its monitor cannot be named.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// There is no such directory.
    #[error("the directory {} is not there", .0.display())]
    NoDirectory(PathBuf),
    /// Somebody listens where it would.
    #[error("{} listens at {} already; a second QEMU would take the socket away", who(*pid), path.display())]
    Taken {
        /// Where.
        path: PathBuf,
        /// Who, where that can be found.
        pid: Option<i32>,
    },
    /// Something else has the name of one of its sockets.
    #[error("{} is there and is no socket; QEMU would remove it", .0.display())]
    NotASocket(PathBuf),
    /// Its log cannot be written.
    #[error("its log, {}, cannot be written", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// This process cannot tell whose it is.
    #[error("the user of this process cannot be told")]
    User(#[source] io::Error),
    /// The program cannot be started.
    #[error("{program} cannot be started")]
    Launch {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It started and ended.
    #[error("QEMU ended as it started ({status}); it said: {words}")]
    Died {
        /// How it ended.
        status: String,
        /// What it wrote.
        words: String,
    },
    /// Nobody wants it any more.
    #[error("cancelled while QEMU was starting; nothing of it is left")]
    Cancelled,
    /// It is there, but of no use.
    #[error("QEMU was started and ended again, since it cannot be spoken to")]
    Unreachable(#[source] TwinError),
    /// It does not answer.
    #[error("QEMU was started and ended again, since it does not say what it is")]
    Silent(#[source] CallError),
}

fn who(pid: Option<i32>) -> String {
    pid.map_or_else(|| "somebody".to_owned(), |pid| format!("process {pid}"))
}

impl StartError {
    /// Whether it was found out before anything was started.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Died { .. } | Self::Cancelled | Self::Unreachable(_) | Self::Silent(_))
    }
}

impl From<TwinError> for StartError {
    fn from(error: TwinError) -> Self {
        match error {
            TwinError::Launch { program, source } => Self::Launch { program, source },
            TwinError::Died { status, words } => Self::Died { status, words },
            TwinError::Aborted => Self::Cancelled,
            error => Self::Unreachable(error),
        }
    }
}

/// Starts a guest in a session of its own, and waits until its monitor answers.
///
/// Its output goes to a log beside its QMP socket; the log of an earlier start is put aside. On an error, and when
/// `abort` comes true first, nothing of it is left.
pub async fn start(filled: &Filled, abort: impl Future<Output = ()>) -> Result<Started, StartError> {
    let directory = &filled.working_directory;
    if !directory.is_dir() {
        return Err(StartError::NoDirectory(directory.clone()));
    }
    let qmp = qmp_sockets(&filled.line).next().ok_or(StartError::NoMonitor)?;
    let address = Address::unix(directory.join(&qmp))?;
    let mut abort = pin!(abort);
    let _turn = tokio::select! {
        turn = turn(directory.join(&qmp)) => turn,
        () = &mut abort => return Err(StartError::Cancelled),
    };
    let made: Vec<PathBuf> =
        listening_sockets(&filled.line).iter().map(|path| directory.join(path)).collect();
    for path in &made {
        free(path).await?;
    }
    let log = with_suffix(&directory.join(&qmp), ".log");
    make_room(&log)?;
    let mut made: Vec<PathBuf> =
        made.into_iter().chain(pidfile(filled)).filter(|path| !path.exists()).collect();
    made.push(log.clone());
    let started = launch(filled, address, log, abort).await;
    if started.is_err() {
        // It has ended, and may have left what others would take for a guest.
        for path in made {
            let _ = std::fs::remove_file(path);
        }
    }
    started
}

async fn launch(
    filled: &Filled,
    address: Address,
    log: PathBuf,
    abort: impl Future<Output = ()>,
) -> Result<Started, StartError> {
    let added = filled.environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let launch = Launch {
        command: filled.line.render(),
        environment: std::env::vars_os().chain(added).collect(),
        working_directory: filled.working_directory.clone(),
        credentials: Credentials::own().map_err(|error| StartError::User(error.into()))?,
        standing: None,
        output: Output::Log(log.clone()),
        life: Life::OfItsOwn,
    };
    let (client, process) = bring_up(&launch, &address, Leg::Source, abort).await?;
    match Inventory::take(&client).await {
        Ok(inventory) => Ok(Started { address, client, process, inventory, log }),
        Err(error) => {
            // What cannot be killed has ended.
            let _ = process.kill();
            process.ended_within(ANSWER_WITHIN).await;
            Err(StartError::Silent(error))
        }
    }
}

/// Waits until no other start is at work beside this socket: of two at once both would find their names free, and the
/// one that fails would take the other's away. Where a directory cannot be locked, nobody is waited for.
async fn turn(socket: PathBuf) -> Option<Flock<File>> {
    let mut directory = File::open(socket.parent()?).ok()?;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((unlocked, Errno::EWOULDBLOCK)) => directory = unlocked,
            Err(_) => return None,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether QEMU may take this name for a socket of its own: it unlinks whatever has it.
async fn free(path: &Path) -> Result<(), StartError> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(StartError::NotASocket(path.to_owned()));
    }
    // Where a queue is full somebody listens, too: the error is another one then.
    match UnixStream::connect(path).await.map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
            Ok(())
        }
        _ => Err(StartError::Taken { path: path.to_owned(), pid: listening_process(path) }),
    }
}

fn pidfile(filled: &Filled) -> Option<PathBuf> {
    filled.line.values("pidfile").last().map(|path| filled.working_directory.join(path))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes sure that a log can be written. What a guest said the last time stays beside what it says now; the time before
/// that is forgotten.
fn make_room(log: &Path) -> Result<(), StartError> {
    let room = || {
        match std::fs::rename(log, with_suffix(log, ".1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Whoever starts QEMU makes it anew, and cannot tell a log that fails from a program that does.
        File::create_new(log)?;
        std::fs::remove_file(log)
    };
    room().map_err(|source| StartError::Log { path: log.to_owned(), source })
}
