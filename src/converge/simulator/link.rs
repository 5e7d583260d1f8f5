//! What lies between the two QEMUs.

use super::numbers::as_f64;
use crate::units::Rate;

/// A link with a rate that may change at known moments, and with room for bytes that have left QEMU and have not
/// arrived: socket buffers and queues. QEMU counts these as sent, and a blackout waits for them.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// From when on, in milliseconds, which rate in bytes per millisecond.
    steps: Vec<(f64, f64)>,
    room_bytes: f64,
    queued_bytes: f64,
    now_ms: f64,
}

impl Link {
    /// A link that always has this rate.
    pub fn steady(rate: Rate) -> Self {
        Self { steps: vec![(0.0, per_ms(rate))], room_bytes: 0.0, queued_bytes: 0.0, now_ms: 0.0 }
    }

    /// From then on it has this rate. Moments are given in their order.
    #[must_use]
    pub fn then(mut self, from_ms: f64, rate: Rate) -> Self {
        self.steps.push((from_ms, per_ms(rate)));
        self
    }

    /// It takes so many bytes before its rate is felt. A blackout is longer by the time that they take to arrive, of which
    /// QEMU's `downtime-limit` knows nothing.
    #[must_use]
    pub fn with_room_for(mut self, bytes: u64) -> Self {
        self.room_bytes = as_f64(bytes);
        self
    }

    /// The rate at a moment, and when it changes next.
    fn at(&self, ms: f64) -> (f64, f64) {
        let begun = self.steps.partition_point(|(from_ms, _)| *from_ms <= ms).max(1);
        let rate = self.steps.get(begun - 1).map_or(f64::INFINITY, |(_, rate)| *rate);
        (rate, self.steps.get(begun).map_or(f64::INFINITY, |(from_ms, _)| *from_ms))
    }

    /// At which rate a sender that could send at `own` rate gets bytes off its hands now, and until when.
    pub(super) fn takes(&self, own: f64) -> (f64, f64) {
        let (rate, changes_at_ms) = self.at(self.now_ms);
        let free = self.room_bytes - self.queued_bytes;
        if own <= rate {
            (own, changes_at_ms)
        } else if free < 1.0 {
            (rate, changes_at_ms)
        } else {
            (own, changes_at_ms.min(self.now_ms + free / (own - rate)))
        }
    }

    /// So many bytes were put in until then.
    pub(super) fn put(&mut self, bytes: u64, until_ms: f64) {
        self.queued_bytes += as_f64(bytes);
        while self.now_ms < until_ms {
            let (rate, changes_at_ms) = self.at(self.now_ms);
            let next_ms = changes_at_ms.min(until_ms);
            self.queued_bytes = (self.queued_bytes - rate * (next_ms - self.now_ms)).max(0.0);
            self.now_ms = next_ms;
        }
    }

    /// How long it takes until all has arrived, with so many bytes more.
    pub(super) fn drained_in_ms(&self, more_bytes: u64) -> f64 {
        let (mut bytes, mut now_ms) = (self.queued_bytes + as_f64(more_bytes), self.now_ms);
        loop {
            let (rate, changes_at_ms) = self.at(now_ms);
            if now_ms + bytes / rate <= changes_at_ms {
                return now_ms + bytes / rate - self.now_ms;
            }
            bytes -= rate * (changes_at_ms - now_ms);
            now_ms = changes_at_ms;
        }
    }
}

fn per_ms(rate: Rate) -> f64 {
    as_f64(rate.bytes_per_second()) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes_per_ms: u64) -> Rate {
        Rate::from_bytes_per_second(bytes_per_ms * 1000).unwrap()
    }

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-6, "{left} is not {right}");
    }

    #[test]
    fn a_buffer_is_filled_at_the_senders_rate_and_drained_at_the_links() {
        let mut link = Link::steady(rate(100)).with_room_for(9000);
        let (taken, until_ms) = link.takes(1000.0);
        close(taken, 1000.0);
        close(until_ms, 10.0);
        link.put(10_000, 10.0);
        close(link.takes(1000.0).0, 100.0);
        close(link.drained_in_ms(1000), 100.0);
        link.put(0, 1000.0);
        close(link.drained_in_ms(1000), 10.0);
    }

    #[test]
    fn a_step_is_felt_by_what_is_under_way() {
        let link = Link::steady(rate(100)).then(50.0, rate(10)).then(150.0, rate(100));
        close(link.takes(1000.0).0, 100.0);
        close(link.drained_in_ms(5000), 50.0);
        close(link.drained_in_ms(6000), 150.0);
        close(link.drained_in_ms(16_000), 250.0);
    }
}
