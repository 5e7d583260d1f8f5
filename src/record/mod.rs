//! One migration as plain, versioned data; every output is drawn from it.
//!
//! The engine appends [`Entry`](crate::record::Entry) values while it works and folds them into a [`Record`](crate::record::Record). A progress line, a JSON
//! stream, a status answer and a report file are all faces of that one value, so that they cannot disagree.
//!
//! ```text
//!   engine ── Entry ──► Record::apply ──► Record ──► report, control, files
//!                └────────────────────────────────► JSON lines, watchers
//! ```
//!
//! Names in the JSON carry their units (`_ms`, `_bytes`, `_bytes_per_second`). A reader checks
//! [`SCHEMA`](crate::record::SCHEMA): it grows when a name changes its meaning or goes away, not when one is added.

/// What is measured on the way: samples, passes, decisions.
mod course;
/// The name of one migration, from which all that it makes is named.
mod id;
/// How it ended, where the guest is, and what the guest lost in time.
mod outcome;
/// A record from a file.
mod read;

pub use course::{
    Choice, Cost, Decision, DirtyWindow, Forecast, Pass, PhaseChange, PhaseName, Sample, Warning,
};
pub use id::{IdError, MigrationId};
pub use outcome::{Blackout, End, MayRun, Moved, Observed, Outcome, Totals, Whereabouts};
pub use read::{Gap, ReadError, Reading};

use serde::{Deserialize, Serialize};

use crate::units::{DowntimeMs, Rate};

/// The version of the record's JSON.
pub const SCHEMA: u32 = 1;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The source as it was typed.
    pub source: String,
    /// The longest blackout allowed.
    pub max_downtime_ms: DowntimeMs,
    /// How much longer than that the guest may stand still before it goes back to its source.
    pub grace_ms: u64,
    /// The longest that the whole move may take, if bounded.
    pub max_time_ms: Option<u64>,
    /// The largest rate of the stream in bytes per second, if bounded.
    pub max_bandwidth_bytes_per_second: Option<Rate>,
    /// Whether the guest runs while its memory is copied.
    pub live: bool,
    /// What may be done to the guest besides waiting.
    #[serde(default)]
    pub allowed: Allowed,
    /// The name of the policy that decides.
    #[serde(default = "our_policy")]
    pub policy: String,
    /// Whether that policy keeps to the budgets; those of others do not.
    #[serde(default = "enforced")]
    pub budgets_enforced: bool,
}

/// What may be done to the guest besides waiting, by consent. Nothing, in records of older versions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allowed {
    /// The most that it may be slowed down, in per cent of its time.
    pub throttle_percent: Option<u8>,
    /// Stopping it so that what is left can be sent.
    pub pause: bool,
    /// Running it on the destination before all of its memory is there.
    pub postcopy: bool,
}

/// What decided before there were others.
fn our_policy() -> String {
    "qmigrate".to_owned()
}

/// All that older versions had kept to the budgets.
fn enforced() -> bool {
    true
}

#[cfg(test)]
impl Request {
    /// What the tests of several modules ask for.
    pub(crate) fn in_a_test(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            max_downtime_ms: DowntimeMs::new(300).expect("it is within the bounds"),
            grace_ms: 2000,
            max_time_ms: None,
            max_bandwidth_bytes_per_second: None,
            live: true,
            allowed: Allowed::default(),
            policy: our_policy(),
            budgets_enforced: true,
        }
    }
}

/// How a QEMU is told its limits: downtime and bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitsBy {
    /// `migrate-set-parameters`.
    Parameters,
    /// `migrate_set_downtime` and `migrate_set_speed`.
    OldCommands,
}

/// One of the two QEMUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Its process, if it is on this host.
    pub pid: Option<i32>,
    /// Its QMP address.
    pub qmp: String,
    /// Its version, such as `10.0.2`.
    pub qemu_version: String,
    /// The guest's name (`-name`), if it has one.
    pub name: Option<String>,
    /// The accelerator: `kvm` or `tcg`.
    pub accelerator: Option<String>,
    /// The versioned machine type, such as `pc-i440fx-10.0`.
    pub machine: Option<String>,
    /// How its limits are set.
    pub limits_by: Option<LimitsBy>,
}

/// One migration, from the request to the outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Its name.
    pub id: MigrationId,
    /// The engine's version.
    pub engine_version: String,
    /// When it started (RFC 3339, UTC).
    pub started_at: jiff::Timestamp,
    /// What was asked for.
    pub request: Request,
    /// The QEMU that the guest comes from.
    pub source: Option<Party>,
    /// The QEMU that it goes to.
    pub destination: Option<Party>,
    /// Each phase entered, in order.
    pub phases: Vec<PhaseChange>,
    /// Each pass over the guest's memory.
    pub passes: Vec<Pass>,
    /// What `query-migrate` said, over time.
    pub samples: Vec<Sample>,
    /// What the guest dirtied in windows that were sampled beside the stream.
    #[serde(default)]
    pub dirty_windows: Vec<DirtyWindow>,
    /// What the controller decided, and why.
    pub decisions: Vec<Decision>,
    /// What the user should know though it stopped nothing.
    pub warnings: Vec<Warning>,
    /// What stood in its way, where it was refused.
    #[serde(default)]
    pub blockers: Vec<Warning>,
    /// How it ended; absent while it runs.
    pub outcome: Option<Outcome>,
}

/// One line of a migration's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Entry {
    /// A phase began.
    Phase(PhaseChange),
    /// The source is known.
    Source(Party),
    /// The destination is known.
    Destination(Party),
    /// A pass over memory began.
    Pass(Pass),
    /// A measurement.
    Sample(Sample),
    /// A window that was sampled beside the stream.
    DirtyWindow(DirtyWindow),
    /// A decision of the controller or of a person.
    Decision(Decision),
    /// Something the user should know.
    Warning(Warning),
    /// Something that stands in the way.
    Blocker(Warning),
    /// The end.
    Result(Box<Outcome>),
}

impl Record {
    /// A record of a migration that has only just been asked for.
    pub fn new(id: MigrationId, request: Request, started_at: jiff::Timestamp) -> Self {
        Self {
            schema: SCHEMA,
            id,
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            request,
            source: None,
            destination: None,
            phases: Vec::new(),
            passes: Vec::new(),
            samples: Vec::new(),
            dirty_windows: Vec::new(),
            decisions: Vec::new(),
            warnings: Vec::new(),
            blockers: Vec::new(),
            outcome: None,
        }
    }

    /// Adds one line of history.
    pub fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Phase(change) => self.phases.push(change),
            Entry::Source(party) => self.source = Some(party),
            Entry::Destination(party) => self.destination = Some(party),
            Entry::Pass(pass) => self.passes.push(pass),
            Entry::Sample(sample) => self.samples.push(sample),
            Entry::DirtyWindow(window) => self.dirty_windows.push(window),
            Entry::Decision(decision) => self.decisions.push(decision),
            Entry::Warning(warning) => self.warnings.push(warning),
            Entry::Blocker(blocker) => self.blockers.push(blocker),
            Entry::Result(outcome) => self.outcome = Some(*outcome),
        }
    }

    /// The phase that it is in.
    pub fn phase(&self) -> Option<PhaseName> {
        self.phases.last().map(|change| change.phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_json() {
        let mut record = Record::new(
            MigrationId::from_number(7),
            Request::in_a_test("/run/vm.qmp"),
            jiff::Timestamp::UNIX_EPOCH,
        );
        record.apply(Entry::Phase(PhaseChange { phase: PhaseName::Stream, at_ms: 12.5 }));
        record.apply(Entry::Pass(Pass { number: 2, at_ms: 20.0, remaining_bytes: 4096 }));
        record.apply(Entry::Warning(Warning { code: "console".into(), message: "text".into(), hint: None }));
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
        assert_eq!(record.phase(), Some(PhaseName::Stream));
    }

    #[test]
    fn an_entry_names_its_type_and_its_units() {
        let entry = Entry::Pass(Pass { number: 2, at_ms: 20.0, remaining_bytes: 4096 });
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"type":"pass","number":2,"at_ms":20.0,"remaining_bytes":4096}"#
        );
    }
}
