//! The embedded guest, moved and proven, with nothing to prepare.

use std::path::PathBuf;
use std::time::Duration;

use qapi_qmp as words;
use serde::Serialize;

use super::subject::{Board, Subject, SubjectError, qemu_version};
use crate::guest::{Accelerator, GuestState, KvmUnusable, Proof, Workload, probe_kvm};
use crate::host::{Credentials, DirectoryError, PrivateDirectory, ProcessHandle};
use crate::migrate::engine::{self, Services};
use crate::migrate::history::History;
use crate::migrate::journal::Journal;
use crate::migrate::order::Orders;
use crate::migrate::phase::AtDestination;
use crate::migrate::plan::{
    Destination, HostPrograms, Incoming, Limits, MadeFrom, Mode, Plan, Risks, SourceAfter,
};
use crate::observe::heartbeat::{Handover, Observer};
use crate::qemu::QemuName;
use crate::qemu::dialect::Wish;
use crate::record::{End, MigrationId, Observed, Outcome, Party};

/// A KVM that takes longer than this to run a small guest is itself emulated, and slower than TCG.
const KVM_WITHIN: Duration = Duration::from_millis(1500);
/// The first QEMU whose TCG loses no writes.
const LIVE_UNDER_TCG: (u32, u32) = (9, 0);
/// The destination's heart beats within a millisecond or so of `cont`; an emulated KVM takes longer.
const BEAT_WITHIN: Duration = Duration::from_secs(10);

/// What to show.
#[derive(Debug, Clone)]
pub struct DemoPlan {
    /// The QEMU for both sides.
    pub qemu: PathBuf,
    /// Who executes the guest; `None` for KVM where it really does, else TCG.
    pub accelerator: Option<Accelerator>,
    /// What the guest does.
    pub workload: Workload,
    /// The limits of the migration.
    pub limits: Limits,
    /// The migration's name.
    pub id: MigrationId,
    /// The engine's runtime directory.
    pub runtime_directory: PathBuf,
}

/// A demo that could not even start.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No guest.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// No directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No monitor.
    #[error(transparent)]
    Name(#[from] crate::qmp::AddressError),
    /// No user.
    #[error("this process cannot tell whom it runs as")]
    Credentials(#[from] nix::Error),
    /// KVM was asked for, and it does not run the guest.
    #[error("KVM does not run the guest here")]
    Kvm(#[from] KvmUnusable),
}

/// How the guest is executed, and whether it can be moved live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Who executes the guest.
    pub accelerator: Accelerator,
    /// QEMU's version.
    pub version: (u32, u32),
    /// Whether the guest is moved while it runs.
    pub mode: Mode,
    /// Why KVM is not used, if it was looked for.
    pub why_not_kvm: Option<String>,
}

/// What was seen, for programs.
#[expect(clippy::struct_excessive_bools, reason = "each is one finding of its own in the JSON")]
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Whether the guest ran while its memory was copied.
    pub live: bool,
    /// Whether everything held: moved, memory proven, never two.
    pub held: bool,
    /// Whether every byte of the working set is what it must be.
    pub memory_verified: bool,
    /// So many pages were looked at.
    pub pages_verified: u32,
    /// Whether the heartbeats prove that at no moment two guests ran.
    pub never_two: bool,
    /// The time between the last beat on the source and the first on the destination, in milliseconds.
    pub heartbeat_gap_ms: Option<f64>,
    /// Writes that the guest was to do and gave up for want of time.
    pub writes_dropped: u64,
    /// What did not hold, in words.
    pub faults: Vec<String>,
}

/// Finds out how the guest can be executed and moved here.
pub fn look(plan: &DemoPlan) -> Result<Setting, DemoError> {
    let version = qemu_version(&plan.qemu)?;
    let (accelerator, why_not_kvm) = match plan.accelerator {
        Some(accelerator) => (accelerator, None),
        None => match probe(plan) {
            Ok(()) => (Accelerator::Kvm, None),
            Err(error) => (Accelerator::Tcg, Some(crate::check::chain(&error))),
        },
    };
    let live = accelerator == Accelerator::Kvm || version >= LIVE_UNDER_TCG;
    Ok(Setting { accelerator, version, mode: if live { Mode::Live } else { Mode::NonLive }, why_not_kvm })
}

/// A directory for the demo alone, which goes when the demo does, however that ends.
#[derive(Debug)]
struct Scratch(PrivateDirectory);

impl Scratch {
    fn create(plan: &DemoPlan, what: &str) -> Result<Self, DemoError> {
        let path = plan.runtime_directory.join(format!("{}-{what}", plan.id));
        Ok(Self(PrivateDirectory::create(path, &Credentials::own()?)?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            tracing::warn!(directory = %self.0.path().display(), %error, "not removed");
        }
    }
}

/// Whether KVM really runs the guest here.
fn probe(plan: &DemoPlan) -> Result<(), DemoError> {
    let directory = Scratch::create(plan, "probe")?;
    probe_kvm(&plan.qemu, directory.0.path(), KVM_WITHIN)?;
    Ok(())
}

/// A demo whose guest runs.
#[derive(Debug)]
pub struct Demo {
    /// Before the directory, in which its QEMU has its files: what stands first goes first.
    subject: Subject,
    _directory: Scratch,
    /// The migration to come.
    pub plan: Plan,
}

/// Starts the guest. A start that is given up leaves nothing behind.
pub async fn start(plan: &DemoPlan, setting: &Setting) -> Result<Demo, DemoError> {
    let directory = Scratch::create(plan, "demo")?;
    let (workload, place) = (plan.workload.clone(), directory.0.path());
    let subject = Subject::start(&plan.qemu, Board::newest(setting.accelerator), workload, place).await?;
    let monitor = subject.monitor.clone();
    let migration = Plan {
        id: plan.id.clone(),
        typed: monitor.to_string(),
        source: QemuName::Monitor(monitor),
        destination: Destination::Start {
            made_from: MadeFrom::Source,
            qemu: None,
            incoming: Incoming::Defer,
        },
        limits: plan.limits,
        shadows: Vec::new(),
        mode: setting.mode,
        at_destination: AtDestination::AsBefore,
        source_after: SourceAfter::Quit,
        maps: Vec::new(),
        risks: Risks::Refuse,
        host_programs: HostPrograms::Refuse,
        dialect: Wish::Auto,
        directory: plan.runtime_directory.join(plan.id.as_str()),
    };
    Ok(Demo { subject, _directory: directory, plan: migration })
}

impl Demo {
    /// Moves the guest, proves what can be proven, and ends it. Nothing is left behind.
    pub async fn run(
        self,
        history: &mut History,
        orders: &mut Orders,
        journal: &mut Journal,
    ) -> (Outcome, Findings) {
        let source_pid = self.subject.process.pid();
        let record = history.shared();
        let moved_to = || {
            crate::migrate::history::lock(&record).destination.as_ref().and_then(|party: &Party| party.pid)
        };
        let observer = &self.subject.observer;
        let mut look = || seen(observer, source_pid, moved_to());
        let services = Services { history, orders, journal, observed: &mut look };
        let outcome = engine::run(&self.plan, services).await;
        let destination_pid = moved_to();
        let findings = self.findings(&outcome, source_pid, destination_pid).await;
        self.end(destination_pid).await;
        (outcome, findings)
    }

    async fn findings(&self, outcome: &Outcome, source_pid: i32, destination_pid: Option<i32>) -> Findings {
        let mut faults = Vec::new();
        if outcome.end != End::Migrated {
            faults.push(outcome.message.clone());
        }
        let verified = match self.verify().await {
            Ok(verified) => Some(verified),
            Err(error) => {
                faults.push(format!("the guest's memory is not proven: {}", crate::check::chain(&error)));
                None
            }
        };
        let has_moved = matches!(outcome.end, End::Migrated | End::MigratedWithRemainder);
        let handover =
            destination_pid.filter(|_| has_moved).map(|pid| self.subject.observer.handover(source_pid, pid));
        let handover = match handover {
            Some(Ok(handover)) => Some(handover),
            Some(Err(error)) => {
                faults.push(error.to_string());
                None
            }
            None => None,
        };
        let never_two = handover.as_ref().is_some_and(Handover::never_two);
        if let (Some(handover), false) = (&handover, never_two) {
            faults.push(format!("the heartbeats do not follow each other: {:?}", handover.sequence));
        }
        if let Some((_, state)) = &verified {
            faults.extend(self.uncounted_beats(state, source_pid, destination_pid));
        }
        Findings {
            live: self.plan.mode == Mode::Live,
            held: faults.is_empty(),
            memory_verified: verified.is_some(),
            pages_verified: verified.as_ref().map_or(0, |(proof, _)| proof.pages),
            never_two,
            heartbeat_gap_ms: handover.map(|handover| handover.gap.as_secs_f64() * 1e3),
            writes_dropped: verified.as_ref().map_or(0, |(_, state)| state.dropped),
            faults,
        }
    }

    async fn verify(&self) -> Result<(Proof, GuestState), SubjectError> {
        let client = self.subject.connect().await?;
        self.subject.verify(&client).await
    }

    /// The guest counts its ticks, and each beats once: were there more beats than ticks, two guests have beaten.
    /// One beat may be on its way from the port when the guest is stopped.
    fn uncounted_beats(
        &self,
        state: &GuestState,
        source_pid: i32,
        destination_pid: Option<i32>,
    ) -> Option<String> {
        let beats = |pid| self.subject.observer.heart(pid).map_or(0, |heart| heart.beats);
        let beats = beats(source_pid) + destination_pid.map_or(0, beats);
        let ticks = u64::from(state.ticks);
        (beats != ticks && beats + 1 != ticks)
            .then(|| format!("{beats} heartbeats were seen, and the guest has counted {ticks}"))
    }

    /// Ends both QEMUs for certain.
    async fn end(&self, destination_pid: Option<i32>) {
        if let Ok(client) = self.subject.connect().await {
            let _ = client.call(&words::quit {}, BEAT_WITHIN).await;
        }
        let destination = destination_pid.and_then(|pid| ProcessHandle::open(pid).ok());
        for process in [Some(&self.subject.process), destination.as_ref()].into_iter().flatten() {
            if !process.ended_within(Duration::from_secs(2)).await {
                let _ = process.kill();
                process.ended_within(BEAT_WITHIN).await;
            }
        }
    }
}

/// What the heartbeats showed, once the destination's has been seen.
fn seen(observer: &Observer, source_pid: i32, destination_pid: Option<i32>) -> Observed {
    let Some(pid) = destination_pid else { return Observed::NotObserved };
    observer.wait_for_first_beat(pid, BEAT_WITHIN);
    match observer.handover(source_pid, pid) {
        Ok(handover) => Observed::Heartbeats {
            gap_ms: (handover.gap.as_secs_f64() * 1e3 - 1.0).max(0.0),
            error_ms: handover.uncertainty.as_secs_f64() * 1e3,
        },
        Err(_) => Observed::NotObserved,
    }
}
