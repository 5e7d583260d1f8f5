//! KubeVirt's stall detector (VEP 248): waits for a stall, then for a local minimum, then switches if that fits.
//!
//! | constant | value | from |
//! |---|---|---|
//! | first limit | 300 ms, QEMU's own | `pkg/virt-launcher/virtwrap/stall-detector.go` |
//! | a stall | a pass begins with at least 96 % of the least that was left 40 s and longer ago | `checkStallCondition`; `stallMargin` 4 %, `stallProgressTimeout` 40 s |
//! | a local minimum | at most 104 % of the best so far | `isAtLocalMinima` |
//! | the best is given up for the next best | after 40 s, then after half as long each time | `relaxBestRemainingBytes`; `patienceWindowDecayFactor` 0.5 |
//! | bandwidth | running mean, weight 0.4, a sample each 400 ms | `updateBandwidthEstimate`; `ewmaAlpha` |
//! | switches where the downtime is at most | 1.5 x 900 ms | `decideAction`; `precopyPossibleFactor`, `maxDowntimeMs` |
//! | has to switch within | 60 s | `switchoverTimeout` |
//! | gives up after | 150 s per GiB of memory | `completionTimeoutPerGiB` |
//!
//! (kubevirt d923fdb815, `pkg/virt-config/virt-config.go`.) Its defaults allow neither postcopy nor a pause
//! (`allowPostCopy`, `allowWorkloadDisruption`): where a switch does not fit it aborts.

use super::fixed::QEMU_LIMIT_MS;
use super::{Ticks, abort, limit, whole};
use crate::converge::bandwidth::as_f64;
use crate::converge::policy::{Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::{Choice, Sample};
use crate::units::show_bytes;

const STALL_MARGIN: f64 = 0.04;
const STALL_WINDOW_MS: f64 = 40_000.0;
const PATIENCE_DECAY: f64 = 0.5;
const BANDWIDTH_WEIGHT: f64 = 0.4;
const MAX_DOWNTIME_MS: f64 = 900.0;
const POSSIBLE_FACTOR: f64 = 1.5;
const SWITCH_WITHIN_MS: f64 = 60_000.0;
const COMPLETION_FACTOR: f64 = 2.0;
pub(super) const LOOK_EVERY_MS: f64 = 400.0;
const COMPLETION_MS_PER_GIB: f64 = 150_000.0;

/// How long a guest with so much memory may take, in milliseconds; a gibibyte that has begun counts in full.
pub(super) fn completion_ms(total_bytes: u64) -> f64 {
    as_f64(total_bytes.div_ceil(1 << 30)) * COMPLETION_MS_PER_GIB
}

/// Since it was found that passes do not get smaller.
#[derive(Debug, Clone)]
struct Stall {
    best_bytes: u64,
    /// What was left at the passes since, the best ones that were given up left out.
    seen_bytes: Vec<u64>,
    patience_ms: f64,
    relax_at_ms: f64,
}

/// Looks for stalls at the begin of each pass.
#[derive(Debug, Clone)]
pub(super) struct StallDetector {
    bandwidth: Bandwidth,
    limit_ms: u64,
    ticks: Ticks,
    /// At the last look: when, and how much had been sent.
    looked: Option<(f64, u64)>,
    bytes_per_ms: Option<f64>,
    pass: u64,
    /// Of each pass when it began, and with how much.
    passes: Vec<(f64, u64)>,
    stall: Option<Stall>,
    switching_since_ms: Option<f64>,
    has_ended: bool,
}

impl Default for StallDetector {
    fn default() -> Self {
        Self {
            bandwidth: Bandwidth::default(),
            limit_ms: QEMU_LIMIT_MS,
            ticks: Ticks::every(LOOK_EVERY_MS),
            looked: None,
            bytes_per_ms: None,
            pass: 0,
            passes: Vec::new(),
            stall: None,
            switching_since_ms: None,
            has_ended: false,
        }
    }
}

impl StallDetector {
    fn measure(&mut self, sample: &Sample) {
        let Some((at_ms, sent_bytes)) = self.looked.replace((sample.at_ms, sample.transferred_bytes)) else {
            return;
        };
        let rate =
            as_f64(sample.transferred_bytes.saturating_sub(sent_bytes)) / (sample.at_ms - at_ms).max(1.0);
        self.bytes_per_ms = Some(match self.bytes_per_ms {
            Some(mean) => mean + BANDWIDTH_WEIGHT * (rate - mean),
            None => rate,
        });
    }

    /// Whether there is a stall, a pass having begun with so much.
    fn is_stalled(&mut self, left_bytes: u64, now_ms: f64) -> bool {
        self.passes.push((now_ms, left_bytes));
        if let Some(stall) = &mut self.stall {
            stall.relax(left_bytes, now_ms);
            return true;
        }
        let is_old = |(at_ms, _): &&(f64, u64)| now_ms - at_ms >= STALL_WINDOW_MS;
        let Some(lowest) = self.passes.iter().filter(is_old).map(|(_, left)| *left).min() else {
            return false;
        };
        if as_f64(left_bytes) < (as_f64(lowest) * (1.0 - STALL_MARGIN)).floor() {
            return false;
        }
        let best_bytes = self.passes.iter().map(|(_, left)| *left).min().unwrap_or(left_bytes);
        self.stall = Some(Stall {
            best_bytes,
            seen_bytes: Vec::new(),
            patience_ms: STALL_WINDOW_MS,
            relax_at_ms: now_ms + STALL_WINDOW_MS,
        });
        true
    }

    /// What is done about a stall at a pass that begins.
    fn act(&mut self, sample: &Sample, now_ms: f64, bytes_per_ms: f64) -> Option<Verdict> {
        let stall = self.stall.as_ref()?;
        let left = as_f64(sample.remaining_bytes);
        if left > (as_f64(stall.best_bytes) * (1.0 + STALL_MARGIN)).floor() {
            return None;
        }
        let downtime_ms = left / bytes_per_ms;
        if now_ms + downtime_ms > completion_ms(sample.total_bytes) * COMPLETION_FACTOR {
            return None;
        }
        let left = show_bytes(sample.remaining_bytes);
        let smallest_downtime_ms = whole(downtime_ms).max(1);
        if downtime_ms > MAX_DOWNTIME_MS * POSSIBLE_FACTOR {
            self.has_ended = true;
            let reason = format!(
                "the best that passes come to is {left}: {smallest_downtime_ms} ms are more than 1.5 x 900 ms, it is aborted"
            );
            let choice = Choice::Infeasible { smallest_downtime_ms, smallest_time_ms: None };
            return Some(Verdict { choice, reason, forecast: None });
        }
        self.limit_ms = smallest_downtime_ms;
        self.switching_since_ms = Some(now_ms);
        let reason = format!(
            "a stall, and {left} are as good as it gets: the limit is set to {smallest_downtime_ms} ms"
        );
        Some(limit(smallest_downtime_ms, reason))
    }
}

impl Stall {
    /// After some time the best is no longer waited for, but the best since.
    fn relax(&mut self, left_bytes: u64, now_ms: f64) {
        self.seen_bytes.push(left_bytes);
        if now_ms < self.relax_at_ms {
            return;
        }
        self.seen_bytes.sort_unstable_by_key(|&left| std::cmp::Reverse(left));
        if let Some(smallest) = self.seen_bytes.pop() {
            self.best_bytes = smallest;
        }
        self.patience_ms *= PATIENCE_DECAY;
        self.relax_at_ms = now_ms + self.patience_ms;
    }
}

impl Policy for StallDetector {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: self.limit_ms, throttle: Throttle::Never }
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if self.has_ended {
            return None;
        }
        if streaming_ms > completion_ms(sample.total_bytes) {
            self.has_ended = true;
            return Some(abort(format!(
                "150 s for each GiB are over after {:.0} s: it is aborted",
                streaming_ms / 1e3
            )));
        }
        if self.switching_since_ms.is_some_and(|since_ms| streaming_ms - since_ms > SWITCH_WITHIN_MS) {
            self.has_ended = true;
            return Some(abort("it has not switched within 60 s: it is aborted".to_owned()));
        }
        if sample.passes > self.pass {
            self.pass = sample.passes;
            let bytes_per_ms = self.bytes_per_ms.filter(|&rate| rate > 0.0)?;
            if self.switching_since_ms.is_some() || !self.is_stalled(sample.remaining_bytes, streaming_ms) {
                return None;
            }
            return self.act(sample, streaming_ms, bytes_per_ms);
        }
        if self.ticks.has_come(streaming_ms) {
            self.measure(sample);
        }
        None
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{played, sample};
    use super::*;

    /// Passes of 1.2 s over a link of 100 MB/s, each of which begins with so many megabytes.
    fn course(left_mb: impl Fn(u64) -> u64) -> impl Fn(f64) -> Sample {
        move |at_ms| {
            let pass = whole(at_ms / 1200.0) + 1;
            sample(at_ms, pass, left_mb(pass) * 1_000_000)
        }
    }

    #[test]
    fn a_plateau_is_a_stall_after_40_s_and_the_limit_becomes_what_it_takes() {
        let said = played(&mut StallDetector::default(), 120_000, course(|_| 80));
        let (at_ms, choice) = said[0];
        // The first pass that it knows of began at 1.2 s, when there was a bandwidth.
        assert!((40_000.0..44_000.0).contains(&at_ms), "{said:?}");
        assert_eq!(choice, Choice::Limit { downtime_limit_ms: 800 });
        // It does not switch here, and 60 s later that is an end.
        let (end_ms, end) = said[1];
        assert!(end == Choice::OutOfTime && (60_000.0..60_200.0).contains(&(end_ms - at_ms)), "{said:?}");
        assert_eq!(said.len(), 2);
    }

    /// 900 ms are allowed, 1350 ms are tolerated.
    #[test]
    fn what_is_tolerated_is_half_as_much_again_and_above_it_is_aborted() {
        for (left_mb, choice) in [
            (90, Choice::Limit { downtime_limit_ms: 900 }),
            (134, Choice::Limit { downtime_limit_ms: 1340 }),
            (136, Choice::Infeasible { smallest_downtime_ms: 1360, smallest_time_ms: None }),
        ] {
            let said = played(&mut StallDetector::default(), 60_000, course(|_| left_mb));
            assert_eq!(said.first().map(|(_, choice)| *choice), Some(choice));
        }
    }

    #[test]
    fn a_guest_of_which_four_per_cent_less_is_left_than_40_s_ago_is_not_stalled() {
        let said = played(&mut StallDetector::default(), 200_000, course(|pass| 1000 - 5 * pass));
        assert_eq!(said, []);
    }

    #[test]
    fn it_waits_for_a_local_minimum_and_after_40_s_takes_the_next_best() {
        // The best pass was one of the first; since then every seventh is better than the others, but not as good.
        let left = |pass| match pass {
            3 => 50,
            _ if pass % 7 == 0 => 70,
            _ => 90,
        };
        let said = played(&mut StallDetector::default(), 120_000, course(left));
        let (at_ms, choice) = said[0];
        assert_eq!(choice, Choice::Limit { downtime_limit_ms: 700 });
        assert!((80_000.0..95_000.0).contains(&at_ms), "{at_ms}");
    }

    #[test]
    fn every_gibibyte_has_150_s() {
        assert_eq!(
            [1, 1 << 30, (1 << 30) + 1, 16 << 30].map(completion_ms).map(whole),
            [150_000, 150_000, 300_000, 2_400_000]
        );
        let said = played(&mut StallDetector::default(), 601_000, course(|pass| 10_000 - 19 * pass));
        assert_eq!(said, [(600_100.0, Choice::OutOfTime)]);
    }
}
