//! The promises, over every sequence of inputs of whatever length: the phases are finite, and so is what the world can
//! have shown, so that all that can be reached is looked at.

use std::collections::HashSet;

use super::*;
use crate::migrate::phase::meaning::{has_given_up, is_postcopy, runs};

/// What the world has shown and been told, apart from the machine.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact of its own")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct World {
    source_completed: bool,
    source_gone: bool,
    /// Seen to run after it had completed.
    source_resumed: bool,
    destination_completed: bool,
    destination_gone: bool,
    destination_resumed: bool,
    refused: bool,
    /// `cont` was sent to the destination.
    committed: bool,
    /// `cont` was sent to the source.
    revived: bool,
    /// The destination is being ended.
    killed: bool,
    /// The source has said that the migration failed, or was cancelled.
    source_gave_up: bool,
    /// The destination has.
    destination_gave_up: bool,
    is_postcopy: bool,
}

impl World {
    fn sees(mut self, input: &Input) -> Self {
        match input {
            Input::Source(Seen::Status(MigrationStatus::Completed)) => self.source_completed = true,
            Input::Source(Seen::Status(status)) if is_postcopy(status) => self.is_postcopy = true,
            Input::Source(Seen::Status(status)) if has_given_up(status) => self.source_gave_up = true,
            Input::Source(Seen::Gone) => self.source_gone = true,
            Input::Source(seen) if runs(seen) => self.source_resumed = true,
            Input::Destination(Seen::Status(MigrationStatus::Completed)) => self.destination_completed = true,
            Input::Destination(Seen::Status(status)) if has_given_up(status) => {
                self.destination_gave_up = true;
            }
            Input::Destination(Seen::Gone) => self.destination_gone = true,
            Input::Destination(seen) if runs(seen) => self.destination_resumed = true,
            Input::Destination(Seen::ContinueRefused) => self.refused = true,
            _ => {}
        }
        self
    }

    fn is_told(mut self, action: Option<Action>) -> Self {
        self.committed |= action == Some(Action::ContinueDestination);
        self.revived |= action == Some(Action::ContinueSource);
        self.killed |= action == Some(Action::KillDestination);
        self
    }

    /// The source has all but handed the guest over: it does not run it again of itself.
    fn source_is_through(self) -> bool {
        self.source_completed || self.source_gone
    }

    /// By what the engine has told them, each may run the guest.
    fn may_both_run(self) -> bool {
        let source = !self.source_gone && (!self.source_completed || self.revived);
        let destination = self.committed && !self.destination_gone && !self.refused;
        source && destination
    }
}

/// A destination that has completed does not say afterwards that nothing has come: one connection keeps the order.
fn denies_it(input: &Input) -> bool {
    let nothing = [MigrationStatus::None, MigrationStatus::Setup];
    matches!(input, Input::Destination(Seen::Status(status)) if nothing.contains(status))
}

/// What a phase lets the engine do. A phase is written down as it is entered and before anything is done, so that
/// what is done stands in the journal: `recover` finds it there.
fn permits(phase: Phase, action: Action) -> bool {
    match action {
        Action::ContinueDestination | Action::AskDestination => matches!(phase, Phase::Committed { .. }),
        Action::KillDestination => matches!(phase, Phase::Retreating(_, Retreat::Clearing)),
        Action::ContinueSource => {
            matches!(phase, Phase::Retreating(_, Retreat::Settling | Retreat::Reviving))
        }
        Action::CancelSource | Action::YankSource => matches!(phase, Phase::Retreating(_, Retreat::Stopping)),
        Action::ProveDestination => matches!(phase, Phase::Armed { .. } | Phase::Switchover { .. }),
        Action::AskSource => !phase.is_final(),
    }
}

/// What must hold once `input` has led from one phase to another, in a world that has shown so much.
fn broken(
    before: World,
    world: World,
    input: &Input,
    phase: Phase,
    action: Option<Action>,
) -> Option<&'static str> {
    let told = world.is_told(action);
    if told.may_both_run() {
        return Some("both may run");
    }
    match action {
        Some(action) if !permits(phase, action) => return Some("it is done without being written down"),
        Some(Action::ContinueDestination) if !world.destination_completed => {
            return Some("cont before the destination has the guest");
        }
        Some(Action::ContinueDestination) if !world.source_is_through() => {
            return Some("cont while the source may still run");
        }
        Some(Action::ContinueSource) if world.source_completed && !world.destination_gone => {
            return Some("the source is started while the destination may run");
        }
        Some(Action::ContinueSource) if before.committed && !(world.refused && world.destination_gone) => {
            return Some("back after the point of no return");
        }
        _ => {}
    }
    let is_there = world.destination_completed && world.source_is_through();
    let is_honest = match phase {
        Phase::Arrived(Rest::Running) => {
            world.destination_resumed
                || matches!(input, Input::Destination(Seen::State(_)) if before.committed)
        }
        Phase::Arrived(Rest::Standing) => is_there && !world.committed,
        Phase::Back(Rest::Running) => world.source_resumed,
        Phase::Back(Rest::Standing) => !told.committed || world.refused,
        Phase::Lost => {
            // In postcopy neither has all of it, and what a source that gave up has done since ended with it.
            let is_ended = world.destination_gone || world.destination_gave_up || world.killed;
            let is_there = world.destination_completed && !is_ended;
            (world.source_gone || world.is_postcopy) && (!is_there || world.source_gave_up)
        }
        // Whoever takes it up has something to do: nothing waits for a word that never comes.
        Phase::Undecided(_) => true,
        open => open.pending().is_some(),
    };
    if !is_honest {
        return Some("that is not where the guest is");
    }
    let by_destination = is_there || world.destination_resumed || world.source_gone || world.is_postcopy;
    if phase.may_run() == MayRun::Destination && !by_destination {
        return Some("the destination cannot run it");
    }
    None
}

#[test]
fn no_sequence_of_inputs_lets_both_run_or_leaves_a_guest_that_runs_nowhere_unwritten() {
    let inputs = inputs();
    let mut seen: HashSet<(Phase, World)> = starts().map(|start| (start, World::default())).collect();
    let mut open: Vec<_> = seen.iter().copied().collect();
    while let Some((phase, before)) = open.pop() {
        for input in &inputs {
            let (after, action) = phase.next(input);
            if phase.is_final() {
                assert_eq!((after, action), (phase, None), "{phase:?} is final");
                continue;
            }
            if before.destination_completed && denies_it(input) {
                continue;
            }
            let world = before.sees(input);
            let fault = broken(before, world, input, after, action);
            assert_eq!(fault, None, "{phase:?} by {input:?}: {after:?} and {action:?} in {world:?}");
            let next = (after, world.is_told(action));
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    assert!(seen.len() > 1000, "{} states", seen.len());
}

#[test]
fn a_phase_in_which_the_guest_runs_nowhere_is_one_that_is_gone_on_with() {
    let nowhere = |phase: &Phase| phase.may_run() == MayRun::Neither && !phase.is_final();
    let reached: Vec<Phase> = drawing::reached().into_iter().filter(nowhere).collect();
    for phase in &reached {
        assert!(
            matches!(phase.pending(), Some(Action::ProveDestination | Action::KillDestination)),
            "{phase:?}"
        );
    }
    assert!(!reached.is_empty());
}
