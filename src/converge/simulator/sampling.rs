//! Windows that are sampled beside the stream (`calc-dirty-rate` in the mode `page-sampling`).

use super::dirty::{Allowance, DirtyPages};
use super::guest::{Guest, Writer};
use super::numbers::{Random, as_f64};
use super::throttle::Throttle;

const PAGE_BYTES: u64 = 4096;
/// One after the other, in milliseconds, as the driver samples.
const LENGTHS_MS: [f64; 3] = [50.0, 200.0, 1000.0];
/// Between two: the pages that are watched are read twice, and the question is asked.
const BETWEEN_MS: f64 = 10.0;
/// Of so many pages one is watched.
const WATCHED: u64 = 16;

/// A window that has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sampled {
    pub(super) at_ms: f64,
    pub(super) length_ms: f64,
    pub(super) dirtied_bytes: f64,
}

/// The guest, watched on the side. It is not throttled: that comes later than the first pass.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    writer: Writer,
    pages: DirtyPages,
    random: Random,
    number: usize,
    ends_at_ms: f64,
}

impl Sampling {
    pub(super) fn new(guest: Guest) -> Self {
        let pages = DirtyPages::all(guest.total_bytes() / PAGE_BYTES, []);
        let random = Random::new(guest.total_bytes());
        let mut sampling = Self { writer: Writer::new(guest), pages, random, number: 0, ends_at_ms: 0.0 };
        sampling.begin(BETWEEN_MS);
        sampling
    }

    /// The window that is under way; nothing after the last one.
    fn length_ms(&self) -> Option<f64> {
        LENGTHS_MS.get(self.number).copied()
    }

    fn begin(&mut self, at_ms: f64) {
        self.writer.run_until(at_ms, &mut Throttle::default());
        self.writer.look(&mut self.pages);
        self.clear();
        self.ends_at_ms = at_ms + self.length_ms().unwrap_or(f64::INFINITY);
    }

    fn clear(&mut self) {
        let all = Allowance { bytes: u64::MAX, ms: f64::INFINITY, whole_page_ms: 0.0, zero_page_ms: 0.0 };
        self.pages.send(all);
    }

    /// The window that has ended by then, if one has.
    pub(super) fn ended_by(&mut self, now_ms: f64) -> Option<Sampled> {
        let length_ms = self.length_ms().filter(|_| now_ms >= self.ends_at_ms)?;
        let at_ms = self.ends_at_ms;
        self.writer.run_until(at_ms, &mut Throttle::default());
        self.writer.look(&mut self.pages);
        let dirtied = self.estimate(self.pages.count());
        let sampled = Sampled { at_ms, length_ms, dirtied_bytes: dirtied };
        self.number += 1;
        self.begin(at_ms + BETWEEN_MS);
        Some(sampled)
    }

    /// In bytes, as far as the pages tell that are watched.
    fn estimate(&mut self, dirtied_pages: u64) -> f64 {
        let watched = dirtied_pages / WATCHED;
        let spread = as_f64(watched).sqrt();
        // Twelve even numbers, added, have the spread of a normal one: 64 coins do as well.
        let coins = f64::from(self.random.bits(0.5).count_ones()) - 32.0;
        (as_f64(watched) + coins / 4.0 * spread).max(0.0) * as_f64(WATCHED * PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::simulator::Order;
    use crate::units::{Rate, Size};

    #[test]
    fn a_window_shows_what_the_guest_dirties_in_it_and_not_exactly() {
        let size = Size::from_mebibytes(64).unwrap();
        let guest = Guest::idle(Size::from_mebibytes(256).unwrap());
        let rate = Rate::from_bytes_per_second(200 << 20).unwrap();
        let mut sampling = Sampling::new(guest.writes(Order::Sweep, size, rate));
        for length_ms in LENGTHS_MS {
            let window = sampling.ended_by(1e6).unwrap();
            let exact = (length_ms / 1e3 * 200.0).min(64.0) * 1_048_576.0;
            assert!((window.length_ms - length_ms).abs() < 1e-9);
            assert!((window.dirtied_bytes / exact - 1.0).abs() < 0.2, "{window:?} for {exact}");
        }
        assert_eq!(sampling.ended_by(1e6), None, "that was the last one");
    }
}
