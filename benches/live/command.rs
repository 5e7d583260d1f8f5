//! The command as a user runs it, and what it costs.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::libc;
use serde_json::Value;

use crate::series::{Moved, Setting};

/// The program under test, as `cargo bench` has built it: with the release profile, and with the hold points of the
/// tests, which cost one look at the environment per phase.
const PROGRAM: &str = env!("CARGO_BIN_EXE_qmigrate");
/// How often the peak of a process' memory is read; the last reading stands.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exit_code: Option<i32>,
    pub(crate) wall: Duration,
    /// User and system time, of all its threads.
    pub(crate) cpu: Duration,
    /// The peak of its resident memory in KiB, where it was looked at.
    pub(crate) peak_kib: Option<u64>,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// Whether the peak of the memory is read while it runs, which costs the machine a little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    Watched,
    Unwatched,
}

/// Runs the command to its end.
pub(crate) fn run(setting: &Setting, arguments: &[&str], memory: Memory) -> anyhow::Result<Ended> {
    let (output, errors) = (setting.home().join("stdout"), setting.home().join("stderr"));
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .env("XDG_RUNTIME_DIR", setting.home())
        .env("XDG_STATE_HOME", setting.home())
        .stdin(Stdio::null())
        .stdout(File::create(&output)?)
        .stderr(File::create(&errors)?);
    let start = Instant::now();
    let child = command.spawn().context("the command cannot be started")?;
    let pid = libc::pid_t::try_from(child.id())?;
    let mut peak_kib = None;
    let (status, cpu) = loop {
        match memory {
            Memory::Unwatched => {}
            Memory::Watched => peak_kib = peak(pid).or(peak_kib),
        }
        if let Some(ended) = wait(pid, memory == Memory::Unwatched)? {
            break ended;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let wall = start.elapsed();
    Ok(Ended {
        exit_code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        wall,
        cpu,
        peak_kib,
        output: std::fs::read_to_string(output)?,
        errors: std::fs::read_to_string(errors)?,
    })
}

/// Takes a child's status and the time that it has used, if it has ended. What the kernel says of its memory here is of no use:
/// the peak includes that of the process that started it.
fn wait(pid: libc::pid_t, block: bool) -> anyhow::Result<Option<(i32, Duration)>> {
    let mut status = 0;
    // SAFETY: `rusage` is a plain structure of numbers, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let options = if block { 0 } else { libc::WNOHANG };
    // SAFETY: both pointers are to live variables of the types that the call writes, and `pid` is a child of this
    // process that nobody else waits for.
    let waited = unsafe { libc::wait4(pid, &raw mut status, options, &raw mut usage) };
    match nix::errno::Errno::result(waited)? {
        0 => Ok(None),
        _ => Ok(Some((status, duration(usage.ru_utime)? + duration(usage.ru_stime)?))),
    }
}

fn duration(time: libc::timeval) -> anyhow::Result<Duration> {
    Ok(Duration::from_secs(time.tv_sec.try_into()?) + Duration::from_micros(time.tv_usec.try_into()?))
}

/// The peak of a process' resident memory in KiB; none once it has ended.
fn peak(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

impl Ended {
    /// What has become of a migration that was to succeed; figures are there if they were asked for with `--json`.
    pub(crate) fn moved(&self) -> anyhow::Result<Moved> {
        ensure!(self.exit_code == Some(0), "qmigrate ended with {:?}: {}", self.exit_code, self.errors);
        let lines = self.output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let (mut result, mut limit_raised) = (Value::Null, false);
        for line in lines {
            limit_raised |= line["choice"] == "limit";
            if line["type"] == "result" {
                result = line;
            }
        }
        Ok(Moved {
            total_ms: self.wall.as_secs_f64() * 1e3,
            stop_to_resume_ms: result["blackout"]["stop_to_resume_ms"].as_f64(),
            qemu_downtime_ms: result["blackout"]["qemu_downtime_ms"].as_u64(),
            stream_ms: result["totals"]["stream_ms"].as_u64(),
            passes: result["totals"]["passes"].as_u64(),
            limit_raised,
        })
    }
}
