//! KubeVirt's downtime tuning (VEP 291): from the third pass on the limit climbs every 10 s.
//!
//! | constant | value | from |
//! |---|---|---|
//! | limits | 150, 300, 450, 600, 750, 900, 1050 ms | VEP 291, `initialMs` 150, `steps` 7, `maxDowntimeMs` 1050 |
//! | climbs from pass | 3 | `startAfterIteration` |
//! | every | 10 s | `cooldownSeconds` |
//! | gives up after | 150 s per GiB of memory | `completionTimeoutPerGiB` |
//! | gives up where nothing falls for | 150 s | `progressTimeout`, `isMigrationProgressing` |
//! | looks | every 400 ms | `live-migration-source.go` |
//!
//! (kubevirt/enhancements `veps/sig-compute/291-dynamic-downtime-tuning/vep.md`, kubevirt pull request 17480.) It stands
//! beside the timeouts of before and not beside the stall detector, which has limits of its own. Its defaults allow
//! neither postcopy nor a pause.

use super::kubevirt::{LOOK_EVERY_MS, completion_ms};
use super::{Ticks, abort, limit};
use crate::converge::policy::{Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::Sample;

const STEP_MS: u64 = 150;
const LARGEST_LIMIT_MS: u64 = 1050;
const FROM_PASS: u64 = 3;
const COOLDOWN_MS: f64 = 10_000.0;
const PROGRESS_MS: f64 = 150_000.0;

/// Climbs by the clock.
#[derive(Debug, Clone)]
pub(super) struct Ramp {
    bandwidth: Bandwidth,
    limit_ms: u64,
    ticks: Ticks,
    climbs_at_ms: Option<f64>,
    /// At the last look.
    left_bytes: u64,
    fell_at_ms: f64,
    has_ended: bool,
}

impl Default for Ramp {
    fn default() -> Self {
        Self {
            bandwidth: Bandwidth::default(),
            limit_ms: STEP_MS,
            ticks: Ticks::every(LOOK_EVERY_MS),
            climbs_at_ms: None,
            left_bytes: u64::MAX,
            fell_at_ms: 0.0,
            has_ended: false,
        }
    }
}

impl Ramp {
    fn end(&mut self, reason: &str) -> Verdict {
        self.has_ended = true;
        abort(format!("{reason}: it is aborted"))
    }
}

impl Policy for Ramp {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: self.limit_ms, throttle: Throttle::Never }
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if self.has_ended || !self.ticks.has_come(streaming_ms) {
            return None;
        }
        // It is enough that less is left than at the look before, and so it nearly always is.
        if sample.remaining_bytes < std::mem::replace(&mut self.left_bytes, sample.remaining_bytes) {
            self.fell_at_ms = streaming_ms;
        }
        if streaming_ms - self.fell_at_ms > PROGRESS_MS {
            return Some(self.end("nothing has fallen for 150 s"));
        }
        if streaming_ms > completion_ms(sample.total_bytes) {
            return Some(self.end("150 s for each GiB are over"));
        }
        if sample.passes < FROM_PASS || self.limit_ms == LARGEST_LIMIT_MS {
            return None;
        }
        let climbs_at_ms = *self.climbs_at_ms.get_or_insert(streaming_ms + COOLDOWN_MS);
        if streaming_ms < climbs_at_ms {
            return None;
        }
        self.climbs_at_ms = Some(streaming_ms + COOLDOWN_MS);
        self.limit_ms = (self.limit_ms + STEP_MS).min(LARGEST_LIMIT_MS);
        Some(limit(self.limit_ms, format!("10 s more are over: the limit climbs to {} ms", self.limit_ms)))
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{limits, played, sample};
    use super::*;
    use crate::record::Choice;

    /// As the table of VEP 291 has it, in which pass 3 begins at 75 s.
    #[test]
    fn the_limit_climbs_as_published() {
        let mut ramp = Ramp::default();
        assert_eq!(ramp.wish().downtime_limit_ms, 150);
        let left = |at_ms: f64| if at_ms % 800.0 < 400.0 { 90_000_000 } else { 80_000_000 };
        let said = played(&mut ramp, 200_000, |at_ms| {
            sample(at_ms, if at_ms < 75_000.0 { 2 } else { 3 }, left(at_ms))
        });
        let said = limits(&said);
        let published = [(85.0, 300), (95.0, 450), (105.0, 600), (115.0, 750), (125.0, 900), (135.0, 1050)];
        assert_eq!(said.len(), published.len());
        for ((at_s, limit_ms), (published_s, published_ms)) in said.into_iter().zip(published) {
            // It looks every 400 ms.
            assert!(
                limit_ms == published_ms && (0.0..2.5).contains(&(at_s - published_s)),
                "{at_s} {limit_ms}"
            );
        }
    }

    #[test]
    fn it_gives_up_after_150_s_without_a_fall_and_after_150_s_for_each_gibibyte() {
        let ends = |left: fn(f64) -> u64| {
            let said = played(&mut Ramp::default(), 700_000, |at_ms| sample(at_ms, 2, left(at_ms)));
            assert!(
                said.iter().all(|(_, choice)| *choice == Choice::OutOfTime) && said.len() == 1,
                "{said:?}"
            );
            said[0].0
        };
        assert!((150_000.0..151_500.0).contains(&ends(|_| 80_000_000)));
        // 4 GiB.
        let zigzag = ends(|at_ms| if at_ms % 800.0 < 400.0 { 90_000_000 } else { 80_000_000 });
        assert!((600_000.0..601_000.0).contains(&zigzag), "{zigzag}");
    }
}
