//! The engine's own directories: private, owned by the right user, never in /tmp.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::user::{Credentials, as_user};

/// A directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be made or looked at.
    #[error("the directory {} cannot be used", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else could change what is in it.
    #[error("the directory {} is not this user's alone; it must belong to user {user} and be writable by no one else", path.display())]
    NotOurs {
        /// Which.
        path: PathBuf,
        /// This user.
        user: u32,
    },
    /// The environment names none.
    #[error("neither XDG_RUNTIME_DIR, XDG_STATE_HOME nor HOME is set")]
    Nowhere,
}

/// Where sockets live: `/run/qmigrate` for root, below `XDG_RUNTIME_DIR` (or the state directory) otherwise.
///
/// Root's can be entered by others, since the destination of a guest that runs as somebody else has its socket in a
/// subdirectory of it; what is in it is private directory by directory.
pub fn runtime_directory() -> Result<PathBuf, DirectoryError> {
    let user = geteuid();
    let path = if user.is_root() {
        return ours(PathBuf::from("/run/qmigrate"), 0o711);
    } else if let Some(path) = absolute("XDG_RUNTIME_DIR") {
        path.join("qmigrate")
    } else {
        let usual = PathBuf::from(format!("/run/user/{user}"));
        if usual.is_dir() { usual.join("qmigrate") } else { state_directory()?.join("run") }
    };
    ours(path, 0o700)
}

/// Where records are kept: `/var/lib/qmigrate` for root, below `XDG_STATE_HOME` otherwise.
pub fn state_directory() -> Result<PathBuf, DirectoryError> {
    if geteuid().is_root() {
        return ours(PathBuf::from("/var/lib/qmigrate"), 0o700);
    }
    let base = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or(DirectoryError::Nowhere)?;
    ours(base.join("qmigrate"), 0o700)
}

/// A directory made for one purpose, private to one user, and removed by the one who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateDirectory {
    path: PathBuf,
    owner: Credentials,
}

impl PrivateDirectory {
    /// Makes one in a directory of the engine's, and gives it to its owner; one that is already there is an error,
    /// since its name must be ours alone.
    pub fn create(path: PathBuf, owner: &Credentials) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError::Io { path: path.clone(), source };
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        if geteuid().is_root() {
            lchown(&path, Some(owner.user.as_raw()), Some(owner.group.as_raw())).map_err(failed)?;
        }
        Ok(Self { path, owner: owner.clone() })
    }

    /// Makes one as its owner would, in a directory of the owner's.
    pub fn create_as(path: PathBuf, owner: &Credentials) -> Result<Self, DirectoryError> {
        let made = as_user(owner, || DirBuilder::new().mode(0o700).create(&path));
        match made {
            Ok(()) => Ok(Self { path, owner: owner.clone() }),
            Err(source) => Err(DirectoryError::Io { path, source }),
        }
    }

    /// One that an engine which has ended had made, or was about to make.
    pub fn of_another_engine(path: PathBuf, owner: Credentials) -> Self {
        Self { path, owner }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it. One that is gone is fine.
    pub fn remove(&self) -> io::Result<()> {
        // What is in it goes as its owner; the directory itself may stand in one of the engine's.
        let emptied = as_user(&self.owner, || empty(&self.path));
        match emptied.and_then(|()| std::fs::remove_dir(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        // A link to a directory is a link.
        if path.symlink_metadata()?.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Makes the directory with its parents if it is not there, and makes sure that nobody else can put things into it.
fn ours(path: PathBuf, mode: u32) -> Result<PathBuf, DirectoryError> {
    let failed = |source| DirectoryError::Io { path: path.clone(), source };
    match DirBuilder::new().recursive(true).mode(mode).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(&path).map_err(failed)?;
    let user = geteuid().as_raw();
    if !belongs_to(&metadata, user) {
        return Err(DirectoryError::NotOurs { path, user });
    }
    Ok(path)
}

fn belongs_to(metadata: &Metadata, user: u32) -> bool {
    metadata.is_dir() && metadata.uid() == user && metadata.permissions().mode() & 0o022 == 0
}

fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("open");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(ours(path.clone(), 0o700), Err(DirectoryError::NotOurs { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        ours(path, 0o700).unwrap();
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let (target, link) = (base.path().join("target"), base.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(ours(link, 0o700), Err(DirectoryError::NotOurs { .. })));
    }

    #[test]
    fn a_private_directory_is_made_once_and_removed_whole() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("one");
        let owner = Credentials { user: geteuid(), group: nix::unistd::getegid(), groups: vec![] };
        let directory = PrivateDirectory::create(path.clone(), &owner).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(PrivateDirectory::create(path.clone(), &owner).is_err());
        std::fs::write(path.join("file"), "x").unwrap();
        directory.remove().unwrap();
        assert!(!path.exists());
        directory.remove().expect("one that is gone is fine");
    }
}
