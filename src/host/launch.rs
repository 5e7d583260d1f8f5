//! Starts a process: one that outlives the engine, or one that ends with it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid, getpid, getppid, setgid, setgroups, setsid, setuid};

use super::standing::Standing;
use super::user::Credentials;

/// A process to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Its environment, whole.
    pub environment: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub working_directory: PathBuf,
    /// Whom it runs as; only root can start one as somebody else.
    pub credentials: Credentials,
    /// The limits and the rest that it takes from another process, as far as that is permitted; nothing for one that
    /// has them from the engine.
    pub standing: Option<Standing>,
    /// Where its standard output and standard error go.
    pub output: Output,
    /// How long it lives.
    pub life: Life,
}

/// Where a process writes.
#[derive(Debug, Clone)]
pub enum Output {
    /// A file that is made anew, readable by its user only.
    Log(PathBuf),
    /// One without a name, of which nothing is left once nobody holds it.
    Nameless(Arc<File>),
}

impl Output {
    /// A file without a name.
    pub fn nameless() -> io::Result<Self> {
        Ok(Self::Nameless(Arc::new(File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC)?))))
    }

    /// The end of what was written; empty where there is nothing.
    pub fn end(&self) -> Vec<u8> {
        match self {
            Self::Log(path) => log_end(path),
            Self::Nameless(file) => end_of(file).unwrap_or_default(),
        }
    }

    fn open(&self, credentials: &Credentials) -> io::Result<File> {
        match self {
            Self::Log(path) => log_file(path, credentials),
            Self::Nameless(file) => file.try_clone(),
        }
    }
}

/// How long a process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// No end of the engine reaches it.
    OfItsOwn,
    /// It is killed when the thread that started it ends, however that does. What it has started itself is not.
    WithItsStarter,
}

/// Starts it, in a session of its own: no terminal and no signal meant for the engine reaches it. Its standard input is
/// empty.
pub fn launch(launch: &Launch) -> io::Result<Child> {
    let (program, arguments) = launch.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let log = launch.output.open(&launch.credentials)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(launch.environment.iter().map(|(key, value)| (key, value)))
        .current_dir(&launch.working_directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let credentials = launch.credentials.clone();
    let standing = launch.standing.as_ref().map(Standing::ready);
    let (changes_user, life, starter) = (geteuid().is_root(), launch.life, getpid());
    let before_exec = move || {
        setsid()?;
        if let Some(standing) = &standing {
            standing.take();
        }
        if changes_user {
            setgroups(&credentials.groups)?;
            setgid(credentials.group)?;
            setuid(credentials.user)?;
        }
        if life == Life::WithItsStarter {
            // A change of user would undo it.
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != starter {
                // It had ended before.
                return Err(Errno::ESRCH.into());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only (setsid, setgroups, setgid, setuid, prctl,
    // getppid, and those that a standing is taken by); it takes no lock and allocates nothing, and what it owns was
    // allocated before.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
}

/// Ends a process that was launched here, and what it has started itself: a program may be a script that runs QEMU as a
/// child of its own. What cannot be killed has ended.
pub fn end(child: &mut Child) {
    // The number of one that has been waited for may be somebody else's by now.
    if let (Ok(None), Ok(group)) = (child.try_wait(), i32::try_from(child.id())) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn log_file(path: &Path, credentials: &Credentials) -> io::Result<File> {
    let log = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
    if geteuid().is_root() {
        std::os::unix::fs::fchown(&log, Some(credentials.user.as_raw()), Some(credentials.group.as_raw()))?;
    }
    Ok(log)
}

/// So much of what a process said last is read.
const LAST_WORDS_BYTES: usize = 2000;

/// The end of what a process wrote into its log; empty where there is nothing. The log is in a directory of that
/// process's user, who may have put anything in its place: only a plain file is read, and only its end.
fn log_end(log: &Path) -> Vec<u8> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let read = || -> io::Result<Vec<u8>> {
        let file = OpenOptions::new().read(true).custom_flags(flags).open(log)?;
        if file.metadata()?.is_file() { end_of(&file) } else { Ok(Vec::new()) }
    };
    read().unwrap_or_default()
}

/// Where the file is read from is not moved: whoever writes to it may share that place.
fn end_of(file: &File) -> io::Result<Vec<u8>> {
    let mut end = vec![0; LAST_WORDS_BYTES];
    let from = file.metadata()?.len().saturating_sub(u64::try_from(LAST_WORDS_BYTES).unwrap_or(u64::MAX));
    let read = file.read_at(&mut end, from)?;
    end.truncate(read);
    Ok(end)
}
