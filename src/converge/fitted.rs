//! A recorded migration as a guest and a link for the simulator, so that it can be said how another policy would have
//! ended.
//!
//! The guest is the dirty-set curve of the recorded passes, set by set; the link is what was sent over the time that it
//! took. What a record does not hold is not in it: phases of the guest, a link that has changed, memory that was
//! touched after the first pass only. How good the fit is shows in a run under the limits that were in force.

use std::fmt;

use serde::Serialize;

use super::bandwidth::as_f64;
use super::curve::{DirtyCurve, Set, Written};
use super::passes::Passes;
use super::policy::{Consent, Consents, Policy, Throttle, Wish};
use super::rivals::{PolicyName, whole};
use super::simulator::{Guest, Link, Order, Outcome, Qemu, Simulator, run_for};
use super::{Budget, Verdict};
use crate::record::{Choice, PhaseName, Record, Sample};
use crate::units::{Rate, Size};

/// A run that has come to no end by then is censored.
const LONGEST_MS: f64 = 1_800_000.0;
/// A set of fewer bytes than this is left out.
const LEAST_SET_BYTES: f64 = 4096.0;

/// A guest, a link and a QEMU like those of a recorded migration.
#[derive(Debug, Clone)]
pub struct Fitted {
    guest: Guest,
    link: Link,
    qemu: Qemu,
    /// When which limit was in force, in milliseconds since the first sample.
    limits: Vec<(f64, u64)>,
}

/// Whether a record tells when what was left fitted the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamEnd {
    /// When its samples end.
    Known,
    /// After that, if ever.
    Later,
}

/// What is known of a guest's memory.
#[derive(Debug, Clone, Copy)]
struct Memory {
    total: Size,
    first_pass_bytes: f64,
}

impl Memory {
    /// Written as the curve says, set by set.
    fn mixed(self, curve: Option<&DirtyCurve>) -> Guest {
        let mut guest = Guest::idle(self.total);
        let mut hot_bytes = 0.0;
        for &Set { bytes, time_ms, written } in curve.into_iter().flat_map(DirtyCurve::sets) {
            if bytes >= LEAST_SET_BYTES {
                let rate = at_least_slowly(bytes / time_ms * 1e3);
                let order = match written {
                    Written::AtRandom => Order::Uniform,
                    Written::InTurn => Order::Sweep,
                };
                guest = guest.writes(order, at_least_a_page(bytes), rate);
                hot_bytes += bytes;
            }
        }
        // All else that the first pass sent, of which some pages are written once in a while.
        let cold_rate = curve.map_or(0.0, |curve| curve.cold_bytes_per_ms() * 1e3);
        self.with_cold(guest, hot_bytes, cold_rate)
    }

    /// What the largest pass after the first began with is one set, and is written all the time.
    fn hot(self, hot_bytes: f64) -> Guest {
        const ROUNDS_PER_S: f64 = 10.0;
        let rate = at_least_slowly(hot_bytes * ROUNDS_PER_S);
        let guest = Guest::idle(self.total).writes(Order::Sweep, at_least_a_page(hot_bytes), rate);
        self.with_cold(guest, hot_bytes, 0.0)
    }

    fn with_cold(self, guest: Guest, hot_bytes: f64, bytes_per_second: f64) -> Guest {
        let cold = at_least_a_page(self.first_pass_bytes - hot_bytes);
        guest.writes(Order::Sweep, cold, at_least_slowly(bytes_per_second))
    }
}

/// How a simulated migration came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The guest ran on the destination.
    Moved,
    /// The policy gave up; the guest ran on at its source.
    GaveUp,
    /// It would have gone on for longer than anybody looked.
    Censored,
}

/// What a policy did beyond the user's budgets and consents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Breach {
    /// The blackout was longer than allowed.
    Blackout,
    /// The throttle held the guest for longer at a time than a blackout may last.
    Freeze,
    /// It took longer than allowed.
    Time,
    /// The guest was slowed down without consent, or more than was consented to.
    Throttle,
    /// The guest was stopped without consent.
    Pause,
}

impl fmt::Display for Breach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Blackout => "the blackout is above the budget",
            Self::Freeze => "the throttle holds the guest for longer than the budget",
            Self::Time => "the time is above the budget",
            Self::Throttle => "the guest is slowed down without consent",
            Self::Pause => "the guest is stopped without consent",
        })
    }
}

/// What came of a simulated migration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulated {
    /// How it ended.
    pub finish: Finish,
    /// When, in milliseconds since the begin of the stream.
    pub total_ms: f64,
    /// How long the guest stood still; absent where it did not move.
    pub blackout_ms: Option<f64>,
    /// What the throttle took from the guest, in milliseconds.
    pub throttled_ms: f64,
    /// Sent, in bytes.
    pub transferred_bytes: u64,
    /// What was beyond budgets and consents.
    pub breaches: Vec<Breach>,
}

impl Fitted {
    /// The guest and the link of a record; nothing where it has too few samples to know them.
    ///
    /// Passes that all took as long do not tell a small set that is written all the time from a large one that is
    /// written once. So there are two guests, and the one that ends more as it was recorded is taken.
    pub fn of(record: &Record) -> Option<Self> {
        let (first, last) = (record.samples.first()?, record.samples.last()?);
        let mut passes = Passes::default();
        for sample in &record.samples {
            passes.observe(sample);
        }
        let lasted_ms = last.at_ms - first.at_ms;
        let sent_bytes = as_f64(last.transferred_bytes.saturating_sub(first.transferred_bytes));
        let rate = Rate::from_bytes_per_second(whole(sent_bytes / lasted_ms.max(1.0) * 1e3))?;
        let first_pass = record.samples.iter().find(|sample| sample.passes > 1).unwrap_or(last);
        let memory = Memory {
            total: Size::from_bytes(last.total_bytes)?,
            first_pass_bytes: as_f64(first_pass.transferred_bytes),
        };
        let limit = |sample: &Sample| (sample.at_ms - first.at_ms, sample.downtime_limit_ms);
        let max_bandwidth = record.request.max_bandwidth_bytes_per_second;
        let with = |guest| Self {
            guest,
            link: Link::steady(rate),
            qemu: Qemu { max_bandwidth, ..Qemu::default() },
            limits: record.samples.iter().map(limit).collect(),
        };
        let curve = passes.curve();
        let mixed = with(memory.mixed(curve.as_ref()));
        let began_with = record.passes.iter().filter(|pass| pass.number > 1).map(|pass| pass.remaining_bytes);
        let hot = with(memory.hot(as_f64(began_with.max().unwrap_or(0))));
        let end = if record.phases.iter().any(|change| change.phase == PhaseName::Switchover) {
            StreamEnd::Known
        } else {
            StreamEnd::Later
        };
        Some(if hot.distance(lasted_ms, end) < mixed.distance(lasted_ms, end) { hot } else { mixed })
    }

    /// How far the stream under the recorded limits is from one that lasted so long, as a logarithm.
    fn distance(&self, lasted_ms: f64, end: StreamEnd) -> f64 {
        const LONGER: f64 = 4.0;
        let mut limits = self.recorded_limits();
        let simulator = Simulator::new(self.guest.clone(), self.link.clone(), self.qemu.clone());
        let outcome = run_for(simulator, &mut limits, lasted_ms * LONGER).outcome;
        let streamed_ms = outcome.total_ms - outcome.blackout_ms.unwrap_or(0.0);
        let apart = (streamed_ms.max(1.0) / lasted_ms.max(1.0)).ln();
        if end == StreamEnd::Later && apart > 0.0 { 0.0 } else { apart.abs() }
    }

    /// What would come of this policy from the start.
    pub fn simulate(&self, name: PolicyName, budget: Budget, consents: Consents) -> Simulated {
        self.play(name.build(budget, consents).as_mut(), budget, consents)
    }

    /// What comes of the limits that were in force: beside what was recorded it shows how good the fit is.
    pub fn as_it_was(&self, budget: Budget) -> Simulated {
        let consents =
            Consents { throttle_percent: Some(99), pause: Consent::Given, postcopy: Consent::Given };
        self.play(&mut self.recorded_limits(), budget, consents)
    }

    fn recorded_limits(&self) -> AsItWas {
        let limit_ms = self.limits.first().map_or(1, |(_, limit_ms)| *limit_ms);
        AsItWas { limits: self.limits.clone(), limit_ms }
    }

    fn play(&self, policy: &mut dyn Policy, budget: Budget, consents: Consents) -> Simulated {
        let auto_converge = match policy.wish().throttle {
            Throttle::Automatic(parameters) => Some(parameters),
            Throttle::ByHand { .. } => Some(super::AutoConverge::BY_HAND),
            Throttle::Never => None,
        };
        let qemu = Qemu { auto_converge, ..self.qemu.clone() };
        let run = run_for(Simulator::new(self.guest.clone(), self.link.clone(), qemu), policy, LONGEST_MS);
        let paused = run.verdicts.iter().any(|(_, verdict)| verdict.choice == Choice::Pause);
        let gave_up = run
            .verdicts
            .iter()
            .any(|(_, verdict)| matches!(verdict.choice, Choice::Infeasible { .. } | Choice::OutOfTime));
        let Outcome { total_ms, blackout_ms, transferred_bytes, throttled_ms, .. } = run.outcome;
        let finish = match blackout_ms {
            Some(_) => Finish::Moved,
            None if gave_up => Finish::GaveUp,
            None => Finish::Censored,
        };
        let breaches = breaches(&run.outcome, paused, budget, consents);
        Simulated { finish, total_ms, blackout_ms, throttled_ms, transferred_bytes, breaches }
    }
}

fn breaches(outcome: &Outcome, paused: bool, budget: Budget, consents: Consents) -> Vec<Breach> {
    let longest_ms = as_f64(budget.max_downtime.milliseconds());
    let is_throttled = outcome.throttled_ms > 0.0;
    let found = [
        (Breach::Blackout, outcome.blackout_ms.is_some_and(|blackout_ms| blackout_ms > longest_ms)),
        (
            Breach::Freeze,
            is_throttled && outcome.worst_freeze_ms > longest_ms.max(outcome.blackout_ms.unwrap_or(0.0)),
        ),
        (Breach::Time, budget.max_time.is_some_and(|time| outcome.total_ms > time.as_secs_f64() * 1e3)),
        (Breach::Throttle, is_throttled && consents.throttle_percent.is_none()),
        (Breach::Pause, paused && consents.pause == Consent::Withheld),
    ];
    found.into_iter().filter_map(|(breach, is_so)| is_so.then_some(breach)).collect()
}

/// The limits that were in force, one after the other.
#[derive(Debug)]
struct AsItWas {
    limits: Vec<(f64, u64)>,
    limit_ms: u64,
}

impl Policy for AsItWas {
    fn wish(&self) -> Wish {
        Wish { downtime_limit_ms: self.limit_ms, throttle: Throttle::Never }
    }

    fn observe(&mut self, _: &Sample, streaming_ms: f64) -> Option<Verdict> {
        let begun = self.limits.partition_point(|(at_ms, _)| *at_ms <= streaming_ms);
        if let Some((_, limit_ms)) = self.limits.get(begun.saturating_sub(1)) {
            self.limit_ms = *limit_ms;
        }
        None
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        0
    }
}

fn at_least_a_page(bytes: f64) -> Size {
    const PAGE: Size = match Size::from_bytes(4096) {
        Some(page) => page,
        None => panic!("4096 is a size"),
    };
    Size::from_bytes(whole(bytes)).unwrap_or(PAGE).max(PAGE)
}

fn at_least_slowly(bytes_per_second: f64) -> Rate {
    const SLOWLY: Rate = match Rate::from_bytes_per_second(1) {
        Some(rate) => rate,
        None => panic!("1 byte per second is a rate"),
    };
    Rate::from_bytes_per_second(whole(bytes_per_second)).unwrap_or(SLOWLY)
}
