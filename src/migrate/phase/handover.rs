//! Both have completed: the destination is made sure of, and told to run the guest.

use super::meaning::{has_given_up, has_run, runs};
use super::{Action, Guest, Input, Phase, Rest, Retreat, Seen};
use crate::qmp::words::RunState;
use crate::record::MayRun;

pub(super) fn armed(guest: Guest, source_gone: bool, input: &Input) -> (Phase, Option<Action>) {
    let stay = Phase::Armed { guest, source_gone };
    let back = |retreat, action| (Phase::Retreating(guest, retreat), Some(action));
    match input {
        Input::DestinationAlive => {
            (Phase::Committed { guest, source_gone }, Some(Action::ContinueDestination))
        }
        // Somebody else was quicker.
        Input::Destination(seen) if runs(seen) => (Phase::Arrived(Rest::Running), None),
        Input::Destination(Seen::Gone) if source_gone => (Phase::Lost, None),
        Input::Destination(Seen::Gone) => back(Retreat::Reviving, Action::AskSource),
        Input::DestinationSilent | Input::Retreat | Input::BlackoutOver if !source_gone => {
            back(Retreat::Clearing, Action::KillDestination)
        }
        // Somebody else has told the source to run it, after it had completed; then it must stay there.
        Input::Source(seen) if runs(seen) && !source_gone => back(Retreat::Clearing, Action::KillDestination),
        // It has all of the guest, and cannot run it after all.
        Input::Destination(Seen::Status(status)) if has_given_up(status) && !source_gone => {
            back(Retreat::Clearing, Action::KillDestination)
        }
        Input::Source(Seen::Gone) => (Phase::Armed { guest, source_gone: true }, None),
        // There is nothing to go back to: the destination is the guest's only chance.
        Input::Overdue if source_gone => (stay, Some(Action::ProveDestination)),
        Input::GiveUp if source_gone => (Phase::Undecided(MayRun::Destination), None),
        _ => (stay, None),
    }
}

pub(super) fn committed(guest: Guest, source_gone: bool, input: &Input) -> (Phase, Option<Action>) {
    let stay = Phase::Committed { guest, source_gone };
    match input {
        Input::Destination(seen) if runs(seen) => (Phase::Arrived(Rest::Running), None),
        // Its `RESUME` was lost with its connection, and since then it has stopped by itself.
        Input::Destination(Seen::State(state)) if has_run(state) => (Phase::Arrived(Rest::Running), None),
        // The `cont` was lost with its connection. It is past the point of no return: another one does no harm.
        Input::Destination(Seen::State(RunState::Paused | RunState::PreLaunch)) => {
            (stay, Some(Action::ContinueDestination))
        }
        // QEMU said no (an image lock, say): the guest has not run there.
        Input::Destination(Seen::ContinueRefused) if !source_gone => {
            (Phase::Retreating(guest, Retreat::Clearing), Some(Action::KillDestination))
        }
        Input::Destination(Seen::ContinueRefused | Seen::Gone) | Input::GiveUp => {
            (Phase::Undecided(MayRun::Destination), None)
        }
        Input::Overdue => (stay, Some(Action::AskDestination)),
        Input::Source(Seen::Gone) => (Phase::Committed { guest, source_gone: true }, None),
        _ => (stay, None),
    }
}
