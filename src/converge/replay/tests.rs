//! Recorded migrations of real QEMUs, shown to every policy.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::converge::{Breach, Finish};
use crate::record::{Entry, MigrationId, Pass, PhaseChange, Request};
use crate::units::{DowntimeMs, Rate};

/// A recorded migration as a record of ours, with a sample for each pass.
fn record(recorded: &Value) -> Record {
    let number = |value: &Value| value.as_f64().unwrap();
    let mut request = Request::in_a_test("/recorded");
    let max_bandwidth = recorded["link"]["max_bandwidth_bytes_per_second"].as_u64();
    request.max_bandwidth_bytes_per_second = max_bandwidth.and_then(Rate::from_bytes_per_second);
    let mut record = Record::new(MigrationId::from_number(1), request, jiff::Timestamp::UNIX_EPOCH);
    record.apply(Entry::Phase(PhaseChange { phase: PhaseName::Stream, at_ms: 0.0 }));
    let latest = |steps: &Value, at_ms: f64, value: &dyn Fn(&Value) -> Option<u64>| {
        let before = steps.as_array().unwrap().iter().filter(|step| number(&step["at_ms"]) <= at_ms);
        before.filter_map(value).next_back()
    };
    let outcome = &recorded["outcome"];
    for pass in recorded["passes"].as_array().unwrap() {
        let (at_ms, whole) = (number(&pass["began_at_ms"]), |key: &str| pass[key].as_u64().unwrap());
        let sample = Sample {
            at_ms,
            transferred_bytes: whole("transferred_bytes"),
            remaining_bytes: whole("remaining_bytes"),
            total_bytes: outcome["total_bytes"].as_u64().unwrap(),
            passes: whole("number"),
            dirty_bytes_per_second: 0,
            stream_bytes_per_second: 0,
            downtime_limit_ms: latest(&recorded["said"], at_ms, &|said| {
                said["say"]["downtime-limit"].as_u64()
            })
            .unwrap_or(300),
            throttle_percent: latest(&recorded["throttle"], at_ms, &|step| step["percent"].as_u64())
                .unwrap_or(0),
        };
        let (number, remaining_bytes) = (sample.passes, sample.remaining_bytes);
        record.apply(Entry::Pass(Pass { number, at_ms, remaining_bytes }));
        record.apply(Entry::Sample(sample));
    }
    // Our own records have four samples a second: the last one has the limit that ended it.
    let stopped_ms = number(&outcome["stopped_at_ms"]);
    let last = record.samples.last().copied().unwrap();
    record.apply(Entry::Sample(Sample {
        at_ms: stopped_ms,
        transferred_bytes: outcome["transferred_bytes"].as_u64().unwrap()
            - outcome["downtime_bytes"].as_u64().unwrap(),
        remaining_bytes: outcome["downtime_bytes"].as_u64().unwrap(),
        downtime_limit_ms: latest(&recorded["said"], stopped_ms, &|said| {
            said["say"]["downtime-limit"].as_u64()
        })
        .unwrap_or(300),
        ..last
    }));
    for (phase, key) in [(PhaseName::Switchover, "stopped_at_ms"), (PhaseName::Finish, "resumed_at_ms")] {
        record.apply(Entry::Phase(PhaseChange { phase, at_ms: number(&outcome[key]) }));
    }
    record
}

/// All recorded migrations, by name.
fn all() -> BTreeMap<String, (Value, Record)> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/converge/simulator/recorded");
    let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let recorded: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let record = record(&recorded);
        (path.file_stem().unwrap().display().to_string(), (recorded, record))
    };
    paths.map(read).collect()
}

fn allowed(max_downtime_ms: u64) -> (Budget, Consents) {
    let max_downtime = DowntimeMs::new(max_downtime_ms).unwrap();
    (Budget { max_downtime, max_time: None }, Consents::default())
}

#[test]
fn every_recorded_migration_is_replayed_by_every_policy() {
    for (name, (_, record)) in all() {
        for policy in PolicyName::ALL {
            let replay = replay(&record, None, *policy, allowed(300)).unwrap();
            let begins = replay.decisions.first().unwrap();
            assert!(begins.reason.starts_with("begins with a limit of"), "{name}, {policy}: {begins:?}");
            assert!(replay.decisions.iter().all(|said| said.policy.as_deref() == Some(policy.as_str())));
            let last_ms = replay.decisions.last().unwrap().at_ms;
            assert!(
                replay.parts.is_none_or(|parting| parting.at_ms >= last_ms),
                "{name}, {policy}: {replay:?}"
            );
        }
    }
}

/// A guest that dirties faster than the link, under the limit of 300 ms that `fixed` has too, until a larger one.
#[test]
fn the_fixed_limit_would_have_gone_on_where_a_larger_one_ended_it() {
    let records = all();
    let parting = |name: &str, policy| {
        let (_, record) = &records[name];
        replay(record, None, policy, allowed(300)).unwrap().parts
    };
    for name in ["saturated-large", "shaped-saturated"] {
        assert_eq!(parting(name, PolicyName::Fixed).map(|parting| parting.why), Some(Why::GoesOn), "{name}");
        let throttled = parting(name, PolicyName::AutoConverge).unwrap();
        assert_eq!(throttled.why, Why::Throttles, "{name}");
    }
    assert_eq!(parting("limit-of-300", PolicyName::Fixed).filter(|parting| parting.why == Why::GoesOn), None);
}

/// Guests that go on as they began, over a link that does not change, and whom nobody stopped or throttled.
#[test]
fn the_fit_of_a_steady_migration_ends_about_as_it_ended() {
    let records = all();
    for name in STEADY {
        let (recorded, record) = &records[name];
        let simulated = Fitted::of(record).unwrap().as_it_was(allowed(300).0);
        let recorded_ms = recorded["outcome"]["resumed_at_ms"].as_f64().unwrap();
        assert_eq!(simulated.finish, Finish::Moved, "{name}");
        let copied_ms = simulated.total_ms - simulated.blackout_ms.unwrap_or(0.0);
        assert!((copied_ms / recorded_ms - 1.0).abs() < 0.4, "{name}: {recorded_ms} {simulated:?}");
    }
}

const STEADY: [&str; 5] =
    ["few-passes", "hot-and-cold", "limit-of-300", "mostly-zero-pages", "saturated-large"];

/// The hot writer that never fits 300 ms: whoever moves it has broken something, or has found the larger limit.
#[test]
fn whoever_breaks_the_budget_in_the_simulation_is_marked() {
    let (_, record) = &all()["shaped-saturated"];
    let fitted = Fitted::of(record).unwrap();
    for policy in PolicyName::ALL {
        let simulated = fitted.simulate(*policy, allowed(100).0, Consents::default());
        let is_above = simulated.blackout_ms.is_some_and(|blackout_ms| blackout_ms > 100.0);
        assert_eq!(simulated.breaches.contains(&Breach::Blackout), is_above, "{policy}");
        assert!(!policy.keeps_budgets() || simulated.breaches.is_empty(), "{policy}: {simulated:?}");
        assert_eq!(simulated.breaches.contains(&Breach::Throttle), simulated.throttled_ms > 0.0, "{policy}");
    }
}

#[test]
fn a_record_without_samples_and_one_that_was_not_live_are_refused() {
    let mut record =
        Record::new(MigrationId::from_number(1), Request::in_a_test("/vm"), jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(replay(&record, None, PolicyName::Fixed, allowed(300)), Err(ReplayError::NoSamples));
    assert!(Fitted::of(&record).is_none());
    record.request.live = false;
    assert_eq!(replay(&record, None, PolicyName::Fixed, allowed(300)), Err(ReplayError::NotLive));
}
