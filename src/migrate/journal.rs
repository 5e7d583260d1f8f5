//! What a migration is about to do, written down before it is done, so that `recover` can finish it or undo it.
//!
//! One file per migration, `journal/ID.jsonl` in the state directory: one JSON object per line ([`Step`](crate::migrate::journal::Step)), each of them
//! there, whole, before the act that it permits. Nothing is synced: what a killed engine has written is in the page
//! cache, and a crash of the host takes both QEMUs with it. The room for a whole migration is reserved at the start, so
//! that a disk that fills up on the way stops nothing that has begun.
//!
//! An engine holds a lock on its file for as long as it lives, and the kernel gives it back however it ends: a journal
//! that can be locked has no engine. A journal is input like any other: one that is not this user's, or that is damaged
//! or newer, is named and not guessed at.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, posix_fallocate};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

/// What a journal says, line by line and as a whole.
mod story;

pub use story::{Begun, Destination, Running, Source, Step, Story};

use super::phase::Phase;
use crate::check::{Blocker, Code, chain};
use crate::host::ProcessIdentity;
use crate::record::MigrationId;

/// The form of a journal; another one is not read.
pub const SCHEMA: u32 = 1;
/// A migration writes about 4 KiB.
const RESERVED_BYTES: i64 = 32 << 10;
/// No journal is longer; what is, is none.
const LONGEST_BYTES: u64 = 1 << 20;
/// A child of a killed engine holds its lock until it has become a QEMU, which takes a moment.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
const SUFFIX: &str = ".jsonl";

/// A journal cannot be had or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be written or read.
    #[error("the journal {} cannot be used", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else may have written it.
    #[error("the journal {} is not a plain file that this user alone may write", path.display())]
    NotOurs {
        /// Which.
        path: PathBuf,
    },
    /// Another version has written it.
    #[error("the journal {} is of the form {schema}, and this program reads {SCHEMA}", path.display())]
    OtherSchema {
        /// Which.
        path: PathBuf,
        /// Its form.
        schema: u64,
    },
    /// It does not say what a journal says.
    #[error("the journal {} is damaged in line {line}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
    },
    /// There is none.
    #[error("there is no open migration {0}")]
    None(MigrationId),
    /// Its engine is at work.
    #[error("the engine of migration {0} is at work")]
    EngineLives(MigrationId),
    /// Another migration of the same guest is open.
    #[error("the migration {id} of this guest is {}", if *engine_lives { "under way" } else { "not at its end: its engine has ended before it" })]
    Claimed {
        /// Which.
        id: MigrationId,
        /// Whether its engine is at work.
        engine_lives: bool,
    },
}

impl From<JournalError> for Blocker {
    fn from(error: JournalError) -> Self {
        let message = chain(&error);
        match error {
            JournalError::Claimed { id, engine_lives: true } | JournalError::EngineLives(id) => Self::new(
                Code::UnderWay,
                message,
                format!("`qmigrate watch {id}` follows it, `qmigrate cancel {id}` ends it"),
            ),
            JournalError::Claimed { id, .. } => Self::new(
                Code::NotRecovered,
                message,
                format!("`qmigrate recover {id}` brings it to an end; `qmigrate recover --list` shows all"),
            ),
            JournalError::None(_) => {
                Self::new(Code::NoJournal, message, "`qmigrate recover --list` shows what is open")
            }
            JournalError::OtherSchema { .. } => {
                Self::new(Code::Journal, message, "use the qmigrate that began this migration")
            }
            JournalError::Io { .. } => Self::new(
                Code::Journal,
                message,
                "a migration is written down before it begins: see that there is room, and that this user may write there",
            ),
            JournalError::NotOurs { .. } | JournalError::Damaged { .. } => Self::new(
                Code::Journal,
                message,
                "look at both QEMUs (`qmigrate list`); once the guest runs on one of them, remove the file",
            ),
        }
    }
}

/// Where phases are written down before what they permit is done.
pub trait Ledger: fmt::Debug + Send {
    /// Writes a phase down. Where that fails the guest is not given to the destination, as long as there is a way back.
    fn enter(&mut self, phase: Phase) -> Result<(), JournalError>;
}

impl Ledger for Journal {
    fn enter(&mut self, phase: Phase) -> Result<(), JournalError> {
        self.write(&Step::Phase { phase })
    }
}

/// The journal of one migration, open and held by this engine.
#[derive(Debug)]
pub struct Journal {
    file: Flock<File>,
    path: PathBuf,
    end: u64,
}

/// One that was found.
#[derive(Debug)]
pub struct Found {
    /// Its migration.
    pub id: MigrationId,
    /// What it says.
    pub story: Result<Story, JournalError>,
    /// Whether its engine is at work.
    pub engine_lives: bool,
}

impl Journal {
    /// Begins the journal of a new migration.
    pub fn begin(state_directory: &Path, begun: Begun) -> Result<Self, JournalError> {
        let directory = directory(state_directory)?;
        let id = begun.id.clone();
        let path = directory.join(format!("{id}{SUFFIX}"));
        let failed = |source| JournalError::Io { path: path.clone(), source };
        let options = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let reserved = posix_fallocate(&options, 0, RESERVED_BYTES);
        let file = lock(options, &id)?;
        let mut journal = Self { file, path: path.clone(), end: 0 };
        let begun =
            reserved.map_err(|error| failed(error.into())).and_then(|()| journal.write(&Step::Begun(begun)));
        match begun {
            Ok(()) => Ok(journal),
            Err(error) => {
                // An empty one would only be in the way.
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Takes over the journal of a migration whose engine has ended.
    pub fn take_over(state_directory: &Path, id: &MigrationId) -> Result<(Self, Story), JournalError> {
        let path = directory(state_directory)?.join(format!("{id}{SUFFIX}"));
        let file = match open(&path, OpenOptions::new().read(true).write(true)) {
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(JournalError::None(id.clone()));
            }
            file => file?,
        };
        let file = lock(file, id)?;
        if file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            return Err(JournalError::None(id.clone()));
        }
        let Some((story, end)) = read(&path, &file)? else {
            // Its engine ended as it began.
            let _ = std::fs::remove_file(&path);
            return Err(JournalError::None(id.clone()));
        };
        Ok((Self { file, path, end }, story))
    }

    /// Writes the source down, unless another migration of the same guest is open.
    pub fn claim(&mut self, source: Source) -> Result<(), JournalError> {
        let directory = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let path = directory.join("lock");
        let failed = |source| JournalError::Io { path: path.clone(), source };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        // Two engines that begin at the same time look one after the other.
        let _turn = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))?;
        is_free_in(&directory, &source.running.process)?;
        self.write(&Step::Source(source))
    }

    /// Writes a step down. What it permits may be done only after that.
    pub fn write(&mut self, step: &Step) -> Result<(), JournalError> {
        let failed = |source| JournalError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(step).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        self.file.write_all_at(&line, self.end).map_err(failed)?;
        self.end += u64::try_from(line.len()).unwrap_or(0);
        Ok(())
    }

    /// The migration is at its end, and nothing is left to recover. As long as its journal cannot be removed it is open.
    pub fn close(self) -> Result<(), JournalError> {
        std::fs::remove_file(&self.path).map_err(|source| JournalError::Io { path: self.path, source })
    }
}

/// All journals of this user, each with whether its engine is at work.
pub fn list(state_directory: &Path) -> Result<Vec<Found>, JournalError> {
    Ok(list_in(&directory(state_directory)?))
}

/// Whether no migration of the guest in this process is open; an error names the one that is.
pub fn is_free(state_directory: &Path, process: &ProcessIdentity) -> Result<(), JournalError> {
    is_free_in(&directory(state_directory)?, process)
}

fn is_free_in(directory: &Path, process: &ProcessIdentity) -> Result<(), JournalError> {
    for found in list_in(directory) {
        if found.story.is_ok_and(|story| story.involves(process)) {
            return Err(JournalError::Claimed { id: found.id, engine_lives: found.engine_lives });
        }
    }
    Ok(())
}

fn list_in(directory: &Path) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<Found> = entries.flatten().filter_map(|entry| look(&entry.path())).collect();
    found.sort_by(|one, other| one.id.cmp(&other.id));
    found
}

/// Looks at one; `None` for what is no journal, or has just been closed.
fn look(path: &Path) -> Option<Found> {
    let id = MigrationId::from_str(path.file_name()?.to_str()?.strip_suffix(SUFFIX)?).ok()?;
    let (story, engine_lives) = match open(path, OpenOptions::new().read(true)) {
        Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => (Err(error), false),
        Ok(file) => match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(file) => (read(path, &file), false),
            Err((file, _)) => (read(path, &file), true),
        },
    };
    let story = story.transpose()?.map(|(story, _)| story);
    Some(Found { id, story, engine_lives })
}

fn directory(state_directory: &Path) -> Result<PathBuf, JournalError> {
    let path = state_directory.join("journal");
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(JournalError::Io { path, source })
        }
        _ => Ok(path),
    }
}

/// Opens one that is there, without following a link, and sees that nobody else could have written it.
fn open(path: &Path, options: &mut OpenOptions) -> Result<File, JournalError> {
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(nix::libc::ELOOP) => JournalError::NotOurs { path: path.to_owned() },
        _ => JournalError::Io { path: path.to_owned(), source },
    };
    let file = options
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let is_ours = metadata.is_file()
        && metadata.uid() == geteuid().as_raw()
        && metadata.mode() & 0o022 == 0
        && metadata.len() <= LONGEST_BYTES;
    if is_ours { Ok(file) } else { Err(JournalError::NotOurs { path: path.to_owned() }) }
}

fn lock(mut file: File, id: &MigrationId) -> Result<Flock<File>, JournalError> {
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Ok(file),
            Err(_) if Instant::now() > deadline => return Err(JournalError::EngineLives(id.clone())),
            Err((again, _)) => file = again,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What it says, and where its last whole line ends. A line that was cut short permitted nothing.
/// `None` where there is no whole line yet.
fn read(path: &Path, file: &File) -> Result<Option<(Story, u64)>, JournalError> {
    let mut bytes = Vec::new();
    let mut reader = file;
    reader.read_to_end(&mut bytes).map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
    let written = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let whole = bytes[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    if whole == 0 {
        return Ok(None);
    }
    let lines = bytes[..whole].split_inclusive(|&byte| byte == b'\n');
    let damaged = |line: usize| JournalError::Damaged { path: path.to_owned(), line };
    let mut steps = Vec::new();
    for (number, line) in lines.enumerate() {
        if number == 0 {
            let Head { schema } = serde_json::from_slice(line).map_err(|_| damaged(1))?;
            if schema != u64::from(SCHEMA) {
                return Err(JournalError::OtherSchema { path: path.to_owned(), schema });
            }
        }
        steps.push(serde_json::from_slice(line).map_err(|_| damaged(number + 1))?);
    }
    let story = Story::tell(steps).map_err(damaged)?;
    Ok(Some((story, u64::try_from(whole).unwrap_or(0))))
}

/// What every form of a journal begins with.
#[derive(Serialize, Deserialize)]
struct Head {
    schema: u64,
}

#[cfg(test)]
#[path = "journal/tests.rs"]
mod tests;
