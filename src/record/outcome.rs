//! How a migration ended, where the guest is, and what the guest lost in time.

use serde::{Deserialize, Serialize};

/// Which side may run the guest. At every moment of a migration this is one value, and it never says "both".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MayRun {
    /// The source, and it alone.
    Source,
    /// Neither: both are held.
    Neither,
    /// The destination, and it alone.
    Destination,
}

/// The end of a migration; each has its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// 0: migrated, and verified on the destination.
    Migrated,
    /// 1: not migrated; the guest is on its source as before.
    NotMigrated,
    /// 2: refused before anything was changed.
    Refused,
    /// 3: where the guest is cannot be told, or it runs nowhere.
    Undecided,
    /// 4: the guest is lost.
    Lost,
    /// 5: migrated, but something after it needs a person.
    MigratedWithRemainder,
}

impl End {
    /// The exit code of the command.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Migrated => 0,
            Self::NotMigrated => 1,
            Self::Refused => 2,
            Self::Undecided => 3,
            Self::Lost => 4,
            Self::MigratedWithRemainder => 5,
        }
    }
}

/// Where the guest is, in words and for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whereabouts {
    /// Where it was and as it was: nothing has been changed.
    Unchanged,
    /// It runs on the source.
    RunningOnSource,
    /// It is on the source and stands still, as it did before or as somebody asked.
    PausedOnSource,
    /// It runs on the destination.
    RunningOnDestination,
    /// It is on the destination and stands still, as it did before or as somebody asked.
    PausedOnDestination,
    /// It cannot be told.
    Unknown,
    /// Nowhere.
    Lost,
}

/// What somebody outside saw of the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Observed {
    /// Nobody looked.
    NotObserved,
    /// The guest's own heartbeats: the time between the last from the source and the first from the destination,
    /// less one beat.
    Heartbeats {
        /// In milliseconds.
        gap_ms: f64,
        /// The figure may be wrong by so much either way, in milliseconds.
        error_ms: f64,
    },
}

/// How long the guest stood still.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blackout {
    /// From the source's `STOP` to the destination's `RESUME`, in milliseconds.
    pub stop_to_resume_ms: Option<f64>,
    /// The clock behind that figure.
    pub clock: String,
    /// The figure may be wrong by so much either way, in milliseconds.
    pub error_ms: f64,
    /// What QEMU says itself (`downtime` of the source's `query-migrate`): from stopping the guest to the end of the
    /// source's work. It leaves out the time until the destination runs it.
    pub qemu_downtime_ms: Option<u64>,
    /// What an outside observer saw.
    pub observed: Observed,
}

/// What the whole move took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// From the start of the engine's work to its end, in milliseconds.
    pub total_ms: f64,
    /// From `migrate` to the end of the stream, as QEMU says (`total-time`), in milliseconds.
    pub stream_ms: Option<u64>,
    /// Sent, in bytes.
    pub transferred_bytes: u64,
    /// Passes over memory.
    pub passes: u64,
}

/// Something that has another name now than on the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// What it is: `qmp`, `serial`, `pidfile` ...
    pub what: String,
    /// Its name on the source.
    pub from: String,
    /// Its name now.
    pub to: String,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The end.
    pub end: End,
    /// The exit code of the command.
    pub exit_code: u8,
    /// Where the guest is.
    pub guest: Whereabouts,
    /// One sentence for a tired person.
    pub message: String,
    /// What to type next, if anything.
    pub hint: Option<String>,
    /// Whether `recover` has something left to do; the guest is not moved again before that.
    #[serde(default)]
    pub open: bool,
    /// Whether the policy in force kept to the budgets; those of others do not.
    #[serde(default = "super::enforced")]
    pub budgets_enforced: bool,
    /// How long the guest stood still, if it moved.
    pub blackout: Option<Blackout>,
    /// What it took.
    pub totals: Totals,
    /// What has a new name.
    pub moved: Vec<Moved>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_own_exit_code() {
        let ends = [
            End::Migrated,
            End::NotMigrated,
            End::Refused,
            End::Undecided,
            End::Lost,
            End::MigratedWithRemainder,
        ];
        assert_eq!(ends.map(End::exit_code), [0, 1, 2, 3, 4, 5]);
    }
}
