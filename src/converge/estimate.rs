//! What moving a guest would take, before anything is moved: each action with its time, blackout, bytes and cost.
//!
//! ```text
//!   windows ──fit──► D(t) ──┐
//!   rate of the stream ─────┼──► one Prospected per action ──► which fit the budgets, the cheapest of them,
//!   memory in use ──────────┘                                  and the smallest budgets with which waiting does
//! ```
//!
//! The actions are those of `literature` section 4.5. What each costs is the work that the guest loses: the blackout,
//! and what a throttle takes from it before. A throttle of `p` makes the guest dirty as if time went slower, `D((1-p) t)`,
//! so that its curve is the same one, stretched by `1/(1-p)`.

use std::time::Duration;

use serde::Serialize;

use super::bandwidth::as_f64;
use super::controller::SWITCH_MS;
use super::curve::{Bound, DirtyCurve, Window};
use super::forecast::{Course, Prospect};
use crate::units::DowntimeMs;

/// Where the limit starts while waiting is enough; as the controller has it.
const TIGHT_LIMIT_MS: f64 = 2.0;
/// Without a time budget nothing is waited for longer than an hour.
const LONGEST_MS: f64 = 3.6e6;
/// QEMU does not begin to throttle before (run on 7.2, 10.0, 11.1).
const THROTTLE_FROM_MS: f64 = 3200.0;
/// A throttled processor runs for 10 ms and then sleeps (`cpu-throttle.c`).
const THROTTLE_RUN_MS: f64 = 10.0;
/// No QEMU throttles more.
const MOST_THROTTLE_PERCENT: u32 = 99;
/// Just above the smallest limit there is an end only after very many passes.
const PAIR_MARGIN: f64 = 1.02;
/// So much more throttle than is needed to the point.
const THROTTLE_MARGIN_PERCENT: u32 = 2;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// What the guest dirtied in windows of several lengths.
    pub windows: &'a [Window],
    /// The memory that the first pass has to send, in bytes.
    pub in_use_bytes: u64,
    /// The rate of the stream in bytes per second.
    pub bytes_per_second: u64,
    /// The longest blackout that is allowed.
    pub max_downtime: DowntimeMs,
    /// The longest that it may take.
    pub max_time: Option<Duration>,
    /// In which ways this guest can be moved.
    pub ways: Ways,
}

/// In which ways a guest can be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// In all.
    All,
    /// Only while it stands.
    NonLiveOnly,
}

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Keep the limit tight, and wait until what is left fits.
    Wait,
    /// Let the limit rise.
    Raise {
        /// To so many milliseconds.
        downtime_limit_ms: u64,
    },
    /// Slow the guest down.
    Throttle {
        /// By so much.
        percent: u32,
    },
    /// Stop the guest after the first pass.
    Pause,
    /// Stop the guest before the first pass.
    NonLive,
}

/// Whether an action keeps to the budgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// It does, whatever of what was measured is true.
    Fits,
    /// It is likely to, and may not.
    MayNot,
    /// It breaks the downtime budget.
    BreaksDowntime,
    /// It breaks the time budget.
    BreaksTime,
    /// It breaks both.
    BreaksBoth,
    /// It comes to no end.
    NeverEnds,
}

impl Fit {
    /// Whether it can be tried.
    pub fn is_feasible(self) -> bool {
        matches!(self, Self::Fits | Self::MayNot)
    }
}

/// One action and what comes of it. Without figures it comes to no end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prospected {
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
    /// Whether it keeps to the budgets.
    pub fit: Fit,
    /// Until the guest runs on the other side, in milliseconds.
    pub total_ms: Option<f64>,
    /// How long it stands still at the end, in milliseconds.
    pub blackout_ms: Option<f64>,
    /// The least and the most that this may be; without the latter there may be no end.
    pub blackout_from_ms: Option<f64>,
    /// See there.
    pub blackout_to_ms: Option<f64>,
    /// To be sent, in bytes.
    pub sent_bytes: Option<f64>,
    /// The work that the guest loses, in milliseconds of its time.
    pub lost_ms: Option<f64>,
}

/// Budgets with which waiting and raising the limit does, and with a tenth less downtime does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The downtime budget in milliseconds.
    pub max_downtime_ms: u64,
    /// The time budget in milliseconds.
    pub max_time_ms: u64,
}

/// What moving a guest would take.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// The actions, in the order in which they are worth a try.
    pub prospects: Vec<Prospected>,
    /// The one that costs the guest least among those that keep to the budgets.
    pub cheapest: Option<usize>,
    /// The smallest budgets with which the guest can be moved live without further consent; nothing where none do
    /// within the time budget.
    pub smallest: Option<Pair>,
}

impl Estimate {
    /// The action to take.
    pub fn cheapest(&self) -> Option<&Prospected> {
        self.prospects.get(self.cheapest?)
    }
}

/// What comes of each action; nothing where no window was measured, or nothing is sent.
pub fn estimate(question: &Question) -> Option<Estimate> {
    let curve = DirtyCurve::fit(question.windows)?;
    let inquiry = Inquiry {
        question,
        curve,
        bytes_per_ms: as_f64(question.bytes_per_second) / 1e3,
        in_use_bytes: as_f64(question.in_use_bytes),
    };
    if inquiry.bytes_per_ms <= 0.0 {
        return None;
    }
    let mut prospects = Vec::new();
    let mut smallest = None;
    if question.ways == Ways::All {
        let wait = inquiry.wait();
        let waits = wait.fit == Fit::Fits;
        prospects.push(wait);
        smallest = inquiry.smallest(Bound::High).or_else(|| inquiry.smallest(Bound::Fitted));
        if !waits {
            prospects.extend(inquiry.throttle());
            prospects.push(inquiry.pause());
        }
    }
    prospects.push(inquiry.non_live());
    Some(Estimate { cheapest: cheapest(&prospects), prospects, smallest })
}

/// The one that costs least: what fits for certain before what may not, and the first of equals.
fn cheapest(prospects: &[Prospected]) -> Option<usize> {
    let lost = |at: usize| prospects[at].lost_ms.unwrap_or(f64::INFINITY);
    let feasible = (0..prospects.len()).filter(|&at| prospects[at].fit.is_feasible());
    feasible.min_by(|&a, &b| {
        prospects[a].fit.cmp(&prospects[b].fit).then(lost(a).total_cmp(&lost(b))).then(a.cmp(&b))
    })
}

/// A question with what follows from it at once.
struct Inquiry<'a> {
    question: &'a Question<'a>,
    curve: DirtyCurve,
    bytes_per_ms: f64,
    in_use_bytes: f64,
}

/// One reading of an action: until the guest runs again, how long it stood still, bytes, work lost.
#[derive(Debug, Clone, Copy)]
struct Reading {
    total_ms: f64,
    blackout_ms: f64,
    /// The downtime budget that it takes: a limit is never set above it, whatever blackout it leads to.
    needs_ms: f64,
    bytes: f64,
    lost_ms: f64,
}

impl Reading {
    fn under(limit_ms: f64, prospect: Prospect) -> Self {
        let needs_ms = if limit_ms > TIGHT_LIMIT_MS { limit_ms + SWITCH_MS } else { prospect.blackout_ms };
        Self {
            total_ms: prospect.total_ms(),
            blackout_ms: prospect.blackout_ms,
            needs_ms: needs_ms.max(prospect.blackout_ms),
            bytes: prospect.bytes,
            lost_ms: prospect.blackout_ms,
        }
    }
}

impl Inquiry<'_> {
    fn max_downtime_ms(&self) -> f64 {
        as_f64(self.question.max_downtime.milliseconds())
    }

    fn max_time_ms(&self) -> f64 {
        self.question.max_time.map_or(LONGEST_MS, |time| time.as_secs_f64() * 1e3)
    }

    fn course<'a>(&self, curve: &'a DirtyCurve, bound: Bound, left_bytes: f64) -> Course<'a> {
        let bytes_per_ms = self.bytes_per_ms;
        Course {
            curve,
            bound,
            bytes_per_ms,
            left_bytes,
            into_pass_ms: 0.0,
            switch_ms: SWITCH_MS,
            late_ms: 0.0,
        }
    }

    fn whole_course(&self, bound: Bound) -> Course<'_> {
        self.course(&self.curve, bound, self.in_use_bytes)
    }

    /// An action by its likely reading and by the most and the least that were measured.
    fn prospected(&self, action: Action, read: impl Fn(Bound) -> Option<Reading>) -> Prospected {
        let (low, likely, high) = (read(Bound::Low), read(Bound::Fitted), read(Bound::High));
        let fit = match (self.fit(likely), self.fit(high)) {
            (Fit::Fits, Fit::Fits) => Fit::Fits,
            (Fit::Fits, _) => Fit::MayNot,
            (broken, _) => broken,
        };
        let blackout = |reading: Option<Reading>| reading.map(|reading| reading.blackout_ms);
        let within = |pick: fn(f64, f64) -> f64, other| {
            blackout(likely).zip(blackout(other)).map(|(likely, other)| pick(likely, other))
        };
        Prospected {
            action,
            fit,
            total_ms: likely.map(|reading| reading.total_ms),
            blackout_ms: blackout(likely),
            blackout_from_ms: within(f64::min, low.or(likely)),
            blackout_to_ms: within(f64::max, high),
            sent_bytes: likely.map(|reading| reading.bytes),
            lost_ms: likely.map(|reading| reading.lost_ms),
        }
    }

    fn fit(&self, reading: Option<Reading>) -> Fit {
        let Some(reading) = reading else { return Fit::NeverEnds };
        match (reading.needs_ms > self.max_downtime_ms(), reading.total_ms > self.max_time_ms()) {
            (false, false) => Fit::Fits,
            (true, false) => Fit::BreaksDowntime,
            (false, true) => Fit::BreaksTime,
            (true, true) => Fit::BreaksBoth,
        }
    }

    /// What is done without further consent: the limit starts tight, and rises only as far as there is no end below.
    fn wait(&self) -> Prospected {
        let limit_ms = |bound| self.needed_limit_ms(bound);
        let action = match limit_ms(Bound::Fitted) {
            Some(limit_ms) if limit_ms > TIGHT_LIMIT_MS => {
                Action::Raise { downtime_limit_ms: whole(limit_ms.ceil()) }
            }
            _ => Action::Wait,
        };
        let read = |bound| {
            let limit_ms = limit_ms(bound)?;
            Some(Reading::under(limit_ms, self.whole_course(bound).under(limit_ms)?))
        };
        self.prospected(action, read)
    }

    /// The smallest limit that ends in time, or at all where none does in time.
    fn needed_limit_ms(&self, bound: Bound) -> Option<f64> {
        let course = self.whole_course(bound);
        let within = |time_ms| {
            let tight = course.under(TIGHT_LIMIT_MS);
            let is_enough = tight.is_some_and(|tight| tight.total_ms() <= time_ms);
            let smallest = || Some(course.smallest_limit_within(time_ms)?.limit_ms.max(TIGHT_LIMIT_MS));
            if is_enough { Some(TIGHT_LIMIT_MS) } else { smallest() }
        };
        within(self.max_time_ms()).or_else(|| within(LONGEST_MS))
    }

    /// The smallest throttle with which the blackout fits, set once; nothing where none is needed or none will do.
    fn throttle(&self) -> Option<Prospected> {
        let limit_ms = self.max_downtime_ms() - SWITCH_MS;
        let limit_bytes = limit_ms * self.bytes_per_ms;
        // No freeze of the throttle is longer than the budget.
        let cap = self.max_downtime_ms() / (self.max_downtime_ms() + THROTTLE_RUN_MS) * 100.0;
        let runs_ms = self.curve.time_to_dirty_ms(limit_bytes, Bound::Fitted)?;
        if limit_ms <= 0.0 || runs_ms >= limit_ms {
            return None;
        }
        let needed = whole(((1.0 - runs_ms / limit_ms) * 100.0).ceil());
        let percent = u32::try_from(needed).ok()?.saturating_add(THROTTLE_MARGIN_PERCENT);
        if percent > MOST_THROTTLE_PERCENT || f64::from(percent) > cap {
            return None;
        }
        let share = f64::from(percent) / 100.0;
        let curve = self.curve.slowed_to(1.0 - share);
        let read = |bound| {
            // Until QEMU begins to throttle it sends what it can of what the guest goes on dirtying.
            let first_ms = THROTTLE_FROM_MS.max(self.in_use_bytes / self.bytes_per_ms);
            let left = self.curve.plateau_bytes(self.bytes_per_ms, self.in_use_bytes, bound);
            let then = self.course(&curve, bound, left).under(limit_ms)?;
            Some(Reading {
                total_ms: first_ms + then.total_ms(),
                blackout_ms: then.blackout_ms,
                needs_ms: then.blackout_ms,
                bytes: first_ms * self.bytes_per_ms + then.bytes,
                lost_ms: share * then.stream_ms + then.blackout_ms,
            })
        };
        Some(self.prospected(Action::Throttle { percent }, read))
    }

    fn pause(&self) -> Prospected {
        let read = |bound| {
            let first_ms = self.in_use_bytes / self.bytes_per_ms;
            let left = self.curve.bytes(first_ms, bound).min(self.in_use_bytes);
            Some(self.stopped(first_ms, left))
        };
        self.prospected(Action::Pause, read)
    }

    fn non_live(&self) -> Prospected {
        self.prospected(Action::NonLive, |_| Some(self.stopped(0.0, self.in_use_bytes)))
    }

    /// A guest that runs for a while and then stands until the rest has been sent.
    fn stopped(&self, runs_ms: f64, left_bytes: f64) -> Reading {
        let blackout_ms = left_bytes / self.bytes_per_ms + SWITCH_MS;
        Reading {
            total_ms: runs_ms + blackout_ms,
            blackout_ms,
            needs_ms: blackout_ms,
            bytes: runs_ms * self.bytes_per_ms + left_bytes,
            lost_ms: blackout_ms,
        }
    }

    /// The smallest budgets with which the limit can be raised far enough.
    fn smallest(&self, bound: Bound) -> Option<Pair> {
        let course = self.whole_course(bound);
        let found = course.smallest_limit_within(self.max_time_ms())?;
        let limit_ms = (found.limit_ms * PAIR_MARGIN).ceil().max(TIGHT_LIMIT_MS);
        let reading = Reading::under(limit_ms, course.under(limit_ms)?);
        Some(Pair {
            max_downtime_ms: whole(limit_ms + SWITCH_MS),
            max_time_ms: whole(reading.total_ms.max(found.slowest_ms).ceil()),
        })
    }
}

/// What was not negative, without what comes after the point.
fn whole(number: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
    let whole = number as u64;
    whole
}

#[cfg(test)]
mod tests;
