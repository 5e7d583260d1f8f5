//! Where a runner keeps its guests, and what one that was killed has left there.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Credentials, DirectoryError, PrivateDirectory, ProcessHandle, command_line, processes};
use crate::record::MigrationId;

/// All places of runners begin with this; what follows is an id.
const PREFIX: &str = "lab-";
/// An engine that is told to cancel gives its guest back within this.
const ENGINE_ENDS_WITHIN: Duration = Duration::from_secs(10);
const END_WITHIN: Duration = Duration::from_secs(10);

/// A place cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No user.
    #[error("this process cannot tell whom it runs as")]
    Credentials(#[from] nix::Error),
    /// No lock.
    #[error("{} cannot be locked", path.display())]
    Lock {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A directory for one runner, locked while that lives; it goes with all that is in it.
#[derive(Debug)]
pub struct Place {
    directory: PrivateDirectory,
    _lock: Flock<File>,
}

impl Place {
    /// Makes one in the engine's runtime directory.
    pub fn create(runtime: &Path) -> Result<Self, PlaceError> {
        loop {
            let path = runtime.join(format!("{PREFIX}{}", MigrationId::new()));
            let directory = PrivateDirectory::create(path.clone(), &Credentials::own()?)?;
            // Another runner may take it for one that was left, until it is locked.
            match lock(&path) {
                Ok(Some(lock)) if path.is_dir() => return Ok(Self { directory, _lock: lock }),
                Ok(_) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(PlaceError::Lock { path, source }),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.directory.remove() {
            tracing::warn!(directory = %self.path().display(), %error, "not removed");
        }
    }
}

/// Ends what runners have left that were killed: first their engines, which give their guests back, then their guests'
/// QEMUs, then their directories. Gives the directories that were removed.
pub async fn clear(runtime: &Path) -> Result<Vec<PathBuf>, PlaceError> {
    let owner = Credentials::own()?;
    let entries = std::fs::read_dir(runtime).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_place = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) && path.is_dir()
    };
    let mut cleared = Vec::new();
    for path in entries.filter(is_place) {
        // Whoever holds it lives; from here on nobody else clears it.
        let Ok(Some(_lock)) = lock(&path) else { continue };
        for engine in left_in(&path, Role::Engine) {
            // What has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(engine.pid()), Signal::SIGTERM);
            engine.ended_within(ENGINE_ENDS_WITHIN).await;
        }
        for process in [Role::Engine, Role::Guest].into_iter().flat_map(|role| left_in(&path, role)) {
            let _ = process.kill();
            process.ended_within(END_WITHIN).await;
        }
        match PrivateDirectory::of_another_engine(path.clone(), owner.clone()).remove() {
            Ok(()) => cleared.push(path),
            Err(error) => tracing::warn!(directory = %path.display(), %error, "not removed"),
        }
    }
    Ok(cleared)
}

/// Locks a directory; `None` if somebody else has.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// What a process of a runner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `qmigrate migrate MONITOR`.
    Engine,
    /// A QEMU that beats on the observer's socket.
    Guest,
}

/// The processes of this kind whose command line names something in this place.
fn left_in(place: &Path, role: Role) -> Vec<ProcessHandle> {
    let own = |pid: &i32| {
        let words = command_line(*pid).unwrap_or_default();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        role_of(place, &words) == Some(role)
    };
    processes().into_iter().filter(own).filter_map(|pid| ProcessHandle::open(pid).ok()).collect()
}

fn role_of(place: &Path, words: &[impl AsRef<str>]) -> Option<Role> {
    let words = || words.iter().map(AsRef::as_ref);
    let monitor = format!("unix:{}/", place.display());
    let beats = format!("socket,id=heartbeat,path={}/", place.display());
    if words().nth(1) == Some("migrate") && words().nth(2).is_some_and(|word| word.starts_with(&monitor)) {
        Some(Role::Engine)
    } else {
        words().any(|word| word.starts_with(&beats)).then_some(Role::Guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processes_of_a_place_are_known_by_their_words() {
        let place = Path::new("/run/lab-a");
        let role = |line: &str| role_of(place, &line.split(' ').collect::<Vec<_>>());
        assert_eq!(role("/x/qmigrate migrate unix:/run/lab-a/run/qmp --report x"), Some(Role::Engine));
        assert_eq!(
            role("qemu -m 64M -chardev socket,id=heartbeat,path=/run/lab-a/run/beats"),
            Some(Role::Guest)
        );
        assert_eq!(role("qemu -m 64M -chardev socket,id=heartbeat,path=/run/lab-ab/run/beats"), None);
        assert_eq!(role("qmigrate watch unix:/run/lab-a/run/qmp"), None);
        assert_eq!(role("less /run/lab-a/lock"), None);
    }

    #[tokio::test]
    async fn what_a_dead_runner_left_goes_and_what_a_living_one_has_stays() {
        let runtime = tempfile::tempdir().unwrap();
        let living = Place::create(runtime.path()).unwrap();
        let dead = runtime.path().join("lab-dead");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("file"), "").unwrap();
        std::fs::create_dir(runtime.path().join("another")).unwrap();
        assert_eq!(clear(runtime.path()).await.unwrap(), [dead]);
        assert!(living.path().is_dir());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(runtime.path()).unwrap().count(), 1);
    }
}
