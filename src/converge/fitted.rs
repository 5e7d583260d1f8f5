//! A recorded migration as a guest and a link for the simulator, so that it can be said how another policy would have
//! ended.
//!
//! The guest is the dirty-set curve of the recorded passes, set by set; the link is what was sent over the time that it
//! took. What a record does not hold is not in it: phases of the guest, a link that has changed, memory that was
//! touched after the first pass only. How good the fit is shows in a run under the limits that were in force.

use std::fmt;

use serde::Serialize;

use super::bandwidth::as_f64;
use super::curve::DirtyCurve;
use super::passes::Passes;
use super::policy::{Consent, Consents, Policy, Throttle, Wish};
use super::rivals::{PolicyName, whole};
use super::simulator::{Guest, Link, Order, Outcome, Qemu, Simulator, run_for};
use super::{Budget, Verdict};
use crate::record::{Choice, Record, Sample};
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
    pub fn of(record: &Record) -> Option<Self> {
        let (first, last) = (record.samples.first()?, record.samples.last()?);
        let mut passes = Passes::default();
        for sample in &record.samples {
            passes.observe(sample);
        }
        let bytes_per_second = as_f64(last.transferred_bytes.saturating_sub(first.transferred_bytes))
            / (last.at_ms - first.at_ms).max(1.0)
            * 1e3;
        let rate = Rate::from_bytes_per_second(whole(bytes_per_second))?;
        let first_pass = record.samples.iter().find(|sample| sample.passes > 1).unwrap_or(last);
        let curve = passes.curve();
        let sets = curve.iter().flat_map(DirtyCurve::sets).filter(|(bytes, _)| *bytes >= LEAST_SET_BYTES);
        let mut guest = Guest::idle(Size::from_bytes(last.total_bytes)?);
        let mut hot_bytes = 0.0;
        for (bytes, time_ms) in sets {
            guest =
                guest.writes(Order::Uniform, at_least_a_page(bytes), at_least_slowly(bytes / time_ms * 1e3));
            hot_bytes += bytes;
        }
        // All else that the first pass sent, of which some pages are written once in a while.
        let cold_bytes = as_f64(first_pass.transferred_bytes) - hot_bytes;
        let cold_rate = curve.map_or(0.0, |curve| curve.cold_bytes_per_ms() * 1e3);
        guest = guest.writes(Order::Sweep, at_least_a_page(cold_bytes), at_least_slowly(cold_rate));
        let max_bandwidth = record.request.max_bandwidth_bytes_per_second;
        Some(Self {
            guest,
            link: Link::steady(rate),
            qemu: Qemu { max_bandwidth, ..Qemu::default() },
            limits: record
                .samples
                .iter()
                .map(|sample| (sample.at_ms - first.at_ms, sample.downtime_limit_ms))
                .collect(),
        })
    }

    /// What would come of this policy from the start.
    pub fn simulate(&self, name: PolicyName, budget: Budget, consents: Consents) -> Simulated {
        self.play(name.build(budget, consents).as_mut(), budget, consents)
    }

    /// What comes of the limits that were in force: beside what was recorded it shows how good the fit is.
    pub fn as_it_was(&self, budget: Budget) -> Simulated {
        let limits = self.limits.clone();
        let limit_ms = limits.first().map_or(1, |(_, limit_ms)| *limit_ms);
        let consents =
            Consents { throttle_percent: Some(99), pause: Consent::Given, postcopy: Consent::Given };
        self.play(&mut AsItWas { limits, limit_ms }, budget, consents)
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
