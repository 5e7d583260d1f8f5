//! One run of a plan: a guest, a link, the built command, and what was seen from outside.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use qapi_qmp as words;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::foretold::{came, foretold};
use super::link::{DESTINATION_ADDRESS, LinkError, Shaper};
use super::place::Place;
use super::plan::{Cell, Link, Step};
use super::results::Figures;
use super::subject::{Board, SECOND_MONITOR, Subject, SubjectError};
use super::work::{Reading, lost_work};
use crate::check::chain;
use crate::guest::Accelerator;
use crate::host::{Credentials, DirectoryError, PrivateDirectory};
use crate::observe::heartbeat::Gap;
use crate::qmp::{Address, AddressError, Client, ConnectError, Deadlines, Leg};
use crate::record::{Outcome, Record};

/// A cancelled engine gives its guest back within this.
const CANCELLED_WITHIN: Duration = Duration::from_secs(60);
/// The destination's heart beats within a millisecond or so of `cont`; an emulated KVM takes longer.
const BEAT_WITHIN: Duration = Duration::from_secs(10);
const END_WITHIN: Duration = Duration::from_secs(10);
/// Of what an engine said without leaving a record, this much is kept.
const LAST_WORDS: usize = 600;

/// A run that gives no figures.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Somebody stopped the runner; the guest was given back and ended.
    #[error("stopped")]
    Stopped,
    /// No guest.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// No link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No directory for the run.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No user.
    #[error("this process cannot tell whom it runs as")]
    Credentials(#[from] nix::Error),
    /// No second monitor.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The guest's second monitor cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The engine cannot be started, or its files cannot be used.
    #[error("the engine cannot be run")]
    Engine(#[from] io::Error),
    /// The engine left no record: it did not understand its options, for one.
    #[error("the engine ended with {status} and without a record; it said: {words}")]
    NoRecord {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
    /// The engine did not end when it was told to.
    #[error("the engine did not end within {} s of being cancelled", CANCELLED_WITHIN.as_secs())]
    Hung,
}

/// What all runs of a runner share.
#[derive(Debug)]
pub struct Bench {
    /// The command `qmigrate`.
    pub engine: PathBuf,
    /// The QEMU for both sides.
    pub qemu: PathBuf,
    /// Who executes the guests.
    pub accelerator: Accelerator,
    /// Where the guests have their files.
    pub place: Place,
    /// How streams are held to a rate.
    pub shaper: Shaper,
    /// Where whole records are kept, if they are.
    pub records: Option<PathBuf>,
}

/// A guest that is there for one run. When it is dropped, every QEMU that its heart was seen in has ended.
struct Moving {
    subject: Subject,
    second_monitor: Address,
    directory: PrivateDirectory,
}

impl Drop for Moving {
    fn drop(&mut self) {
        for process in self.subject.processes() {
            // It may have ended by itself.
            let _ = process.kill();
            process.has_ended_within(END_WITHIN);
        }
        if let Err(error) = self.directory.remove() {
            tracing::warn!(directory = %self.directory.path().display(), %error, "not removed");
        }
    }
}

/// An engine that has ended.
struct EngineEnded {
    status: ExitStatus,
    wall: Duration,
    censored: bool,
    link_steps_ms: Vec<f64>,
}

impl Bench {
    /// Does one repeat of a cell. A guest that is not moved is a result like any other.
    pub async fn run(
        &self,
        cell: &Cell,
        repeat: u32,
        censor_after: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Figures, RunError> {
        if let Some(rate) = cell.link.rate {
            self.shaper.set(rate)?;
        }
        let (moving, before) = tokio::select! {
            begun = self.begin(cell, repeat) => begun?,
            () = stopped(&mut stop) => return Err(RunError::Stopped),
        };
        let report = moving.directory.path().join("report");
        let engine_log = moving.directory.path().join("engine.log");
        let start = moving.read().await?;
        let start_monotonic = monotonic()?;
        let engine = self.start_engine(cell, &moving, &report, &engine_log)?;
        let ended = self.follow(engine, cell, &moving, censor_after, &mut stop).await?;
        if *stop.borrow() {
            return Err(RunError::Stopped);
        }
        let record = match std::fs::read(&report).map(|text| serde_json::from_slice::<Record>(&text)) {
            Ok(Ok(record)) if record.outcome.is_some() => record,
            _ => return Err(RunError::NoRecord { status: ended.status, words: last_words(&engine_log) }),
        };
        if let Some(records) = &self.records {
            std::fs::create_dir_all(records)?;
            let name = format!("{}-{repeat}.json", cell.to_string().replace('/', "_"));
            std::fs::copy(&report, records.join(name))?;
        }
        let Some(outcome) = &record.outcome else { return Err(RunError::Hung) };
        let mut figures = figures_of(&record, outcome, &ended);
        moving.look(outcome, start_monotonic, &mut figures);
        match moving.read().await {
            Ok(end) => figures.lost_work = lost_work(&moving.subject.workload, &before, &start, &end),
            Err(error) => figures.faults.push(format!("the guest's work is not known: {}", chain(&error))),
        }
        moving.verify_and_end(&mut figures).await;
        Ok(figures)
    }

    /// Starts a guest and lets it write for as long as it is to; gives the reading from which its pace counts.
    async fn begin(&self, cell: &Cell, repeat: u32) -> Result<(Moving, Reading), RunError> {
        let path = self.place.path().join("run");
        let directory = PrivateDirectory::create(path, &Credentials::own()?)?;
        let workload = cell.guest.workload.clone();
        let board = Board::newest(self.accelerator);
        let subject = match Subject::start(&self.qemu, board, workload, directory.path()).await {
            Ok(subject) => subject,
            Err(error) => {
                // The error is what the caller must know; a directory that stays is in the way of the next run, which says so.
                let _ = directory.remove();
                return Err(error.into());
            }
        };
        let second_monitor = Address::unix(directory.path().join(SECOND_MONITOR))?;
        let moving = Moving { subject, second_monitor, directory };
        let before = moving.read().await?;
        tokio::time::sleep(cell.guest.begins_after(repeat, cell.repeats)).await;
        Ok((moving, before))
    }

    fn start_engine(&self, cell: &Cell, moving: &Moving, report: &Path, log: &Path) -> io::Result<Child> {
        let mut command = Command::new(&self.engine);
        command.arg("migrate").arg(moving.subject.monitor.to_string()).arg("--report").arg(report);
        match (&self.shaper, cell.link.rate) {
            (_, None) => {}
            (Shaper::Tbf, Some(_)) => {
                command.args(["--incoming", &format!("tcp:{DESTINATION_ADDRESS}:0")]);
            }
            (Shaper::MaxBandwidth, Some(rate)) => {
                command.args(["--max-bandwidth", &rate.bytes_per_second().to_string()]);
            }
        }
        let log = File::create(log)?;
        command.args(&cell.policy.words).args(&cell.budget.words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn()
    }

    /// Waits for the engine's end, takes the link's steps meanwhile, and ends it when it takes too long or the runner is
    /// to stop.
    async fn follow(
        &self,
        mut engine: Child,
        cell: &Cell,
        moving: &Moving,
        censor_after: Duration,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<EngineEnded, RunError> {
        let began = Instant::now();
        let Link { steps, .. } = &cell.link;
        let mut steps = steps.iter();
        let mut next = steps.next();
        let mut link_steps_ms = Vec::new();
        let (status, censored) = loop {
            let step_at = began + next.map_or(censor_after, |step| step.after);
            tokio::select! {
                status = engine.wait() => break (status?, false),
                () = tokio::time::sleep_until(step_at.into()), if next.is_some() => {
                    if let Some(step) = next {
                        self.take(*step, moving).await?;
                        link_steps_ms.push(began.elapsed().as_secs_f64() * 1e3);
                    }
                    next = steps.next();
                }
                () = tokio::time::sleep_until((began + censor_after).into()) => {
                    let status = cancel(&mut engine).await?;
                    // It may have moved the guest in this very moment.
                    break (status, status.code() == Some(1));
                }
                () = stopped(stop) => break (cancel(&mut engine).await?, false),
            }
        };
        Ok(EngineEnded { status, wall: began.elapsed(), censored, link_steps_ms })
    }

    /// Changes the rate of the link in flight.
    async fn take(&self, step: Step, moving: &Moving) -> Result<(), RunError> {
        if self.shaper == Shaper::Tbf {
            return Ok(self.shaper.set(step.rate)?);
        }
        let monitor = moving.subject.monitor.to_string();
        let rate = step.rate.bytes_per_second().to_string();
        let mut command = Command::new(&self.engine);
        // A migration that has just ended takes no limit any more.
        command.args(["set", &monitor, "--max-bandwidth", &rate]).stdout(Stdio::null()).stderr(Stdio::null());
        command.stdin(Stdio::null()).kill_on_drop(true).status().await?;
        Ok(())
    }
}

impl Moving {
    /// Reads the guest's counters, in whichever QEMU it is.
    async fn read(&self) -> Result<Reading, RunError> {
        let client = Client::connect(&self.second_monitor, Leg::Source, Deadlines::default()).await?;
        Ok(Reading { state: self.subject.state(&client).await?, at: Instant::now() })
    }

    /// What the heartbeats showed.
    fn look(&self, outcome: &Outcome, start_monotonic: Duration, figures: &mut Figures) {
        let (observer, source) = (&self.subject.observer, self.subject.process.pid());
        if let Some(heart) = observer.heart(source) {
            let gaps = heart.long_gaps.iter().filter(|gap| gap.to.monotonic >= start_monotonic);
            let longest = gaps.map(Gap::length).max().unwrap_or_default();
            figures.longest_freeze_ms = longest.as_secs_f64() * 1e3;
        }
        if !figures.has_moved() {
            return;
        }
        let handover = self.subject.destination().map(|destination| {
            observer.wait_for_first_beat(destination, BEAT_WITHIN);
            observer.handover(source, destination)
        });
        match handover {
            Some(Ok(handover)) => {
                figures.observed_blackout_ms = Some((handover.gap.as_secs_f64() * 1e3 - 1.0).max(0.0));
                figures.observed_error_ms = Some(handover.uncertainty.as_secs_f64() * 1e3);
                figures.never_two = handover.never_two();
                if !figures.never_two {
                    figures
                        .faults
                        .push(format!("the heartbeats do not follow each other: {:?}", handover.sequence));
                }
            }
            Some(Err(error)) => figures.faults.push(error.to_string()),
            None => figures.faults.push(format!("no second QEMU was seen, and yet: {}", outcome.message)),
        }
    }

    /// Proves every byte of the guest's memory, and ends it.
    async fn verify_and_end(&self, figures: &mut Figures) {
        match self.verify().await {
            Ok(()) => figures.memory_verified = true,
            Err(error) => figures.faults.push(format!("the guest's memory is not proven: {}", chain(&error))),
        }
    }

    async fn verify(&self) -> Result<(), SubjectError> {
        let client = self.subject.connect().await?;
        self.subject.verify(&client).await?;
        // It may close the connection before its answer is read.
        let _ = client.call(&words::quit {}, END_WITHIN).await;
        Ok(())
    }
}

/// What the engine itself says, and nothing yet of what was seen from outside.
fn figures_of(record: &Record, outcome: &Outcome, ended: &EngineEnded) -> Figures {
    let blackout = outcome.blackout.as_ref();
    Figures {
        exit_code: ended.status.code(),
        end: outcome.end,
        message: outcome.message.clone(),
        censored: ended.censored,
        command_ms: ended.wall.as_secs_f64() * 1e3,
        stream_ms: outcome.totals.stream_ms,
        transferred_bytes: outcome.totals.transferred_bytes,
        passes: outcome.totals.passes,
        max_downtime_ms: record.request.max_downtime_ms.milliseconds(),
        max_time_ms: record.request.max_time_ms,
        observed_blackout_ms: None,
        observed_error_ms: None,
        stop_to_resume_ms: blackout.and_then(|blackout| blackout.stop_to_resume_ms),
        qemu_downtime_ms: blackout.and_then(|blackout| blackout.qemu_downtime_ms),
        longest_freeze_ms: 0.0,
        lost_work: None,
        memory_verified: false,
        never_two: true,
        faults: Vec::new(),
        foretold: foretold(record),
        came: came(record),
        decisions: record.decisions.clone(),
        link_steps_ms: ended.link_steps_ms.clone(),
    }
}

/// Tells an engine to give its guest back, and waits until it has.
async fn cancel(engine: &mut Child) -> Result<ExitStatus, RunError> {
    if let Some(pid) = engine.id().and_then(|pid| i32::try_from(pid).ok()) {
        // What has ended meanwhile needs no signal.
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
    }
    let ended = tokio::time::timeout(CANCELLED_WITHIN, engine.wait()).await;
    Ok(ended.map_err(|_| RunError::Hung)??)
}

/// Returns when the runner is to stop, and only then.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|&stop| stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The clock of the heartbeats.
fn monotonic() -> Result<Duration, nix::Error> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// The end of what an engine said.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(LAST_WORDS);
    String::from_utf8_lossy(&text[from..]).trim().to_owned()
}
