//! Memory is sent, and then the rest: until both have completed.

use super::meaning::{has_given_up, is_postcopy, is_standing, is_switching, runs};
use super::{Action, AtSource, Guest, Input, Phase, Rest, Retreat, Seen, SourceEnd};
use crate::qmp::words::{MigrationStatus, RunState};
use crate::record::MayRun;

pub(super) fn streaming(guest: Guest, input: &Input) -> (Phase, Option<Action>) {
    let stay = Phase::Streaming(guest);
    let switching = |source, destination_completed| both(guest, source, destination_completed);
    let is_held = guest.at_source == AtSource::Held;
    match input {
        // Our own `stop`, by consent, is no news; a guest that is reset while it stands still is before its launch, and
        // one that sleeps does so in spite of `stop` up to 8.x. An answer that it runs is from before our `stop`: of
        // somebody's `cont` its `RESUME` tells.
        Input::Source(
            Seen::Stopped
            | Seen::State(RunState::Paused | RunState::PreLaunch | RunState::Suspended | RunState::Running),
        ) if is_held => (stay, None),
        // Somebody's `stop`, or the switchover: the run state tells. Only a guest that ran can stop.
        Input::Source(Seen::Stopped) => {
            (Phase::Streaming(guest.now(AtSource::Running)), Some(Action::AskSource))
        }
        Input::Source(Seen::State(state)) if is_standing(state) => {
            (Phase::Streaming(guest.now(AtSource::Standing)), None)
        }
        Input::Source(seen) if runs(seen) => (Phase::Streaming(guest.now(AtSource::Running)), None),
        Input::StoppedByConsent if guest.at_source == AtSource::Running => {
            (Phase::Streaming(guest.now(AtSource::Held)), None)
        }
        Input::Source(Seen::State(RunState::FinishMigrate)) => switching(SourceEnd::Sending, false),
        Input::Source(Seen::Status(status)) if is_switching(status) => switching(SourceEnd::Sending, false),
        Input::Source(Seen::Status(status)) if is_postcopy(status) => switching(SourceEnd::Postcopy, false),
        Input::Source(Seen::Status(MigrationStatus::Completed)) => switching(SourceEnd::Completed, false),
        Input::Destination(Seen::Status(MigrationStatus::Completed)) => switching(SourceEnd::Sending, true),
        Input::Source(Seen::Status(status)) if has_given_up(status) => {
            (Phase::Retreating(guest, Retreat::Settling), Some(Action::AskSource))
        }
        Input::Source(Seen::Gone) => switching(SourceEnd::Gone, false),
        // Somebody else has told the destination to run it. It has all of the guest, or it could not.
        Input::Destination(seen) if runs(seen) => (Phase::Arrived(Rest::Running), None),
        Input::Destination(Seen::Status(status)) if has_given_up(status) => {
            (Phase::Retreating(guest, Retreat::Stopping), Some(Action::CancelSource))
        }
        // COLO: somebody has set it up, since it was looked at, to keep a second guest in step.
        Input::Destination(Seen::Gone)
        | Input::Source(Seen::Status(MigrationStatus::Colo))
        | Input::Retreat => (Phase::Retreating(guest, Retreat::Stopping), Some(Action::CancelSource)),
        Input::BlackoutOver => (Phase::Retreating(guest, Retreat::Stopping), Some(Action::YankSource)),
        // The source lives and cannot be spoken to any more.
        Input::GiveUp => (Phase::Undecided(MayRun::Source), None),
        _ => (stay, None),
    }
}

/// The switchover, or what comes after it once both have completed.
pub(super) fn both(guest: Guest, source: SourceEnd, destination_completed: bool) -> (Phase, Option<Action>) {
    if matches!(source, SourceEnd::Sending | SourceEnd::Postcopy) || !destination_completed {
        (Phase::Switchover { guest, source, destination_completed }, None)
    } else if guest.is_to_run_there() {
        (Phase::Armed { guest, source_gone: source.is_gone() }, Some(Action::ProveDestination))
    } else {
        (Phase::Arrived(Rest::Standing), None)
    }
}

pub(super) fn switchover(
    guest: Guest,
    source: SourceEnd,
    destination_completed: bool,
    input: &Input,
) -> (Phase, Option<Action>) {
    let retreat = |retreat, action| (Phase::Retreating(guest, retreat), Some(action));
    match (input, source) {
        (Input::Destination(Seen::Status(MigrationStatus::Completed)), _) => both(guest, source, true),
        // Somebody else has told the destination to run it.
        (Input::Destination(seen), _) if runs(seen) => (Phase::Arrived(Rest::Running), None),
        (Input::Source(Seen::Gone), _) if !source.is_gone() => {
            both(guest, SourceEnd::Gone, destination_completed)
        }
        (
            Input::Source(Seen::Status(MigrationStatus::Completed)),
            SourceEnd::Sending | SourceEnd::Postcopy,
        ) => both(guest, SourceEnd::Completed, destination_completed),
        (Input::Source(Seen::Status(status)), SourceEnd::Sending) if is_postcopy(status) => {
            both(guest, SourceEnd::Postcopy, destination_completed)
        }
        // The link broke, or one side cannot be heard any more: it is mended by hand, or the guest is lost.
        (
            Input::Source(Seen::Status(MigrationStatus::PostcopyPaused))
            | Input::Destination(Seen::Status(MigrationStatus::PostcopyPaused))
            | Input::Retreat
            | Input::GiveUp,
            SourceEnd::Postcopy,
        ) => (Phase::Undecided(MayRun::Destination), None),
        (Input::Source(Seen::Status(status)), SourceEnd::Sending | SourceEnd::Postcopy)
            if has_given_up(status) =>
        {
            retreat(Retreat::Settling, Action::AskSource)
        }
        (Input::Destination(Seen::Gone), _) => without_destination(guest, source),
        (Input::Destination(Seen::Status(status)), _) if has_given_up(status) => {
            without_destination(guest, source)
        }
        (Input::Source(Seen::Status(MigrationStatus::Colo)), SourceEnd::Sending) => {
            retreat(Retreat::Stopping, Action::CancelSource)
        }
        (Input::Overdue, SourceEnd::Gone) => both(guest, SourceEnd::LongGone, destination_completed),
        // Nothing of the guest has come: its source ended before it had connected (run on 11.1). What is in a socket
        // that the destination has not looked at is there within a moment, and this one has answered since.
        (
            Input::Destination(Seen::Status(MigrationStatus::None | MigrationStatus::Setup)),
            SourceEnd::LongGone,
        ) => (Phase::Lost, None),
        (Input::Retreat | Input::BlackoutOver, SourceEnd::Sending) => {
            retreat(Retreat::Stopping, Action::YankSource)
        }
        (Input::Retreat | Input::BlackoutOver, SourceEnd::Completed) => {
            retreat(Retreat::Clearing, Action::KillDestination)
        }
        // Somebody else has told the source to run it, after it had completed; then it must stay there.
        (Input::Source(seen), SourceEnd::Completed) if runs(seen) => {
            retreat(Retreat::Clearing, Action::KillDestination)
        }
        // What a source that has ended sent last may still be on its way into a destination that is slow or stopped:
        // that one is the guest's only chance, and is left as it is.
        (Input::GiveUp, SourceEnd::Gone | SourceEnd::LongGone) => {
            (Phase::Undecided(MayRun::Destination), None)
        }
        (Input::GiveUp, SourceEnd::Sending) => (Phase::Undecided(MayRun::Source), None),
        _ => (Phase::Switchover { guest, source, destination_completed }, None),
    }
}

/// The destination has ended, or given up, before it had all of the guest.
fn without_destination(guest: Guest, source: SourceEnd) -> (Phase, Option<Action>) {
    let retreat = |retreat, action| (Phase::Retreating(guest, retreat), Some(action));
    match source {
        SourceEnd::Sending => retreat(Retreat::Stopping, Action::YankSource),
        SourceEnd::Completed => retreat(Retreat::Clearing, Action::KillDestination),
        SourceEnd::Gone | SourceEnd::LongGone | SourceEnd::Postcopy => (Phase::Lost, None),
    }
}
