//! A controller that is played against a simulator, as the driver plays it against a QEMU.

use super::{Command, Event, Outcome, Simulator};
use crate::converge::{Controller, Verdict};
use crate::record::Choice;

/// A controller that has come to no end by then never will: the migration is cancelled.
const LONGEST_MS: f64 = 3_600_000.0;

/// What became of a controller's migration.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The end.
    pub outcome: Outcome,
    /// Each verdict, and when it fell.
    pub verdicts: Vec<(f64, Verdict)>,
}

/// Drives a migration to its end by what a controller says.
pub fn run(mut simulator: Simulator, controller: &mut Controller) -> Run {
    let mut verdicts = Vec::new();
    simulator.command(Command::DowntimeLimit { ms: controller.limit_ms() });
    loop {
        let mut sample = match simulator.step() {
            Event::Ended(outcome) => return Run { outcome, verdicts },
            Event::Sample(sample) => sample,
        };
        if sample.at_ms > LONGEST_MS {
            simulator.command(Command::Cancel);
        }
        sample.stream_bytes_per_second = controller.stream_bytes_per_second();
        let Some(verdict) = controller.observe(&sample, sample.at_ms) else { continue };
        match verdict.choice {
            Choice::Limit { downtime_limit_ms } => {
                simulator.command(Command::DowntimeLimit { ms: downtime_limit_ms });
            }
            Choice::Infeasible { .. } | Choice::OutOfTime => simulator.command(Command::Cancel),
            // A person's choices but for the first, which changes nothing.
            Choice::Wait | Choice::Pause | Choice::Budget => {}
        }
        verdicts.push((sample.at_ms, verdict));
    }
}
