//! What one QEMU was told before it started, and what its work costs.

pub use crate::converge::AutoConverge;
use crate::units::Rate;

/// A source QEMU. The default is QEMU 10.0 as it comes, with the costs of TCG on the machine on which the recorded
/// migrations ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Qemu {
    /// `downtime-limit` in milliseconds.
    pub downtime_limit_ms: u64,
    /// `max-bandwidth`; none is no bound.
    pub max_bandwidth: Option<Rate>,
    /// `avail-switchover-bandwidth` (8.2); with none QEMU takes the bandwidth that it measured.
    pub switchover_bandwidth: Option<Rate>,
    /// `auto-converge` with its parameters, if it is on.
    pub auto_converge: Option<AutoConverge>,
    /// How often it looks at the guest's memory though no pass has ended, with auto-converge (9.2: 5000 ms).
    pub look_anew_every_ms: Option<f64>,
    /// What its work costs.
    pub costs: Costs,
}

/// What QEMU's work costs, in milliseconds and bytes per millisecond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// From `migrate` to the first page.
    pub setup_ms: f64,
    /// A look at the dirty bitmap of all memory.
    pub look_ms: f64,
    /// How fast whole pages are sent where neither the link nor `max-bandwidth` is in the way.
    pub send_bytes_per_ms: f64,
    /// A page of zeroes.
    pub zero_page_ms: f64,
    /// From the decision until the processors stand still, in which the guest still writes.
    pub stop_ms: f64,
    /// What a switch costs besides the copy: devices, the destination's load, and `cont`.
    pub switch_ms: f64,
    /// By so much a window is longer than 100 ms when QEMU sleeps to its end.
    pub oversleep_ms: f64,
}

impl AutoConverge {
    /// What the throttle becomes when it is triggered (`mig_throttle_guest_down`).
    pub(super) fn after(self, percent: u64) -> u64 {
        let next = if percent == 0 { self.initial_percent } else { percent + self.increment_percent };
        if percent == 0 { next } else { next.min(self.maximum_percent) }
    }
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            downtime_limit_ms: 300,
            max_bandwidth: None,
            switchover_bandwidth: None,
            auto_converge: None,
            look_anew_every_ms: Some(5000.0),
            costs: Costs::default(),
        }
    }
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            setup_ms: 3.0,
            look_ms: 0.3,
            send_bytes_per_ms: 1.5e6,
            zero_page_ms: 0.0002,
            stop_ms: 0.5,
            switch_ms: 4.5,
            oversleep_ms: 0.3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_climbs_by_itself_and_goes_where_a_hand_puts_it() {
        let climb: Vec<u64> =
            std::iter::successors(Some(0), |&percent| Some(AutoConverge::DEFAULT.after(percent)))
                .take(11)
                .collect();
        assert_eq!(climb, [0, 20, 30, 40, 50, 60, 70, 80, 90, 99, 99]);
        let by_hand = |maximum_percent| AutoConverge { maximum_percent, ..AutoConverge::BY_HAND };
        assert_eq!(
            [by_hand(1).after(0), by_hand(70).after(1), by_hand(30).after(70), by_hand(1).after(30)],
            [1, 70, 30, 1]
        );
    }
}
