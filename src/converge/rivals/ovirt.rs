//! oVirt: a list of steps, of which one is taken each time that what is left has risen between two looks.
//!
//! | policy | first limit | limit once so many rises are exceeded | then |
//! |---|---|---|---|
//! | Minimal downtime | 100 ms | 150 at 1, 200 at 2, 300 at 3, 400 at 4, 500 at 6 | abort |
//! | Suspend workload if needed | 100 ms | the same | 5000 ms, abort |
//! | Post-copy migration | 100 ms | 150 at 1, 200 at 2 | postcopy, abort |
//! | Very large VMs | 300 ms | 400 at 1, 500 at 2, 700 at 3, 1000 at 4, 1500 at 6 | 5000 ms, abort |
//!
//! From ovirt-engine 0111fc63036, `packaging/dbscripts/upgrade/pre_upgrade/0000_config.sql`, `MigrationPolicies`. It looks
//! every 10 s (vdsm fd4b0df20, `lib/vdsm/virt/migration.py`, `monitor_migration`; `migration_monitor_interval` in
//! `lib/vdsm/common/config.py.in`), and takes one step at a look at most, if more rises than its limit have been
//! counted (`_next_action`); the last steps have the limit -1, so that each rise takes one. All four throttle by
//! `auto-converge` as QEMU comes with it; the second also compresses (`xbzrle`) and the fourth sends without copies, both
//! of which are left out here. vdsm's own list for engines without policies is left out too.

use super::{Ticks, abort, limit};
use crate::converge::policy::{AutoConverge, Policy, Throttle, Wish};
use crate::converge::{Bandwidth, Budget, Verdict};
use crate::record::{Choice, Sample};

const LOOK_EVERY_MS: f64 = 10_000.0;

/// One policy of oVirt's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    first_limit_ms: u64,
    steps: &'static [Step],
}

/// What is done once more rises than so many have been counted.
#[derive(Debug, Clone, Copy)]
struct Step {
    above_rises: i64,
    action: Action,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    SetDowntime(u64),
    Postcopy,
    Abort,
}

const fn downtime(above_rises: i64, limit_ms: u64) -> Step {
    Step { above_rises, action: Action::SetDowntime(limit_ms) }
}

/// One of the last steps.
const fn at_the_next(action: Action) -> Step {
    Step { above_rises: -1, action }
}

/// "Minimal downtime".
pub(super) const MINIMAL_DOWNTIME: Schedule = Schedule {
    first_limit_ms: 100,
    steps: &[
        downtime(1, 150),
        downtime(2, 200),
        downtime(3, 300),
        downtime(4, 400),
        downtime(6, 500),
        at_the_next(Action::Abort),
    ],
};

/// "Suspend workload if needed".
pub(super) const SUSPEND_WORKLOAD: Schedule = Schedule {
    first_limit_ms: 100,
    steps: &[
        downtime(1, 150),
        downtime(2, 200),
        downtime(3, 300),
        downtime(4, 400),
        downtime(6, 500),
        at_the_next(Action::SetDowntime(5000)),
        at_the_next(Action::Abort),
    ],
};

/// "Post-copy migration".
pub(super) const POSTCOPY: Schedule = Schedule {
    first_limit_ms: 100,
    steps: &[downtime(1, 150), downtime(2, 200), at_the_next(Action::Postcopy), at_the_next(Action::Abort)],
};

/// "Very large VMs".
pub(super) const VERY_LARGE: Schedule = Schedule {
    first_limit_ms: 300,
    steps: &[
        downtime(1, 400),
        downtime(2, 500),
        downtime(3, 700),
        downtime(4, 1000),
        downtime(6, 1500),
        at_the_next(Action::SetDowntime(5000)),
        at_the_next(Action::Abort),
    ],
};

/// Counts rises, and goes down its list.
#[derive(Debug, Clone)]
pub(super) struct Ovirt {
    bandwidth: Bandwidth,
    limit_ms: u64,
    steps: std::slice::Iter<'static, Step>,
    ticks: Ticks,
    left_bytes: Option<u64>,
    rises: i64,
}

impl Ovirt {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            bandwidth: Bandwidth::default(),
            limit_ms: schedule.first_limit_ms,
            steps: schedule.steps.iter(),
            ticks: Ticks::every(LOOK_EVERY_MS),
            left_bytes: None,
            rises: 0,
        }
    }

    fn take(&mut self, action: Action) -> Verdict {
        let risen = format!("what is left has risen {} times", self.rises);
        match action {
            Action::SetDowntime(limit_ms) => {
                self.limit_ms = limit_ms;
                limit(limit_ms, format!("{risen}: the limit is set to {limit_ms} ms"))
            }
            Action::Postcopy => {
                // Once it runs no further step is taken.
                self.steps = [].iter();
                let reason = format!("{risen}: it would go postcopy here, and does nothing instead");
                Verdict { choice: Choice::Wait, reason, forecast: None }
            }
            Action::Abort => abort(format!("{risen}, and there is no step left: it is aborted")),
        }
    }
}

impl Policy for Ovirt {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: self.limit_ms, throttle: Throttle::Automatic(AutoConverge::DEFAULT) }
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if !self.ticks.has_come(streaming_ms) {
            return None;
        }
        let before = self.left_bytes.replace(sample.remaining_bytes)?;
        if sample.remaining_bytes <= before {
            return None;
        }
        self.rises += 1;
        let step = self.steps.as_slice().first().filter(|step| step.above_rises < self.rises)?;
        self.steps.next();
        Some(self.take(step.action))
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{played, sample};
    use super::*;

    /// What a schedule comes to where more is left at each look.
    fn stalling(schedule: Schedule) -> Vec<(f64, Choice)> {
        let mut ovirt = Ovirt::new(schedule);
        assert_eq!(ovirt.wish().downtime_limit_ms, schedule.first_limit_ms);
        let said = played(&mut ovirt, 200_000, |at_ms| sample(at_ms, 2, super::super::whole(at_ms)));
        said.into_iter().map(|(at_ms, choice)| (at_ms / 1e3, choice)).collect()
    }

    fn limit_at(at_s: f64, downtime_limit_ms: u64) -> (f64, Choice) {
        (at_s, Choice::Limit { downtime_limit_ms })
    }

    /// The first look knows of no rise: the second rise is the look at 30 s.
    #[test]
    fn a_guest_that_stalls_goes_down_each_list_as_published() {
        let end = |at_s| (at_s, Choice::OutOfTime);
        assert_eq!(
            stalling(MINIMAL_DOWNTIME),
            [
                limit_at(30.0, 150),
                limit_at(40.0, 200),
                limit_at(50.0, 300),
                limit_at(60.0, 400),
                limit_at(80.0, 500),
                end(90.0)
            ]
        );
        let suspend = stalling(SUSPEND_WORKLOAD);
        assert_eq!(suspend[..5], stalling(MINIMAL_DOWNTIME)[..5]);
        assert_eq!(suspend[5..], [limit_at(90.0, 5000), end(100.0)]);
        assert_eq!(
            stalling(VERY_LARGE),
            [
                limit_at(30.0, 400),
                limit_at(40.0, 500),
                limit_at(50.0, 700),
                limit_at(60.0, 1000),
                limit_at(80.0, 1500),
                limit_at(90.0, 5000),
                end(100.0)
            ]
        );
    }

    #[test]
    fn postcopy_is_said_and_not_done_and_nothing_follows_it() {
        assert_eq!(stalling(POSTCOPY), [limit_at(30.0, 150), limit_at(40.0, 200), (50.0, Choice::Wait)]);
    }

    #[test]
    fn a_guest_of_which_less_is_left_at_each_look_is_waited_for() {
        let mut ovirt = Ovirt::new(MINIMAL_DOWNTIME);
        let said =
            played(&mut ovirt, 200_000, |at_ms| sample(at_ms, 2, 1_000_000 - super::super::whole(at_ms)));
        assert_eq!(said, []);
    }
}
