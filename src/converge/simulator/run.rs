//! A policy that is played against a simulator, as the driver plays it against a QEMU.

use super::sampling::Sampling;
use super::{Command, Event, Guest, Outcome, Simulator};
use crate::converge::{Policy, Throttle, Verdict, Wish};
use crate::record::Choice;

/// A policy that has come to no end by then never will: the migration is cancelled.
const LONGEST_MS: f64 = 3_600_000.0;

/// What became of a policy's migration.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The end.
    pub outcome: Outcome,
    /// Each verdict, and when it fell.
    pub verdicts: Vec<(f64, Verdict)>,
}

/// Drives a migration to its end by what a policy says, an hour at most. Whether QEMU's throttle can be used is a matter of how the
/// simulator's QEMU was started, as with a real one.
pub fn run(simulator: Simulator, policy: &mut dyn Policy) -> Run {
    drive(simulator, None, policy, LONGEST_MS)
}

/// The same, for so many milliseconds at most: what has come to no end by then is cancelled.
pub fn run_for(simulator: Simulator, policy: &mut dyn Policy, longest_ms: f64) -> Run {
    drive(simulator, None, policy, longest_ms)
}

/// An hour at most, with windows of this guest sampled beside the first pass.
pub fn run_sampled(simulator: Simulator, guest: Guest, policy: &mut dyn Policy) -> Run {
    drive(simulator, Some(Sampling::new(guest)), policy, LONGEST_MS)
}

fn drive(
    mut simulator: Simulator,
    mut sampling: Option<Sampling>,
    policy: &mut dyn Policy,
    longest_ms: f64,
) -> Run {
    let mut verdicts = Vec::new();
    let mut in_force = policy.wish();
    simulator.command(Command::DowntimeLimit { ms: in_force.downtime_limit_ms });
    loop {
        let mut sample = match simulator.step() {
            Event::Ended(outcome) => return Run { outcome, verdicts },
            Event::Sample(sample) => sample,
        };
        if sample.at_ms > longest_ms {
            simulator.command(Command::Cancel);
        }
        if sample.passes > 1 {
            sampling = None;
        }
        if let Some(window) = sampling.as_mut().and_then(|sampling| sampling.ended_by(sample.at_ms)) {
            policy.observe_sampled(window.at_ms, window.length_ms, window.dirtied_bytes);
        }
        sample.stream_bytes_per_second = policy.stream_bytes_per_second();
        let verdict = policy.observe(&sample, sample.at_ms);
        for command in changes(in_force, policy.wish()) {
            simulator.command(command);
        }
        in_force = policy.wish();
        let Some(verdict) = verdict else { continue };
        match verdict.choice {
            Choice::Infeasible { .. } | Choice::OutOfTime => simulator.command(Command::Cancel),
            Choice::Pause => simulator.command(Command::Stop),
            // What they change is in the wish.
            Choice::Limit { .. } | Choice::Throttle { .. } | Choice::Wait | Choice::Budget => {}
        }
        verdicts.push((sample.at_ms, verdict));
    }
}

/// What is to be told so that another wish is in force.
fn changes(before: Wish, after: Wish) -> impl Iterator<Item = Command> {
    let limit = (before.downtime_limit_ms != after.downtime_limit_ms)
        .then_some(Command::DowntimeLimit { ms: after.downtime_limit_ms });
    let throttle = match after.throttle {
        Throttle::ByHand { percent } if before.throttle != after.throttle => {
            Some(Command::MaxThrottle { percent: u64::from(percent.max(1)) })
        }
        Throttle::ByHand { .. } | Throttle::Never | Throttle::Automatic(_) => None,
    };
    limit.into_iter().chain(throttle)
}
