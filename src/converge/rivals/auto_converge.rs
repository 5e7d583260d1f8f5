//! QEMU's own throttle, as it comes: nobody decides anything once it is on.
//!
//! | constant | value | from |
//! |---|---|---|
//! | `cpu-throttle-initial`, `-increment`, `max-cpu-throttle` | 20 %, 10 %, 99 % | QEMU, `migration/options.c` |
//! | `throttle-trigger-threshold` | 50 % | the same |
//! | `downtime-limit` | 300 ms | the same |

use super::fixed::QEMU_LIMIT_MS;
use crate::converge::policy::{AutoConverge, Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::Sample;

/// Waits while QEMU throttles.
#[derive(Debug, Clone, Default)]
pub(super) struct AsItComes {
    bandwidth: Bandwidth,
}

impl Policy for AsItComes {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: QEMU_LIMIT_MS, throttle: Throttle::Automatic(AutoConverge::DEFAULT) }
    }

    fn observe(&mut self, sample: &Sample, _: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        None
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}
