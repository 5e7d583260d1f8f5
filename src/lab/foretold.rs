//! What a record foretold at pass 2, and what came.

use serde::{Deserialize, Serialize};

use crate::record::{PhaseName, Record};

/// A forecast, reckoned from the start of the stream. It stood in the record before the outcome was known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Foretold {
    /// The pass that had begun when it was made: 2, or a later one if nothing was foretold at pass 2.
    pub pass: u64,
    /// When it was made, in milliseconds since the start of the stream.
    pub at_ms: f64,
    /// The blackout, in milliseconds.
    pub blackout_ms: f64,
    /// The least and the most that it may be.
    pub blackout_between_ms: Option<(f64, f64)>,
    /// From the start of the stream until the guest runs on the destination, in milliseconds.
    pub total_ms: Option<f64>,
    /// Bytes sent in all.
    pub total_bytes: Option<u64>,
}

/// What a forecast is held against, of a guest that was moved; the blackout has its own figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Came {
    /// From the start of the stream until the guest ran on the destination, in milliseconds.
    pub total_ms: f64,
    /// Bytes sent in all.
    pub total_bytes: u64,
}

/// The first forecast that was made once pass 2 had begun.
pub fn foretold(record: &Record) -> Option<Foretold> {
    let stream_ms = began_ms(record, PhaseName::Stream)?;
    let second = record.passes.iter().find(|pass| pass.number >= 2)?;
    // Those of a policy that was only asked beside the one in force foretell nothing.
    let decisions = record.decisions.iter().filter(|decision| decision.policy.is_none());
    let mut decisions = decisions.filter(|decision| decision.at_ms >= second.at_ms);
    let (at_ms, forecast) = decisions.find_map(|decision| Some((decision.at_ms, decision.forecast?)))?;
    let before = |moment_ms: f64| moment_ms <= at_ms;
    let pass = record.passes.iter().rev().find(|pass| before(pass.at_ms)).map_or(2, |pass| pass.number);
    let sent_bytes = record.samples.iter().rev().find(|sample| before(sample.at_ms))?.transferred_bytes;
    Some(Foretold {
        pass,
        at_ms: at_ms - stream_ms,
        blackout_ms: forecast.blackout_ms,
        blackout_between_ms: forecast.blackout_between_ms,
        total_ms: forecast.stream_ms.map(|left_ms| at_ms - stream_ms + left_ms + forecast.blackout_ms),
        total_bytes: forecast.bytes.map(|left_bytes| sent_bytes.saturating_add(left_bytes)),
    })
}

/// What came, if the guest was moved.
pub fn came(record: &Record) -> Option<Came> {
    let total_ms = began_ms(record, PhaseName::Finish)? - began_ms(record, PhaseName::Stream)?;
    Some(Came { total_ms, total_bytes: record.outcome.as_ref()?.totals.transferred_bytes })
}

fn began_ms(record: &Record, phase: PhaseName) -> Option<f64> {
    record.phases.iter().find(|change| change.phase == phase).map(|change| change.at_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Choice, Decision, Entry, Forecast, MigrationId, Pass, PhaseChange, Request, Sample};

    fn decision(at_ms: f64, blackout_ms: Option<f64>) -> Entry {
        let forecast = blackout_ms.map(|blackout_ms| Forecast {
            blackout_ms,
            blackout_between_ms: Some((1.0, 2.0)),
            stream_ms: Some(300.0),
            passes: Some(2),
            bytes: Some(50),
        });
        Entry::Decision(Decision {
            at_ms,
            choice: Choice::Wait,
            reason: String::new(),
            forecast,
            cost: None,
            policy: None,
        })
    }

    fn record(entries: Vec<Entry>) -> Record {
        let id = MigrationId::from_number(1);
        let mut record = Record::new(id, Request::in_a_test("x"), jiff::Timestamp::UNIX_EPOCH);
        for entry in entries {
            record.apply(entry);
        }
        record
    }

    fn sample(at_ms: f64, transferred_bytes: u64) -> Entry {
        Entry::Sample(Sample {
            at_ms,
            transferred_bytes,
            remaining_bytes: 0,
            total_bytes: 0,
            passes: 2,
            dirty_bytes_per_second: 0,
            stream_bytes_per_second: 0,
            downtime_limit_ms: 2,
            throttle_percent: 0,
        })
    }

    #[test]
    fn the_first_forecast_of_pass_2_counts_from_the_start_of_the_stream() {
        let pass = |number, at_ms| Entry::Pass(Pass { number, at_ms, remaining_bytes: 1 });
        let phase = |phase, at_ms| Entry::Phase(PhaseChange { phase, at_ms });
        let record = record(vec![
            phase(PhaseName::Stream, 100.0),
            pass(1, 101.0),
            decision(150.0, Some(9.0)),
            pass(2, 1100.0),
            sample(1100.0, 1000),
            decision(1100.5, None),
            decision(1101.0, Some(7.0)),
            decision(1200.0, Some(8.0)),
            sample(1300.0, 1500),
            pass(3, 1300.0),
            phase(PhaseName::Finish, 1500.0),
        ]);
        let expected = Foretold {
            pass: 2,
            at_ms: 1001.0,
            blackout_ms: 7.0,
            blackout_between_ms: Some((1.0, 2.0)),
            total_ms: Some(1308.0),
            total_bytes: Some(1050),
        };
        assert_eq!(foretold(&record), Some(expected));
        assert_eq!(came(&record), None, "it has no outcome");
    }

    #[test]
    fn a_record_without_a_second_pass_foretold_nothing() {
        let phase = Entry::Phase(PhaseChange { phase: PhaseName::Stream, at_ms: 1.0 });
        assert_eq!(foretold(&record(vec![phase, decision(5.0, Some(1.0)), sample(2.0, 1)])), None);
    }
}
