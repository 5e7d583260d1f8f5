//! What is measured and decided while a migration runs.

use serde::{Deserialize, Serialize};

/// The parts of a migration, in the order of the design; `retreat` may follow on any up to `handover`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// All blockers are looked for; nothing is changed.
    Check,
    /// The destination is started.
    Destination,
    /// Capabilities and parameters are set on both sides.
    Prepare,
    /// Memory is copied while the guest runs.
    Stream,
    /// The source stands still and sends the rest.
    Switchover,
    /// Both have completed; the destination may be told to run the guest.
    Handover,
    /// The guest runs on the destination; the source is ended, names are taken over.
    Finish,
    /// The guest goes back to its source.
    Retreat,
    /// Nothing more happens.
    Ended,
}

impl PhaseName {
    /// The name as it stands in JSON and on the screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Destination => "destination",
            Self::Prepare => "prepare",
            Self::Stream => "stream",
            Self::Switchover => "switchover",
            Self::Handover => "handover",
            Self::Finish => "finish",
            Self::Retreat => "retreat",
            Self::Ended => "ended",
        }
    }
}

/// A phase began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PhaseChange {
    /// Which.
    pub phase: PhaseName,
    /// When, in milliseconds since the start of the migration.
    pub at_ms: f64,
}

/// A pass over the guest's memory began: QEMU has looked anew which pages are dirty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// QEMU's `dirty-sync-count`. The first pass is 1, and QEMU does not always announce it.
    pub number: u64,
    /// When, in milliseconds since the start of the migration.
    pub at_ms: f64,
    /// What this pass has to send.
    pub remaining_bytes: u64,
}

/// What `query-migrate` said at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When the answer came, in milliseconds since the start of the migration.
    pub at_ms: f64,
    /// Sent so far, in bytes.
    pub transferred_bytes: u64,
    /// Dirty and not yet sent, in bytes; an estimate between two passes.
    pub remaining_bytes: u64,
    /// The guest's memory in bytes.
    pub total_bytes: u64,
    /// Passes begun so far (`dirty-sync-count`).
    pub passes: u64,
    /// Distinct pages dirtied per second in the last pass, in bytes per second. It saturates: a guest that dirties
    /// faster than the link shows about the rate of the link.
    pub dirty_bytes_per_second: u64,
    /// The rate of the stream, in bytes per second, as this engine measured it; 0 before there is a measurement.
    pub stream_bytes_per_second: u64,
    /// The `downtime-limit` in force, in milliseconds.
    pub downtime_limit_ms: u64,
    /// QEMU's throttle in per cent; 0 when it is off.
    pub throttle_percent: u64,
}

/// What the guest dirtied in a window that was sampled beside the stream (`calc-dirty-rate`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DirtyWindow {
    /// When it ended, in milliseconds since the start of the migration.
    pub at_ms: f64,
    /// How long it was, in milliseconds.
    pub length_ms: f64,
    /// The distinct bytes dirtied in it, as a sample of the pages tells.
    pub dirtied_bytes: f64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "choice", rename_all = "snake_case")]
pub enum Choice {
    /// Set QEMU's `downtime-limit` to so many milliseconds.
    Limit {
        /// The new limit in milliseconds.
        downtime_limit_ms: u64,
    },
    /// No downtime within the budget will do; give up.
    Infeasible {
        /// The smallest downtime that would do, in milliseconds, as far as is known.
        smallest_downtime_ms: u64,
        /// What the whole migration takes with that downtime, from the begin of the stream to the guest on the
        /// destination, in milliseconds; absent where too little is known, and in records of older versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        smallest_time_ms: Option<u64>,
    },
    /// The time budget is spent.
    OutOfTime,
    /// Go on as it is.
    Wait,
    /// Slow the guest down by so many per cent; 0 is no more.
    Throttle {
        /// Of the guest's time, in per cent.
        percent: u8,
    },
    /// Stop the guest so that what is left can be sent: a person asked for it, or has consented to it.
    Pause,
    /// A person changed a budget.
    Budget,
}

/// What the controller expects, from this moment on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The blackout, in milliseconds.
    pub blackout_ms: f64,
    /// The least and the most that it may be by what has been measured; absent where too little has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blackout_between_ms: Option<(f64, f64)>,
    /// Until the guest stops, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_ms: Option<f64>,
    /// Passes until then, the one that runs included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passes: Option<u32>,
    /// Yet to be sent, in bytes, the final copy included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What a decision costs the guest from this moment on, if what is expected comes true.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The work that it does not do, in milliseconds of its time: all of the blackout, and until then what the throttle
    /// takes. QEMU's throttle takes the same share of all processors.
    pub lost_work_ms: f64,
}

impl Cost {
    /// Of a choice with this forecast, where the guest is slowed down by so much already. A guest that is stopped works
    /// no more until it has arrived. What is given up costs nothing, and of what is not foretold nothing is known.
    pub fn of(choice: Choice, throttle_percent: u8, forecast: Option<&Forecast>) -> Option<Self> {
        let forecast = forecast?;
        let share = match choice {
            Choice::Infeasible { .. } | Choice::OutOfTime => return None,
            Choice::Throttle { percent } => f64::from(percent) / 100.0,
            Choice::Pause => 1.0,
            Choice::Limit { .. } | Choice::Wait | Choice::Budget => f64::from(throttle_percent) / 100.0,
        };
        let stream_ms = match forecast.stream_ms {
            Some(stream_ms) => stream_ms,
            None if share > 0.0 => return None,
            None => 0.0,
        };
        Some(Self { lost_work_ms: forecast.blackout_ms + share * stream_ms })
    }
}

/// A decision with its reason, one line that a person understands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// When, in milliseconds since the start of the migration.
    pub at_ms: f64,
    /// What.
    #[serde(flatten)]
    pub choice: Choice,
    /// Why.
    pub reason: String,
    /// What is expected of it.
    pub forecast: Option<Forecast>,
    /// What it costs the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// The policy that would have decided so, where it is one that was only asked (`--shadow`); absent where this was
    /// done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// Something the user should know though it stops nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// A stable word to filter by.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_costs_the_blackout_and_what_the_throttle_takes_until_then() {
        let forecast = |stream_ms| Forecast {
            blackout_ms: 100.0,
            blackout_between_ms: None,
            stream_ms,
            passes: None,
            bytes: None,
        };
        let cost = |choice, throttle_percent, stream_ms| {
            Cost::of(choice, throttle_percent, Some(&forecast(stream_ms))).map(|cost| cost.lost_work_ms)
        };
        assert_eq!(cost(Choice::Wait, 0, None), Some(100.0));
        assert_eq!(cost(Choice::Wait, 50, Some(1000.0)), Some(600.0));
        assert_eq!(cost(Choice::Throttle { percent: 80 }, 0, Some(1000.0)), Some(900.0));
        assert_eq!(cost(Choice::Throttle { percent: 80 }, 0, None), None, "for how long is not known");
        assert_eq!(cost(Choice::Throttle { percent: 0 }, 80, Some(1000.0)), Some(100.0));
        assert_eq!(cost(Choice::Pause, 0, Some(1000.0)), Some(1100.0));
        assert_eq!(cost(Choice::OutOfTime, 0, Some(1000.0)), None);
        assert_eq!(Cost::of(Choice::Wait, 0, None), None);
    }
}
