//! One process, watched and ended as itself.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::proc::{ProcError, boot_id, proc_error, start_time};

/// What names one process for good: its number is used again, the rest is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time_ticks: u64,
    /// Which boot: after another one a process of the same number may have started as soon.
    pub boot: String,
    /// The user that it runs as.
    pub user: u32,
}

impl ProcessIdentity {
    /// The identity of the process that has this number now.
    pub fn of(pid: i32) -> Result<Self, ProcError> {
        let start_time_ticks = start_time(pid)?;
        let metadata =
            std::fs::metadata(format!("/proc/{pid}")).map_err(|error| proc_error(pid, "owner", error))?;
        Ok(Self { pid, start_time_ticks, boot: boot_id()?, user: metadata.uid() })
    }
}

/// A hold on one process: it can be watched and ended, and its number cannot come to mean another.
#[derive(Debug)]
pub struct ProcessHandle {
    identity: ProcessIdentity,
    /// None for one that had ended before it could be held.
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl ProcessHandle {
    /// Takes hold of a process by its number.
    ///
    /// Must be called within a tokio runtime.
    pub fn open(pid: i32) -> Result<Self, ProcError> {
        let failed = |source| ProcError::Io { pid, what: "descriptor", source };
        let number = Pid::from_raw(pid).ok_or(ProcError::Gone(pid))?;
        // First the hold, then the name: what is read after the hold belongs to the process held, or it has ended.
        let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK).map_err(|error| match error {
            rustix::io::Errno::SRCH => ProcError::Gone(pid),
            error => failed(error.into()),
        })?;
        let identity = ProcessIdentity::of(pid)?;
        // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, and here it is dropped with the
        // `AsyncFd` that owns it.
        let pidfd = unsafe { AsyncFd::register(pidfd) }.map_err(|error| failed(error.into()))?;
        Ok(Self { identity, pidfd: Some(pidfd) })
    }

    /// A hold on nothing, for a process that is known to have ended.
    pub fn of_one_that_ended(identity: ProcessIdentity) -> Self {
        Self { identity, pidfd: None }
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Its name.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Ends it at once (`SIGKILL`), also when it is stopped. One that has already ended is fine.
    pub fn kill(&self) -> io::Result<()> {
        let Some(pidfd) = &self.pidfd else { return Ok(()) };
        match pidfd_send_signal(pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.has_ended_within(Duration::ZERO)
    }

    /// Whether it has ended by then; blocks the thread, for where nothing can be awaited.
    pub fn has_ended_within(&self, bound: Duration) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        let mut polled = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
        // Bounds are seconds: far below what the kernel can hold.
        let bound = Timespec {
            tv_sec: i64::try_from(bound.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: bound.subsec_nanos().into(),
        };
        rustix::event::poll(&mut polled, Some(&bound)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until it has ended: its memory is gone and it will never run again.
    pub async fn ended(&self) {
        let Some(pidfd) = &self.pidfd else { return };
        // A pidfd becomes readable when its process has ended, and stays so. An error here can only mean that the
        // runtime is being torn down; then nobody waits for the answer.
        let _ = pidfd.readable().await;
    }

    /// Waits until it has ended, but not longer than `bound`; says whether it has.
    pub async fn ended_within(&self, bound: Duration) -> bool {
        tokio::time::timeout(bound, self.ended()).await.is_ok()
    }
}

/// The name of a program without its path and without the ` (deleted)` that Linux adds.
pub fn executable_name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).map_or("", |name| name.trim_end_matches(" (deleted)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> tokio::process::Child {
        tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap()
    }

    #[test]
    fn a_process_of_another_boot_is_another_one() {
        let now = ProcessIdentity::of(1).unwrap();
        assert_eq!(now, ProcessIdentity::of(1).unwrap());
        assert_ne!(now, ProcessIdentity { boot: "another".to_owned(), ..now.clone() });
        assert_eq!(now.boot.len(), 36, "{}", now.boot);
    }

    #[tokio::test]
    async fn a_process_is_ended_for_certain_even_when_stopped() {
        let mut child = sleeper();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let handle = ProcessHandle::open(pid).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
        assert!(!handle.has_ended());
        handle.kill().unwrap();
        assert!(handle.ended_within(Duration::from_secs(10)).await);
        assert!(handle.has_ended());
        child.wait().await.unwrap();
        handle.kill().expect("one that has ended is fine");
    }

    #[tokio::test]
    async fn two_processes_have_two_identities() {
        let (first, second) = (sleeper(), sleeper());
        let identity = |child: &tokio::process::Child| {
            ProcessIdentity::of(i32::try_from(child.id().unwrap()).unwrap()).unwrap()
        };
        assert_ne!(identity(&first), identity(&second));
        assert_eq!(identity(&first), identity(&first));
    }
}
