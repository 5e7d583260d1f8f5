//! What /proc says of a process.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::stat::{major, minor};
use nix::unistd::{Gid, Uid};

use super::user::Credentials;

/// Something of a process could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// There is no such process.
    #[error("there is no process {0}")]
    Gone(i32),
    /// It belongs to somebody else.
    #[error("process {0} belongs to another user, and its {1} cannot be read")]
    Denied(i32, &'static str),
    /// Anything else.
    #[error("the {what} of process {pid} cannot be read")]
    Io {
        /// The process.
        pid: i32,
        /// What of it.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Which boot of the host this is cannot be read.
    #[error("the host's boot id cannot be read")]
    Boot(#[source] io::Error),
    /// The text is not what Linux writes there.
    #[error("the {what} of process {pid} is not in the form that Linux documents")]
    Malformed {
        /// The process.
        pid: i32,
        /// What of it.
        what: &'static str,
    },
}

/// What a second process needs to be started like the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessView {
    /// Its number.
    pub pid: i32,
    /// Its arguments as they were given, the program's own name first.
    pub arguments: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The file that it runs; a trailing ` (deleted)` is taken off (a package upgrade replaces the file of a running
    /// QEMU, and the new one stands at the same path).
    pub executable: PathBuf,
    /// Its working directory. After `-daemonize` this is `/`, whatever it was before.
    pub working_directory: PathBuf,
    /// Whom it runs as.
    pub credentials: Credentials,
}

impl ProcessView {
    /// Reads all of it.
    pub fn read(pid: i32) -> Result<Self, ProcError> {
        Ok(Self {
            pid,
            arguments: command_line(pid)?,
            environment: split_at_nul(&read(pid, "environ")?).into_iter().filter_map(key_and_value).collect(),
            executable: executable(pid)?,
            working_directory: link(pid, "cwd")?,
            credentials: credentials(pid)?,
        })
    }
}

/// The file that a process runs; a trailing ` (deleted)` is taken off.
pub fn executable(pid: i32) -> Result<PathBuf, ProcError> {
    let name = link(pid, "exe")?.into_os_string().into_vec();
    let name = name.strip_suffix(b" (deleted)").map_or(name.clone(), <[u8]>::to_vec);
    Ok(PathBuf::from(OsString::from_vec(name)))
}

fn link(pid: i32, name: &'static str) -> Result<PathBuf, ProcError> {
    std::fs::read_link(format!("/proc/{pid}/{name}")).map_err(|error| proc_error(pid, name, error))
}

/// Whether a process has mapped the file that a path leads to now, and not one that was there before.
pub fn maps_file(pid: i32, path: &Path) -> bool {
    let (Ok(about), Ok(maps)) = (path.metadata(), std::fs::read_to_string(format!("/proc/{pid}/maps")))
    else {
        return false;
    };
    let device = format!("{:02x}:{:02x}", major(about.dev()), minor(about.dev()));
    let (inode, whole) = (about.ino().to_string(), path.canonicalize().unwrap_or_else(|_| path.to_owned()));
    maps.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let (on, number) = (fields.next(), fields.next());
        // A file system may tell another device there than here (btrfs does); then the name must be the same.
        let is_there = on == Some(&device) || line.ends_with(&*whole.to_string_lossy());
        number == Some(&inode) && is_there && !line.ends_with(" (deleted)")
    })
}

/// The arguments of a process; empty for a kernel thread and for one that has ended.
pub fn command_line(pid: i32) -> Result<Vec<OsString>, ProcError> {
    Ok(split_at_nul(&read(pid, "cmdline")?))
}

/// The files that a process has open, by their whole names; best effort. One that was removed has none.
pub fn open_files(pid: i32) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    names.filter(|name| name.is_absolute() && !name.to_string_lossy().ends_with(" (deleted)")).collect()
}

/// The processes that there are now.
pub fn processes() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// When a process started, in clock ticks since boot (`proc(5)`, field 22 of `stat`).
pub(super) fn start_time(pid: i32) -> Result<u64, ProcError> {
    let stat = read(pid, "stat")?;
    let text = String::from_utf8_lossy(&stat);
    // The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    let after_name = text.rsplit_once(')').map(|(_, rest)| rest);
    after_name
        .and_then(|rest| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or(ProcError::Malformed { pid, what: "stat" })
}

/// Which boot of the host this is: another one has another id (`random(4)`).
pub(super) fn boot_id() -> Result<String, ProcError> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot.clone());
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(ProcError::Boot)?;
    Ok(BOOT.get_or_init(|| text.trim_end().to_owned()).clone())
}

/// Whom a process runs as: its effective user and group and its further groups.
fn credentials(pid: i32) -> Result<Credentials, ProcError> {
    let status = read(pid, "status")?;
    let text = String::from_utf8_lossy(&status);
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
    };
    let effective = |name: &str| numbers(name).and_then(|numbers| numbers.get(1).copied());
    match (effective("Uid:"), effective("Gid:"), numbers("Groups:")) {
        (Some(user), Some(group), Some(groups)) => Ok(Credentials {
            user: Uid::from_raw(user),
            group: Gid::from_raw(group),
            groups: groups.into_iter().map(Gid::from_raw).collect(),
        }),
        _ => Err(ProcError::Malformed { pid, what: "status" }),
    }
}

pub(super) fn read(pid: i32, what: &'static str) -> Result<Vec<u8>, ProcError> {
    std::fs::read(format!("/proc/{pid}/{what}")).map_err(|error| proc_error(pid, what, error))
}

pub(super) fn proc_error(pid: i32, what: &'static str, source: io::Error) -> ProcError {
    match source.kind() {
        io::ErrorKind::NotFound => ProcError::Gone(pid),
        io::ErrorKind::PermissionDenied => ProcError::Denied(pid, what),
        // A process that ends while it is read.
        _ if source.raw_os_error() == Some(nix::libc::ESRCH) => ProcError::Gone(pid),
        _ => ProcError::Io { pid, what, source },
    }
}

fn split_at_nul(bytes: &[u8]) -> Vec<OsString> {
    let mut parts: Vec<OsString> =
        bytes.split(|&byte| byte == 0).map(|part| OsString::from_vec(part.to_vec())).collect();
    // Each string ends with NUL, so that the last part is what stands behind the last one: nothing.
    if parts.last().is_some_and(|last| last.is_empty()) {
        parts.pop();
    }
    parts
}

fn key_and_value(entry: OsString) -> Option<(OsString, OsString)> {
    let bytes = entry.into_vec();
    let middle = bytes.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (bytes[..middle].to_vec(), bytes[middle + 1..].to_vec());
    Some((OsString::from_vec(key), OsString::from_vec(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let view = ProcessView::read(pid).unwrap();
        assert_eq!(view.executable, std::env::current_exe().unwrap());
        assert_eq!(view.working_directory, std::env::current_dir().unwrap());
        assert_eq!(view.arguments, std::env::args_os().collect::<Vec<_>>());
        assert_eq!(view.credentials.user, nix::unistd::geteuid());
        assert!(start_time(pid).unwrap() > 0);
        assert!(processes().contains(&pid));
    }

    #[test]
    fn a_file_that_is_mapped_is_known_from_another_one_in_its_place() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = std::env::current_exe().unwrap();
        assert!(maps_file(pid, &own));
        let place = tempfile::tempdir().unwrap();
        let copy = place.path().join("copy");
        std::fs::copy(&own, &copy).unwrap();
        assert!(!maps_file(pid, &copy));
        assert!(!maps_file(pid, &place.path().join("none")));
    }

    #[test]
    fn a_process_that_is_not_there_is_said_to_be_gone() {
        assert!(matches!(ProcessView::read(i32::MAX), Err(ProcError::Gone(_))));
    }
}
