//! Proxmox VE: the limit is doubled whenever what is left has risen six times, whatever the user may think of it.
//!
//! | constant | value | from |
//! |---|---|---|
//! | first limit | 100 ms | `src/PVE/QemuMigrate.pm`, `migrate_downtime` |
//! | looks | every 1 s; every 100 ms once less is left than was sent between two looks on average | `phase2` |
//! | a rise | what is left is more than at the look before, or is nothing; never forgotten for progress | `phase2` |
//! | rises until the limit is doubled | 6 | `phase2` |
//! | largest limit | 2000 s, QEMU's own | `cap_migrate_downtime` |
//! | throttle | `auto-converge` as QEMU comes with it | `src/PVE/QemuMigrate/Helpers.pm`, `set_migration_caps` |
//!
//! (qemu-server 9.2.6.) It also compresses (`xbzrle`), which is left out here.

use super::{Ticks, limit};
use crate::converge::policy::{AutoConverge, Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::Sample;

const FIRST_LIMIT_MS: u64 = 100;
const LARGEST_LIMIT_MS: u64 = 2_000_000;
const LOOK_EVERY_MS: f64 = 1000.0;
const LOOK_OFTEN_MS: f64 = 100.0;
const RISES: u32 = 6;

/// Counts rises.
#[derive(Debug, Clone)]
pub(super) struct Proxmox {
    bandwidth: Bandwidth,
    limit_ms: u64,
    ticks: Ticks,
    looks: u64,
    sent_bytes: u64,
    left_bytes: Option<u64>,
    rises: u32,
}

impl Default for Proxmox {
    fn default() -> Self {
        Self {
            bandwidth: Bandwidth::default(),
            limit_ms: FIRST_LIMIT_MS,
            ticks: Ticks::every(LOOK_EVERY_MS),
            looks: 0,
            sent_bytes: 0,
            left_bytes: None,
            rises: 0,
        }
    }
}

impl Policy for Proxmox {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: self.limit_ms, throttle: Throttle::Automatic(AutoConverge::DEFAULT) }
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if !self.ticks.has_come(streaming_ms) {
            return None;
        }
        self.looks += 1;
        let sent_before = std::mem::replace(&mut self.sent_bytes, sample.transferred_bytes);
        if sample.transferred_bytes == sent_before {
            return None;
        }
        if sample.remaining_bytes < sent_before / self.looks {
            self.ticks.every_ms = LOOK_OFTEN_MS;
        }
        let left_before = self.left_bytes.replace(sample.remaining_bytes).filter(|&left| left > 0);
        let has_risen = left_before.is_some_and(|before| sample.remaining_bytes > before);
        if has_risen || sample.remaining_bytes == 0 {
            self.rises += 1;
        }
        if self.rises < RISES {
            return None;
        }
        self.rises = 0;
        let doubled_ms = (self.limit_ms * 2).min(LARGEST_LIMIT_MS);
        if doubled_ms == self.limit_ms {
            return None;
        }
        self.limit_ms = doubled_ms;
        Some(limit(
            doubled_ms,
            format!("what is left has risen {RISES} times: the limit is doubled to {doubled_ms} ms"),
        ))
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{limits, played, sample};
    use super::*;

    /// A guest of whose memory more is left at every second look.
    fn zigzag(at_ms: f64) -> Sample {
        let is_high = (at_ms / 1000.0) % 2.0 >= 1.0;
        sample(at_ms, 2, if is_high { 900 << 20 } else { 800 << 20 })
    }

    #[test]
    fn six_rises_double_the_limit_up_to_what_qemu_takes() {
        let mut proxmox = Proxmox::default();
        assert_eq!(proxmox.wish().downtime_limit_ms, 100);
        // Once more has been sent between two looks than is left it looks ten times as often, and sees no more rises.
        let said = limits(&played(&mut proxmox, 400_000, |at_ms| Sample {
            transferred_bytes: super::super::whole(at_ms),
            ..zigzag(at_ms)
        }));
        let doublings: Vec<u64> = said.iter().map(|(_, limit_ms)| *limit_ms).collect();
        let all: Vec<u64> = (1..16).map(|times| (100_u64 << times).min(2_000_000)).collect();
        assert_eq!(doublings, all);
        assert_eq!(doublings.last(), Some(&2_000_000));
        // The first look knows of no rise; then each rise takes two seconds.
        assert_eq!(said[..2], [(13.0, 200), (25.0, 400)]);
    }

    #[test]
    fn progress_between_rises_does_not_forget_them() {
        let mut proxmox = Proxmox::default();
        let rises = |at_ms: f64| at_ms >= 60_000.0 && (at_ms / 1000.0) % 10.0 < 1.0;
        let left = |at_ms: f64| if rises(at_ms) { 900 << 20 } else { 800 << 20 };
        let said = played(&mut proxmox, 120_000, |at_ms| Sample {
            transferred_bytes: super::super::whole(at_ms),
            ..sample(at_ms, 2, left(at_ms))
        });
        assert_eq!(limits(&said), [(110.0, 200)]);
    }

    #[test]
    fn it_looks_ten_times_as_often_once_less_is_left_than_is_sent_between_two_looks() {
        let mut proxmox = Proxmox::default();
        // 100 MB are sent in a second; of 10 MB more is left at every second sample.
        let left = |at_ms: f64| if (at_ms / 100.0) % 2.0 >= 1.0 { 11 << 20 } else { 10 << 20 };
        let said = limits(&played(&mut proxmox, 10_000, |at_ms| sample(at_ms, 2, left(at_ms))));
        assert!(said.len() > 4 && said[1].0 - said[0].0 < 1.5, "{said:?}");
    }

    #[test]
    fn a_stream_that_stands_still_is_not_counted() {
        let mut proxmox = Proxmox::default();
        let said =
            played(&mut proxmox, 100_000, |at_ms| Sample { transferred_bytes: 1 << 30, ..zigzag(at_ms) });
        assert_eq!(said, []);
    }
}
