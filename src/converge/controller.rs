//! The limit that starts low and rises only within the budget; and what is done where no limit will do.
//!
//! It thinks as a pass begins, as the link has become another or turns out faster, and as time runs out:
//!
//! ```text
//!   is there an end within the budgets?
//!     yes, with the limit in force ............................. wait
//!     yes, with a larger one that is within the budget ......... raise it, once, to what is needed
//!     yes, if the guest had less time (and its user consents) .. throttle, once, by what is needed
//!     yes, if it stood still now (and its user consents) ....... pause
//!     no ....................................................... wait for a quiet moment; give up when there is none
//! ```
//!
//! Near an edge a little more makes an end in seconds one that never comes. A limit with which the guest stops only after
//! some passes is therefore one that would do as well if the guest wrote 1.6 times as fast, or the one in force; and an
//! end that has been told is kept to, unless another does half the harm.
//!
//! When there is none: a guest that is hot now may rest soon, and nobody can tell from a busy moment. Where its user gave
//! a time (`--max-time`), that is how long a quiet moment is waited for. Where not, it is given up once its passes have
//! been alike for 6.5 s and three passes: guests that work 5 s and rest 5 s have shown a rest by then, in passes or in
//! the windows that are sampled beside the first one. Without such windows it takes 5 s without the first and the last
//! pass, of which a part may have been a rest. A guest whose passes differ is given half a minute. A throttle can be
//! taken back and waits for four alike passes in 3.5 s only.

use std::time::Duration;

use super::bandwidth::{Bandwidth, as_f64};
use super::passes::Passes;
use super::policy::{Consent, Consents, Policy, Throttle, Wish};
use crate::record::{Choice, Forecast, Sample};
use crate::units::DowntimeMs;
pub(super) use switch_cost::FIXED_MS as SWITCH_MS;
use switch_cost::SwitchCost;
use view::{InForce, Limited, View, rounded_up};

/// What is told of the end.
mod foretelling;
/// The lines that say what was decided, and why.
mod say;
/// The throttle: when, how much, and when no more.
mod slowing;
/// What the switch costs besides the copy.
mod switch_cost;
/// What can be reached from here, and by what.
mod view;
/// Untouched memory, which misleads QEMU.
mod zeroes;
#[cfg(test)]
mod tests;

/// Where the limit starts: below it the cost of the switch itself outweighs what is copied in it.
const FIRST_LIMIT_MS: u64 = 2;
/// A pass that is not smaller than this share of the smallest before it has brought nothing.
const NEW_LOW: f64 = 0.98;
/// Nothing is decided before QEMU's second window.
const EARLIEST_MS: f64 = 250.0;
/// A pass that begins with less than this share of what the one before began with is on its way down.
const FALLS: f64 = 0.75;
/// So many passes without a new low, and forecasts that promise an end are not believed any more.
const STALLED_PASSES: u32 = 3;
/// A guest whose passes differ is not given up earlier than this where no time budget was given.
const PATIENCE_MS: f64 = 30_000.0;
/// One whose passes are alike is given up after so long, and so many of them.
const STEADY_MS: f64 = 6_500.0;
const STEADY_PASSES: u32 = 3;
/// Where no windows were sampled beside the stream, for so long without the first and the last pass.
const SURELY_MS: f64 = 5_000.0;
/// After so long without an end in sight the limit is all that the budget allows: any moment will do.
const CHOOSY_MS: f64 = 15_000.0;
/// Nothing that cannot be undone is decided so soon after the link has become slower.
const AFTER_DROP_MS: f64 = 3_000.0;
/// A plan has to be done by this much before the deadline.
const GUARD: f64 = 1.2;
/// As the deadline comes near, it is looked at so often.
const GUARD_EVERY_MS: f64 = 500.0;
/// A stream that is by so much faster than it was thought to be is thought of anew.
const FASTER_LINK: f64 = 1.05;
/// By this share of the limit QEMU's idea of the rate may be too high.
const RATE_ERROR: f64 = 0.03;

/// What the user allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The longest blackout.
    pub max_downtime: DowntimeMs,
    /// The longest that streaming may take.
    pub max_time: Option<Duration>,
}

impl Budget {
    /// The largest limit that QEMU may be given where the switch costs so much besides the copy.
    fn largest_limit_ms(self, switch_ms: f64) -> u64 {
        let budget_ms = as_f64(self.max_downtime.milliseconds());
        let copy_ms = (budget_ms - switch_ms) * (1.0 - RATE_ERROR);
        // Where the switch alone takes the budget, one millisecond is the nearest to nothing that QEMU takes.
        rounded_down(copy_ms.max(1.0))
    }

    fn max_time_ms(self) -> Option<f64> {
        self.max_time.map(|max_time| max_time.as_secs_f64() * 1e3)
    }
}

/// What is to be done now, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What.
    pub choice: Choice,
    /// Why, in one line.
    pub reason: String,
    /// What is expected of it.
    pub forecast: Option<Forecast>,
}

/// Watches the passes of one migration and says when the limit must rise, what else is to be done, or that nothing will do.
#[derive(Debug, Clone)]
pub struct Controller {
    budget: Budget,
    consents: Consents,
    limit_ms: u64,
    slowing: slowing::Slowing,
    bandwidth: Bandwidth,
    passes: Passes,
    switch: SwitchCost,
    zeroes: zeroes::Zeroes,
    pass: u64,
    smallest_pass_bytes: Option<u64>,
    stalled_passes: u32,
    /// What this pass had to send as it began, and the one before.
    pass_bytes: (u64, Option<u64>),
    standing: Standing,
    /// When the end is to have come by the plan in force, in milliseconds of streaming.
    promised_ms: f64,
    /// The limit that leads there, in milliseconds.
    told_limit_ms: Option<u64>,
    /// When it thinks again though no pass has begun.
    think_at_ms: f64,
    /// The rate of the stream by which it last found no end, in bytes per millisecond.
    no_end_at_rate: Option<f64>,
    told: Told,
    /// The smallest budgets that would do, a downtime and a time in milliseconds, as a pass last began.
    pair: Option<(u64, u64)>,
}

/// Whether there is anything left to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    /// Given up, or stopped: nothing more is said.
    Settled,
}

/// What has been said once and need not be said again.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    no_end: bool,
    switch_too_long: bool,
    /// Steps of the link.
    steps: u32,
    /// Whether there has been a forecast.
    foretold: bool,
}

/// A sample, and what it is.
#[derive(Debug, Clone, Copy)]
struct Moment<'a> {
    sample: &'a Sample,
    streaming_ms: f64,
    begins_pass: bool,
}

impl Controller {
    /// A controller for a migration that has not started, and what its user has consented to.
    pub fn new(budget: Budget, consents: Consents) -> Self {
        let switch = SwitchCost::default();
        Self {
            budget,
            consents,
            limit_ms: FIRST_LIMIT_MS.min(budget.largest_limit_ms(switch.ms(None))),
            slowing: slowing::Slowing::default(),
            bandwidth: Bandwidth::default(),
            passes: Passes::default(),
            switch,
            zeroes: zeroes::Zeroes::default(),
            pass: 0,
            smallest_pass_bytes: None,
            stalled_passes: 0,
            pass_bytes: (0, None),
            standing: Standing::Open,
            promised_ms: f64::INFINITY,
            told_limit_ms: None,
            think_at_ms: f64::INFINITY,
            no_end_at_rate: None,
            told: Told::default(),
            pair: None,
        }
    }

    /// The `downtime-limit` that should be in force, in milliseconds.
    pub fn limit_ms(&self) -> u64 {
        self.limit_ms
    }

    fn switch_ms(&self) -> f64 {
        self.switch.ms(self.bandwidth.bytes_per_ms())
    }

    fn largest_limit_ms(&self) -> u64 {
        self.budget.largest_limit_ms(self.switch_ms())
    }

    fn time_left_ms(&self, streaming_ms: f64) -> f64 {
        self.budget.max_time_ms().map_or(f64::INFINITY, |max_ms| max_ms - streaming_ms)
    }

    fn view(&self, moment: &Moment) -> Option<View> {
        Some(View {
            curve: self.passes.curve()?,
            bytes_per_ms: self.bandwidth.bytes_per_ms()?,
            left_bytes: as_f64(moment.sample.remaining_bytes),
            into_pass_ms: if moment.begins_pass { 0.0 } else { self.passes.into_pass_ms() },
            switch_ms: self.switch_ms(),
            limit_ms: self.limit_ms,
            time_left_ms: self.time_left_ms(moment.streaming_ms),
        })
    }

    /// Whether the link has just become slower, or may be just about to.
    fn has_dropped(&self, at_ms: f64) -> bool {
        let after = |dropped_at_ms| at_ms < dropped_at_ms + AFTER_DROP_MS;
        !self.bandwidth.is_settled() || self.bandwidth.dropped_at_ms().is_some_and(after)
    }

    fn count_pass(&mut self, remaining_bytes: u64) {
        let before = Some(self.pass_bytes.0).filter(|&bytes| bytes > 0);
        self.pass_bytes = (remaining_bytes, before);
        let is_low = self
            .smallest_pass_bytes
            .is_none_or(|smallest| as_f64(remaining_bytes) < as_f64(smallest) * NEW_LOW);
        if is_low {
            self.smallest_pass_bytes = Some(remaining_bytes);
            self.stalled_passes = 0;
        } else {
            self.stalled_passes += 1;
        }
    }

    fn falls(&self) -> bool {
        let (now, before) = self.pass_bytes;
        before.is_some_and(|before| as_f64(now) < as_f64(before) * FALLS)
    }

    /// Says that the link has become another while nothing more can be said.
    fn tell_step(&mut self) -> Option<Verdict> {
        if !self.is_another_link() {
            return None;
        }
        self.told.steps = self.bandwidth.steps();
        let reason = say::link_changed_early(self.bandwidth.bytes_per_second());
        Some(Verdict { choice: Choice::Wait, reason, forecast: None })
    }

    /// Whether this pass began with much less than the one before, whatever the curve says: the guest may have come to
    /// rest. A minimum is waited for where there is time.
    fn still_falls(&self, view: &View) -> bool {
        self.falls() && view.time_left_ms > 2.0 * GUARD * (view.rest_ms() + view.switch_ms)
    }

    /// Whether there may be an end by now that was none: a first pass is often slower than the link is.
    fn is_faster_than_thought(&self) -> bool {
        let rates = self.no_end_at_rate.zip(self.bandwidth.bytes_per_ms());
        rates.is_some_and(|(thought, rate)| rate > thought * FASTER_LINK)
    }

    /// Whether the link has become another since that was last told.
    fn is_another_link(&self) -> bool {
        self.bandwidth.steps() > self.told.steps
    }

    /// Is there an end, and by what?
    fn think(&mut self, moment: &Moment) -> Option<Verdict> {
        let Some(view) = self.view(moment) else { return self.think_blindly(moment) };
        let running = View { time_left_ms: view.time_left_ms / GUARD, ..view.clone() };
        let largest_ms = self.largest_limit_ms();
        let is_told = self.told_limit_ms == Some(self.limit_ms) && moment.streaming_ms < self.promised_ms;
        let told = if is_told { InForce::Told } else { InForce::Untold };
        let plan = running.slowed_to(self.slowing.share()).best_limit(self.limit_ms, largest_ms, told);
        self.no_end_at_rate = plan.is_none().then_some(view.bytes_per_ms);
        if self.has_dropped(moment.sample.at_ms) && view.time_left_ms > AFTER_DROP_MS {
            self.think_at_ms = moment.sample.at_ms + GUARD_EVERY_MS;
            return self.foretell(&view, plan, moment);
        }
        if self.slowing.percent() > 0
            && let Some(free) = running.best_limit(self.limit_ms, largest_ms, InForce::Untold)
        {
            return Some(self.release(&view, free));
        }
        match plan {
            Some(plan) if plan.limit_ms > self.limit_ms && !self.still_falls(&view) => {
                let until_ms = self.zeroes.mislead_until_ms();
                if let Some(until_ms) = until_ms.filter(|until_ms| moment.sample.at_ms < *until_ms) {
                    self.think_at_ms = until_ms;
                    return None;
                }
                Some(self.raise(&view, plan, moment))
            }
            Some(_) if let Some(verdict) = self.doubt_throttle(&view, moment) => Some(verdict),
            Some(plan) => {
                let eased = self.ease(&view, moment).or_else(|| self.doubt(Some(&view), moment));
                eased.or_else(|| self.foretell(&view, Some(plan), moment))
            }
            None => self.without_end(&view, moment),
        }
    }

    /// Forecasts that come to nothing: passes do not get smaller, or the end does not come, whatever the curve says.
    fn doubt(&mut self, view: Option<&View>, moment: &Moment) -> Option<Verdict> {
        let is_late = moment.streaming_ms > self.promised_ms && !self.falls();
        let stalls = self.stalled_passes >= STALLED_PASSES || is_late;
        if !stalls || !moment.begins_pass || self.slowing.percent() > 0 {
            return None;
        }
        let largest_ms = self.largest_limit_ms();
        if self.limit_ms < largest_ms {
            let needed_ms = view.map_or(largest_ms, View::needed_limit_ms);
            return Some(self.raise_blindly(needed_ms.max(self.limit_ms * 2).min(largest_ms), moment));
        }
        let patient = self.budget.max_time.is_some() || moment.streaming_ms < PATIENCE_MS;
        let stalls = self.stalled_passes >= STALLED_PASSES;
        if patient || !stalls { None } else { Some(self.give_up(view, moment)) }
    }

    /// No curve, or no rate: passes are all there is to go by.
    fn think_blindly(&mut self, moment: &Moment) -> Option<Verdict> {
        self.doubt(None, moment)
    }

    fn without_end(&mut self, view: &View, moment: &Moment) -> Option<Verdict> {
        // Later than the plan should be, and yet within the time: the fastest that the budget allows.
        let misled = self.zeroes.mislead_until_ms().is_some_and(|until_ms| moment.sample.at_ms < until_ms);
        if !misled
            && self.limit_ms < self.largest_limit_ms()
            && view.best_limit(self.limit_ms, self.largest_limit_ms(), InForce::Untold).is_some()
        {
            return Some(self.raise_to_all(moment));
        }
        if let Some(verdict) = self.pause(view, moment) {
            return Some(verdict);
        }
        if let Some(verdict) = self.slow_down(view, moment) {
            return Some(verdict);
        }
        if self.slowing.percent() > 0 {
            return None;
        }
        if self.is_hopeless(view, moment) {
            return Some(self.give_up(Some(view), moment));
        }
        let choosy_ms = self.budget.max_time_ms().map_or(CHOOSY_MS, |max_ms| max_ms / 2.0);
        if self.limit_ms < self.largest_limit_ms() && moment.streaming_ms > choosy_ms {
            return Some(self.raise_to_all(moment));
        }
        if self.is_another_link() {
            return self.foretell(view, None, moment);
        }
        if moment.begins_pass {
            self.pair = pair(view, moment);
        }
        if self.told.no_end || !moment.begins_pass {
            return None;
        }
        self.told.no_end = true;
        let reason = say::no_end_so_far(moment.sample.remaining_bytes, self.pair);
        Some(Verdict { choice: Choice::Wait, reason, forecast: None })
    }

    fn is_hopeless(&self, view: &View, moment: &Moment) -> bool {
        if self.budget.max_time.is_some() {
            return view.rest_ms() > view.time_left_ms * GUARD;
        }
        if !moment.begins_pass || (self.can_slow_down(view) && moment.streaming_ms < PATIENCE_MS) {
            return false;
        }
        let steady = self.passes.steady();
        let is_long = self.passes.has_sampled() || steady.surely_ms >= SURELY_MS;
        let is_steady = steady.passes >= STEADY_PASSES && steady.for_ms >= STEADY_MS && is_long;
        let is_in_vain = self.slowing.is_in_vain() && steady.passes >= 1;
        let is_steady = is_steady || is_in_vain;
        is_steady || (self.stalled_passes >= STALLED_PASSES && moment.streaming_ms >= PATIENCE_MS)
    }

    fn give_up(&mut self, view: Option<&View>, moment: &Moment) -> Verdict {
        self.standing = Standing::Settled;
        let left_bytes = self.smallest_pass_bytes.unwrap_or(moment.sample.remaining_bytes);
        let pair = if moment.begins_pass { view.and_then(|view| pair(view, moment)) } else { self.pair };
        let copy_ms = self.bandwidth.bytes_per_ms().map_or(0.0, |rate| as_f64(left_bytes) * 1.1 / rate);
        let smallest_downtime_ms =
            pair.map_or(rounded_up(copy_ms + self.switch_ms()), |(downtime_ms, _)| downtime_ms);
        let time_left_ms = self.time_left_ms(moment.streaming_ms);
        let reason = if time_left_ms.is_finite() {
            say::too_late(moment.sample.remaining_bytes, time_left_ms, pair)
        } else {
            say::infeasible(left_bytes, pair, self.budget.max_downtime.milliseconds())
        };
        let smallest_time_ms = pair.map(|(_, time_ms)| time_ms);
        Verdict {
            choice: Choice::Infeasible { smallest_downtime_ms, smallest_time_ms },
            reason,
            forecast: None,
        }
    }

    fn raise(&mut self, view: &View, plan: Limited, moment: &Moment) -> Verdict {
        self.limit_ms = plan.limit_ms;
        self.stalled_passes = 0;
        self.promise(Some(plan), moment);
        let reason = say::raised(moment.sample.remaining_bytes, &plan.prospect);
        let forecast = Some(self.forecast(view, plan));
        Verdict { choice: Choice::Limit { downtime_limit_ms: self.limit_ms }, reason, forecast }
    }

    fn raise_to_all(&mut self, moment: &Moment) -> Verdict {
        self.raise_blindly(self.largest_limit_ms(), moment)
    }

    fn raise_blindly(&mut self, limit_ms: u64, moment: &Moment) -> Verdict {
        // The budget's largest limit moves a little with the link: that is no new plan.
        if as_f64(limit_ms) * NEW_LOW > as_f64(self.limit_ms) {
            self.stalled_passes = 0;
        }
        self.limit_ms = limit_ms;
        self.promise(None, moment);
        let reason = say::raised_blindly(moment.sample.remaining_bytes, limit_ms);
        Verdict { choice: Choice::Limit { downtime_limit_ms: self.limit_ms }, reason, forecast: None }
    }

    /// Stops the guest where what is left fits the budget, which no limit does: QEMU's rate may be off, and is not asked.
    fn pause(&mut self, view: &View, moment: &Moment) -> Option<Verdict> {
        let rate = self.bandwidth.careful_bytes_per_ms().unwrap_or(view.bytes_per_ms);
        let blackout_ms = view.left_bytes / rate + view.switch_ms;
        let fits = blackout_ms <= as_f64(self.budget.max_downtime.milliseconds());
        let in_time = blackout_ms <= view.time_left_ms;
        let is_known = moment.begins_pass && self.bandwidth.is_settled();
        if self.consents.pause == Consent::Withheld || !is_known || !fits || !in_time {
            return None;
        }
        self.standing = Standing::Settled;
        let reason = say::paused(moment.sample.remaining_bytes, blackout_ms);
        let forecast = Forecast {
            blackout_ms,
            blackout_between_ms: None,
            stream_ms: Some(0.0),
            passes: Some(0),
            bytes: Some(moment.sample.remaining_bytes),
        };
        Some(Verdict { choice: Choice::Pause, reason, forecast: Some(forecast) })
    }

    /// Says that the budget cannot be kept on this link by anything, once that is measured.
    fn weigh_switch(&mut self, moment: &Moment) -> Option<Verdict> {
        let budget_ms = self.budget.max_downtime.milliseconds();
        let switch_ms = self.switch_ms();
        let is_too_long = self.switch.is_measured() && switch_ms > as_f64(budget_ms);
        if self.told.switch_too_long || !is_too_long || moment.sample.passes <= 1 {
            return None;
        }
        self.told.switch_too_long = true;
        let reason = say::switch_too_long(switch_ms, budget_ms);
        // What the link holds is inferred: nobody is refused for it. The limit is the smallest that there is.
        Some(Verdict { choice: Choice::Wait, reason, forecast: None })
    }
}

/// The smallest downtime that would do, and what the whole migration takes with it, both in milliseconds.
fn pair(view: &View, moment: &Moment) -> Option<(u64, u64)> {
    let found = view.smallest_pair()?;
    let time_ms = moment.streaming_ms + found.slowest_ms;
    Some((rounded_up(found.limit_ms + view.switch_ms), rounded_up(time_ms)))
}

impl Policy for Controller {
    fn wish(&self) -> Wish {
        let throttle = match self.consents.throttle_percent {
            Some(_) => Throttle::ByHand { percent: self.slowing.percent() },
            None => Throttle::Never,
        };
        Wish { downtime_limit_ms: self.limit_ms, throttle }
    }

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }

    /// Takes new budgets; the limit falls at once where it is now too high.
    fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
        self.limit_ms = self.limit_ms.min(self.largest_limit_ms());
        self.stalled_passes = 0;
        self.standing = Standing::Open;
        self.told = Told { steps: self.told.steps, ..Told::default() };
        // With other budgets another plan may be the best.
        (self.promised_ms, self.told_limit_ms) = (f64::INFINITY, None);
        self.think_at_ms = 0.0;
    }

    /// Takes in a sample; says what is to be done, if anything is. Times are milliseconds since streaming began.
    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        if slowing::is_in_force(sample) {
            self.bandwidth.observe_throttled(sample.at_ms, sample.transferred_bytes);
        } else {
            self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        }
        self.passes.observe(sample);
        self.zeroes.observe(sample);
        if sample.passes <= 1 {
            self.switch.observe(sample.at_ms, sample.transferred_bytes);
        }
        if self.standing == Standing::Settled {
            return None;
        }
        // The link may hold more, or hold it for longer, than was thought.
        self.limit_ms = self.limit_ms.min(self.largest_limit_ms());
        if let Some(max_time) = self.budget.max_time
            && streaming_ms > max_time.as_secs_f64() * 1e3
        {
            self.standing = Standing::Settled;
            let reason = format!("the time budget of {} is spent", humantime::format_duration(max_time));
            return Some(Verdict { choice: Choice::OutOfTime, reason, forecast: None });
        }
        let begins_pass = sample.passes > self.pass;
        self.pass = self.pass.max(sample.passes);
        // The first pass sends all of memory; it says nothing of what the guest dirties.
        if sample.passes <= 1 {
            return self.tell_step();
        }
        if begins_pass {
            self.count_pass(sample.remaining_bytes);
        }
        let moment = Moment { sample, streaming_ms, begins_pass };
        self.watch_throttle(&moment);
        if let Some(verdict) = self.weigh_switch(&moment) {
            return Some(verdict);
        }
        // Until then QEMU's own rate holds what socket buffers took at once: a limit would be worth more than it says.
        if streaming_ms < EARLIEST_MS {
            self.think_at_ms = sample.at_ms;
            return None;
        }
        let has_changed = self.is_another_link() || self.is_faster_than_thought();
        let is_due = begins_pass || has_changed || sample.at_ms >= self.think_at_ms;
        if !is_due {
            return None;
        }
        self.think_at_ms =
            if self.budget.max_time.is_some() { sample.at_ms + GUARD_EVERY_MS } else { f64::INFINITY };
        self.think(&moment)
    }

    /// Takes in how much the guest dirtied in a window that was sampled beside the stream and has just ended.
    fn observe_sampled(&mut self, at_ms: f64, length_ms: f64, dirtied_bytes: f64) {
        self.passes.sampled(at_ms, length_ms, dirtied_bytes);
    }
}

/// The whole part of a number that is never negative.
fn rounded_down(number: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
    let whole = number.floor() as u64;
    whole
}
