//! The passes of one migration as windows in which the guest dirtied memory, and from them the dirty set.
//!
//! QEMU takes the dirty pages anew at each pass, and from 9.2 on also every 5 s within a long one. What it finds was dirtied
//! since it looked last, so that each look gives one window. Windows that were sampled on the side (`calc-dirty-rate` in
//! the mode `page-sampling`, which runs beside a migration too: run on 7.2, 10.0 and 11.1 under TCG, where the two other
//! modes fail) come in before there is a pass to learn from, and count less: they are a sample of the pages.
//!
//! A guest that is throttled works for a part of the time only: a window is as long as it worked.

use super::bandwidth::as_f64;
use super::curve::{Bound, DirtyCurve, Window};
use crate::record::Sample;

/// So many windows of each kind are kept; what a guest did before them says little of what it does now.
const MOST_WINDOWS: usize = 16;
/// A window counts half as much after this time.
const HALF_LIFE_MS: f64 = 10_000.0;
/// What a sampled window counts beside one of a pass.
const SAMPLED: f64 = 0.25;
/// A pass of which less than this share was sent, or of what the guest dirties at all, tells too little.
const SMALLEST_SHARE: f64 = 0.2;

/// Passes that leave as much as each other, to this share of the largest, are the same guest at the same work.
const ALIKE: f64 = 0.8;
/// Whoever works for more than this share of the time is as good as not throttled: `auto-converge` idles at 1 %.
const UNTHROTTLED: f64 = 0.95;
/// A window that was sampled on the side and has less than this share of what the curve says is a rest.
const REST: f64 = 0.5;

/// A pass that leaves this share of what it sent, or more, tells of a guest that dirties faster than the stream: one that
/// dirties just as fast is rare.
const SATURATED: f64 = 0.9;
/// Such a guest has then likely dirtied the same in this share of the time, if no window of half of it says otherwise.
const LIKELY_SHARE: f64 = 0.1;
const KNOWN_SHARE: f64 = 0.5;
/// What that counts beside a window of a pass.
const LIKELY: f64 = 0.1;

/// A window, and when it ended.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at_ms: f64,
    window: Window,
    /// It is of a pass that left as much as it sent.
    is_saturated: bool,
}

/// Passes in a row that left as much as each other.
#[derive(Debug, Clone, Copy)]
struct Alike {
    begun_ms: f64,
    first_ended_ms: f64,
    last_begun_ms: f64,
    passes: u32,
    least_bytes: f64,
    most_bytes: f64,
}

/// How long the guest has done the same, as far as its passes tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Steady {
    /// The latest passes that left as much as each other.
    pub passes: u32,
    /// From the begin of the first of them until now, in milliseconds.
    pub for_ms: f64,
    /// Without the first and the last: of these two only a part need have been like the others.
    pub surely_ms: f64,
}

/// The pass that runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    number: u64,
    begun_ms: f64,
    begun_worked_ms: f64,
    begun_sent_bytes: u64,
    left_bytes: f64,
}

/// What the passes of a migration have shown.
#[derive(Debug, Clone, Default)]
pub struct Passes {
    running: Option<Running>,
    last: Option<Sample>,
    /// How long the guest has worked, in milliseconds: less than it was watched where it was throttled.
    worked_ms: f64,
    seen: Vec<Seen>,
    sampled: Vec<Seen>,
    alike: Option<Alike>,
}

impl Passes {
    /// Takes in a sample; says whether it is the first of a new pass.
    pub fn observe(&mut self, sample: &Sample) -> bool {
        let last = self.last.replace(*sample);
        if let Some(last) = last {
            let share = 1.0 - as_f64(last.throttle_percent.min(99)) / 100.0;
            self.worked_ms += (sample.at_ms - last.at_ms).max(0.0) * share;
        }
        let running = Running {
            number: sample.passes,
            begun_ms: sample.at_ms,
            begun_worked_ms: self.worked_ms,
            begun_sent_bytes: sample.transferred_bytes,
            left_bytes: as_f64(sample.remaining_bytes),
        };
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
        let usual = self.curve().map_or(0.0, |curve| curve.bytes(length_ms, Bound::Fitted));
        if dirtied_bytes < usual * REST {
            self.alike = None;
        }
        let window = Window { length_ms, dirtied_bytes, weight: SAMPLED };
        keep(&mut self.sampled, Seen { at_ms, window, is_saturated: false });
    }

    /// How long the guest has done the same. A throttle that moved, or a rest that was sampled, begins it anew.
    pub fn steady(&self) -> Steady {
        let now_ms = self.last.map_or(0.0, |last| last.at_ms);
        self.alike.map_or_else(Steady::default, |alike| Steady {
            passes: alike.passes,
            for_ms: now_ms - alike.begun_ms,
            surely_ms: (alike.last_begun_ms - alike.first_ended_ms).max(0.0),
        })
    }

    /// Whether there have been windows beside the stream: short ones, which show a rest that passes hide.
    pub fn has_sampled(&self) -> bool {
        !self.sampled.is_empty()
    }

    /// The curve that all this shows; nothing before there is a window.
    pub fn curve(&self) -> Option<DirtyCurve> {
        // Older than the newest of them: with nothing new to know, nothing changes.
        let now_ms = self.seen.iter().chain(&self.sampled).map(|seen| seen.at_ms).fold(0.0, f64::max);
        let aged = |seen: &Seen| {
            let age = (now_ms - seen.at_ms).max(0.0) / HALF_LIFE_MS;
            Window { weight: seen.window.weight * 0.5_f64.powf(age), ..seen.window }
        };
        let windows: Vec<Window> = self.seen.iter().chain(&self.sampled).map(aged).collect();
        DirtyCurve::fit_with(&windows, &self.likely(&windows).map_or_else(Vec::new, |window| vec![window]))
    }

    /// What a saturated guest likely does in a shorter window.
    fn likely(&self, windows: &[Window]) -> Option<Window> {
        let Window { length_ms, dirtied_bytes, .. } =
            self.seen.last().filter(|seen| seen.is_saturated)?.window;
        let is_known = windows.iter().any(|window| window.length_ms < length_ms * KNOWN_SHARE);
        let likely = Window { length_ms: length_ms * LIKELY_SHARE, dirtied_bytes, weight: LIKELY };
        (!is_known).then_some(likely)
    }

    /// How long the guest has worked in the pass that runs, in milliseconds.
    pub fn into_pass_ms(&self) -> f64 {
        self.running.map_or(0.0, |running| self.worked_ms - running.begun_worked_ms)
    }

    /// A pass is over as the next one is first seen.
    fn close(&mut self, pass: Running, last: &Sample, next: &Sample) {
        let length_ms = self.worked_ms - pass.begun_worked_ms;
        let throttled = length_ms < UNTHROTTLED * (next.at_ms - pass.begun_ms);
        let sent_since = as_f64(next.transferred_bytes.saturating_sub(last.transferred_bytes));
        let sent_bytes = as_f64(next.transferred_bytes.saturating_sub(pass.begun_sent_bytes));
        // What had not been sent when QEMU looked: it was dirty before.
        let mut rest_bytes = (as_f64(last.remaining_bytes) - sent_since).max(0.0).min(pass.left_bytes);
        if pass.number <= 1 {
            // Untouched memory counts in full there and is sent as nothing; QEMU looked where the rest fitted the limit.
            let bytes_per_ms = sent_bytes / (next.at_ms - pass.begun_ms).max(1.0);
            rest_bytes = rest_bytes.min(as_f64(last.downtime_limit_ms) * bytes_per_ms);
        }
        let hot_bytes =
            if rest_bytes > 0.0 { self.curve().map_or(0.0, |curve| curve.hot_bytes()) } else { 0.0 };
        let sent_share = 1.0 - rest_bytes / pass.left_bytes.max(hot_bytes).max(1.0);
        if sent_share < SMALLEST_SHARE {
            return;
        }
        // Pages that are dirtied anew before they are sent show no difference.
        let dirtied_bytes = (as_f64(next.remaining_bytes) - rest_bytes).max(0.0) / sent_share;
        self.alike = (!throttled).then(|| {
            let alone = Alike {
                begun_ms: pass.begun_ms,
                first_ended_ms: next.at_ms,
                last_begun_ms: pass.begun_ms,
                passes: 1,
                least_bytes: dirtied_bytes,
                most_bytes: dirtied_bytes,
            };
            let joined = self.alike.map(|alike| Alike {
                passes: alike.passes + 1,
                last_begun_ms: pass.begun_ms,
                least_bytes: alike.least_bytes.min(dirtied_bytes),
                most_bytes: alike.most_bytes.max(dirtied_bytes),
                ..alike
            });
            joined.filter(|joined| joined.least_bytes >= joined.most_bytes * ALIKE).unwrap_or(alone)
        });
        let is_saturated = dirtied_bytes * sent_share >= sent_bytes * SATURATED;
        let window = Window { length_ms, dirtied_bytes, weight: 1.0 };
        keep(&mut self.seen, Seen { at_ms: next.at_ms, window, is_saturated });
    }
}

fn keep(seen: &mut Vec<Seen>, one: Seen) {
    seen.push(one);
    if seen.len() > MOST_WINDOWS {
        seen.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        passes.observe(&sample(0.0, 2, 0, 200 * MIB));
        passes.observe(&sample(5000.0, 2, 100 * MIB, 100 * MIB));
        // QEMU looks in the middle of a pass: half of what the guest dirtied was dirty still.
        passes.observe(&sample(5000.0, 3, 100 * MIB, 120 * MIB));
        let dirtied = passes.curve().unwrap().bytes(5000.0, Bound::Fitted);
        assert!((dirtied / as_f64(40 * MIB) - 1.0).abs() < 0.01, "{dirtied}");
    }

    #[test]
    fn untouched_memory_at_the_end_of_the_first_pass_is_no_rest() {
        let mut passes = Passes::default();
        passes.observe(&sample(0.0, 1, 0, 300 * MIB));
        passes.observe(&sample(1000.0, 1, 100 * MIB, 200 * MIB));
        passes.observe(&sample(1001.0, 2, 100 * MIB, 60 * MIB));
        let dirtied = passes.curve().unwrap().bytes(1001.0, Bound::Fitted);
        assert!((dirtied / as_f64(60 * MIB) - 1.0).abs() < 0.01, "{dirtied}");
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
    fn a_guest_that_does_the_same_pass_after_pass_is_steady_until_it_rests() {
        let mut passes = Passes::default();
        passes.observe(&sample(0.0, 1, 0, 64 * MIB));
        for number in 2..6 {
            let at_ms = as_f64(number - 1) * 600.0;
            passes.observe(&sample(at_ms, number, (number - 1) * 64 * MIB, 64 * MIB));
        }
        // The first pass is one of them: its first sample is the begin of it all.
        assert_eq!(passes.steady(), Steady { passes: 4, for_ms: 2400.0, surely_ms: 1200.0 });
        passes.sampled(2500.0, 100.0, 0.0);
        assert_eq!(passes.steady(), Steady::default());
        passes.observe(&sample(3000.0, 6, 320 * MIB, 64 * MIB));
        assert_eq!(passes.steady().passes, 1);
        passes.observe(&sample(3600.0, 7, 384 * MIB, 32 * MIB));
        assert_eq!(passes.steady(), Steady { passes: 1, for_ms: 600.0, surely_ms: 0.0 });
    }

    #[test]
    fn a_window_in_which_the_guest_was_throttled_is_as_long_as_it_worked() {
        let mut passes = Passes::default();
        let throttled =
            |at_ms, number, sent, left| Sample { throttle_percent: 90, ..sample(at_ms, number, sent, left) };
        passes.observe(&throttled(0.0, 1, 0, 100 * MIB));
        passes.observe(&throttled(1000.0, 2, 100 * MIB, 10 * MIB));
        assert!((passes.curve().unwrap().shortest_ms() - 100.0).abs() < 1e-6);
        assert_eq!(passes.steady(), Steady::default());
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
