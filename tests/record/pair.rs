//! Two QEMUs and every line that goes between them and here, in the order in which it was read and written.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmigrate::guest::image::MemoryFile;
use qmigrate::guest::{Accelerator, Content, Machine, Pattern, Workload, memfd};
use qmigrate::observe::heartbeat::Observer;
use qmigrate::qmp::Leg;
use qmigrate::units::{Rate, Size};
use serde::Serialize;
use serde_json::{Value, json};

/// Nothing that is waited for takes longer.
const MOST: Duration = Duration::from_secs(30);
/// Beats after which the guest has filled its working set, with room to spare.
const BEATS: u64 = 300;
const MEMORY_MIB: u64 = 64;
const WORKING_SET_MIB: u64 = 4;
const DIRTY_BYTES_PER_SECOND: u64 = 1 << 20;
/// What stands in a record instead of the directory in which it was made.
const PLACE: &str = "/run/vm";

/// One line of a record.
#[derive(Debug, Serialize)]
struct Entry {
    leg: Leg,
    from: &'static str,
    at_ms: f64,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Line(String),
    End(bool),
}

/// What a monitor said; nothing at its end.
type Heard = (Leg, Option<String>, Instant);

/// One QEMU and the connection to it.
#[derive(Debug)]
struct Qemu {
    child: Child,
    stream: UnixStream,
}

impl Qemu {
    fn start(qemu: &Path, arguments: Vec<OsString>, qmp: &Path, leg: Leg, to: Sender<Heard>) -> Result<Self> {
        let mut child = Command::new(qemu)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| qemu.display().to_string())?;
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(qmp) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > MOST => return Err(error).context("a monitor"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            ensure!(child.try_wait()?.is_none(), "the {leg}'s QEMU ended at once");
        };
        let reader = BufReader::new(stream.try_clone()?);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let _ = to.send((leg, Some(line), Instant::now()));
            }
            let _ = to.send((leg, None, Instant::now()));
        });
        Ok(Self { child, stream })
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.child.id().try_into()?))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two QEMUs, the source with a guest that runs, and the record.
#[derive(Debug)]
pub(crate) struct Pair {
    source: Qemu,
    destination: Qemu,
    heard: Receiver<Heard>,
    started: Instant,
    record: Vec<Entry>,
    /// What was said, read; an end is null.
    said: Vec<(Leg, Value)>,
    last_id: u64,
    directory: tempfile::TempDir,
    _observer: Observer,
    /// The source boots from it.
    _image: MemoryFile,
}

impl Pair {
    /// Starts both, waits for the guest, and reads the greetings.
    pub(crate) fn start(qemu: &Path, source: &[&str], destination: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("qm").tempdir()?;
        let observer = Observer::listen(&directory.path().join("beats"))?;
        let mebibytes = |count| Size::from_mebibytes(count).context("a size");
        let workload = Workload::new(
            mebibytes(MEMORY_MIB)?,
            mebibytes(WORKING_SET_MIB)?,
            Some(Rate::from_bytes_per_second(DIRTY_BYTES_PER_SECOND).context("a rate")?),
            Pattern::Sweep,
            Content::Compressible,
        )?;
        let image = memfd(&workload)?;
        let (to, heard) = channel();
        let started = Instant::now();
        let start = |leg: Leg, kernel: Option<PathBuf>, options: &[&str]| {
            let qmp = directory.path().join(format!("{leg}"));
            let machine = Machine {
                machine: "pc".to_owned(),
                accelerator: Accelerator::Tcg,
                memory: workload.memory(),
                kernel,
                qmp: qmp.clone(),
                second_qmp: None,
                heartbeat: observer.path().to_owned(),
                more: Vec::new(),
            };
            let mut arguments = machine.arguments();
            arguments.extend(options.iter().map(OsString::from));
            Qemu::start(qemu, arguments, &qmp, leg, to.clone())
        };
        let source = start(Leg::Source, Some(image.path()), source)?;
        ensure!(
            observer.wait_for_beats(source.child.id().try_into()?, BEATS, MOST),
            "the guest's heart does not beat"
        );
        let held = [&["-S", "-incoming", "defer"], destination].concat();
        let destination = start(Leg::Destination, None, &held)?;
        let mut pair = Self {
            source,
            destination,
            heard,
            started,
            record: Vec::new(),
            said: Vec::new(),
            last_id: 0,
            directory,
            _observer: observer,
            _image: image,
        };
        for leg in [Leg::Source, Leg::Destination] {
            pair.until(leg, "a greeting", |said| said.get("QMP").is_some())?;
        }
        Ok(pair)
    }

    /// The version of both, as the greeting has it.
    pub(crate) fn version(&self) -> [u64; 3] {
        let greeting = self.said.iter().find_map(|(_, said)| said.pointer("/QMP/version/qemu"));
        ["major", "minor", "micro"]
            .map(|part| greeting.and_then(|greeting| greeting[part].as_u64()).unwrap_or_default())
    }

    /// A path in the pair's directory, as an address for a stream.
    pub(crate) fn stream(&self, name: &str) -> String {
        format!("unix:{}", self.directory.path().join(name).display())
    }

    fn qemu(&mut self, leg: Leg) -> &mut Qemu {
        match leg {
            Leg::Source => &mut self.source,
            Leg::Destination => &mut self.destination,
        }
    }

    fn note(&mut self, leg: Leg, from: &'static str, at: Instant, line: Option<&str>) -> Result<()> {
        let place = self.directory.path().to_str().context("a path")?;
        let what = line.map_or(What::End(true), |line| What::Line(line.trim().replace(place, PLACE)));
        let microseconds = u32::try_from(at.duration_since(self.started).as_micros())?;
        self.record.push(Entry { leg, from, at_ms: f64::from(microseconds / 100) / 10.0, what });
        Ok(())
    }

    /// Takes in one line, if one comes by then.
    fn hear(&mut self, bound: Duration) -> Result<bool> {
        let (leg, line, at) = match self.heard.recv_timeout(bound) {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(false),
        };
        self.note(leg, "qemu", at, line.as_deref())?;
        self.said.push((leg, line.map_or(Ok(Value::Null), |line| serde_json::from_str(&line))?));
        Ok(true)
    }

    /// Takes in what comes within this time.
    pub(crate) fn listen(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while self.hear(end.saturating_duration_since(Instant::now()))? {}
        Ok(())
    }

    /// Whether a side has said it, at any time.
    pub(crate) fn has(&self, leg: Leg, what: impl Fn(&Value) -> bool) -> bool {
        self.said.iter().any(|(of, said)| *of == leg && what(said))
    }

    /// Waits until a side has said it, at any time.
    pub(crate) fn until(&mut self, leg: Leg, name: &str, what: impl Fn(&Value) -> bool) -> Result<()> {
        let end = Instant::now() + MOST;
        while !self.has(leg, &what) {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(self.hear(left)?, "the {leg} did not say {name}");
        }
        Ok(())
    }

    /// Puts a command on the wire and gives its id; `key` is `execute`, or `exec-oob`.
    pub(crate) fn say(&mut self, leg: Leg, key: &str, command: &str, arguments: Value) -> Result<u64> {
        self.listen(Duration::ZERO)?;
        self.last_id += 1;
        let mut line = json!({ key: command, "id": self.last_id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        let line = line.to_string();
        self.note(leg, "engine", Instant::now(), Some(&line))?;
        writeln!(self.qemu(leg).stream, "{line}")?;
        Ok(self.last_id)
    }

    /// Asks and waits for the answer, or for the refusal.
    pub(crate) fn ask(&mut self, leg: Leg, command: &str, arguments: Value) -> Result<Value> {
        let id = self.say(leg, "execute", command, arguments)?;
        self.answer(leg, id)
    }

    /// Waits for an answer.
    pub(crate) fn answer(&mut self, leg: Leg, id: u64) -> Result<Value> {
        let is_it = |said: &Value| said["id"] == id;
        self.until(leg, "the answer", is_it)?;
        let answer = self.said.iter().find(|(of, said)| *of == leg && is_it(said));
        Ok(answer.map(|(_, said)| said.clone()).unwrap_or_default())
    }

    /// Asks for what must be done.
    pub(crate) fn does(&mut self, leg: Leg, command: &str, arguments: Value) -> Result<Value> {
        let mut answer = self.ask(leg, command, arguments)?;
        if answer.get("error").is_some() {
            bail!("{command}: {answer}");
        }
        Ok(answer["return"].take())
    }

    /// Replaces what the last line from a QEMU answered: for an answer that is too long to be kept whole.
    pub(crate) fn shorten_last(&mut self, answer: &Value, id: u64) {
        if let Some(entry) = self.record.last_mut() {
            entry.what = What::Line(json!({"return": answer, "id": id}).to_string());
        }
    }

    /// Sends a signal to a QEMU.
    pub(crate) fn signal(&mut self, leg: Leg, signal: Signal) -> Result<()> {
        let pid = self.qemu(leg).pid()?;
        Ok(kill(pid, signal)?)
    }

    /// What was heard last, for an error.
    pub(crate) fn last_lines(&self) -> &[(Leg, Value)] {
        &self.said[self.said.len().saturating_sub(12)..]
    }

    /// The record, one JSON object per line.
    pub(crate) fn into_text(self) -> Result<String> {
        let lines = self.record.iter().map(|entry| Ok(serde_json::to_string(entry)? + "\n"));
        lines.collect()
    }
}
