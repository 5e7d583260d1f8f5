//! What a migration will take from here on: passes, time, bytes, blackout.
//!
//! A pass sends what was dirty at its begin, and leaves what was dirtied meanwhile: `V' = D(V / B)`. QEMU does not wait for
//! the end of a pass: it looks after each 50 ms of sending (`MAX_WAIT`, ram.c), and where what is left of the pass is
//! below `limit x B` it takes the dirty pages of the guest anew. It stops the guest there if all of that is still below,
//! and it stops at the first such moment, not at the best one (`migration.c`; run on 7.2, 10.0, 11.1).
//!
//! The first pass is another matter: untouched memory counts in full there and is sent as 9 bytes a page, so that the
//! pass may end at once. A forecast holds from the second pass on.
//!
//! ```text
//!   left ^ V0
//!        | \         V1 = rest + D((V0 - rest) / B), less what is in both
//!        |   \      |\
//!        |     \    |  \    V2
//!  L x B +-------\--|----\-|\-----------------   the limit, in bytes
//!        |   rest \ |     \|  x  V2 <= L x B: the guest stops, and V2 / B is what it stands still for
//!        +------------------------------> t
//! ```

use super::curve::{Bound, DirtyCurve};

/// QEMU looks so often whether what is left fits the limit.
const LOOK_MS: f64 = 50.0;
/// A limit counts from the end of QEMU's window of 100 ms on: after half of one in the mean (`migration.c`).
pub(super) const TAKEN_IN_MS: f64 = 50.0;
/// A migration that has not come to an end within so many passes does not.
const MOST_PASSES: u32 = 500;
/// A pass that leaves more than this share of what it sent brings nothing.
const NO_GAIN: f64 = 0.999;

/// A migration from here on.
#[derive(Debug, Clone, Copy)]
pub struct Course<'a> {
    /// What the guest dirties.
    pub curve: &'a DirtyCurve,
    /// Which reading of it.
    pub bound: Bound,
    /// The rate of the stream in bytes per millisecond.
    pub bytes_per_ms: f64,
    /// What this pass has yet to send.
    pub left_bytes: f64,
    /// What was dirtied since this pass began took so long to dirty, in milliseconds.
    pub into_pass_ms: f64,
    /// What the switch costs besides the copy, in milliseconds.
    pub switch_ms: f64,
    /// How long QEMU goes on by the limit before, in milliseconds.
    pub late_ms: f64,
}

/// What is expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prospect {
    /// Passes until the guest stops, this one included.
    pub passes: u32,
    /// Time until then, in milliseconds.
    pub stream_ms: f64,
    /// Bytes yet to send, the final copy included.
    pub bytes: f64,
    /// How long the guest will stand still, in milliseconds.
    pub blackout_ms: f64,
}

/// A pair of budgets that would do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Feasible {
    /// The limit for QEMU, in milliseconds.
    pub limit_ms: f64,
    /// What it leads to.
    pub prospect: Prospect,
    /// No larger limit that was tried takes longer than this until the guest runs again, in milliseconds: the stream ends at one of QEMU's
    /// looks, and a larger limit may meet a later one.
    pub slowest_ms: f64,
}

impl Prospect {
    /// Until the guest runs again, in milliseconds.
    pub fn total_ms(&self) -> f64 {
        self.stream_ms + self.blackout_ms
    }
}

impl Course<'_> {
    /// What comes of a `downtime-limit`, in milliseconds; nothing where the stream never gets below it.
    pub fn under(&self, limit_ms: f64) -> Option<Prospect> {
        let limit_bytes = limit_ms * self.bytes_per_ms;
        let (mut left, mut into_pass_ms) = (self.left_bytes, self.into_pass_ms);
        let (mut stream_ms, mut bytes) = (0.0, 0.0);
        let mut lowest = f64::INFINITY;
        let mut stalled = 0;
        for passes in 1..=MOST_PASSES {
            let late_bytes = if passes == 1 { self.late_ms * self.bytes_per_ms } else { 0.0 };
            let rest = self.rest((left - late_bytes).max(0.0), limit_bytes);
            let sending_ms = (left - rest) / self.bytes_per_ms;
            stream_ms += sending_ms;
            bytes += left - rest;
            // What is dirtied anew of what has not been sent yet is dirty once.
            let worked_ms = into_pass_ms + sending_ms;
            let again = self.curve.again_bytes(worked_ms, self.bound, rest, left);
            left = rest + self.curve.bytes(worked_ms, self.bound) - again;
            into_pass_ms = 0.0;
            if left <= limit_bytes {
                return Some(Prospect {
                    passes,
                    stream_ms,
                    bytes: bytes + left,
                    blackout_ms: left / self.bytes_per_ms + self.switch_ms,
                });
            }
            stalled = if left < lowest * NO_GAIN { 0 } else { stalled + 1 };
            lowest = lowest.min(left);
            if stalled >= 3 {
                return None;
            }
        }
        None
    }

    /// The smallest blackout that waiting can lead to, in milliseconds.
    pub fn smallest_blackout_ms(&self) -> f64 {
        let first = self.left_bytes.max(self.curve.bytes(self.left_bytes / self.bytes_per_ms, self.bound));
        self.curve.plateau_bytes(self.bytes_per_ms, first, self.bound) / self.bytes_per_ms + self.switch_ms
    }

    /// The smallest limit from which on all, in steps of 5 %, lead to an end within this time; nothing where none does. Far
    /// below it another one may do by the figures, on an edge from which a little more would throw it.
    pub fn smallest_limit_within(&self, time_ms: f64) -> Option<Feasible> {
        const STEPS: u32 = 20;
        const STEP: f64 = 1.05;
        const LEAST_MS: f64 = 0.1;
        let ends = |limit_ms: f64| {
            let prospect = self.under(limit_ms)?;
            let slowest_ms = prospect.total_ms();
            (slowest_ms <= time_ms).then_some(Feasible { limit_ms, prospect, slowest_ms })
        };
        // With so large a limit the guest stops at the next look.
        let largest =
            self.left_bytes.max(self.curve.bytes(time_ms, self.bound)) / self.bytes_per_ms * 2.0 + 1.0;
        // The same steps whatever the time: where one of them does not do, none is looked at below it.
        let mut high = STEP.powf((largest.ln() / STEP.ln()).ceil());
        let mut best = ends(high)?;
        let no_faster = |found: Feasible, before: &Feasible| Feasible {
            slowest_ms: found.slowest_ms.max(before.slowest_ms),
            ..found
        };
        let mut low = 0.0;
        while low <= 0.0 && high > LEAST_MS {
            let tried = STEP.powf((high.ln() / STEP.ln()).round() - 1.0);
            match ends(tried) {
                Some(found) => (best, high) = (no_faster(found, &best), tried),
                None => low = tried,
            }
        }
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            match ends(middle) {
                Some(found) => (best, high) = (no_faster(found, &best), middle),
                None => low = middle,
            }
        }
        Some(best)
    }

    /// What is left of a pass when QEMU finds that it fits the limit.
    fn rest(&self, left: f64, limit_bytes: f64) -> f64 {
        if left <= limit_bytes {
            // It has looked already, and found the guest's new pages.
            return (left - LOOK_MS * self.bytes_per_ms).max(0.0);
        }
        let look_bytes = LOOK_MS * self.bytes_per_ms;
        let looks = ((left - limit_bytes) / look_bytes).ceil();
        (left - looks * look_bytes).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::converge::curve::Window;

    const MIB: f64 = 1_048_576.0;
    /// A gigabit link: 114 MB/s.
    const GIGABIT: f64 = 0.114e6;

    fn curve(dirtied: impl Fn(f64) -> f64) -> DirtyCurve {
        let window = |length_ms| Window { length_ms, dirtied_bytes: dirtied(length_ms), weight: 1.0 };
        DirtyCurve::fit(&[10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0].map(window)).unwrap()
    }

    fn course(curve: &DirtyCurve, left_mib: f64) -> Course<'_> {
        Course {
            curve,
            bound: Bound::Fitted,
            bytes_per_ms: GIGABIT,
            left_bytes: left_mib * MIB,
            into_pass_ms: 0.0,
            switch_ms: 10.0,
            late_ms: 0.0,
        }
    }

    /// Measured on 10.0 over a gigabit: a guest that rewrites 256 MiB all the time stands still for 2.25 s at a limit of
    /// 2.5 s; at 300 ms it never ends.
    #[test]
    fn a_hot_writer_is_forecast_as_it_was_measured() {
        let curve = curve(|time| (time * 16e6).min(256.0 * MIB));
        let course = course(&curve, 260.0);
        assert_eq!(course.under(300.0), None);
        let prospect = course.under(2500.0).unwrap();
        assert!((2200.0..2600.0).contains(&prospect.blackout_ms), "{prospect:?}");
        let floor = course.smallest_blackout_ms();
        assert!((2300.0..2450.0).contains(&floor), "{floor}");
    }

    /// Also measured, from the begin of the second pass: a guest that rewrites 32 MB/s is there in 0.7 s at any limit
    /// from 5 to 300 ms, and stands still for 115 ms at 300 and 1 to 2 ms at 5.
    #[test]
    fn a_tight_limit_costs_a_guest_that_is_slower_than_the_link_nearly_nothing() {
        let curve = curve(|time| (time * 32e3).min(64.0 * MIB));
        let course = course(&curve, 12.5);
        let (tight, loose) = (course.under(5.0).unwrap(), course.under(300.0).unwrap());
        let total = |prospect: Prospect| prospect.stream_ms + prospect.blackout_ms;
        assert!(total(tight) - total(loose) < 60.0, "{tight:?} {loose:?}");
        assert!(
            tight.blackout_ms - course.switch_ms < 5.0 && loose.blackout_ms > 75.0,
            "{tight:?} {loose:?}"
        );
        assert!(course.smallest_blackout_ms() < 11.0);
    }

    #[test]
    fn the_smallest_limit_within_a_time_is_one_that_does_and_less_does_not() {
        let curve = curve(|time| 64.0 * MIB * (1.0 - (-time / 300.0).exp()) + time * 0.01e6);
        let course = course(&curve, 512.0);
        let found = course.smallest_limit_within(10_000.0).unwrap();
        assert!(found.prospect.stream_ms + found.prospect.blackout_ms <= 10_000.0);
        let tighter = course.under(found.limit_ms * 0.9);
        assert!(
            tighter.is_none_or(|prospect| prospect.stream_ms + prospect.blackout_ms > 10_000.0),
            "{tighter:?}"
        );
        assert_eq!(course.smallest_limit_within(1.0), None);
    }

    proptest! {
        #[test]
        fn no_forecast_is_of_a_blackout_above_its_limit_and_of_less_than_is_left(
            rate in 1e3..1e6_f64,
            set_mib in 1.0..512.0_f64,
            limit_ms in 1.0..5000.0_f64,
            left_mib in 1.0..4096.0_f64,
        ) {
            let curve = curve(|time| (time * rate).min(set_mib * MIB));
            let course = course(&curve, left_mib);
            if let Some(prospect) = course.under(limit_ms) {
                prop_assert!(prospect.blackout_ms <= limit_ms + course.switch_ms + 1e-6);
                prop_assert!(prospect.bytes >= 0.0 && prospect.stream_ms >= 0.0);
            }
        }
    }
}
