//! What can be reached from here, and by which limit or throttle: forecasts compared with each other.

use crate::converge::bandwidth::as_f64;
use crate::converge::curve::{Bound, DirtyCurve};
use crate::converge::forecast::{Course, Feasible, Prospect, TAKEN_IN_MS};

/// A limit is this share larger than what is to fit it: QEMU compares with the rate of its last 100 ms alone.
const ROOM: f64 = 1.05;
/// A limit with which the guest stops only after some passes is one that would do as well if the guest wrote so much
/// faster: near the edge a little more makes an end in seconds one that never comes.
const FASTER: f64 = 1.6;
/// A second of streaming is worth so many seconds of blackout. A pass that leaves 5 % less is worth its time.
const TIME_IS_WORTH: f64 = 0.05;
/// Another limit is taken where its harm is less than so many times that of the one in force: if that is sure to do, if it
/// is not, and if it has been told and is kept to.
const THAN_SURE: f64 = 0.8;
const THAN_UNSURE: f64 = 2.0;
const THAN_TOLD: f64 = 0.5;
/// From one limit to the next that is looked at.
const STEP: f64 = 1.2;
/// No forecast reaches further than an hour.
const LONGEST_MS: f64 = 3.6e6;
/// The curve is a guess below this share of the shortest window.
const GUESS: f64 = 0.5;

/// A moment of a migration, as far as it is known.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// What the guest dirties while nothing slows it down.
    pub(super) curve: DirtyCurve,
    /// The rate of the stream in bytes per millisecond.
    pub(super) bytes_per_ms: f64,
    /// What this pass has yet to send.
    pub(super) left_bytes: f64,
    /// How long the guest has worked in this pass, in milliseconds.
    pub(super) into_pass_ms: f64,
    /// What the switch costs besides the copy, in milliseconds.
    pub(super) switch_ms: f64,
    /// The limit in force.
    pub(super) limit_ms: u64,
    /// What is left of the time budget, in milliseconds; without one, infinite.
    pub(super) time_left_ms: f64,
}

/// Whether the limit in force is one whose end has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InForce {
    Told,
    Untold,
}

/// A limit, and what it leads to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limited {
    pub(super) limit_ms: u64,
    pub(super) prospect: Prospect,
}

/// By how much the guest would have to be slowed down, in per cent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slowdown {
    /// Less than this will not do, by anything that was measured.
    pub(super) at_least: f64,
    /// This will, as far as is known.
    pub(super) likely: f64,
    /// Whether the windows were short enough to tell.
    pub(super) is_guess: bool,
}

impl View {
    /// The same moment with a guest that has so much of its time, from 0 to 1, or that is so much faster.
    pub(super) fn slowed_to(&self, share: f64) -> Self {
        Self {
            curve: self.curve.slowed_to(share),
            into_pass_ms: self.into_pass_ms / share.max(1e-3),
            ..self.clone()
        }
    }

    /// What comes of a limit; nothing where there is no end.
    pub(super) fn under(&self, limit_ms: u64, bound: Bound) -> Option<Prospect> {
        let late_ms = if limit_ms == self.limit_ms { 0.0 } else { TAKEN_IN_MS };
        Course { late_ms, ..self.course(bound) }.under(as_f64(limit_ms))
    }

    fn course(&self, bound: Bound) -> Course<'_> {
        Course {
            curve: &self.curve,
            bound,
            bytes_per_ms: self.bytes_per_ms,
            left_bytes: self.left_bytes,
            into_pass_ms: self.into_pass_ms,
            switch_ms: self.switch_ms,
            late_ms: 0.0,
        }
    }

    /// Which limit does least harm of those from the one in force to the largest, in blackout and in time: of those that are
    /// sure to do, or the one in force where that does much less harm or was told. Nothing where none ends within the time.
    pub(super) fn best_limit(&self, in_force_ms: u64, largest_ms: u64, told: InForce) -> Option<Limited> {
        let in_time = |prospect: &Prospect| prospect.total_ms() <= self.time_left_ms;
        let harm = |found: &Limited| found.prospect.blackout_ms + TIME_IS_WORTH * found.prospect.stream_ms;
        let found = |limit_ms| {
            let prospect = self.under(limit_ms, Bound::Fitted).filter(in_time)?;
            Some(Limited { limit_ms, prospect })
        };
        let faster = self.slowed_to(FASTER);
        let at_once_ms = self.needed_limit_ms().min(largest_ms);
        let is_sure = |limit_ms: u64| {
            limit_ms >= at_once_ms || faster.under(limit_ms, Bound::Fitted).as_ref().is_some_and(in_time)
        };
        let in_force = found(in_force_ms);
        let raised = self
            .limits_above(in_force_ms, largest_ms)
            .into_iter()
            .filter(|&limit_ms| is_sure(limit_ms))
            .filter_map(found)
            .min_by(|a, b| harm(a).total_cmp(&harm(b)));
        let than = match told {
            InForce::Told => THAN_TOLD,
            InForce::Untold if is_sure(in_force_ms) => THAN_SURE,
            InForce::Untold => THAN_UNSURE,
        };
        match (in_force, raised) {
            (Some(in_force), Some(raised)) if harm(&raised) >= harm(&in_force) * than => Some(in_force),
            (in_force, raised) => raised.or(in_force),
        }
    }

    fn limits_above(&self, in_force_ms: u64, largest_ms: u64) -> Vec<u64> {
        let mut limits = vec![largest_ms, self.needed_limit_ms()];
        let mut limit_ms = as_f64(in_force_ms.max(1));
        while limit_ms < as_f64(largest_ms) {
            limit_ms *= STEP;
            limits.push(rounded_up(limit_ms));
        }
        limits.retain(|limit_ms| (in_force_ms + 1..=largest_ms).contains(limit_ms));
        limits
    }

    /// The limit that what is left of this pass fits.
    pub(super) fn needed_limit_ms(&self) -> u64 {
        rounded_up(self.left_bytes / self.bytes_per_ms * ROOM * ROOM)
    }

    /// The smallest budgets that would do from here on.
    pub(super) fn smallest_pair(&self) -> Option<Feasible> {
        let mut found = self.course(Bound::Fitted).smallest_limit_within(LONGEST_MS)?;
        found.limit_ms *= ROOM * ROOM;
        Some(found)
    }

    /// By how much the guest would have to be slowed down so that what a pass leaves fits this limit: it stays where
    /// `D((1 - p) L) = L x B`.
    pub(super) fn slowdown(&self, limit_ms: u64) -> Slowdown {
        let limit_ms = as_f64(limit_ms.max(1));
        let bytes = limit_ms * self.bytes_per_ms / ROOM;
        let time_ms = |bound| self.curve.time_to_dirty_ms(bytes, bound).unwrap_or(f64::INFINITY);
        let percent = |time_ms: f64| 100.0 * (1.0 - time_ms / limit_ms).max(0.0);
        Slowdown {
            at_least: percent(time_ms(Bound::Low)),
            likely: percent(time_ms(Bound::Fitted)),
            is_guess: time_ms(Bound::Fitted) < self.curve.shortest_ms() * GUESS,
        }
    }

    /// How long what is left takes, in milliseconds, if the guest rests from now on.
    pub(super) fn rest_ms(&self) -> f64 {
        self.left_bytes / self.bytes_per_ms
    }
}

/// The next whole number, of one that is never negative.
pub(super) fn rounded_up(number: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
    let whole = number.ceil() as u64;
    whole
}
