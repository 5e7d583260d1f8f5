//! What a journal says, line by line and as a whole.

use std::path::PathBuf;

use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::SCHEMA;
use crate::host::{
    Credentials, ProcError, ProcessHandle, ProcessIdentity, ProcessView, executable, executable_name,
};
use crate::migrate::phase::{AtDestination, Phase};
use crate::migrate::plan::{Plan, SourceAfter, StartedBy};
use crate::migrate::step::prepare::Originals;
use crate::migrate::step::tap::NewTap;
use crate::qemu::rewrite::Rename;
use crate::qmp::Address;
use crate::record::{LimitsBy, MigrationId, Moved, Outcome, Party, Request};

/// One line: what is about to be done, or what is now known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// A migration begins; the first line.
    Begun(Begun),
    /// The source, before anything is made.
    Source(Source),
    /// The destination, before it is started.
    Destination(Box<Destination>),
    /// The destination's process.
    Started {
        /// Which.
        running: Running,
        /// How it is told its limits.
        limits_by: LimitsBy,
    },
    /// How the source was set up, before that is changed.
    Originals {
        /// As it was.
        originals: Originals,
    },
    /// A phase, before what it permits is done. The first is written before `migrate` is sent.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// All is done; only the telling is left.
    Ended {
        /// How.
        outcome: Box<Outcome>,
    },
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// The form of the journal.
    pub schema: u32,
    /// The migration.
    pub id: MigrationId,
    /// The engine's version.
    pub engine_version: String,
    /// When it began.
    pub started_at: jiff::Timestamp,
    /// What was asked for, and the limits.
    pub request: Request,
    /// What the guest is to do on the destination.
    pub at_destination: AtDestination,
    /// What becomes of the source.
    pub source_after: SourceAfter,
    /// The migration's own directory.
    pub directory: PathBuf,
}

impl Begun {
    /// The beginning of this plan's journal.
    pub fn of(plan: &Plan) -> Self {
        Self {
            schema: SCHEMA,
            id: plan.id.clone(),
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: jiff::Timestamp::now(),
            request: plan.request(),
            at_destination: plan.at_destination,
            source_after: plan.source_after.clone(),
            directory: plan.directory.clone(),
        }
    }
}

/// A process that may have to be found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Which process.
    pub process: ProcessIdentity,
    /// The file that it runs.
    pub executable: PathBuf,
}

/// The source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Its monitor.
    pub address: Address,
    /// Its process.
    #[serde(flatten)]
    pub running: Running,
    /// Whom it runs as.
    pub owner: Owner,
    /// How it is told its limits.
    pub limits_by: LimitsBy,
    /// What it is.
    pub party: Party,
}

/// The destination, as it is about to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Destination {
    /// Its monitor.
    pub address: Address,
    /// Who starts it.
    pub started_by: StartedBy,
    /// What is made for it beside the user's own files.
    pub directories: Vec<PathBuf>,
    /// What takes over the source's names at the end.
    pub renames: Vec<Rename>,
    /// What has another name for good.
    pub moved: Vec<Moved>,
    /// Where it writes what it has to say.
    pub log: Option<PathBuf>,
    /// The taps that are made for it.
    #[serde(default)]
    pub taps: Vec<NewTap>,
}

/// [`Credentials`] as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    user: u32,
    group: u32,
    groups: Vec<u32>,
}

impl From<&Credentials> for Owner {
    fn from(credentials: &Credentials) -> Self {
        Self {
            user: credentials.user.as_raw(),
            group: credentials.group.as_raw(),
            groups: credentials.groups.iter().map(|group| group.as_raw()).collect(),
        }
    }
}

impl From<&Owner> for Credentials {
    fn from(owner: &Owner) -> Self {
        Self {
            user: Uid::from_raw(owner.user),
            group: Gid::from_raw(owner.group),
            groups: owner.groups.iter().copied().map(Gid::from_raw).collect(),
        }
    }
}

impl Running {
    /// A process that runs now.
    pub fn of(handle: &ProcessHandle, view: &ProcessView) -> Self {
        Self { process: handle.identity().clone(), executable: view.executable.clone() }
    }

    /// A hold on it, or on nothing where it has ended: a number that is another process's by now is nothing. One that
    /// cannot be looked at may live: that is an error.
    pub fn find(&self) -> Result<ProcessHandle, ProcError> {
        let pid = self.process.pid;
        let found = ProcessHandle::open(pid).and_then(|found| {
            let is_it = *found.identity() == self.process
                && executable_name(&executable(pid)?) == executable_name(&self.executable);
            Ok(is_it.then_some(found))
        });
        match found {
            Ok(Some(found)) => Ok(found),
            Ok(None) | Err(ProcError::Gone(_)) => Ok(ProcessHandle::of_one_that_ended(self.process.clone())),
            Err(error) => Err(error),
        }
    }
}

/// All that a journal says.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// What was asked for.
    pub begun: Begun,
    /// The source, once it was known.
    pub source: Option<Source>,
    /// The destination, once it was about to be.
    pub destination: Option<Destination>,
    /// Its process, once there was one.
    pub started: Option<(Running, LimitsBy)>,
    /// How the source was set up before.
    pub originals: Option<Originals>,
    /// The phases, in order; none before `migrate` was about to be sent.
    pub phases: Vec<Phase>,
    /// How it ended, once it had.
    pub outcome: Option<Outcome>,
}

impl Story {
    /// Puts lines together; an error is the number of the line that is out of place.
    pub(super) fn tell(steps: Vec<Step>) -> Result<Self, usize> {
        let mut steps = steps.into_iter();
        let Some(Step::Begun(begun)) = steps.next() else { return Err(1) };
        let mut story = Self {
            begun,
            source: None,
            destination: None,
            started: None,
            originals: None,
            phases: Vec::new(),
            outcome: None,
        };
        for (number, step) in steps.enumerate() {
            match step {
                Step::Begun(_) => return Err(number + 2),
                Step::Source(source) => story.source = Some(source),
                Step::Destination(destination) => story.destination = Some(*destination),
                Step::Started { running, limits_by } => story.started = Some((running, limits_by)),
                Step::Originals { originals } => story.originals = Some(originals),
                Step::Phase { phase } => story.phases.push(phase),
                Step::Ended { outcome } => story.outcome = Some(*outcome),
            }
        }
        Ok(story)
    }

    /// Whether this process is one of its two sides, and it has not come to its end.
    pub fn involves(&self, process: &ProcessIdentity) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        let source = self.source.as_ref().map(|source| &source.running);
        let destination = self.started.as_ref().map(|(running, _)| running);
        source.into_iter().chain(destination).any(|running| running.process == *process)
    }

    /// The last phase in which there was still something to do; the engine ended in it, or gave up.
    pub fn last_open_phase(&self) -> Option<Phase> {
        let undecided = |phase: &&Phase| matches!(phase, Phase::Undecided(_));
        self.phases.iter().rev().find(|phase| !undecided(phase)).copied()
    }
}
