//! QEMU's throttle: all processors alike run 10 ms, then sleep.

/// How long they run at a time (`CPU_THROTTLE_TIMESLICE_NS`).
const SLICE_MS: f64 = 10.0;

/// The throttle, and what it has cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Throttle {
    percent: u64,
    sleep_ms: f64,
    awake_at_ms: f64,
    next_at_ms: f64,
    /// How long the guest has slept.
    pub(super) slept_ms: f64,
    /// The longest that it slept at a time.
    pub(super) longest_ms: f64,
}

impl Throttle {
    pub(super) fn percent(&self) -> u64 {
        self.percent
    }

    /// Sets it; what has begun is slept to its end.
    pub(super) fn set(&mut self, percent: u64, now_ms: f64) {
        if self.percent == 0 {
            (self.awake_at_ms, self.next_at_ms) = (now_ms, now_ms);
        }
        self.percent = percent.min(99);
    }

    /// Tells when the guest runs within a time, and how long it has slept just before.
    pub(super) fn run(&mut self, from_ms: f64, to_ms: f64, mut runs: impl FnMut(f64, f64, f64)) {
        let (mut now_ms, mut slept_ms) = (from_ms, 0.0);
        while now_ms < to_ms {
            if self.percent == 0 {
                return runs(now_ms, to_ms, 0.0);
            }
            if now_ms >= self.next_at_ms {
                self.begin(now_ms);
            }
            if now_ms < self.awake_at_ms {
                let until_ms = self.awake_at_ms.min(to_ms);
                self.slept_ms += until_ms - now_ms;
                slept_ms = if until_ms < self.awake_at_ms { 0.0 } else { self.sleep_ms };
                now_ms = until_ms;
            } else {
                let until_ms = self.next_at_ms.min(to_ms);
                runs(now_ms, until_ms, slept_ms);
                slept_ms = 0.0;
                now_ms = until_ms;
            }
        }
    }

    /// First it sleeps 10 ms x p / (1 - p), then it runs (`cpu_throttle_thread`).
    fn begin(&mut self, now_ms: f64) {
        #[expect(clippy::cast_precision_loss, reason = "a percentage")]
        let share = self.percent as f64 / 100.0;
        let sleep_ms = SLICE_MS * share / (1.0 - share);
        self.sleep_ms = sleep_ms;
        self.longest_ms = self.longest_ms.max(sleep_ms);
        self.awake_at_ms = now_ms + sleep_ms;
        self.next_at_ms = now_ms + SLICE_MS / (1.0 - share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(throttle: &mut Throttle, from_ms: f64, to_ms: f64) -> f64 {
        let mut sum = 0.0;
        throttle.run(from_ms, to_ms, |from, to, _| sum += to - from);
        sum
    }

    #[test]
    fn a_throttle_takes_its_share_in_slices_of_ten_milliseconds() {
        for (percent, longest) in [(20, 2.5), (50, 10.0), (90, 90.0), (99, 990.0)] {
            let mut throttle = Throttle::default();
            throttle.set(percent, 0.0);
            let ran = runs(&mut throttle, 0.0, 10_000.0);
            assert!((ran - 100.0 * f64::from(100 - u32::try_from(percent).unwrap())).abs() < 0.1, "{ran}");
            assert!((throttle.longest_ms - longest).abs() < 1e-6);
            assert!((throttle.slept_ms + ran - 10_000.0).abs() < 1e-6);
        }
    }

    #[test]
    fn it_is_changed_and_released_at_the_end_of_a_slice() {
        let mut throttle = Throttle::default();
        assert!((runs(&mut throttle, 0.0, 1000.0) - 1000.0).abs() < 1e-6);
        throttle.set(99, 1000.0);
        assert!(runs(&mut throttle, 1000.0, 1500.0) < 1e-6);
        throttle.set(50, 1500.0);
        assert!((runs(&mut throttle, 1500.0, 2000.0) - 10.0).abs() < 1e-6);
        assert!((runs(&mut throttle, 2000.0, 3000.0) - 500.0).abs() < 1e-6);
        assert!((throttle.longest_ms - 990.0).abs() < 1e-6);
    }
}
