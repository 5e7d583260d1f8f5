//! How much of its work a guest lost to a migration: by its own counter of writes, held against its pace before.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::guest::workload::TICKS_PER_SECOND;
use crate::guest::{GuestState, Workload};

/// The guest's counters at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    /// When they were read.
    pub at: Instant,
    /// What they said.
    pub state: GuestState,
}

/// What a guest was kept from doing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LostWork {
    /// The share of its work that it did not do; below zero if it did more than at its pace before.
    pub share: f64,
    /// The same as a time: so long it would have worked at its own pace for what it did not do, in milliseconds.
    pub lost_ms: f64,
    /// The time that is looked at, from before `migrate` was started until after it had ended, in milliseconds.
    pub of_ms: f64,
    /// The share of the work that its rate asks for which it did not do before, undisturbed: far from zero, the host
    /// was busy or the rate too high. Absent where it has no rate.
    pub share_before: Option<f64>,
}

/// The work lost between `start` and `end`: held against what the guest's rate asks for, or, where it has none, against
/// its pace between `before` and `start`, in which nothing disturbed it but its host. `None` where that is not known: a
/// guest without a rate that rests at times, or one that was not watched.
///
/// Under TCG a guest loses ticks while its host is busy, and with them the writes that they would have asked for: that is
/// lost work too, so the work that a rate asks for is reckoned by the clock of the host and not by the guest's ticks.
pub fn lost_work(workload: &Workload, before: &Reading, start: &Reading, end: &Reading) -> Option<LostWork> {
    let undisturbed =
        undisturbed_writes(workload, before, start, end.at.saturating_duration_since(start.at))?;
    if undisturbed <= 0.0 {
        return None;
    }
    let share = 1.0 - writes_between(start, end) / undisturbed;
    let of_ms = end.at.saturating_duration_since(start.at).as_secs_f64() * 1e3;
    let watched = start.at.saturating_duration_since(before.at);
    let asked_before = asked(workload, before, watched).filter(|asked| *asked > 0.0);
    let share_before = asked_before.map(|asked| 1.0 - writes_between(before, start) / asked);
    Some(LostWork { share, lost_ms: share * of_ms, of_ms, share_before })
}

/// What the guest would have written from `start` on in so much time: what its rate asks for, or else what it did before.
fn undisturbed_writes(workload: &Workload, before: &Reading, start: &Reading, time: Duration) -> Option<f64> {
    asked(workload, start, time).or_else(|| {
        let watched = start.at.saturating_duration_since(before.at);
        let pace = writes_between(before, start) / watched.as_secs_f64();
        (!workload.pattern().rests() && pace.is_finite()).then_some(pace * time.as_secs_f64())
    })
}

/// What is asked of a guest that loses no tick.
fn asked(workload: &Workload, from: &Reading, time: Duration) -> Option<f64> {
    let ticks = from.state.working_ticks();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "ticks of minutes; saturates"
    )]
    let later = ticks.saturating_add((time.as_secs_f64() * TICKS_PER_SECOND) as u32);
    Some(as_f64(workload.writes_asked(later)?.saturating_sub(workload.writes_asked(ticks)?)))
}

fn writes_between(from: &Reading, to: &Reading) -> f64 {
    as_f64(to.state.writes.saturating_sub(from.state.writes))
}

#[expect(clippy::cast_precision_loss, reason = "writes of minutes")]
fn as_f64(writes: u64) -> f64 {
    writes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Content, Pattern, Status};
    use crate::units::Size;

    /// 1000 writes of a page per second, or as fast as it can.
    fn workload(rate: Option<u64>, pattern: Pattern) -> Workload {
        let mebibytes = |number| Size::from_mebibytes(number).unwrap();
        let rate = rate.map(|writes| format!("{}", writes * 4096).parse().unwrap());
        Workload::new(mebibytes(64), mebibytes(1), rate, pattern, Content::Compressible).unwrap()
    }

    /// Readings of a guest with so many writes at so many milliseconds.
    fn readings(points: [(u64, u64); 3]) -> [Reading; 3] {
        let start = Instant::now();
        points.map(|(ms, writes)| Reading {
            at: start + Duration::from_millis(ms),
            state: GuestState {
                status: Status::Writing,
                ticks: u32::try_from(ms).unwrap(),
                started: 0,
                credited: u32::try_from(ms).unwrap(),
                owed: 0,
                writes,
                dropped: 0,
                passes: 0,
                lost: 0,
                first_lost: None,
            },
        })
    }

    fn share(workload: &Workload, points: [(u64, u64); 3]) -> Option<f64> {
        let [before, start, end] = readings(points);
        lost_work(workload, &before, &start, &end).map(|lost| (lost.share * 100.0).round() / 100.0)
    }

    #[test]
    fn work_is_lost_against_the_rate_or_the_pace_before() {
        let phased = Pattern::Phased { on_ticks: 1000, off_ticks: 1000 };
        for (rate, pattern, points, expected) in [
            // At a rate: half of it, all of it, and the same of one that is too slow anyway.
            (Some(1000), Pattern::Sweep, [(0, 0), (1000, 1000), (3000, 2000)], Some(0.5)),
            (Some(1000), Pattern::Sweep, [(0, 0), (1000, 1000), (3000, 3000)], Some(0.0)),
            (Some(1000), Pattern::Sweep, [(0, 0), (1000, 800), (3000, 2400)], Some(0.2)),
            // As fast as it can: against its own pace.
            (None, Pattern::Sweep, [(0, 0), (1000, 5000), (3000, 10_000)], Some(0.5)),
            (None, Pattern::Sweep, [(0, 0), (1000, 5000), (3000, 15_000)], Some(0.0)),
            // While it rests nothing is asked of it.
            (Some(1000), phased, [(0, 0), (1000, 1000), (3000, 2000)], Some(0.0)),
            (Some(1000), phased, [(0, 0), (2000, 1000), (3000, 1500)], Some(0.5)),
            // Nobody knows its pace.
            (None, phased, [(0, 0), (1000, 5000), (3000, 10_000)], None),
            (None, Pattern::Sweep, [(1000, 0), (1000, 0), (3000, 0)], None),
        ] {
            assert_eq!(share(&workload(rate, pattern), points), expected, "{rate:?} {pattern} {points:?}");
        }
    }

    #[test]
    fn lost_work_is_a_time_too() {
        let [before, start, end] = readings([(0, 0), (1000, 5000), (3000, 10_000)]);
        let lost = lost_work(&workload(None, Pattern::Sweep), &before, &start, &end).unwrap();
        assert!((lost.lost_ms - 1000.0).abs() < 1e-6 && (lost.of_ms - 2000.0).abs() < 1e-6, "{lost:?}");
        assert_eq!(lost.share_before, None);
        let [before, start, end] = readings([(0, 0), (1000, 750), (3000, 1750)]);
        let lost = lost_work(&workload(Some(1000), Pattern::Sweep), &before, &start, &end).unwrap();
        assert!(
            (lost.share_before.unwrap() - 0.25).abs() < 0.01 && (lost.share - 0.5).abs() < 0.01,
            "{lost:?}"
        );
    }
}
