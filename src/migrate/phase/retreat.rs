//! The guest goes back to its source.

use super::meaning::{has_given_up, is_postcopy, is_standing, runs};
use super::streaming::both;
use super::{Action, AtSource, Guest, Input, Phase, Rest, Retreat, Seen, SourceEnd};
use crate::qmp::words::{MigrationStatus, RunState};

pub(super) fn retreating(guest: Guest, retreat: Retreat, input: &Input) -> (Phase, Option<Action>) {
    let stay = Phase::Retreating(guest, retreat);
    let on = |retreat, action| (Phase::Retreating(guest, retreat), Some(action));
    match (retreat, input) {
        // The source has ended before it said how the migration ended: the destination may have all of the guest, or
        // have ended before it, which made the guest go back.
        (Retreat::Stopping, Input::Source(Seen::Gone)) => {
            (both(guest, SourceEnd::Gone, false).0, Some(Action::ProveDestination))
        }
        // It has failed, and then it has ended; or the destination has been ended on purpose.
        (_, Input::Source(Seen::Gone)) => (Phase::Lost, None),
        (_, Input::GiveUp) => (Phase::Undecided(stay.may_run()), None),

        // The cancel came too late.
        (Retreat::Stopping | Retreat::Settling, Input::Source(Seen::Status(MigrationStatus::Completed))) => {
            on(Retreat::Clearing, Action::KillDestination)
        }
        // Somebody else has told the destination to run it while the source is about to: it must not any more.
        (Retreat::Stopping | Retreat::Settling, Input::Destination(seen)) if runs(seen) => {
            on(Retreat::Clearing, Action::KillDestination)
        }
        (Retreat::Stopping, Input::Source(Seen::Status(status))) if has_given_up(status) => {
            on(Retreat::Settling, Action::AskSource)
        }
        // It waits for somebody's word before it switches, as somebody has asked it to: a broken stream does not wake
        // it, a cancel does (run on 10.0).
        (Retreat::Stopping, Input::Source(Seen::Status(MigrationStatus::PreSwitchover))) => {
            (stay, Some(Action::CancelSource))
        }
        // Somebody has started postcopy in the same moment.
        (Retreat::Stopping, Input::Source(Seen::Status(status))) if is_postcopy(status) => {
            both(guest, SourceEnd::Postcopy, false)
        }
        // With multifd on a dead link `migrate_cancel` hangs until the link is back; `yank` does not.
        (Retreat::Stopping, Input::Overdue | Input::BlackoutOver) => (stay, Some(Action::YankSource)),

        (Retreat::Clearing, Input::Destination(Seen::Gone)) => on(Retreat::Reviving, Action::AskSource),
        (Retreat::Clearing, Input::Overdue) => (stay, Some(Action::KillDestination)),

        (Retreat::Settling | Retreat::Reviving, Input::Source(seen)) => settle(guest, retreat, seen),
        // "Migration is not finalized yet": asked again when the step is overdue.
        (Retreat::Settling | Retreat::Reviving, Input::Overdue) => (stay, Some(Action::AskSource)),
        _ => (stay, None),
    }
}

/// The source is on its way to what it did before.
fn settle(guest: Guest, retreat: Retreat, seen: &Seen) -> (Phase, Option<Action>) {
    let stay = Phase::Retreating(guest, retreat);
    let carry_on = (stay, Some(Action::ContinueSource));
    match (seen, guest.at_source) {
        (Seen::Resumed | Seen::State(RunState::Running), _) => (Phase::Back(Rest::Running), None),
        (Seen::State(RunState::PostMigrate), AtSource::Standing) | (Seen::State(RunState::Suspended), _) => {
            (Phase::Back(Rest::Standing), None)
        }
        (Seen::State(RunState::PostMigrate), AtSource::Running | AtSource::Held)
        | (Seen::State(RunState::Paused | RunState::PreLaunch), AtSource::Held) => carry_on,
        // Somebody has reset it since it completed.
        (Seen::State(RunState::PreLaunch), AtSource::Running) if retreat == Retreat::Reviving => carry_on,
        // As before, or somebody paused it while it was on its way back, or it stopped by itself.
        (Seen::State(state), _) if is_standing(state) => (Phase::Back(Rest::Standing), None),
        _ => (stay, None),
    }
}
