//! A state directory of a cell's own, to be filled or closed: it stands in a mount namespace in place of this user's,
//! and goes with the process that holds it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use qmigrate::host::state_directory;

/// A journal and a little more.
const ROOM: &str = "size=64k";

/// What can be done to a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something else takes all the room.
    Full,
    /// Nothing can be written or removed any more, not even by who has the file open.
    ReadOnly,
}

/// A state directory of its own.
pub(super) struct StateDirectory {
    holder: Child,
    /// As it is seen from here.
    path: PathBuf,
}

impl StateDirectory {
    /// Whether there can be such a one here; the error says why not.
    pub(super) fn try_out(kind: Kind) -> Result<(), String> {
        let scratch = tempfile::Builder::new().prefix("qmf").tempdir().unwrap();
        let state = Self::make(kind, scratch.path())?;
        let path = state.path().join("try");
        let file = std::fs::File::create(&path).map_err(|error| error.to_string())?;
        let closed = state.close(kind);
        let fails = file.write_all_at(&[0; 4096], 0).is_err();
        drop(closed?);
        if fails { Ok(()) } else { Err(format!("{kind:?}: what is open can be written to all the same")) }
    }

    /// Makes one; what it is made of, if it is not in memory, is in the scratch directory.
    pub(super) fn make(kind: Kind, scratch: &Path) -> Result<Self, String> {
        let usual = state_directory().unwrap();
        let mount = match kind {
            Kind::Full => format!("mount -t tmpfs -o {ROOM},mode=700 qmigrate '{}'", usual.display()),
            // No flag keeps an open file of a tmpfs from being written to.
            Kind::ReadOnly => {
                let own = scratch.join("state");
                std::fs::DirBuilder::new().mode(0o700).create(&own).unwrap();
                format!("mount --bind '{}' '{}'", own.display(), usual.display())
            }
        };
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(format!("{mount} && echo there && read -r end"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if said != "there\n" {
            holder.wait().unwrap();
            return Err("it takes root, and the right to mount".to_owned());
        }
        let path =
            PathBuf::from(format!("/proc/{}/root", holder.id())).join(usual.strip_prefix("/").unwrap());
        Ok(Self { holder, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What a command begins with that is to have this state directory.
    pub(super) fn prefix(&self) -> Vec<String> {
        let holder = self.holder.id().to_string();
        ["nsenter", "--mount", "--target", &holder, "--"].map(str::to_owned).to_vec()
    }

    /// Makes writing fail from now on, until what is given back is dropped.
    pub(super) fn close(&self, kind: Kind) -> Result<Closed, String> {
        match kind {
            Kind::Full => {
                let path = self.path.join("filler");
                let mut file = std::fs::File::create(&path).unwrap();
                while file.write_all(&[0; 1024]).is_ok() {}
                Ok(Closed::Filled(path))
            }
            Kind::ReadOnly => {
                let all = all(&self.path);
                let closed = Closed::Immutable(all.clone());
                change_flag("+i", &all).map(|()| closed)
            }
        }
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

/// What keeps a state directory from being written to.
pub(super) enum Closed {
    Filled(PathBuf),
    Immutable(Vec<PathBuf>),
}

impl Drop for Closed {
    fn drop(&mut self) {
        match self {
            Self::Filled(path) => {
                std::fs::remove_file(path).ok();
            }
            Self::Immutable(all) => {
                // Where the flag could not be set there is none to take away.
                let _ = change_flag("-i", all);
            }
        }
    }
}

fn change_flag(flag: &str, all: &[PathBuf]) -> Result<(), String> {
    let output = Command::new("chattr").arg(flag).args(all).output();
    let output = output.map_err(|error| format!("chattr: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// A directory and all that is in it.
fn all(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(self::all(&path));
        } else {
            all.push(path);
        }
    }
    all
}
