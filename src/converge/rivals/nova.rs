//! Nova: the limit climbs by a clock that knows the guest's size and nothing else, then the migration is aborted, or
//! forced.
//!
//! | constant | value | from |
//! |---|---|---|
//! | largest limit | 500 ms | `nova/conf/libvirt.py`, `live_migration_downtime` |
//! | steps | 10, after the first: 50, 95 ... 500 ms | `live_migration_downtime_steps`; `nova/virt/libvirt/migration.py`, `downtime_steps` |
//! | between two | 75 s per GiB | `live_migration_downtime_delay` |
//! | timeout | 800 s per GiB | `live_migration_completion_timeout` |
//! | least size that counts | 2 GiB | both |
//! | at the timeout | abort; or `force_complete`: the guest is stopped | `live_migration_timeout_action` |
//! | throttle, postcopy | off | `live_migration_permit_auto_converge`, `live_migration_permit_post_copy` |
//!
//! (nova 00a030403f.) Disks count as memory does there; here there are none.

use super::fixed::QEMU_LIMIT_MS;
use super::{abort, limit, whole};
use crate::converge::bandwidth::as_f64;
use crate::converge::policy::{Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::{Choice, Sample};

const LARGEST_LIMIT_MS: u64 = 500;
const STEPS: u64 = 10;
const DELAY_S_PER_GIB: f64 = 75.0;
const TIMEOUT_S_PER_GIB: f64 = 800.0;
const LEAST_GIB: f64 = 2.0;

/// `live_migration_timeout_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeoutAction {
    Abort,
    /// Without postcopy the guest is stopped.
    ForceComplete,
}

/// Climbs by the clock.
#[derive(Debug, Clone)]
pub(super) struct Nova {
    action: TimeoutAction,
    bandwidth: Bandwidth,
    limit_ms: u64,
    has_ended: bool,
}

impl Nova {
    pub(super) fn new(action: TimeoutAction) -> Self {
        // Its clock begins to tick once the stream runs.
        Self { action, bandwidth: Bandwidth::default(), limit_ms: QEMU_LIMIT_MS, has_ended: false }
    }
}

fn gibibytes(total_bytes: u64) -> f64 {
    (as_f64(total_bytes) / as_f64(1 << 30)).max(LEAST_GIB)
}

/// The limit after so many seconds, in milliseconds; none before the first step.
fn step(elapsed_s: f64, total_bytes: u64) -> Option<u64> {
    let delay_s = (DELAY_S_PER_GIB * gibibytes(total_bytes)).floor();
    // A step counts once its moment is past.
    let number = ((elapsed_s / delay_s).ceil() - 1.0).min(as_f64(STEPS));
    let base_ms = LARGEST_LIMIT_MS / STEPS;
    let offset_ms = as_f64(LARGEST_LIMIT_MS - base_ms) / as_f64(STEPS);
    (number >= 0.0).then(|| whole(as_f64(base_ms) + offset_ms * number))
}

impl Policy for Nova {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: self.limit_ms, throttle: Throttle::Never }
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if self.has_ended {
            return None;
        }
        let elapsed_s = streaming_ms / 1e3;
        if elapsed_s > (TIMEOUT_S_PER_GIB * gibibytes(sample.total_bytes)).floor() {
            self.has_ended = true;
            let over = "800 s for each GiB are over";
            return Some(match self.action {
                TimeoutAction::Abort => abort(format!("{over}: it is aborted")),
                TimeoutAction::ForceComplete => {
                    let reason = format!("{over}: the guest is stopped until what is left is sent");
                    Verdict { choice: Choice::Pause, reason, forecast: None }
                }
            });
        }
        let limit_ms = step(elapsed_s, sample.total_bytes).filter(|&limit_ms| limit_ms != self.limit_ms)?;
        self.limit_ms = limit_ms;
        Some(limit(limit_ms, format!("its clock says so: the limit is set to {limit_ms} ms")))
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{limits, sample};
    use super::*;

    /// What is said to a guest of this size within so many seconds, asked every half second as Nova does.
    fn said(action: TimeoutAction, gibibytes: u64, last_s: u32) -> Vec<(f64, Choice)> {
        let mut nova = Nova::new(action);
        let ask = |half_second| {
            let at_ms = f64::from(half_second) * 500.0;
            let sample = Sample { total_bytes: gibibytes << 30, ..sample(at_ms, 2, 1 << 29) };
            Some((at_ms, nova.observe(&sample, at_ms)?.choice))
        };
        (0..=last_s * 2).filter_map(ask).collect()
    }

    #[test]
    fn the_limit_climbs_in_ten_steps_of_75_s_for_each_gibibyte() {
        let published = [50, 95, 140, 185, 230, 275, 320, 365, 410, 455, 500];
        for (gibibytes, delay_s) in [(1, 150.0), (2, 150.0), (16, 1200.0)] {
            let limits = limits(&said(TimeoutAction::Abort, gibibytes, 12_700));
            let limits: Vec<_> = limits.into_iter().take(11).collect();
            assert_eq!(limits.iter().map(|(_, limit_ms)| *limit_ms).collect::<Vec<_>>(), published);
            for (number, (at_s, _)) in (0_u32..).zip(limits) {
                assert!((at_s - f64::from(number) * delay_s - 0.5).abs() < 1e-6, "{gibibytes} GiB: {at_s}");
            }
        }
    }

    #[test]
    fn a_guest_of_16_gib_is_aborted_after_12800_s_or_stopped() {
        for (action, choice) in
            [(TimeoutAction::Abort, Choice::OutOfTime), (TimeoutAction::ForceComplete, Choice::Pause)]
        {
            let said = said(action, 16, 14_000);
            assert_eq!(said.last(), Some(&(12_800_500.0, choice)));
        }
    }
}
