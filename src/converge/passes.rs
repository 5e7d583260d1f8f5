//! The passes of one migration as windows in which the guest dirtied memory, and from them the dirty set.
//!
//! QEMU takes the dirty pages anew at each pass, and from 9.2 on also every 5 s within a long one. What it finds was dirtied
//! since it looked last, so that each look gives one window. Windows that were sampled on the side (`calc-dirty-rate` in
//! the mode `page-sampling`, which runs beside a migration too: run on 7.2, 10.0 and 11.1 under TCG, where the two other
//! modes fail) come in before there is a pass to learn from, and count less: they are a sample of the pages.

use super::bandwidth::as_f64;
use super::curve::{DirtyCurve, Window};
use crate::record::Sample;

/// So many windows are kept; what a guest did before them says little of what it does now.
const MOST_WINDOWS: usize = 16;
/// A window counts half as much after this time.
const HALF_LIFE_MS: f64 = 10_000.0;
/// What a sampled window counts beside one of a pass.
const SAMPLED: f64 = 0.25;
/// A pass of which less than this share was sent tells too little.
const SMALLEST_SHARE: f64 = 0.2;

/// A window, and when it ended.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at_ms: f64,
    window: Window,
}

/// The pass that runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    number: u64,
    begun_ms: f64,
    left_bytes: f64,
}

/// What the passes of a migration have shown.
#[derive(Debug, Clone, Default)]
pub struct Passes {
    running: Option<Running>,
    last: Option<Sample>,
    seen: Vec<Seen>,
}

impl Passes {
    /// Takes in a sample; says whether it is the first of a new pass.
    pub fn observe(&mut self, sample: &Sample) -> bool {
        let last = self.last.replace(*sample);
        let left_bytes = as_f64(sample.remaining_bytes);
        let running = Running { number: sample.passes, begun_ms: sample.at_ms, left_bytes };
        let Some(before) = self.running else {
            self.running = Some(running);
            return false;
        };
        if sample.passes <= before.number {
            return false;
        }
        self.running = Some(running);
        if let Some(last) = last {
            self.close(before, &last, sample);
        }
        true
    }

    /// Takes in a window that was sampled beside the stream and has just ended.
    pub fn sampled(&mut self, at_ms: f64, length_ms: f64, dirtied_bytes: f64) {
        self.keep(at_ms, Window { length_ms, dirtied_bytes, weight: SAMPLED });
    }

    /// The curve that all this shows; nothing before there is a window.
    pub fn curve(&self) -> Option<DirtyCurve> {
        let now_ms = self.last.map_or(0.0, |last| last.at_ms);
        let aged = |seen: &Seen| {
            let age = (now_ms - seen.at_ms).max(0.0) / HALF_LIFE_MS;
            Window { weight: seen.window.weight * 0.5_f64.powf(age), ..seen.window }
        };
        DirtyCurve::fit(&self.seen.iter().map(aged).collect::<Vec<_>>())
    }

    /// How long the pass that runs has run, in milliseconds.
    pub fn into_pass_ms(&self) -> f64 {
        match (self.running, self.last) {
            (Some(running), Some(last)) => last.at_ms - running.begun_ms,
            _ => 0.0,
        }
    }

    /// A pass is over as the next one is first seen.
    fn close(&mut self, pass: Running, last: &Sample, next: &Sample) {
        let length_ms = next.at_ms - pass.begun_ms;
        let sent_since = as_f64(next.transferred_bytes.saturating_sub(last.transferred_bytes));
        // What had not been sent when QEMU looked: it was dirty before.
        let rest_bytes = (as_f64(last.remaining_bytes) - sent_since).max(0.0).min(pass.left_bytes);
        let sent_share = 1.0 - rest_bytes / pass.left_bytes.max(1.0);
        if sent_share < SMALLEST_SHARE {
            return;
        }
        // Pages that are dirtied anew before they are sent show no difference.
        let dirtied_bytes = (as_f64(next.remaining_bytes) - rest_bytes).max(0.0) / sent_share;
        self.keep(next.at_ms, Window { length_ms, dirtied_bytes, weight: 1.0 });
    }

    fn keep(&mut self, at_ms: f64, window: Window) {
        self.seen.push(Seen { at_ms, window });
        if self.seen.len() > MOST_WINDOWS {
            self.seen.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::curve::Bound;

    const MIB: u64 = 1 << 20;

    fn sample(at_ms: f64, passes: u64, transferred_bytes: u64, remaining_bytes: u64) -> Sample {
        Sample {
            at_ms,
            transferred_bytes,
            remaining_bytes,
            total_bytes: 512 * MIB,
            passes,
            dirty_bytes_per_second: 0,
            stream_bytes_per_second: 0,
            downtime_limit_ms: 2,
            throttle_percent: 0,
        }
    }

    #[test]
    fn a_pass_that_was_sent_to_its_end_is_a_window_of_what_the_next_one_has() {
        let mut passes = Passes::default();
        assert!(!passes.observe(&sample(0.0, 1, 0, 512 * MIB)));
        assert!(!passes.observe(&sample(990.0, 1, 99 * MIB, MIB)));
        assert_eq!(passes.curve(), None);
        assert!(passes.observe(&sample(1000.0, 2, 100 * MIB, 64 * MIB)));
        let curve = passes.curve().unwrap();
        let dirtied = curve.bytes(1000.0, Bound::Fitted);
        assert!((dirtied / as_f64(64 * MIB) - 1.0).abs() < 0.01, "{dirtied}");
    }

    #[test]
    fn what_was_not_sent_yet_is_not_counted_as_dirtied() {
        let mut passes = Passes::default();
        passes.observe(&sample(0.0, 1, 0, 200 * MIB));
        passes.observe(&sample(5000.0, 1, 100 * MIB, 100 * MIB));
        // QEMU looks in the middle of a pass: half of what the guest dirtied was dirty still.
        passes.observe(&sample(5000.0, 2, 100 * MIB, 120 * MIB));
        let dirtied = passes.curve().unwrap().bytes(5000.0, Bound::Fitted);
        assert!((dirtied / as_f64(40 * MIB) - 1.0).abs() < 0.01, "{dirtied}");
    }

    #[test]
    fn windows_that_were_sampled_give_a_curve_before_the_first_pass_is_over() {
        let mut passes = Passes::default();
        passes.observe(&sample(0.0, 1, 0, 512 * MIB));
        passes.sampled(60.0, 50.0, 40e6);
        passes.sampled(200.0, 100.0, 60e6);
        assert!(passes.curve().unwrap().bytes(100.0, Bound::Fitted) > 50e6);
    }

    #[test]
    fn a_guest_that_has_calmed_down_is_seen_as_calm_by_its_latest_passes() {
        let mut passes = Passes::default();
        let (mut at_ms, mut sent) = (0.0, 0);
        passes.observe(&sample(at_ms, 1, sent, 64 * MIB));
        for number in 2..40 {
            let busy = number < 8;
            (at_ms, sent) = (at_ms + 600.0, sent + 64 * MIB);
            passes.observe(&sample(at_ms, number, sent, if busy { 64 * MIB } else { MIB }));
        }
        let dirtied = passes.curve().unwrap().bytes(600.0, Bound::Fitted);
        assert!(dirtied < as_f64(2 * MIB), "{dirtied}");
    }
}
