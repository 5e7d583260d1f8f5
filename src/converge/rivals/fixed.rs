//! The limit as QEMU comes with it, and nothing else.
//!
//! | constant | value | from |
//! |---|---|---|
//! | `downtime-limit` | 300 ms | QEMU, `migration/options.c`, `DEFAULT_MIGRATE_SET_DOWNTIME` |

use crate::converge::policy::{Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::Sample;

/// What QEMU's `downtime-limit` is where nobody sets it, in milliseconds.
pub(super) const QEMU_LIMIT_MS: u64 = 300;

/// Waits, for ever if need be.
#[derive(Debug, Clone, Default)]
pub(super) struct Fixed {
    bandwidth: Bandwidth,
}

impl Policy for Fixed {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: QEMU_LIMIT_MS, throttle: Throttle::Never }
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
