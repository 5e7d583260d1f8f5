//! Starts a destination and waits until it can be spoken to.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use super::argv::CommandLine;
use super::rewrite::Rewritten;
use crate::host::{
    DirectoryError, Launch, Life, Output, PrivateDirectory, ProcessHandle, ProcessView, Standing, end, launch,
};
use crate::qmp::wire::printable;
use crate::qmp::{Address, AddressError, Client, ConnectError, Deadlines, Leg};

/// A QEMU under load has its monitor up within a second; one that takes this long never will.
const START_WITHIN: Duration = Duration::from_secs(30);
/// A QEMU that gives up closes its monitor first; it is gone within this.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// How often a monitor that is not there yet is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A destination that is there and waits, held.
#[derive(Debug)]
pub struct Twin {
    /// The connection.
    pub client: Client,
    /// Its process.
    pub process: ProcessHandle,
    /// What was made for it and goes away with it.
    pub directories: Vec<PrivateDirectory>,
    /// Where it writes what it has to say.
    pub log: PathBuf,
}

/// A destination that did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// The program cannot be started.
    #[error("{program} cannot be started")]
    Launch {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It started and ended at once.
    #[error("the destination ended as it started ({status}); it said: {words}")]
    Died {
        /// How it ended.
        status: String,
        /// What it wrote.
        words: String,
    },
    /// Its monitor never came.
    #[error("the QEMU just started is there, but its QMP monitor did not come within {} s", START_WITHIN.as_secs())]
    NoMonitor(#[source] ConnectError),
    /// Somebody else listens where its monitor should be.
    #[error("at {address}, where the monitor of the QEMU just started should be, listens process {pid}")]
    Stranger {
        /// Where.
        address: Address,
        /// Who.
        pid: i32,
    },
    /// Nobody wants it any more.
    #[error("cancelled while the destination was starting")]
    Aborted,
    /// A directory for it cannot be made.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its monitor cannot be named.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Its process cannot be held.
    #[error("the destination's process cannot be watched")]
    Process(#[source] io::Error),
}

/// Starts the destination as its source was started: same user, environment and directory, and as much of what its host
/// gave it as is permitted.
///
/// On an error, and when `abort` comes true first, nothing of it is left.
pub async fn start(
    rewritten: &Rewritten,
    source: &ProcessView,
    standing: Option<&Standing>,
    log: PathBuf,
    abort: impl Future<Output = ()>,
) -> Result<Twin, TwinError> {
    let mut directories = Vec::new();
    match start_in(rewritten, source, standing, &log, &mut directories, abort).await {
        Ok((client, process)) => Ok(Twin { client, process, directories, log }),
        Err(error) => {
            remove(&directories);
            Err(error)
        }
    }
}

/// Removes what was made for a destination; what cannot be removed is said in the trace, and is never a reason to
/// call a migration failed.
pub fn remove(directories: &[PrivateDirectory]) {
    for directory in directories {
        if let Err(error) = directory.remove() {
            tracing::warn!(directory = %directory.path().display(), %error, "not removed");
        }
    }
}

async fn start_in(
    rewritten: &Rewritten,
    source: &ProcessView,
    standing: Option<&Standing>,
    log: &Path,
    directories: &mut Vec<PrivateDirectory>,
    abort: impl Future<Output = ()>,
) -> Result<(Client, ProcessHandle), TwinError> {
    for path in &rewritten.directories {
        directories.push(PrivateDirectory::create_as(path.clone(), &source.credentials)?);
    }
    let address = Address::unix(rewritten.qmp.clone())?;
    let shown = rewritten.line.shown().render();
    tracing::debug!(command = ?shown, "starting the destination");
    let launch = Launch {
        command: rewritten.line.render(),
        environment: environment(source),
        working_directory: source.working_directory.clone(),
        credentials: source.credentials.clone(),
        standing: standing.cloned(),
        output: Output::Log(log.to_owned()),
        life: Life::OfItsOwn,
    };
    bring_up(&launch, &address, Leg::Destination, abort).await
}

/// Starts a QEMU and waits until its monitor answers; its devices are there by then. On an error it has ended.
pub async fn bring_up(
    what: &Launch,
    address: &Address,
    leg: Leg,
    abort: impl Future<Output = ()>,
) -> Result<(Client, ProcessHandle), TwinError> {
    run(what, address, leg, abort).await.map_err(|error| match (error, CommandLine::parse(&what.command)) {
        // QEMU says what is wrong with an option together with all of the option.
        (TwinError::Died { status, words }, Ok(line)) => {
            TwinError::Died { status, words: line.conceal(&words) }
        }
        (error, _) => error,
    })
}

async fn run(
    what: &Launch,
    address: &Address,
    leg: Leg,
    abort: impl Future<Output = ()>,
) -> Result<(Client, ProcessHandle), TwinError> {
    let mut child = launch(what).map_err(|source| {
        let program = what.command.first().map_or_else(String::new, |program| program.display().to_string());
        TwinError::Launch { program, source }
    })?;
    let pid = i32::try_from(child.id()).map_err(|error| TwinError::Process(io::Error::other(error)))?;
    let log = &what.output;
    let process = match ProcessHandle::open(pid) {
        Ok(process) => process,
        Err(error) => {
            return Err(died(&mut child, log).unwrap_or(TwinError::Process(io::Error::other(error))));
        }
    };
    let connected = tokio::select! {
        connected = monitor(address, leg, &mut child, log) => connected,
        () = abort => Err(TwinError::Aborted),
    };
    let connected = connected.and_then(|client| match client.peer_pid() {
        Some(peer) if peer != pid => Err(TwinError::Stranger { address: address.clone(), pid: peer }),
        _ => Ok(client),
    });
    match connected {
        Ok(client) => {
            reap_in_the_end(child);
            Ok((client, process))
        }
        Err(error) => {
            // It has ended, or it is of no use.
            end(&mut child);
            Err(error)
        }
    }
}

/// Waits for the monitor of a process that has just been started.
async fn monitor(address: &Address, leg: Leg, child: &mut Child, log: &Output) -> Result<Client, TwinError> {
    let deadline = tokio::time::Instant::now() + START_WITHIN;
    loop {
        let deadlines = Deadlines { connect: START_WITHIN };
        match Client::connect(address, leg, deadlines).await {
            Ok(client) => return Ok(client),
            Err(error) => {
                if let Some(died) = died(child, log) {
                    return Err(died);
                }
                let not_yet =
                    matches!(error, ConnectError::NotFound { .. } | ConnectError::NobodyListens { .. });
                if !not_yet && let Some(died) = dies(child, log).await {
                    return Err(died);
                }
                if !not_yet || tokio::time::Instant::now() > deadline {
                    return Err(TwinError::NoMonitor(error));
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// As [`died`], for a process that may be on its way out.
async fn dies(child: &mut Child, log: &Output) -> Option<TwinError> {
    let deadline = tokio::time::Instant::now() + LAST_BREATH;
    while tokio::time::Instant::now() < deadline {
        if let Some(died) = died(child, log) {
            return Some(died);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

/// How a process ended and what it said, if it has ended.
fn died(child: &mut Child, log: &Output) -> Option<TwinError> {
    let status = child.try_wait().ok()??;
    Some(TwinError::Died { status: status.to_string(), words: words_of(log) })
}

/// The end of what a QEMU wrote, safe to print.
pub fn last_words(log: &Path) -> String {
    words_of(&Output::Log(log.to_owned()))
}

fn words_of(output: &Output) -> String {
    let end = output.end();
    let words = String::from_utf8_lossy(&end);
    let lines = words.lines().map(str::trim).filter(|line| !line.is_empty()).map(printable);
    let joined = lines.collect::<Vec<_>>().join("; ");
    if joined.is_empty() { "nothing".to_owned() } else { joined }
}

/// A child that has ended stays as a zombie until its parent asks. The engine outlives a destination only where that
/// died, and then a thread that waits for it costs nothing.
fn reap_in_the_end(mut child: Child) {
    let spawned =
        std::thread::Builder::new().name("reap".to_owned()).stack_size(64 << 10).spawn(move || child.wait());
    if let Err(error) = spawned {
        tracing::debug!(%error, "no thread to reap the destination");
    }
}

/// The source's environment, without what was meant for that one process: sockets and watchdogs of its supervisor.
fn environment(source: &ProcessView) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    const OF_THE_SUPERVISOR: [&str; 6] =
        ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];
    let mine = |key: &std::ffi::OsString| key.to_str().is_none_or(|key| !OF_THE_SUPERVISOR.contains(&key));
    source.environment.iter().filter(|(key, _)| mine(key)).cloned().collect()
}
