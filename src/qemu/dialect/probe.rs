//! Starts a QEMU only to ask it: no machine, no guest, and nothing is left of it.
//!
//! The monitor is a socket of ours to which QEMU connects, so that nothing has to be looked for again and again. It is
//! in a directory that is locked for as long as whoever asks is alive. The kernel ends the QEMU with its starter; what
//! is left of one that was killed (the directory, and what a script in place of a QEMU has started) the next command
//! that makes something in the runtime directory clears away.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid};
use qapi_qmp as words;
use tokio::net::{UnixListener, UnixStream};

use crate::host::{
    Credentials, DirectoryError, Launch, Life, Output, PrivateDirectory, ProcessHandle, ProcessView, as_user,
    end, launch, processes,
};
use crate::qemu::twin::last_words;
use crate::qmp::{Client, ConnectError, Deadlines, Leg};
use crate::record::MigrationId;

/// What a probe's directory is called.
const PREFIX: &str = "probe-";
/// Its monitor.
const SOCKET: &str = "qmp";

/// A QEMU without a machine is there within 0.1 s; on a machine under load it may take seconds.
const START_WITHIN: Duration = Duration::from_secs(20);
/// One that gives up closes its monitor first; it is gone within this.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// One that has nothing to save ends at once.
const QUIT_WITHIN: Duration = Duration::from_secs(5);

/// A QEMU cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A directory for it cannot be made.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its monitor has no place.
    #[error("no socket can be made at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("{} cannot be started", qemu.display())]
    Launch {
        /// The program.
        qemu: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended before it could be asked.
    #[error("{} ended as it started; it said: {words}", qemu.display())]
    Died {
        /// The program.
        qemu: PathBuf,
        /// What it wrote.
        words: String,
    },
    /// It runs and opens no monitor.
    #[error("{} opened no monitor within {} s", qemu.display(), START_WITHIN.as_secs())]
    NoMonitor {
        /// The program.
        qemu: PathBuf,
    },
    /// What it opened is no monitor.
    #[error("{} opened a monitor that cannot be spoken to", qemu.display())]
    Connect {
        /// The program.
        qemu: PathBuf,
        /// Why.
        #[source]
        source: ConnectError,
    },
}

/// A QEMU that waits for questions. It ends with this value.
#[derive(Debug)]
pub struct Probe {
    // Dropped in this order: the process ends before its directory goes.
    client: Client,
    process: Started,
    _directory: Place,
}

impl Probe {
    /// Starts one, in a directory that is made for it in the runtime directory.
    pub async fn start(qemu: &Path, runtime: &Path) -> Result<Self, ProbeError> {
        let own = Credentials::own();
        let own = own.map_err(|error| ProbeError::Launch { qemu: qemu.to_owned(), source: error.into() })?;
        Self::start_as(qemu, runtime, &own, std::env::vars_os().collect()).await
    }

    /// The same as another user, in that user's environment: a program that belongs to somebody is nobody else's to run, and
    /// root's least of all.
    pub async fn start_as(
        qemu: &Path,
        runtime: &Path,
        user: &Credentials,
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Self, ProbeError> {
        let failed = |source| ProbeError::Launch { qemu: qemu.to_owned(), source };
        let credentials = user.clone();
        clear(runtime);
        let directory = Place::make(runtime, &credentials)?;
        let (socket, log) = (directory.path().join(SOCKET), directory.path().join("log"));
        let listener = as_user(user, || UnixListener::bind(&socket))
            .map_err(|source| ProbeError::Listen { path: socket.clone(), source })?;
        // It starts in its directory, from which a relative path names something else.
        let program = std::path::absolute(qemu).map_err(failed)?;
        let mut command = vec![program.into_os_string()];
        let options =
            ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp"];
        command.extend(options.map(Into::into));
        command.push(monitor_option(&socket).into());
        let child = launch(&Launch {
            command,
            environment,
            working_directory: directory.path().to_owned(),
            credentials,
            standing: None,
            output: Output::Log(log.clone()),
            life: Life::WithItsStarter,
        })
        .map_err(failed)?;
        let process = Started::hold(child).map_err(failed)?;
        let died = || ProbeError::Died { qemu: qemu.to_owned(), words: last_words(&log) };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.map_err(failed)?.0,
            () = process.handle.ended() => return Err(died()),
            () = tokio::time::sleep(START_WITHIN) => return Err(ProbeError::NoMonitor { qemu: qemu.to_owned() }),
        };
        match speak(stream).await {
            Ok(client) => Ok(Self { client, process, _directory: directory }),
            Err(_) if process.handle.ended_within(LAST_BREATH).await => Err(died()),
            Err(source) => Err(ProbeError::Connect { qemu: qemu.to_owned(), source }),
        }
    }
}

impl Probe {
    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Ends it as it likes to end; one that does not is killed.
    pub async fn end(self) {
        // It may close the connection before its answer is read.
        let _ = self.client.call(&words::quit {}, QUIT_WITHIN).await;
        self.process.handle.ended_within(QUIT_WITHIN).await;
    }
}

async fn speak(stream: UnixStream) -> Result<Client, ConnectError> {
    Client::over(stream, Leg::Source, Deadlines { connect: START_WITHIN }, None).await
}

/// A process that ends with this value.
#[derive(Debug)]
struct Started {
    child: Child,
    handle: ProcessHandle,
}

impl Started {
    fn hold(mut child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other);
        let handle = pid.and_then(|pid| ProcessHandle::open(pid).map_err(io::Error::other));
        match handle {
            Ok(handle) => Ok(Self { child, handle }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A directory that goes with this value, locked until then.
#[derive(Debug)]
struct Place {
    directory: PrivateDirectory,
    _lock: Option<Flock<File>>,
}

impl Place {
    fn make(runtime: &Path, credentials: &Credentials) -> Result<Self, DirectoryError> {
        let _turn = locked(runtime, FlockArg::LockExclusive);
        let path = runtime.join(format!("{PREFIX}{}", MigrationId::new()));
        let directory = PrivateDirectory::create(path, credentials)?;
        let lock = locked(directory.path(), FlockArg::LockExclusiveNonblock);
        Ok(Self { directory, _lock: lock })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

fn remove(directory: &PrivateDirectory) {
    if let Err(error) = directory.remove() {
        tracing::warn!(directory = %directory.path().display(), %error, "not removed");
    }
}

fn locked(directory: &Path, how: FlockArg) -> Option<Flock<File>> {
    Flock::lock(File::open(directory).ok()?, how).ok()
}

/// Clears away what commands have left that were killed while they asked a QEMU.
pub fn clear(runtime: &Path) {
    // A directory is made and locked in one turn: one that can be locked in this one has nobody.
    let Some(_turn) = locked(runtime, FlockArg::LockExclusive) else { return };
    let Ok(entries) = std::fs::read_dir(runtime) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !is_ours || path.is_symlink() {
            continue;
        }
        if let Some(_lock) = locked(&path, FlockArg::LockExclusiveNonblock) {
            let Ok(about) = path.symlink_metadata() else { continue };
            let (user, group) = (Uid::from_raw(about.uid()), Gid::from_raw(about.gid()));
            end_all_that_name(&path.join(SOCKET), user);
            let owner = Credentials { user, group, groups: Vec::new() };
            remove(&PrivateDirectory::of_another_engine(path, owner));
        }
    }
}

/// Ends what was started to be asked by this socket, as its own words say.
fn end_all_that_name(socket: &Path, user: Uid) {
    let option = monitor_option(socket);
    for pid in processes() {
        // First the hold, then the look: what is read after it belongs to the process held.
        let Ok(process) = ProcessHandle::open(pid) else { continue };
        let names_it = |view: ProcessView| {
            view.credentials.user == user && view.arguments.iter().any(|word| *word == *option)
        };
        if ProcessView::read(pid).is_ok_and(names_it)
            && let Err(error) = process.kill()
        {
            tracing::warn!(pid, %error, "not ended");
        }
    }
}

fn monitor_option(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}
