//! Starts a process that outlives the engine.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setgid, setgroups, setsid, setuid};

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its user.
    pub user: Uid,
    /// Its group.
    pub group: Gid,
    /// Its further groups.
    pub groups: Vec<Gid>,
}

impl Credentials {
    /// Those of this process.
    pub fn own() -> nix::Result<Self> {
        let (user, group) = (geteuid(), getegid());
        Ok(Self { user, group, groups: getgroups()? })
    }
}

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
    /// Where its standard output and standard error go; made anew, readable by its user only.
    pub log: PathBuf,
}

/// Starts it, in a session of its own: no terminal, no signal meant for the engine, and no end of the engine reaches
/// it. Its standard input is empty.
pub fn launch(launch: &Launch) -> io::Result<Child> {
    let (program, arguments) = launch.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let log = log_file(launch)?;
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
    let changes_user = geteuid().is_root();
    let before_exec = move || {
        setsid()?;
        if changes_user {
            setgroups(&credentials.groups)?;
            setgid(credentials.group)?;
            setuid(credentials.user)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only (setsid, setgroups, setgid, setuid); it takes
    // no lock and allocates nothing, and what it owns was allocated before.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
}

fn log_file(launch: &Launch) -> io::Result<File> {
    let log = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&launch.log)?;
    if geteuid().is_root() {
        let credentials = &launch.credentials;
        std::os::unix::fs::fchown(&log, Some(credentials.user.as_raw()), Some(credentials.group.as_raw()))?;
    }
    Ok(log)
}
