//! A real guest with a heart, the built command to move it, and points at which the engine is held.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qapi_qmp as words;
use qmigrate::guest::{Accelerator, Content, Pattern, Workload};
use qmigrate::host::{ProcessHandle, ProcessView};
use qmigrate::lab::subject::{Board, SECOND_MONITOR, Subject};
use qmigrate::observe::heartbeat::{Handover, Sequence};
use qmigrate::qmp::words::{RunState, StatusInfo};
use qmigrate::qmp::{Client, Deadlines, Leg};
use qmigrate::units::Size;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support;

/// Nothing that a test waits for takes longer on a machine that is not broken.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A guest in a directory of its own; all QEMUs that ever ran it end with it.
pub(crate) struct Lab {
    pub(crate) subject: Subject,
    pub(crate) directory: TempDir,
    /// What each of its commands begins with: the way into another mount namespace, for one.
    pub(crate) prefix: Vec<String>,
}

impl Lab {
    /// A guest that rewrites so many mebibytes, at a rate or as fast as it can. `None` where there is no QEMU.
    pub(crate) async fn start(test: &str, mebibytes: u64, rate: Option<&str>) -> Option<Self> {
        let Some(qemu) = support::qemu() else {
            support::skip(test, "there is no qemu-system-x86_64; tests/run gets one");
            return None;
        };
        Some(Self::start_on(&qemu, Board::newest(Accelerator::Tcg), mebibytes, rate).await)
    }

    /// The same on a QEMU and a machine of one's own choice.
    pub(crate) async fn start_on(qemu: &Path, board: Board<'_>, mebibytes: u64, rate: Option<&str>) -> Self {
        let directory = tempfile::Builder::new().prefix("qm").tempdir().unwrap();
        let workload = Workload::new(
            Size::from_mebibytes((mebibytes + 48).max(64)).unwrap(),
            Size::from_mebibytes(mebibytes).unwrap(),
            rate.map(|rate| rate.parse().unwrap()),
            Pattern::Sweep,
            Content::Incompressible,
        );
        let subject = Subject::start(qemu, board, workload.unwrap(), directory.path()).await.unwrap();
        Self { subject, directory, prefix: Vec::new() }
    }

    pub(crate) fn monitor(&self) -> String {
        self.subject.monitor.to_string()
    }

    /// A second client, on a monitor of its own.
    pub(crate) async fn somebody(&self) -> Client {
        let address =
            format!("unix:{}", self.directory.path().join(SECOND_MONITOR).display()).parse().unwrap();
        Client::connect(&address, Leg::Source, Deadlines::default()).await.unwrap()
    }

    /// The process that the guest was started in.
    pub(crate) fn source(&self) -> i32 {
        self.subject.process.pid()
    }

    /// The last QEMU but the source that has connected to the observer, which may take a moment to notice.
    pub(crate) fn destination(&self) -> i32 {
        let (source, deadline) = (self.source(), Instant::now() + SOON);
        loop {
            let pids = self.subject.observer.pids();
            if let Some(pid) = pids.into_iter().rfind(|&pid| pid != source) {
                return pid;
            }
            assert!(Instant::now() < deadline, "no destination has connected to the observer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts a destination as a user would: with the source's words but for the `-uuid`, and with these; gives its
    /// process, which ends with its owner, and its QMP socket.
    pub(crate) async fn by_hand(&self, uuid: Option<&str>, more: &[&str]) -> (support::Process, PathBuf) {
        let place = tempfile::Builder::new().prefix("mine").tempdir_in(self.directory.path()).unwrap().keep();
        let own = |word: &str| {
            [SECOND_MONITOR, "qmp"].into_iter().fold(word.to_owned(), |word, name| {
                let name = |directory: &Path| format!("unix:{},", directory.join(name).display());
                word.replace(&name(self.directory.path()), &name(&place))
            })
        };
        let words = qmigrate::host::command_line(self.source()).unwrap();
        let mut words: Vec<OsString> = words.iter().map(|word| own(&word.to_string_lossy()).into()).collect();
        if let Some(at) = words.iter().position(|word| word == "-uuid") {
            words.drain(at..at + 2);
        }
        words.extend(
            uuid.iter().flat_map(|uuid| ["-uuid", uuid]).chain(more.iter().copied()).map(OsString::from),
        );
        // A QEMU that stands somewhere else than it was built for finds its parts by its environment.
        let view = ProcessView::read(self.source()).unwrap();
        let variable = |(name, value): &(OsString, OsString)| [name.as_os_str(), value].join(OsStr::new("="));
        words.splice(0..0, view.environment.iter().map(variable));
        let process = support::Process::start(Path::new("/usr/bin/env"), &words, place.join("log"));
        let qmp = place.join("qmp");
        until("the destination listens", async || {
            assert!(lives(process.pid()), "{}", process.log());
            UnixStream::connect(&qmp).is_ok()
        })
        .await;
        (process, qmp)
    }

    /// Moves the guest.
    pub(crate) fn migrate(&self, arguments: &[&str]) -> Ended {
        let monitor = self.monitor();
        let mut all = vec!["migrate", &monitor, "--json"];
        all.extend(arguments);
        run(self.command(&all))
    }

    /// The built command, as this guest's are run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let Some((program, words)) = self.prefix.split_first() else { return command(arguments) };
        let mut command = Command::new(program);
        command.args(words).arg(env!("CARGO_BIN_EXE_qmigrate")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Begins to move the guest, with the engine held as it enters a phase.
    pub(crate) fn migrate_held(&self, phase: &str, arguments: &[&str]) -> Held {
        let socket = self.directory.path().join(format!("hold-{phase}"));
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = self.command(&["migrate", &self.monitor(), "--json"]);
        command.args(arguments).env("QMIGRATE_HOLD", format!("{phase}={}", socket.display()));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Held { child, listener, socket }
    }

    pub(crate) async fn state(&self) -> RunState {
        let client = self.subject.connect().await.unwrap();
        let status: StatusInfo = client.call_as(&words::query_status {}, SOON).await.unwrap();
        status.status
    }

    /// Proves the guest's memory, and that no tick was beaten twice, here or elsewhere: the guest counts its ticks,
    /// and all hearts together have beaten as often.
    pub(crate) async fn prove(&self) {
        let client = self.subject.connect().await.unwrap();
        let (_, state) = self.subject.verify(&client).await.unwrap();
        let hearts =
            self.subject.observer.pids().into_iter().filter_map(|pid| self.subject.observer.heart(pid));
        let beats: u64 = hearts.map(|heart| heart.beats).sum();
        let ticks = u64::from(state.ticks);
        assert!(beats == ticks || beats + 1 == ticks, "{beats} beats were seen, {ticks} ticks counted");
        client.call(&words::cont {}, SOON).await.unwrap();
    }

    /// The handover from the process in which the guest was started to its latest destination: never two.
    pub(crate) fn never_two(&self, source: i32, destination: i32) -> Handover {
        self.subject.observer.wait_for_first_beat(destination, SOON).expect("the destination's heart beats");
        let handover = self.subject.observer.handover(source, destination).unwrap();
        assert_eq!(handover.sequence, Sequence::Continuous, "{handover:?}");
        assert_eq!(handover.overlap, None, "{handover:?}");
        handover
    }

    /// Waits until a heart has beaten so much more.
    pub(crate) fn beats_on(&self, pid: i32) {
        let beaten = self.subject.observer.heart(pid).map_or(0, |heart| heart.beats);
        assert!(
            self.subject.observer.wait_for_beats(pid, beaten + 20, SOON),
            "the heart of {pid} does not beat"
        );
    }

    /// What is left beside the guest's own files.
    pub(crate) fn left_behind(&self) -> Vec<PathBuf> {
        let own = ["beats", "qmp", SECOND_MONITOR, "source.log"];
        let entries = std::fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| !own.iter().any(|own| path.ends_with(own))).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in self.subject.observer.pids() {
            let is_qemu = std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                String::from_utf8_lossy(&line).contains(&*self.directory.path().to_string_lossy())
            });
            if is_qemu {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }
}

/// The built command.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmigrate"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stderr: String,
    pub(crate) lines: Vec<Value>,
}

impl Ended {
    /// The entries of one type.
    pub(crate) fn entries(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter(|line| line["type"] == kind).collect()
    }

    pub(crate) fn result(&self) -> &Value {
        self.entries("result").first().unwrap_or_else(|| panic!("no result: {self:?}"))
    }
}

pub(crate) fn run(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    ended(output.status, &output.stdout, &output.stderr)
}

pub(crate) fn ended(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Ended {
    let lines = String::from_utf8_lossy(stdout);
    Ended {
        code: status.code().unwrap_or(-1),
        stderr: String::from_utf8_lossy(stderr).into_owned(),
        lines: lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
    }
}

/// An engine that is held, or will be.
pub(crate) struct Held {
    pub(crate) child: Child,
    listener: UnixListener,
    socket: PathBuf,
}

impl Held {
    /// Waits until the engine has entered the phase; it goes on when the stream is dropped.
    pub(crate) fn wait(&mut self) -> UnixStream {
        self.listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + SOON;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "the engine did not reach the hold point");
                    if self.child.try_wait().unwrap().is_some() {
                        let mut said = String::new();
                        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                        self.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
                        panic!("the engine ended before the hold point: {said}");
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        std::fs::remove_file(&self.socket).unwrap();
        ended(self.child.wait().unwrap(), &stdout, &stderr)
    }
}

/// Waits until an engine has nothing more to read, and since then for longer than what it has heard of a destination is
/// a sign of life.
pub(crate) async fn until_it_has_read_all(engine: i32) {
    const SIGN_OF_LIFE_LASTS: Duration = Duration::from_millis(10);
    until("the engine sleeps or has ended", async || matches!(state_of(engine), 'S' | 'Z')).await;
    tokio::time::sleep(SIGN_OF_LIFE_LASTS * 2).await;
}

/// The state of a process's first thread, as `proc(5)` has it.
pub(crate) fn state_of(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap()
}

/// Whether a signal to a process waits to be taken.
pub(crate) fn is_signal_pending(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut sets = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:"));
    sets.any(|set| set.trim().bytes().any(|digit| digit != b'0'))
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Ends a process and waits until its last thread has ended.
pub(crate) async fn kill_for_certain(pid: i32) {
    let process = ProcessHandle::open(pid).unwrap();
    process.kill().unwrap();
    assert!(process.ended_within(SOON).await);
}

/// Waits for a condition, level-triggered and bounded.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How a QEMU is set up: capabilities with what it exports and works on beside, and parameters.
pub(crate) async fn settings(client: &Client) -> (Value, Value) {
    let capabilities = client.call(&words::query_migrate_capabilities {}, SOON).await.unwrap();
    let exports = client.call(&words::query_block_exports {}, SOON).await.unwrap();
    let jobs = client.call(&words::query_block_jobs {}, SOON).await.unwrap();
    (
        json!({ "capabilities": capabilities, "exports": exports, "jobs": jobs }),
        client.call(&words::query_migrate_parameters {}, SOON).await.unwrap(),
    )
}

/// Whether there is such a process. One whose first thread has ended lives on until its last one has.
pub(crate) fn lives(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let first_has_ended =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    threads > 1 || (threads == 1 && !first_has_ended)
}
