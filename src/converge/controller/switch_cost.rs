//! What the switch costs besides the copy: a fixed part, and what the link still holds.
//!
//! Socket buffers and the queue of a shaped link take bytes that QEMU counts as sent: at first it is rid of them faster
//! than the link carries them. They stand before the final copy, and the blackout is longer by the time that they take
//! (21 to 33 ms on a gigabit shaped with `tbf`; QEMU's `downtime-limit` knows nothing of it). How many they are shows at
//! the begin of the stream: it is by so much ahead of its own later rate. A stream that `max-bandwidth` paces is ahead by a
//! window of 100 ms too: the limit is then smaller than it could be, and never larger.

use crate::converge::bandwidth::as_f64;

/// Device state, the destination's load, and `cont` (5 ms is the median of 50 migrations, measured on 5.2, 7.2, 10.0 and
/// 11.1).
pub(in crate::converge) const FIXED_MS: f64 = 5.0;
/// Taken to be in the way as long as nothing has been measured: what a shaped gigabit holds. Where there is no such link
/// the stream is so fast that it costs nothing to be careful.
const ASSUMED_BYTES: f64 = 3e6;
/// The queue is full after this time, and the stream as fast as the link.
const FILLED_MS: f64 = 250.0;
/// So long the stream is watched.
const WATCHED_MS: f64 = 1500.0;
/// A begin that is slower than this share of the usual rate, as where there are zeroes, hides what was taken at once.
const HELD_UP: f64 = 0.9;
/// Fewer samples than this after the queue was full tell nothing.
const FEWEST: usize = 4;

/// What is known of the cost of the switch.
#[derive(Debug, Clone, Default)]
pub(super) struct SwitchCost {
    /// When, in milliseconds, and how many bytes had been sent.
    begun: Vec<(f64, f64)>,
    measured_bytes: Option<f64>,
}

impl SwitchCost {
    /// Takes in that so many bytes had been sent at a moment.
    pub(super) fn observe(&mut self, at_ms: f64, transferred_bytes: u64) {
        let first_ms = self.begun.first().map_or(at_ms, |(first_ms, _)| *first_ms);
        // A stream that was met on its way shows no begin.
        if at_ms - first_ms > WATCHED_MS || (self.begun.is_empty() && transferred_bytes > 1 << 20) {
            return;
        }
        self.begun.push((at_ms, as_f64(transferred_bytes)));
        let late = self.begun.partition_point(|(at_ms, _)| *at_ms < first_ms + FILLED_MS);
        let (_, late) = self.begun.split_at(late);
        if late.len() < FEWEST {
            return;
        }
        let rate = usual_rate(late);
        let begin = self.begun.len() - late.len() + 1;
        let is_held_up = rates(&self.begun[..begin]).any(|early| early < rate * HELD_UP);
        // A machine with other work is ahead of itself now and then all the time.
        let ahead_bytes = (most_ahead(&self.begun, rate) - most_ahead(late, rate)).max(0.0);
        self.measured_bytes = (!is_held_up).then_some(ahead_bytes);
    }

    /// What the switch costs at this rate, in milliseconds.
    pub(super) fn ms(&self, bytes_per_ms: Option<f64>) -> f64 {
        let held = self.measured_bytes.unwrap_or(ASSUMED_BYTES);
        FIXED_MS + bytes_per_ms.map_or(0.0, |rate| held / rate)
    }

    /// Whether it was measured, and not assumed.
    pub(super) fn is_measured(&self) -> bool {
        self.measured_bytes.is_some()
    }
}

/// The rates between samples, in bytes per millisecond.
fn rates(samples: &[(f64, f64)]) -> impl Iterator<Item = f64> {
    samples.windows(2).filter_map(|pair| match pair {
        [(from_ms, from), (to_ms, to)] if to_ms > from_ms => Some((to - from) / (to_ms - from_ms)),
        _ => None,
    })
}

/// The rate at which the stream goes where it is not held up: three of four stretches are slower.
fn usual_rate(samples: &[(f64, f64)]) -> f64 {
    let mut rates: Vec<f64> = rates(samples).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() * 3 / 4).copied().unwrap_or(0.0)
}

/// By how many bytes it was most ahead of this rate, from any moment to any later one.
fn most_ahead(samples: &[(f64, f64)], rate: f64) -> f64 {
    let (mut behind, mut most) = (f64::INFINITY, 0.0_f64);
    for (at_ms, sent) in samples {
        let place = sent - rate * at_ms;
        behind = behind.min(place);
        most = most.max(place - behind);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(sent: impl Fn(f64) -> f64) -> SwitchCost {
        let mut cost = SwitchCost::default();
        for at_ms in (0..15).map(|step| 3.0 + f64::from(step) * 101.0) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "small and positive"
            )]
            cost.observe(at_ms, sent(at_ms) as u64);
        }
        cost
    }

    #[test]
    fn what_a_link_holds_shows_at_the_begin_of_the_stream() {
        let shaped = cost(|at_ms| if at_ms < 5.0 { 0.0 } else { 3e6 + (at_ms - 3.0) * 114e3 });
        assert!(shaped.is_measured());
        let ms = shaped.ms(Some(114e3));
        assert!((ms - FIXED_MS - 26.3).abs() < 1.0, "{ms}");
    }

    #[test]
    fn a_stream_without_a_buffer_costs_nothing_more() {
        let bare = cost(|at_ms| (at_ms - 3.0) * 100e3);
        assert!(bare.is_measured() && bare.ms(Some(100e3)) < FIXED_MS + 0.1);
    }

    #[test]
    fn a_begin_that_is_held_up_by_zeroes_tells_nothing() {
        let late = cost(|at_ms| (at_ms - 150.0).clamp(0.0, 0.1) * 30e6 + (at_ms - 150.0).max(0.0) * 114e3);
        assert!(!late.is_measured() && late.ms(Some(114e3)) > 30.0);
    }

    #[test]
    fn without_a_begin_the_cost_is_what_a_shaped_gigabit_has() {
        let mut cost = SwitchCost::default();
        cost.observe(0.0, 1 << 30);
        assert!(!cost.is_measured() && cost.ms(Some(114e3)) > 30.0 && cost.ms(Some(1.5e6)) < 8.0);
    }
}
