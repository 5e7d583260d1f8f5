//! The throttle: when, how much, and when no more.
//!
//! QEMU's own begins at 20 % and climbs by 10 whenever too much was dirtied twice, up to where nobody asked. Here it is
//! worked out from the curve and set in one step, as little as will do: the guest loses the least where the throttle is
//! strong and short. QEMU moves it at its own looks, a second or four later (it has to find twice that too much was
//! dirtied; run on 7.2, 10.0, 11.1), so that nothing is judged before it shows in a sample.

use super::view::{InForce, Limited, View};
use super::{Controller, Moment, Verdict, rounded_down, say};
use crate::converge::bandwidth::as_f64;
use crate::record::{Choice, Sample};

/// Passes alike before a guest is slowed down, and for how long: it may rest soon. A throttle can be taken back.
const ALIKE_PASSES: u32 = 4;
const ALIKE_MS: f64 = 3_500.0;
/// Where passes are long, fewer of them in a longer time.
const LONG_PASSES: u32 = 3;
const LONG_MS: f64 = 6_500.0;
/// Time in which QEMU moves its throttle, and in which a throttled guest is done, as the deadline is watched.
const TAKES_MS: f64 = 6_000.0;
/// Points above what is needed, and points that are worth a change.
const MARGIN: f64 = 3.0;
const WORTH_IT: u8 = 10;
/// A throttle that has been in force for so long, and so many passes, without an end is of no use.
const IN_VAIN_MS: f64 = 6_000.0;
const IN_VAIN_PASSES: u32 = 3;
/// One that QEMU has not moved after so long never will.
const NEVER_MS: f64 = 30_000.0;
/// A slice in which a throttled guest runs (`CPU_THROTTLE_TIMESLICE_NS`); it then sleeps p / (1 - p) of it.
const SLICE_MS: f64 = 10.0;

/// How the guest is slowed down.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slowing {
    percent: u8,
    told_at_ms: f64,
    /// When it was first seen in force, and passes since.
    in_force: Option<(f64, u32)>,
    /// It has been of no use.
    in_vain: bool,
}

impl Slowing {
    /// How much the guest should be slowed down now, in per cent.
    pub(super) fn percent(self) -> u8 {
        self.percent
    }

    /// What that leaves it of its time.
    pub(super) fn share(self) -> f64 {
        1.0 - f64::from(self.percent.min(99)) / 100.0
    }

    /// Whether it has been of no use.
    pub(super) fn is_in_vain(self) -> bool {
        self.in_vain
    }

    fn set(&mut self, percent: u8, now_ms: f64) {
        (self.percent, self.told_at_ms, self.in_force) = (percent, now_ms, None);
    }
}

/// Whether a sample shows a throttle that does anything: an idle one is at 1 %.
pub(super) fn is_in_force(sample: &Sample) -> bool {
    sample.throttle_percent > 1
}

impl Controller {
    /// The most that is consented to and that makes no single freeze longer than the downtime budget.
    fn most_percent(&self) -> u8 {
        let budget_ms = as_f64(self.budget.max_downtime.milliseconds());
        let by_freeze = rounded_down(100.0 * budget_ms / (budget_ms + SLICE_MS)).min(99);
        let by_freeze = u8::try_from(by_freeze).unwrap_or(99);
        self.consents.throttle_percent.map_or(0, |consented| consented.min(by_freeze))
    }

    /// How much is needed, if it may be and helps.
    fn needed_percent(&self, view: &View) -> Option<(u8, super::view::Slowdown)> {
        let most = self.most_percent();
        let need = view.slowdown(self.largest_limit_ms());
        if self.slowing.in_vain || most == 0 || need.at_least > f64::from(most) {
            return None;
        }
        let percent = if need.is_guess { f64::from(most) } else { need.likely + MARGIN };
        let percent = u8::try_from(rounded_down(percent.ceil())).unwrap_or(most);
        Some((percent.clamp(1, most), need))
    }

    /// Whether a throttle may still bring the end.
    pub(super) fn can_slow_down(&self, view: &View) -> bool {
        self.needed_percent(view).is_some()
    }

    /// Slows the guest down, more or no longer, where nothing else ends it.
    pub(super) fn slow_down(&mut self, view: &View, moment: &Moment) -> Option<Verdict> {
        if self.slowing.percent == 0 { self.begin_slowing(view, moment) } else { self.adjust(view, moment) }
    }

    fn begin_slowing(&mut self, view: &View, moment: &Moment) -> Option<Verdict> {
        let (percent, need) = self.needed_percent(view)?;
        let steady = self.passes.steady();
        let is_sure = self.passes.has_sampled() || steady.surely_ms >= super::SURELY_MS;
        let is_steady = (steady.passes >= ALIKE_PASSES && steady.for_ms >= ALIKE_MS)
            || (steady.passes >= LONG_PASSES && steady.for_ms >= LONG_MS && is_sure);
        let is_urgent = view.time_left_ms < super::GUARD * (TAKES_MS + 3.0 * view.rest_ms());
        (is_steady || is_urgent).then(|| {
            // Slowed down for as short as can be: what fits the budget is taken.
            self.limit_ms = self.largest_limit_ms();
            self.slowing.set(percent, moment.sample.at_ms);
            self.throttle(view, say::slowed(percent, need, moment.sample.remaining_bytes))
        })
    }

    fn adjust(&mut self, view: &View, moment: &Moment) -> Option<Verdict> {
        let (percent, now_ms) = (self.slowing.percent, moment.sample.at_ms);
        let Some((since_ms, passes)) = self.slowing.in_force else {
            return (now_ms > self.slowing.told_at_ms + NEVER_MS).then(|| self.slow_in_vain(view, moment));
        };
        if !moment.begins_pass {
            return None;
        }
        let needed = self.needed_percent(view);
        if let Some((needed, need)) = needed
            && needed > percent
        {
            self.slowing.set(needed, now_ms);
            return Some(self.throttle(view, say::slowed(needed, need, moment.sample.remaining_bytes)));
        }
        // A guest that writes all of its set in one slice is seen to by the passes under the throttle.
        let is_in_vain = passes >= IN_VAIN_PASSES && (needed.is_none() || now_ms > since_ms + IN_VAIN_MS);
        is_in_vain.then(|| self.slow_in_vain(view, moment))
    }

    /// A throttle of which an end is expected that does not come: QEMU never moves it, or passes get no smaller.
    pub(super) fn doubt_throttle(&mut self, view: &View, moment: &Moment) -> Option<Verdict> {
        let now_ms = moment.sample.at_ms;
        let is_in_vain = self.slowing.percent > 0
            && match self.slowing.in_force {
                None => now_ms > self.slowing.told_at_ms + NEVER_MS,
                Some((since_ms, passes)) => {
                    let stalls = self.stalled_passes >= super::STALLED_PASSES;
                    moment.begins_pass && stalls && passes >= IN_VAIN_PASSES && now_ms > since_ms + IN_VAIN_MS
                }
            };
        is_in_vain.then(|| self.slow_in_vain(view, moment))
    }

    /// Takes note of the throttle that a sample shows.
    pub(super) fn watch_throttle(&mut self, moment: &Moment) {
        if self.slowing.percent == 0 || moment.sample.throttle_percent < u64::from(self.slowing.percent) {
            return;
        }
        let (since_ms, passes) = self.slowing.in_force.unwrap_or((moment.sample.at_ms, 0));
        self.slowing.in_force = Some((since_ms, passes + u32::from(moment.begins_pass)));
    }

    fn slow_in_vain(&mut self, view: &View, moment: &Moment) -> Verdict {
        let percent = self.slowing.percent;
        self.slowing.set(0, moment.sample.at_ms);
        self.slowing.in_vain = true;
        self.throttle(view, say::slowed_in_vain(percent))
    }

    /// There is an end without the throttle.
    pub(super) fn release(&mut self, view: &View, free: Limited) -> Verdict {
        self.slowing.set(0, 0.0);
        let mut verdict = self.throttle(view, say::NO_LONGER_SLOWED.to_owned());
        verdict.forecast = Some(self.forecast(view, free));
        verdict
    }

    /// There is an end with the throttle; less of it may do as well.
    pub(super) fn ease(&mut self, view: &View, moment: &Moment) -> Option<Verdict> {
        let (since, percent) = (self.slowing.in_force, self.slowing.percent);
        let (needed, need) = self.needed_percent(view)?;
        if percent == 0 || since.is_none() || need.is_guess || needed + WORTH_IT > percent {
            return None;
        }
        self.slowing.set(needed, moment.sample.at_ms);
        Some(self.throttle(view, say::slowed_less(needed)))
    }

    fn throttle(&mut self, view: &View, reason: String) -> Verdict {
        self.stalled_passes = 0;
        let percent = self.slowing.percent;
        let slowed = view.slowed_to(self.slowing.share());
        let plan = slowed.best_limit(self.limit_ms, self.limit_ms, InForce::Untold);
        let forecast = plan.filter(|_| percent > 0).map(|plan| self.forecast(view, plan));
        self.told.foretold |= forecast.is_some();
        self.promised_ms = f64::INFINITY;
        Verdict { choice: Choice::Throttle { percent }, reason, forecast }
    }
}
