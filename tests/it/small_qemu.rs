//! A small QEMU that runs no guest to speak of, and the built command that is to move it, or not to.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmigrate::host::{command_line, processes};
use qmigrate::record::MigrationId;
use serde_json::{Value, json};

use crate::support::{Process, qemu, skip};

/// No wait is longer, and none is expected to come near.
pub(crate) const MOST: Duration = Duration::from_secs(60);

/// Waits until `look` finds something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < MOST, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The real QEMU, or a loud skip.
pub(crate) fn qemu_or_skip(test: &str) -> Option<PathBuf> {
    let found = qemu();
    if found.is_none() {
        skip(test, "no QEMU: neither QMIGRATE_QEMU nor qemu-system-x86_64 in the path");
    }
    found
}

/// As little of a QMP client as will do.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = wait_for("a monitor", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(MOST)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.line();
        monitor.ask("qmp_capabilities");
        monitor
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.attempt(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// What QEMU answers, or what it says against it.
    pub(crate) fn attempt(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        // In one write: QEMU begins with a command at its last brace, and may have quit before the end of the line.
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut reply = self.line();
            if reply.get("event").is_none() {
                return if reply.get("error").is_none() { Ok(reply["return"].take()) } else { Err(reply) };
            }
        }
    }

    /// The connection, for somebody else to hold.
    pub(crate) fn into_stream(self) -> Stdio {
        std::os::fd::OwnedFd::from(self.0.into_inner()).into()
    }

    pub(crate) fn ask(&mut self, command: &str) -> Value {
        self.execute(command, &json!({}))
    }

    pub(crate) fn wait_for_migration(&mut self, status: &str) {
        wait_for(status, || (self.ask("query-migrate")["status"] == status).then_some(()));
    }
}

/// A directory of one test, and with it the end of every QEMU that has its name on the command line.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// Its name is short: a socket's path has 107 bytes.
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::Builder::new().prefix("qmi").tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The QEMUs whose command line names this directory.
    pub(crate) fn qemus(&self) -> Vec<i32> {
        let own = self.path().to_str().unwrap();
        let is_here = |pid: &i32| {
            let words = command_line(*pid).unwrap_or_default();
            let has = |text: &str| words.iter().any(|word| word.to_string_lossy().contains(text));
            has(own) && has("-nodefaults")
        };
        processes().into_iter().filter(is_here).collect()
    }

    /// Everything in it, but logs.
    fn files(&self) -> Vec<OsString> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let mut names: Vec<OsString> =
            names.filter(|name| !name.to_string_lossy().ends_with(".log")).collect();
        names.sort();
        names
    }

    /// Starts a QEMU here; it is there when its monitor is.
    pub(crate) fn start(&self, qemu: &Path, name: &str, options: &[&str]) -> Process {
        let monitor = self.at(name);
        let qmp = format!("unix:{},server=on,wait=off", monitor.display());
        let mut words = vec!["-qmp", &qmp];
        words.extend(options);
        let process = self.start_without_monitor(qemu, name, &words);
        wait_for("a monitor", || UnixStream::connect(&monitor).ok());
        process
    }

    /// Starts a QEMU that has no monitor but those among the options.
    pub(crate) fn start_without_monitor(&self, qemu: &Path, name: &str, options: &[&str]) -> Process {
        let words = ["-nodefaults", "-display", "none", "-machine", "pc", "-accel", "tcg", "-m", "32"];
        let words = words.iter().chain(options).map(OsString::from).collect::<Vec<_>>();
        Process::start(qemu, &words, self.at(&format!("{name}.log")))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.qemus() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// What must be the same before and after a refusal.
#[derive(Debug, PartialEq)]
pub(crate) struct Snapshot {
    state: Value,
    migration: Value,
    capabilities: Value,
    parameters: Value,
    qemus: Vec<i32>,
    files: Vec<OsString>,
}

/// A QEMU that is to be moved, or not to be.
pub(crate) struct Source {
    // Fields are dropped in this order: the process first.
    pub(crate) process: Process,
    pub(crate) place: Place,
}

impl Source {
    pub(crate) fn start(qemu: &Path, options: &[&str]) -> Self {
        let place = Place::new();
        let process = place.start(qemu, "qmp", options);
        Self { process, place }
    }

    pub(crate) fn qmp(&self) -> PathBuf {
        self.place.at("qmp")
    }

    pub(crate) fn monitor(&self) -> Monitor {
        Monitor::connect(&self.qmp())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot_at(&self.qmp())
    }

    fn snapshot_at(&self, monitor: &Path) -> Snapshot {
        let mut monitor = Monitor::connect(monitor);
        Snapshot {
            state: monitor.ask("query-status"),
            migration: monitor.ask("query-migrate"),
            capabilities: monitor.ask("query-migrate-capabilities"),
            parameters: monitor.ask("query-migrate-parameters"),
            qemus: self.place.qemus(),
            files: self.place.files(),
        }
    }

    /// `migrate SOURCE arguments` is refused with exit 2, and nothing is other than before; gives what was said.
    pub(crate) fn refuses(&self, arguments: &[&str]) -> Said {
        self.refuses_at(&self.qmp(), self.qmp().to_str().unwrap(), arguments)
    }

    /// The same for a source by another name, looked at through `monitor`.
    pub(crate) fn refuses_at(&self, monitor: &Path, source: &str, arguments: &[&str]) -> Said {
        let before = self.snapshot_at(monitor);
        let said = migrate(source, arguments);
        said.is_refusal();
        assert_eq!(self.snapshot_at(monitor), before, "{said:?}");
        said
    }

    /// The same while somebody else's migration runs, whose figures go on.
    pub(crate) fn refuses_in_motion(&self) -> Said {
        let without_figures =
            |snapshot: Snapshot| Snapshot { migration: snapshot.migration["status"].clone(), ..snapshot };
        let before = without_figures(self.snapshot());
        let said = migrate(self.qmp().to_str().unwrap(), &[]);
        said.is_refusal();
        assert_eq!(without_figures(self.snapshot()), before, "{said:?}");
        said
    }

    /// `migrate SOURCE arguments` fails with exit 1, and the guest is where and as it was.
    pub(crate) fn keeps_its_guest(&self, arguments: &[&str]) -> Said {
        let before = self.snapshot();
        let said = migrate(self.qmp().to_str().unwrap(), arguments);
        assert_eq!(said.code, Some(1), "{said:?}");
        let after = self.snapshot();
        // It depends on who notices first.
        let status = after.migration["status"].as_str();
        assert!(matches!(status, Some("failed" | "cancelled")), "{said:?}: {status:?}");
        assert_eq!(Snapshot { migration: before.migration.clone(), ..after }, before, "{said:?}");
        said
    }

    /// What was in the way is gone: the same source can be moved.
    pub(crate) fn moves(&self) {
        self.moves_with(&[]);
    }

    #[track_caller]
    pub(crate) fn moves_with(&self, arguments: &[&str]) {
        let said = migrate(self.qmp().to_str().unwrap(), arguments);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(self.monitor().ask("query-status")["status"], "running");
        assert!(!self.place.qemus().contains(&self.process.pid()), "{said:?}");
    }
}

/// What the command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        assert!(output.stdout.is_empty(), "standard output is data: {output:?}");
        Self { code: output.status.code(), text: String::from_utf8(output.stderr.clone()).unwrap() }
    }

    /// Exit 2, a sentence on the first line, a hint on a line of its own.
    pub(crate) fn is_refusal(&self) {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert!(self.text.starts_with("error: "), "{self:?}");
        assert!(self.text.lines().skip(1).any(|line| line.starts_with("hint: ")), "{self:?}");
        assert!(!self.text.contains("panicked"), "{self:?}");
    }

    /// The text has each of these in it.
    pub(crate) fn tells(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.text.contains(part), "'{part}' is not in {self:?}");
        }
    }
}

/// The built command.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmigrate"));
    command.stdin(Stdio::null()).env_remove("QMIGRATE_LOG");
    command
}

/// Runs it to its end, which must come.
pub(crate) fn run(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let mut is_late = false;
    // What it says fits into a pipe.
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > MOST {
            child.kill().unwrap();
            is_late = true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(!is_late, "no end: {output:?}");
    output
}

/// `qmigrate migrate SOURCE arguments`, after which nothing of it is left in the runtime directory.
pub(crate) fn migrate(source: &str, arguments: &[&str]) -> Said {
    let mut command = command();
    let id = MigrationId::new();
    // With a name of our own choice, what it leaves can be told from what other tests use at the same time.
    command.args(["migrate", source, "--detached", id.as_str()]).args(arguments);
    let said = Said::of(&run(command));
    let runtime = qmigrate::host::runtime_directory().unwrap();
    let left = std::fs::read_dir(runtime).unwrap().map(|entry| entry.unwrap().file_name());
    let left = left.filter(|name| name.to_string_lossy().starts_with(id.as_str())).collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?} is left: {said:?}");
    said
}

/// A socket that says `greeting` to everybody and closes, for as long as this lives.
pub(crate) struct Talker {
    path: PathBuf,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Talker {
    pub(crate) fn listen(path: PathBuf, greeting: &'static [u8]) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.write_all(greeting).ok();
                stream.shutdown(std::net::Shutdown::Write).ok();
                let mut last = Vec::new();
                stream.read_to_end(&mut last).ok();
                if last == b"end" {
                    break;
                }
            }
        });
        Self { path, thread: Some(thread) }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        UnixStream::connect(&self.path).unwrap().write_all(b"end").unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}
