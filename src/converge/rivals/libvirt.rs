//! `virsh migrate --live --timeout SECONDS --timeout-suspend`: waits, then stops the guest.
//!
//! | constant | value | from |
//! |---|---|---|
//! | limit | 300 ms, QEMU's own | libvirt sets none; `virsh migrate` has no option for it |
//! | timeout | what the user types; here the time budget | `tools/virsh-domain.c`, `--timeout`, `virshMigrateTimeout` |
//! | at the timeout | the guest is stopped, once | `--timeout-suspend`, the default action |
//!
//! (libvirt 11.3.) virsh has no timeout of its own accord, and then waits for ever. So that there is something to hold
//! against others, here it is 60 s where there is no time budget.

use std::time::Duration;

use super::fixed::QEMU_LIMIT_MS;
use crate::converge::policy::{Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::{Choice, Sample};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until its time is over.
#[derive(Debug, Clone)]
pub(super) struct Virsh {
    bandwidth: Bandwidth,
    timeout: Duration,
    has_fired: bool,
}

impl Virsh {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            bandwidth: Bandwidth::default(),
            timeout: budget.max_time.unwrap_or(TIMEOUT),
            has_fired: false,
        }
    }
}

impl Policy for Virsh {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: QEMU_LIMIT_MS, throttle: Throttle::Never }
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if self.has_fired || streaming_ms < self.timeout.as_secs_f64() * 1e3 {
            return None;
        }
        self.has_fired = true;
        let timeout = humantime::format_duration(self.timeout);
        let reason =
            format!("its timeout of {timeout} is over: the guest is stopped until what is left is sent");
        Some(Verdict { choice: Choice::Pause, reason, forecast: None })
    }

    /// A timer that runs is not set anew.
    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{played, sample};
    use super::*;
    use crate::units::DowntimeMs;

    #[test]
    fn the_guest_is_stopped_once_when_the_time_is_over() {
        for (max_time, stopped_ms) in [(None, 60_000.0), (Some(Duration::from_secs(5)), 5000.0)] {
            let mut virsh = Virsh::new(Budget { max_downtime: DowntimeMs::new(50).unwrap(), max_time });
            let said = played(&mut virsh, 200_000, |at_ms| sample(at_ms, 2, 1 << 30));
            assert_eq!(said, [(stopped_ms, Choice::Pause)]);
        }
    }
}
