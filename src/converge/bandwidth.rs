//! The rate of the stream, from what was sent.
//!
//! What the link carries where nothing else holds the stream up: the fastest of the latest windows. A mean will not do: the
//! destination has to find its memory in the first pass, and a busy machine sends 15 % less in most of that than in all
//! that comes after it (100 to 105 of 119 MB/s over a shaped gigabit between two 10.0 on 2 cores). A window that is far faster
//! than the others is one in which buffers were filled again; what the buffers took at once shows in the first one.
//!
//! The past is forgotten where the link has become another: two windows in a row that are far from the estimate on the
//! same side, half a second after the step. A window far below it is remembered as a drop: what cannot be undone is not
//! decided just after one.

use std::collections::VecDeque;

/// Windows shorter than this say more about scheduling than about the link.
const WINDOW_MS: f64 = 250.0;
/// The first is shorter, so that there is something to go by: QEMU's own.
const FIRST_WINDOW_MS: f64 = 100.0;
/// So many windows are looked at: two seconds and more.
const LATEST: usize = 8;
/// The first holds what socket buffers took at once, and the second counts instead of it.
const FIRST_WINDOWS: usize = 2;
/// A window that is further from the estimate than this share of it is far from it.
const FAR: f64 = 0.2;

/// A running estimate of the stream's rate.
#[derive(Debug, Clone, Default)]
pub struct Bandwidth {
    window_start: Option<(f64, u64)>,
    bytes_per_ms: Option<f64>,
    /// The rates of the latest windows since the link last became another.
    latest: VecDeque<f64>,
    /// Which way the last window was far from the estimate.
    far: Option<Side>,
    windows: usize,
    /// The rates of the last window but one and of the last, whatever they were.
    last_two: (f64, f64),
    steps: u32,
    /// When the link last became slower.
    dropped_at_ms: Option<f64>,
}

/// Where a window is, seen from the estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Above,
    Below,
}

/// Whether the guest is in the stream's way: QEMU waits for a processor that sleeps in its throttle each time that it takes the
/// dirty pages anew, up to a second (run on 10.0 under TCG: 73 of 119 MB/s at 96 %). A slow window says nothing of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Free,
    Throttled,
}

impl Bandwidth {
    /// Takes in that so many bytes had been sent at a moment, given in milliseconds since the start.
    pub fn observe(&mut self, at_ms: f64, transferred_bytes: u64) {
        self.take_in(at_ms, transferred_bytes, Guest::Free);
    }

    /// The same while the guest is throttled.
    pub fn observe_throttled(&mut self, at_ms: f64, transferred_bytes: u64) {
        self.take_in(at_ms, transferred_bytes, Guest::Throttled);
    }

    fn take_in(&mut self, at_ms: f64, transferred_bytes: u64, guest: Guest) {
        let Some((start_ms, start_bytes)) = self.window_start else {
            self.window_start = Some((at_ms, transferred_bytes));
            return;
        };
        let elapsed_ms = at_ms - start_ms;
        let window_ms = if self.bytes_per_ms.is_none() { FIRST_WINDOW_MS } else { WINDOW_MS };
        if elapsed_ms < window_ms {
            return;
        }
        let rate = as_f64(transferred_bytes.saturating_sub(start_bytes)) / elapsed_ms;
        self.window_start = Some((at_ms, transferred_bytes));
        self.windows += 1;
        self.last_two = (self.last_two.1, rate);
        if self.windows <= FIRST_WINDOWS {
            self.latest = VecDeque::from([rate]);
            self.bytes_per_ms = Some(rate);
            return;
        }
        let far = match self.bytes_per_ms.map(|usual| rate / usual) {
            Some(share) if share > 1.0 + FAR => Some(Side::Above),
            Some(share) if share < 1.0 - FAR => Some(Side::Below),
            _ => None,
        };
        if guest == Guest::Throttled && far == Some(Side::Below) {
            self.far = None;
            return;
        }
        let is_step = far.is_some() && far == self.far;
        self.far = far.filter(|_| !is_step);
        // One window that is far from the others is an outlier until the next one agrees with it.
        if far.is_some() && !is_step {
            return;
        }
        if is_step {
            self.steps += 1;
            self.latest.clear();
            if far == Some(Side::Below) {
                self.dropped_at_ms = Some(at_ms);
            }
        }
        self.latest.push_back(rate);
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
        self.bytes_per_ms = self.latest.iter().copied().reduce(f64::max);
    }

    /// The estimate in bytes per millisecond, once there is one and something moves.
    pub fn bytes_per_ms(&self) -> Option<f64> {
        self.bytes_per_ms.filter(|&rate| rate > 0.0)
    }

    /// When the stream last became far slower, in the time of the samples.
    pub fn dropped_at_ms(&self) -> Option<f64> {
        self.dropped_at_ms
    }

    /// How often the link has become another.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Whether the last window was as the ones before: if not, the next one tells whether the link is another. Of a throttled
    /// guest a slow one tells nothing.
    pub fn is_settled(&self) -> bool {
        self.far.is_none()
    }

    /// The estimate, or the last window where that was slower, in bytes per millisecond: for what cannot be taken back.
    pub fn careful_bytes_per_ms(&self) -> Option<f64> {
        self.bytes_per_ms().map(|rate| if self.windows > 0 { rate.min(self.last_two.1) } else { rate })
    }

    /// What the stream runs at now, in bytes per second: the estimate, or the last two windows where both were slower; 0
    /// while there is none.
    pub fn bytes_per_second(&self) -> u64 {
        let now = self.bytes_per_ms.map_or(0.0, |rate| rate.min(self.last_two.0.max(self.last_two.1)));
        // Rates are far below 2^53 and never negative: nothing is lost that a rate means.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, never negative")]
        let rate = (now * 1e3) as u64;
        rate
    }
}

/// A number of bytes as a float; exact up to 8 PiB.
pub(super) fn as_f64(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes")]
    let float = bytes as f64;
    float
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_is_measured_as_it_is() {
        let mut bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.bytes_per_second(), 0);
        for step in 0..10_u32 {
            bandwidth.observe(f64::from(step) * 250.0, u64::from(step) * 25_000_000);
        }
        assert_eq!(bandwidth.bytes_per_second(), 100_000_000);
    }

    #[test]
    fn samples_close_together_are_taken_as_one_window() {
        let mut bandwidth = Bandwidth::default();
        for (at_ms, bytes) in [(0.0, 0), (1.0, 5_000_000), (2.0, 5_000_000), (100.0, 10_000_000)] {
            bandwidth.observe(at_ms, bytes);
        }
        assert_eq!(bandwidth.bytes_per_second(), 100_000_000);
    }

    /// What the estimate is after windows with these rates, both in kilobytes per second.
    fn after(rates: &[u64]) -> u64 {
        let mut bandwidth = Bandwidth::default();
        let (mut at_ms, mut sent) = (0.0, 0);
        bandwidth.observe(at_ms, sent);
        for rate in rates {
            (at_ms, sent) = (at_ms + 250.0, sent + 250 * rate);
            bandwidth.observe(at_ms, sent);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number")]
        let rate = bandwidth.bytes_per_ms().unwrap().round() as u64;
        rate
    }

    #[test]
    fn a_second_window_far_below_is_a_drop() {
        let mut bandwidth = Bandwidth::default();
        for step in 0..8_u32 {
            bandwidth.observe(f64::from(step) * 250.0, u64::from(step) * 250_000);
        }
        bandwidth.observe(2000.0, 1_850_000);
        assert_eq!((bandwidth.dropped_at_ms(), bandwidth.is_settled()), (None, false));
        bandwidth.observe(2250.0, 1_950_000);
        assert_eq!((bandwidth.dropped_at_ms(), bandwidth.is_settled()), (Some(2250.0), true));
    }

    #[test]
    fn a_step_of_the_link_is_taken_over_after_two_windows_and_an_outlier_is_not() {
        assert_eq!(after(&[1000, 1000, 1000, 250, 250]), 250);
        assert_eq!(after(&[250, 250, 250, 1000, 1000]), 1000);
        assert_eq!(after(&[1000, 1000, 1000, 250]), 1000);
        assert_eq!(after(&[1000, 1000, 1000, 250, 1000, 250, 1000]), 1000);
        assert_eq!(after(&[1000, 1000, 1000, 1400, 1000, 1000]), 1000);
        assert_eq!(after(&[250, 250, 250, 1000]), 250);
    }

    #[test]
    fn a_throttled_guest_that_holds_the_stream_up_is_no_slower_link() {
        let mut bandwidth = Bandwidth::default();
        for step in 0..8_u32 {
            bandwidth.observe(f64::from(step) * 250.0, u64::from(step) * 250_000);
        }
        for step in 0..8_u32 {
            bandwidth
                .observe_throttled(2000.0 + f64::from(step) * 250.0, 1_900_000 + u64::from(step) * 150_000);
        }
        assert_eq!((bandwidth.steps(), bandwidth.bytes_per_ms()), (0, Some(1000.0)));
        assert!(bandwidth.is_settled());
        assert_eq!((bandwidth.bytes_per_second(), bandwidth.careful_bytes_per_ms()), (600_000, Some(600.0)));
    }

    /// As it was measured in the first pass and after it.
    #[test]
    fn a_first_pass_that_is_held_up_does_not_hide_what_the_link_carries() {
        let held_up = after(&[125, 120, 119, 101, 99, 101, 98, 101, 115]);
        assert_eq!(held_up, 120);
        assert_eq!(after(&[125, 120, 119, 101, 99, 101, 98, 101, 115, 117, 119, 118]), 119);
    }
}
