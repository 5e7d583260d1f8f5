//! The dirty set as a curve: how many distinct bytes the guest dirties in a window of some length.
//!
//! A guest rewrites some pages again and again and others seldom. What a pass has to send is therefore no rate times a
//! time: it is `D(t)`, the bytes that were dirtied at least once in the `t` that the pass before it took. `D` starts at 0
//! and is concave, whatever the guest does, as long as it goes on doing it: a longer window finds new pages, and fewer
//! of them each time.
//!
//! ```text
//!  D(t) ^            ,,----~~~~~~ high
//!       |       ,-~~ o------------ fitted        o  a window that was measured
//!       |    ,-o~~~~~~~~~~~~~~~~~~ low              between and beyond them concavity gives the bounds:
//!       |  ,/ o                                     left of the first:   chord to 0 .. all of it hot
//!       | //                                        right of the last:   nothing new .. as fast as so far
//!       +------------------------------> t
//! ```
//!
//! What is fitted is a mixture of sets that are each dirtied through in their own time, at random, `W (1 - exp(-t/T))`, or
//! one page after the other, `W min(1, t/T)`, and of pages that are written once and never again (`r t`); by least squares
//! without negative parts, and of as few sets as will do: the windows have errors, and a mixture of many follows them in
//! straight lines from one to the next, the least that can be between them (`literature` calls the sets hot and cold;
//! Clark et al., NSDI 2005, the writable working set).

/// The nearest mixture of columns.
mod least_squares;

/// One window that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// How long it was, in milliseconds.
    pub length_ms: f64,
    /// The distinct bytes that were dirtied in it.
    pub dirtied_bytes: f64,
    /// How much it counts: 1 for one that was measured just now while the guest is moved.
    pub weight: f64,
}

/// In which order a set is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Any page may be the next one.
    AtRandom,
    /// Each page once, then all of them again.
    InTurn,
}

/// A set of pages, each of which is dirtied again after about this time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Set {
    /// How many there are, in bytes.
    pub(super) bytes: f64,
    /// After which time a page is dirtied again, in milliseconds.
    pub(super) time_ms: f64,
    /// Which is next.
    pub(super) written: Written,
}

/// How many distinct bytes are dirtied in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct DirtyCurve {
    sets: Vec<Set>,
    /// Written once and never again.
    cold_bytes_per_ms: f64,
    /// The windows were this share of the fit at the least and at the most.
    spread: (f64, f64),
    shortest: Window,
    longest: Window,
}

/// Whether to plan for the most, or for what is likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The least that is compatible with what was measured.
    Low,
    /// The best guess.
    Fitted,
    /// The most that is.
    High,
}

/// The times of the sets that a mixture may have, from 10 ms to 60 s.
const SHORTEST_TIME_MS: f64 = 10.0;
const TIMES: u32 = 76;
const TIMES_PER_DECADE: f64 = 20.0;
/// A set more has to take off so much of the errors, each of them a share of its window: 3 % of a single one.
const WORTH_OF_A_PART: f64 = 1e-3;
/// No window is known better than to this share of the largest.
const RIGHT: f64 = 0.01;
/// A part that is smaller than this share of the largest window is none.
const NOTHING: f64 = 1e-6;

impl DirtyCurve {
    /// The curve through windows that were measured; nothing without one that has a length.
    pub fn fit(windows: &[Window]) -> Option<Self> {
        Self::fit_with(windows, &[])
    }

    /// The curve through windows that were measured, drawn to others that are only likely: the bounds know nothing of these.
    pub fn fit_with(windows: &[Window], likely: &[Window]) -> Option<Self> {
        let usable = |window: &&Window| window.length_ms > 0.0 && window.weight > 0.0;
        let windows: Vec<Window> = windows.iter().filter(usable).copied().collect();
        let shortest = *windows.iter().min_by(|a, b| a.length_ms.total_cmp(&b.length_ms))?;
        let longest = *windows.iter().max_by(|a, b| a.length_ms.total_cmp(&b.length_ms))?;
        let (sets, cold_bytes_per_ms) = mixture(&[&windows, likely].concat());
        let mut curve = Self { sets, cold_bytes_per_ms, spread: (1.0, 1.0), shortest, longest };
        for window in &windows {
            let fitted = curve.fitted(window.length_ms);
            if fitted > 0.0 {
                let share = window.dirtied_bytes / fitted;
                curve.spread = (curve.spread.0.min(share), curve.spread.1.max(share));
            }
        }
        Some(curve)
    }

    /// The distinct bytes dirtied in a window of this length.
    pub fn bytes(&self, length_ms: f64, bound: Bound) -> f64 {
        let fitted = self.fitted(length_ms);
        let chord = |window: Window| window.dirtied_bytes * length_ms / window.length_ms;
        match bound {
            Bound::Fitted => fitted,
            Bound::Low if length_ms < self.shortest.length_ms => {
                chord(self.shortest).min(fitted) * self.spread.0.min(1.0)
            }
            Bound::Low if length_ms > self.longest.length_ms => self.longest.dirtied_bytes.min(fitted),
            Bound::Low => fitted * self.spread.0,
            Bound::High if length_ms < self.shortest.length_ms => self.shortest.dirtied_bytes.max(fitted),
            Bound::High if length_ms > self.longest.length_ms => {
                chord(self.longest).max(fitted) * self.spread.1.max(1.0)
            }
            Bound::High => fitted * self.spread.1,
        }
    }

    /// What is left at best, pass after pass, on a stream of this rate: the largest `V` with `V = D(V / rate)`; 0 where
    /// the guest dirties slower than that.
    pub fn plateau_bytes(&self, bytes_per_ms: f64, from_bytes: f64, bound: Bound) -> f64 {
        const PASSES: u32 = 200;
        const SAME: f64 = 1e-3;
        let mut left = from_bytes;
        for _ in 0..PASSES {
            let next = self.bytes(left / bytes_per_ms, bound).min(left);
            if next < 1.0 || left - next <= left * SAME {
                return if next < 1.0 { 0.0 } else { next };
            }
            left = next;
        }
        left
    }

    /// How long the guest has to run to dirty so much; nothing where it never does.
    pub fn time_to_dirty_ms(&self, bytes: f64, bound: Bound) -> Option<f64> {
        const LONGEST_MS: f64 = 1e7;
        if self.bytes(LONGEST_MS, bound) < bytes {
            return None;
        }
        let (mut low, mut high) = (0.0, LONGEST_MS);
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if self.bytes(middle, bound) < bytes {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(high)
    }

    /// The sets of the fit.
    pub(super) fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// All that is dirtied again and again.
    pub(super) fn hot_bytes(&self) -> f64 {
        self.sets.iter().map(|set| set.bytes).sum()
    }

    /// How much of what the guest dirties in such a window is dirty already, where `dirty_bytes` of `among_bytes` are. What
    /// is dirty is spread over these, or over all that is ever dirtied again where that is more; pages that are written
    /// once and never again are others.
    pub(super) fn again_bytes(
        &self,
        length_ms: f64,
        bound: Bound,
        dirty_bytes: f64,
        among_bytes: f64,
    ) -> f64 {
        let all = self.hot_bytes();
        let hot: f64 = self.sets.iter().map(|set| set.share(length_ms) * set.bytes).sum();
        let fitted = self.fitted(length_ms);
        if all <= 0.0 || fitted <= 0.0 {
            return 0.0;
        }
        self.bytes(length_ms, bound) * (hot / fitted) * (dirty_bytes / all.max(among_bytes)).min(1.0)
    }

    /// What the fit has as written once and never again, in bytes per millisecond.
    pub(super) fn cold_bytes_per_ms(&self) -> f64 {
        self.cold_bytes_per_ms
    }

    /// The same guest, of whose time only this share is left to it: what it dirties in a window is what it would have
    /// dirtied in that share of it. Devices that write memory are not slowed down and are taken for processors here.
    #[must_use]
    pub fn slowed_to(&self, share: f64) -> Self {
        let share = share.max(1e-3);
        let stretched = |window: Window| Window { length_ms: window.length_ms / share, ..window };
        Self {
            sets: self.sets.iter().map(|set| Set { time_ms: set.time_ms / share, ..*set }).collect(),
            cold_bytes_per_ms: self.cold_bytes_per_ms * share,
            spread: self.spread,
            shortest: stretched(self.shortest),
            longest: stretched(self.longest),
        }
    }

    /// The shortest window that was measured, in milliseconds: below it the curve is a guess.
    pub fn shortest_ms(&self) -> f64 {
        self.shortest.length_ms
    }

    fn fitted(&self, length_ms: f64) -> f64 {
        let hot: f64 = self.sets.iter().map(|set| set.bytes * set.share(length_ms)).sum();
        hot + self.cold_bytes_per_ms * length_ms
    }
}

impl Set {
    /// How much of it is dirtied in a window.
    fn share(&self, length_ms: f64) -> f64 {
        match self.written {
            Written::AtRandom => at_random(length_ms, self.time_ms),
            Written::InTurn => (length_ms / self.time_ms).min(1.0),
        }
    }
}

fn at_random(length_ms: f64, time_ms: f64) -> f64 {
    -(-length_ms / time_ms).exp_m1()
}

/// The sets and the cold rate that come nearest to these windows, each error counted as a share of its window.
fn mixture(windows: &[Window]) -> (Vec<Set>, f64) {
    let largest = windows.iter().map(|window| window.dirtied_bytes).fold(1.0, f64::max);
    let longest = windows.iter().map(|window| window.length_ms).fold(0.0, f64::max);
    let times = (0..TIMES).map(|step| SHORTEST_TIME_MS * 10_f64.powf(f64::from(step) / TIMES_PER_DECADE));
    // Of one byte each; those that are written at random first, for most guests are nearer to that.
    let written = |written| times.clone().map(move |time_ms| Set { bytes: 1.0, time_ms, written });
    let sets: Vec<Set> = written(Written::AtRandom).chain(written(Written::InTurn)).collect();
    // A window is right to a share of itself; one of a rest to a share of the largest.
    let scale =
        |window: &Window| window.weight.sqrt() / window.dirtied_bytes.max(largest * RIGHT).max(4096.0);
    let column = |part: &dyn Fn(f64) -> f64| -> Vec<f64> {
        windows.iter().map(|window| part(window.length_ms) * scale(window)).collect()
    };
    // The cold ones first: a single window says nothing of how hot its pages are, and most guests are cold.
    let mut columns = vec![column(&|length_ms| length_ms / longest)];
    columns.extend(sets.iter().map(|set| column(&|length_ms| set.share(length_ms))));
    let wanted: Vec<f64> = windows.iter().map(|window| window.dirtied_bytes * scale(window)).collect();
    let parts = least_squares::simplest(&columns, &wanted, WORTH_OF_A_PART);
    let cold_bytes_per_ms = parts.first().map_or(0.0, |cold| cold / longest);
    let sets = sets.into_iter().zip(parts.into_iter().skip(1)).map(|(set, bytes)| Set { bytes, ..set });
    (sets.filter(|set| set.bytes > largest * NOTHING).collect(), cold_bytes_per_ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: f64 = 1_048_576.0;

    fn window(length_ms: f64, dirtied_bytes: f64) -> Window {
        Window { length_ms, dirtied_bytes, weight: 1.0 }
    }

    fn curve(lengths: &[f64], dirtied: impl Fn(f64) -> f64) -> DirtyCurve {
        let windows: Vec<_> = lengths.iter().map(|&length| window(length, dirtied(length))).collect();
        DirtyCurve::fit(&windows).unwrap()
    }

    type Guest = (&'static str, fn(f64) -> f64);

    /// A guest that sweeps its set, one that writes into it at random, one that has a small hot set in a large cold one.
    const GUESTS: [Guest; 3] = [
        ("sweep", |t| (t * 0.8 * MIB).min(64.0 * MIB)),
        ("uniform", |t| 64.0 * MIB * at_random(t, 300.0)),
        ("hot and cold", |t| {
            16.0 * MIB * at_random(t, 50.0) + 256.0 * MIB * at_random(t, 5000.0) + t * 0.01 * MIB
        }),
    ];

    #[test]
    fn windows_of_several_lengths_give_the_curve_between_them() {
        for (name, dirtied) in GUESTS {
            let curve = curve(&[50.0, 100.0, 250.0, 1000.0, 4000.0], dirtied);
            for length in [70.0, 150.0, 500.0, 2000.0, 3500.0] {
                let (fitted, exact) = (curve.bytes(length, Bound::Fitted), dirtied(length));
                assert!((fitted / exact - 1.0).abs() < 0.15, "{name} {length} ms: {fitted} for {exact}");
            }
        }
    }

    #[test]
    fn a_single_window_bounds_all_others_by_concavity() {
        for (name, dirtied) in GUESTS {
            let curve = curve(&[1000.0], dirtied);
            for length in [1.0, 10.0, 100.0, 999.0, 1001.0, 10_000.0] {
                let (low, high) = (curve.bytes(length, Bound::Low), curve.bytes(length, Bound::High));
                let exact = dirtied(length);
                assert!(
                    low <= exact * 1.001 && exact <= high * 1.001,
                    "{name} {length} ms: {low} {exact} {high}"
                );
            }
        }
    }

    #[test]
    fn a_saturated_guest_has_its_plateau_and_a_slow_one_none() {
        let sweep = curve(&[50.0, 100.0, 250.0, 1000.0], |t| (t * MIB).min(64.0 * MIB));
        let plateau = sweep.plateau_bytes(0.114 * MIB, 512.0 * MIB, Bound::Fitted);
        assert!((plateau / (64.0 * MIB) - 1.0).abs() < 0.05, "{plateau}");
        let slow = curve(&[50.0, 100.0, 250.0, 1000.0], |t| (t * 0.03 * MIB).min(64.0 * MIB));
        assert!(slow.plateau_bytes(0.114 * MIB, 512.0 * MIB, Bound::Fitted) < 4096.0);
    }

    #[test]
    fn the_time_to_dirty_so_much_is_the_curve_read_backwards() {
        let sweep = curve(&[50.0, 100.0, 250.0, 1000.0], |t| (t * MIB).min(64.0 * MIB));
        let time = sweep.time_to_dirty_ms(32.0 * MIB, Bound::Fitted).unwrap();
        assert!((sweep.bytes(time, Bound::Fitted) / (32.0 * MIB) - 1.0).abs() < 1e-6);
        assert_eq!(sweep.time_to_dirty_ms(1e15, Bound::Fitted), None);
    }

    #[test]
    fn a_guest_that_has_half_of_its_time_dirties_in_twice_the_time_what_it_dirtied() {
        for (name, dirtied) in GUESTS {
            let curve = curve(&[50.0, 100.0, 250.0, 1000.0], dirtied);
            let slowed = curve.slowed_to(0.5);
            for length in [20.0, 100.0, 700.0, 3000.0] {
                for bound in [Bound::Low, Bound::Fitted, Bound::High] {
                    let (halved, whole) = (slowed.bytes(length, bound), curve.bytes(length / 2.0, bound));
                    assert!((halved - whole).abs() < 1.0, "{name} {length} ms: {halved} for {whole}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_fitted_through_nothing() {
        assert_eq!(DirtyCurve::fit(&[]), None);
        assert_eq!(DirtyCurve::fit(&[window(0.0, 1.0)]), None);
        let idle = DirtyCurve::fit(&[window(1000.0, 0.0)]).unwrap();
        assert!(idle.bytes(60_000.0, Bound::High) < 1.0);
    }

    proptest! {
        #[test]
        fn a_curve_rises_from_nothing_and_its_bounds_keep_their_order(
            windows in proptest::collection::vec((1.0..60_000.0_f64, 0.0..1e9_f64), 1..12),
            lengths in proptest::collection::vec(0.0..1e5_f64, 2..10),
        ) {
            let windows: Vec<_> = windows.into_iter().map(|(length, bytes)| window(length, bytes)).collect();
            let curve = DirtyCurve::fit(&windows).unwrap();
            prop_assert!(curve.bytes(0.0, Bound::Fitted).abs() < 1e-9);
            let mut lengths = lengths;
            lengths.sort_by(f64::total_cmp);
            let fitted: Vec<f64> = lengths.iter().map(|&length| curve.bytes(length, Bound::Fitted)).collect();
            prop_assert!(fitted.windows(2).all(|pair| pair[0] <= pair[1] + 1e-6));
            for &length in &lengths {
                let low = curve.bytes(length, Bound::Low);
                let (fitted, high) = (curve.bytes(length, Bound::Fitted), curve.bytes(length, Bound::High));
                prop_assert!(low <= fitted + 1e-6 && fitted <= high + 1e-6, "{} {} {}", low, fitted, high);
            }
        }
    }
}
