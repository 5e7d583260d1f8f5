//! The rate of the stream, from what was sent.

/// Windows shorter than this say more about scheduling than about the link (QEMU's own window is 100 ms).
const SHORTEST_WINDOW_MS: f64 = 100.0;
/// How much a new window weighs against the past.
const WEIGHT: f64 = 0.4;

/// A running estimate of the stream's rate.
#[derive(Debug, Clone, Default)]
pub struct Bandwidth {
    window_start: Option<(f64, u64)>,
    bytes_per_ms: Option<f64>,
}

impl Bandwidth {
    /// Takes in that so many bytes had been sent at a moment, given in milliseconds since the start.
    pub fn observe(&mut self, at_ms: f64, transferred_bytes: u64) {
        let Some((start_ms, start_bytes)) = self.window_start else {
            self.window_start = Some((at_ms, transferred_bytes));
            return;
        };
        let elapsed_ms = at_ms - start_ms;
        if elapsed_ms < SHORTEST_WINDOW_MS {
            return;
        }
        let rate = as_f64(transferred_bytes.saturating_sub(start_bytes)) / elapsed_ms;
        self.bytes_per_ms = Some(self.bytes_per_ms.map_or(rate, |old| old + WEIGHT * (rate - old)));
        self.window_start = Some((at_ms, transferred_bytes));
    }

    /// The estimate in bytes per millisecond, once there is one and something moves.
    pub fn bytes_per_ms(&self) -> Option<f64> {
        self.bytes_per_ms.filter(|&rate| rate > 0.0)
    }

    /// The estimate in bytes per second; 0 while there is none.
    pub fn bytes_per_second(&self) -> u64 {
        // Rates are far below 2^53 and never negative: nothing is lost that a rate means.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, never negative")]
        let rate = (self.bytes_per_ms.unwrap_or(0.0) * 1e3) as u64;
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
            bandwidth.observe(f64::from(step) * 100.0, u64::from(step) * 10_000_000);
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
}
