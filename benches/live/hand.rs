//! The same steps over QMP by hand: as few as lead to the same end state, with nothing checked and nothing kept.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::guest::Guest;
use crate::series::{Moved, Stream};

/// Longer than any step takes; then the run has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A limit that has not been reached by then is raised to QEMU's default, as a person would.
const RAISE_AFTER: Duration = Duration::from_secs(5);
/// QEMU's own downtime limit.
pub(crate) const DEFAULT_LIMIT_MS: u64 = 300;

/// Moves the guest to a second QEMU that takes over its names.
pub(crate) async fn migrate(guest: &Guest, stream: Stream, limit_ms: u64) -> anyhow::Result<Moved> {
    let start = Instant::now();
    let subject = &guest.subject;
    let mut machine = subject.machine.clone();
    machine.qmp = guest.directory().join("qmp-2");
    let log = std::fs::File::create(guest.directory().join("destination.log"))?;
    let child = Command::new(&guest.qemu)
        .args(machine.arguments())
        .args(["-S", "-incoming", "defer"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut twin = Twin(Some(child));
    let mut destination = Monitor::wait_for(&machine.qmp, &mut twin)?;
    let mut source = Monitor::connect(&guest.monitor())?;

    let capabilities = ["events", "return-path", "late-block-activate"]
        .map(|name| json!({ "capability": name, "state": true }));
    let capabilities = json!({ "capabilities": capabilities });
    destination.execute("migrate-set-capabilities", &capabilities)?;
    let uri = match stream {
        Stream::Unix => {
            let uri = format!("unix:{}", guest.directory().join("stream").display());
            destination.execute("migrate-incoming", &json!({ "uri": uri }))?;
            uri
        }
        Stream::Tcp => {
            destination.execute("migrate-incoming", &json!({ "uri": "tcp:127.0.0.1:0" }))?;
            let told = destination.execute("query-migrate", &json!({}))?;
            let port = told["socket-address"][0]["port"].as_str().context("it listens nowhere")?;
            format!("tcp:127.0.0.1:{port}")
        }
    };
    source.execute("migrate-set-capabilities", &capabilities)?;
    source.execute("migrate-set-parameters", &json!({ "downtime-limit": limit_ms, "max-bandwidth": 0 }))?;
    source.execute("migrate", &json!({ "uri": uri }))?;

    let limit_raised = wait_for_completion(&mut source, &mut destination)?;
    destination.execute("cont", &json!({}))?;
    let resumed = destination.wait(|event| event["event"] == "RESUME", PATIENCE)?.context("no RESUME")?;
    let stopped = source.wait(|event| event["event"] == "STOP", Duration::ZERO)?.context("no STOP")?;
    let figures = source.execute("query-migrate", &json!({}))?;
    source.say("quit", &json!({}))?;
    ensure!(subject.process.ended_within(PATIENCE).await, "the source has not ended");
    std::fs::rename(&machine.qmp, guest.monitor())?;

    let total_ms = start.elapsed().as_secs_f64() * 1e3;
    twin.leave();
    #[expect(clippy::cast_precision_loss, reason = "microseconds of this century are below 2^53")]
    let stop_to_resume_ms = (microseconds(&resumed)? - microseconds(&stopped)?) as f64 / 1e3;
    Ok(Moved {
        total_ms,
        stop_to_resume_ms: Some(stop_to_resume_ms),
        qemu_downtime_ms: figures["downtime"].as_u64(),
        stream_ms: figures["total-time"].as_u64(),
        passes: figures["ram"]["dirty-sync-count"].as_u64(),
        limit_raised,
    })
}

/// Waits until both have completed; whether the limit had to be raised for that.
fn wait_for_completion(source: &mut Monitor, destination: &mut Monitor) -> anyhow::Result<bool> {
    let is_over = |event: &Value| {
        event["event"] == "MIGRATION"
            && matches!(event["data"]["status"].as_str(), Some("completed" | "failed" | "cancelled"))
    };
    let mut raised = false;
    let mut end = destination.wait(is_over, RAISE_AFTER)?;
    if end.is_none() {
        raised = true;
        source.execute("migrate-set-parameters", &json!({ "downtime-limit": DEFAULT_LIMIT_MS }))?;
        end = destination.wait(is_over, PATIENCE)?;
    }
    for end in [end, source.wait(is_over, PATIENCE)?] {
        let end = end.context("the migration does not end")?;
        ensure!(end["data"]["status"] == "completed", "the migration has failed: {end}");
    }
    Ok(raised)
}

/// The time of one answer of a monitor that has nothing else to do, in milliseconds.
pub(crate) fn round_trip_ms(monitor: &Path) -> anyhow::Result<f64> {
    let mut monitor = Monitor::connect(monitor)?;
    let start = Instant::now();
    monitor.execute("query-status", &json!({}))?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn microseconds(event: &Value) -> anyhow::Result<i64> {
    let part = |name: &str| event["timestamp"][name].as_i64().context("an event without its time");
    Ok(part("seconds")? * 1_000_000 + part("microseconds")?)
}

/// A destination that goes when the run fails.
struct Twin(Option<Child>);

impl Twin {
    /// The guest is in it: it stays, and is waited for where nobody is kept waiting.
    fn leave(mut self) {
        if let Some(mut child) = self.0.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A QMP connection without any comfort.
struct Monitor {
    reader: BufReader<UnixStream>,
    events: VecDeque<Value>,
    /// A line that a deadline has cut in two.
    begun: Vec<u8>,
}

impl Monitor {
    /// Connects to the monitor of a QEMU that is just starting.
    fn wait_for(path: &Path, twin: &mut Twin) -> anyhow::Result<Self> {
        let start = Instant::now();
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Self::negotiate(stream),
                Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => {
                    if let Some(Some(status)) = twin.0.as_mut().map(Child::try_wait).transpose()? {
                        bail!("the destination ended as it started: {status}");
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    fn connect(path: &Path) -> anyhow::Result<Self> {
        Self::negotiate(UnixStream::connect(path)?)
    }

    fn negotiate(stream: UnixStream) -> anyhow::Result<Self> {
        let mut monitor = Self { reader: BufReader::new(stream), events: VecDeque::new(), begun: Vec::new() };
        monitor.read(PATIENCE)?.context("no greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn say(&mut self, command: &str, arguments: &Value) -> anyhow::Result<()> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(line.as_bytes()).context("the monitor takes nothing")
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.say(command, arguments)?;
        loop {
            let mut message = self.read(PATIENCE)?.with_context(|| format!("no answer to {command}"))?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            } else {
                bail!("{command}: {message}");
            }
        }
    }

    /// The first event of a kind, come or to come within a time; earlier ones of other kinds are kept.
    fn wait(&mut self, is_it: impl Fn(&Value) -> bool, most: Duration) -> anyhow::Result<Option<Value>> {
        if let Some(index) = self.events.iter().position(&is_it) {
            return Ok(self.events.remove(index));
        }
        let start = Instant::now();
        while let Some(left) = most.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            let Some(message) = self.read(left)? else { return Ok(None) };
            if is_it(&message) {
                return Ok(Some(message));
            }
            self.events.push_back(message);
        }
        Ok(None)
    }

    /// The next message, if it comes within a time.
    fn read(&mut self, most: Duration) -> anyhow::Result<Option<Value>> {
        self.reader.get_ref().set_read_timeout(Some(most))?;
        match self.reader.read_until(b'\n', &mut self.begun) {
            Ok(0) => bail!("the monitor has closed"),
            Ok(_) => Ok(Some(serde_json::from_slice(&std::mem::take(&mut self.begun))?)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
