//! What a policy would have made of a recorded migration.
//!
//! The samples of a record are shown to the policy as a [`Shadow`](crate::converge::Shadow); it decides as it would have
//! until its first act that the guest would have felt. What would have come of that no record tells: the rest is for the
//! simulator ([`Fitted`](crate::converge::Fitted)).
//!
//! A record holds a sample for each pass and one each 250 ms between; a policy that looks more often sees no more here.

use serde::Serialize;

use super::Budget;
use super::fitted::{Fitted, Simulated};
use super::policy::Consents;
use super::rivals::PolicyName;
use super::shadow::{Shadow, Why};
use crate::record::{Decision, PhaseName, Record, Sample};

/// What a policy would have made of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// Its name.
    pub policy: PolicyName,
    /// When the stream began, in milliseconds since the start of the migration.
    pub stream_began_ms: f64,
    /// What it decided, until the record tells no more.
    pub decisions: Vec<Decision>,
    /// From when on the record tells no more; absent where the guest would have gone as it did.
    pub parts: Option<Parting>,
    /// What would have come of it from the start, simulated; absent where the record tells too little for that.
    pub simulated: Option<Simulated>,
}

/// When, and by what, the future would have become another one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Parting {
    /// In milliseconds since the start of the migration.
    pub at_ms: f64,
    /// By what.
    pub why: Why,
}

/// A record cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Nothing was streamed, or it has only just begun.
    #[error("the record holds no samples: its stream never ran")]
    NoSamples,
    /// The guest stood still all the time.
    #[error("the guest stood still while its memory was copied: there was nothing to decide")]
    NotLive,
}

/// Shows a record to a policy, and lets the simulator say how it would have ended.
pub fn replay(
    record: &Record,
    fitted: Option<&Fitted>,
    policy: PolicyName,
    (budget, consents): (Budget, Consents),
) -> Result<Replay, ReplayError> {
    if !record.request.live {
        return Err(ReplayError::NotLive);
    }
    let (began_ms, samples) = streamed(record);
    let mut shadow = Shadow::new(policy, budget, consents);
    let mut decisions = Vec::new();
    for sample in &samples {
        decisions.extend(shadow.observe(sample, sample.at_ms - began_ms));
    }
    let last = samples.last().ok_or(ReplayError::NoSamples)?;
    // What ended it under the policy in force: a limit that what was left fits, or that policy's patience.
    let goes_on = || match began(record, PhaseName::Switchover) {
        Some(_) if shadow.wish().downtime_limit_ms >= last.downtime_limit_ms => None,
        Some(stood_still_ms) => Some((stood_still_ms, Why::GoesOn)),
        None => Some((last.at_ms, Why::GoesOn)),
    };
    let parts = shadow.parted().or_else(goes_on).map(|(at_ms, why)| Parting { at_ms, why });
    let simulated = fitted.map(|fitted| fitted.simulate(policy, budget, consents));
    Ok(Replay { policy, stream_began_ms: began_ms, decisions, parts, simulated })
}

/// When the stream began, and the samples of it.
fn streamed(record: &Record) -> (f64, Vec<Sample>) {
    let first_ms = record.samples.first().map_or(0.0, |sample| sample.at_ms);
    let began_ms = began(record, PhaseName::Stream).unwrap_or(first_ms);
    let ended_ms = began(record, PhaseName::Switchover).unwrap_or(f64::INFINITY);
    let is_streamed = |sample: &&Sample| sample.at_ms >= began_ms && sample.at_ms <= ended_ms;
    (began_ms, record.samples.iter().filter(is_streamed).copied().collect())
}

fn began(record: &Record, phase: PhaseName) -> Option<f64> {
    record.phases.iter().find(|change| change.phase == phase).map(|change| change.at_ms)
}

#[cfg(test)]
mod tests;
