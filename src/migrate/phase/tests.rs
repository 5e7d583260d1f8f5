//! The phase machine: its happy path, its ways back, and what it knows of each status and each run state.

use super::*;

/// The drawing and the table in the documentation say what the function does.
mod drawing;
/// The promises, over every sequence of inputs.
mod promises;

/// Follows a list of inputs; the last phase, and every action on the way.
fn follow(start: Phase, inputs: &[Input]) -> (Phase, Vec<Action>) {
    inputs.iter().fold((start, Vec::new()), |(phase, mut actions), input| {
        let (phase, action) = phase.next(input);
        actions.extend(action);
        (phase, actions)
    })
}

fn source(status: MigrationStatus) -> Input {
    Input::Source(Seen::Status(status))
}

fn destination(status: MigrationStatus) -> Input {
    Input::Destination(Seen::Status(status))
}

const RUNNING: Guest = Guest { at_source: AtSource::Running, at_destination: AtDestination::AsBefore };
const HELD: Guest = Guest { at_source: AtSource::Held, ..RUNNING };
const START: Phase = Phase::Streaming(RUNNING);

/// Everything that can happen: each status and each run state of QEMU 5.2 to 11.1, and one of each that nobody knows,
/// on both sides.
fn inputs() -> Vec<Input> {
    let statuses = MigrationStatus::KNOWN.iter().cloned();
    let statuses = statuses.chain([MigrationStatus::Other("status-of-qemu-12".to_owned())]);
    let states = RunState::KNOWN.iter().cloned().chain([RunState::Other("state-of-qemu-12".to_owned())]);
    let seen: Vec<Seen> = statuses
        .map(Seen::Status)
        .chain(states.map(Seen::State))
        .chain([Seen::Stopped, Seen::Resumed, Seen::ContinueRefused, Seen::Gone])
        .collect();
    let others = [
        Input::DestinationAlive,
        Input::DestinationSilent,
        Input::Retreat,
        Input::BlackoutOver,
        Input::StoppedByConsent,
        Input::Overdue,
        Input::GiveUp,
    ];
    let source = seen.iter().cloned().map(Input::Source);
    let destination = seen.iter().cloned().map(Input::Destination);
    source.chain(destination).chain(others).collect()
}

/// Where a migration can begin.
fn starts() -> impl Iterator<Item = Phase> {
    [AtSource::Running, AtSource::Standing].into_iter().flat_map(|at_source| {
        [AtDestination::AsBefore, AtDestination::Standing]
            .map(|at_destination| Phase::Streaming(Guest { at_source, at_destination }))
    })
}

#[test]
fn a_good_migration_sends_one_cont_after_both_completed() {
    let (phase, actions) = follow(
        START,
        &[
            source(MigrationStatus::Setup),
            source(MigrationStatus::Active),
            Input::Source(Seen::Stopped),
            source(MigrationStatus::Device),
            destination(MigrationStatus::Completed),
            source(MigrationStatus::Completed),
            Input::DestinationAlive,
            Input::Destination(Seen::Resumed),
        ],
    );
    assert_eq!(phase, Phase::Arrived(Rest::Running));
    assert_eq!(actions, [Action::AskSource, Action::ProveDestination, Action::ContinueDestination]);
}

#[test]
fn a_guest_that_somebody_paused_on_the_way_stays_paused_on_the_destination() {
    let (phase, actions) = follow(
        START,
        &[
            Input::Source(Seen::Stopped),
            Input::Source(Seen::State(RunState::Paused)),
            destination(MigrationStatus::Completed),
            source(MigrationStatus::Completed),
        ],
    );
    assert_eq!((phase, actions), (Phase::Arrived(Rest::Standing), vec![Action::AskSource]));
}

#[test]
fn a_guest_that_the_engine_stopped_by_consent_runs_on_the_destination() {
    let (phase, _) = follow(
        START,
        &[
            Input::Source(Seen::Stopped),
            Input::StoppedByConsent,
            Input::Source(Seen::Stopped),
            Input::Source(Seen::State(RunState::Paused)),
            source(MigrationStatus::Completed),
            destination(MigrationStatus::Completed),
        ],
    );
    assert_eq!(phase, Phase::Armed { guest: HELD, source_gone: false });
}

#[test]
fn a_guest_that_is_to_be_left_paused_gets_no_cont_there_but_runs_if_it_goes_back() {
    let start = Phase::Streaming(Guest { at_destination: AtDestination::Standing, ..RUNNING });
    let completed = [source(MigrationStatus::Completed), destination(MigrationStatus::Completed)];
    assert_eq!(follow(start, &completed), (Phase::Arrived(Rest::Standing), vec![]));
    let cancelled = [Input::Retreat, source(MigrationStatus::Cancelled), Input::Source(Seen::Resumed)];
    assert_eq!(follow(start, &cancelled).0, Phase::Back(Rest::Running));
}

#[test]
fn a_frozen_destination_in_the_final_copy_is_left_by_yank() {
    let (phase, actions) = follow(
        START,
        &[
            Input::Source(Seen::Stopped),
            source(MigrationStatus::Device),
            Input::BlackoutOver,
            source(MigrationStatus::Failed),
            Input::Source(Seen::State(RunState::FinishMigrate)),
            Input::Overdue,
            Input::Source(Seen::State(RunState::Running)),
        ],
    );
    assert_eq!(phase, Phase::Back(Rest::Running));
    assert_eq!(actions, [Action::AskSource, Action::YankSource, Action::AskSource, Action::AskSource]);
}

#[test]
fn a_silent_destination_after_completed_is_ended_before_the_source_runs_again() {
    let (phase, actions) = follow(
        START,
        &[
            source(MigrationStatus::Completed),
            destination(MigrationStatus::Completed),
            Input::DestinationSilent,
            Input::Source(Seen::State(RunState::PostMigrate)),
            Input::Destination(Seen::Gone),
            Input::Source(Seen::State(RunState::PostMigrate)),
            Input::Source(Seen::Resumed),
        ],
    );
    assert_eq!(phase, Phase::Back(Rest::Running));
    assert_eq!(
        actions,
        [Action::ProveDestination, Action::KillDestination, Action::AskSource, Action::ContinueSource]
    );
}

#[test]
fn a_cancel_that_comes_too_late_still_goes_back_by_ending_the_destination() {
    let (phase, actions) = follow(START, &[Input::Retreat, source(MigrationStatus::Completed)]);
    assert_eq!(phase, Phase::Retreating(RUNNING, Retreat::Clearing));
    assert_eq!(actions, [Action::CancelSource, Action::KillDestination]);
}

#[test]
fn a_source_that_waits_for_a_word_before_it_switches_is_cancelled_and_not_only_cut_off() {
    let waits = source(MigrationStatus::PreSwitchover);
    let (phase, actions) = follow(START, &[waits.clone(), Input::Retreat, waits]);
    assert_eq!(phase, Phase::Retreating(RUNNING, Retreat::Stopping));
    assert_eq!(actions, [Action::YankSource, Action::CancelSource]);
}

#[test]
fn a_guest_that_is_reset_while_it_stands_still_for_the_move_runs_in_the_end() {
    let reset = Input::Source(Seen::State(RunState::PreLaunch));
    let held = Guest { at_source: AtSource::Held, ..RUNNING };
    assert_eq!(Phase::Streaming(held).next(&reset), (Phase::Streaming(held), None));
    for (guest, retreat) in
        [(held, Retreat::Settling), (held, Retreat::Reviving), (RUNNING, Retreat::Reviving)]
    {
        let phase = Phase::Retreating(guest, retreat);
        assert_eq!(phase.next(&reset), (phase, Some(Action::ContinueSource)));
    }
    // Stopped by somebody, and then reset.
    let (phase, _) = Phase::Retreating(RUNNING, Retreat::Settling).next(&reset);
    assert_eq!(phase, Phase::Back(Rest::Standing));
}

#[test]
fn a_cancel_that_hangs_becomes_a_yank() {
    assert_eq!(
        follow(START, &[Input::Retreat, Input::Overdue]).1,
        [Action::CancelSource, Action::YankSource]
    );
}

#[test]
fn a_source_that_dies_after_the_destination_has_everything_does_not_take_the_guest_with_it() {
    let (phase, actions) = follow(
        START,
        &[
            destination(MigrationStatus::Completed),
            Input::Source(Seen::Gone),
            Input::DestinationAlive,
            Input::Destination(Seen::Resumed),
        ],
    );
    assert_eq!(phase, Phase::Arrived(Rest::Running));
    assert_eq!(actions, [Action::ProveDestination, Action::ContinueDestination]);
    let (phase, _) = follow(START, &[Input::Source(Seen::Gone), Input::Destination(Seen::Gone)]);
    assert_eq!(phase, Phase::Lost);
}

#[test]
fn a_destination_that_dies_after_cont_was_sent_leaves_the_truth_open() {
    let start = Phase::Committed { guest: RUNNING, source_gone: false };
    assert_eq!(
        follow(start, &[Input::Destination(Seen::Gone)]),
        (Phase::Undecided(MayRun::Destination), vec![])
    );
    let (phase, actions) = follow(start, &[Input::Destination(Seen::ContinueRefused)]);
    assert_eq!(phase, Phase::Retreating(RUNNING, Retreat::Clearing));
    assert_eq!(actions, [Action::KillDestination]);
}

#[test]
fn a_guest_that_somebody_switched_to_postcopy_is_not_fetched_back() {
    let active = source(MigrationStatus::PostcopyActive);
    let (phase, actions) = follow(
        START,
        &[Input::Source(Seen::Stopped), active.clone(), Input::BlackoutOver, Input::Source(Seen::Stopped)],
    );
    assert_eq!(actions, [Action::AskSource], "no yank, which would break it");
    assert!(!phase.can_retreat());
    assert_eq!(phase.next(&Input::Destination(Seen::Resumed)), (Phase::Arrived(Rest::Running), None));
    let completed = [destination(MigrationStatus::Completed), source(MigrationStatus::Completed)];
    let armed = Phase::Armed { guest: RUNNING, source_gone: false };
    assert_eq!(follow(phase, &completed), (armed, vec![Action::ProveDestination]), "held by -S, and whole");
    for end in [source(MigrationStatus::PostcopyPaused), Input::Retreat, Input::GiveUp] {
        assert_eq!(phase.next(&end), (Phase::Undecided(MayRun::Destination), None));
    }
    assert_eq!(phase.next(&Input::Destination(Seen::Gone)), (Phase::Lost, None));
    assert_eq!(follow(START, &[Input::Retreat, active]).0, phase, "a cancel that came too late");
}

#[test]
fn a_source_that_another_client_runs_after_completed_keeps_the_guest() {
    let completed = source(MigrationStatus::Completed);
    for resumed in [Seen::Resumed, Seen::State(RunState::Running)] {
        let (phase, actions) = follow(START, &[completed.clone(), Input::Source(resumed)]);
        assert_eq!(phase, Phase::Retreating(RUNNING, Retreat::Clearing));
        assert_eq!(actions, [Action::KillDestination]);
    }
}

#[test]
fn a_destination_that_another_client_runs_has_the_guest() {
    let start = Phase::Armed { guest: RUNNING, source_gone: false };
    assert_eq!(follow(start, &[Input::Destination(Seen::Resumed)]).0, Phase::Arrived(Rest::Running));
}

#[test]
fn a_destination_that_is_silent_is_left_alone_once_the_source_is_gone() {
    let start = Phase::Armed { guest: RUNNING, source_gone: true };
    let (phase, actions) = follow(start, &[Input::DestinationSilent, Input::Overdue, Input::GiveUp]);
    assert_eq!((phase, actions), (Phase::Undecided(MayRun::Destination), vec![Action::ProveDestination]));
    let (phase, actions) = follow(START, &[Input::Retreat, Input::Source(Seen::Gone), Input::GiveUp]);
    let asked = vec![Action::CancelSource, Action::ProveDestination];
    assert_eq!((phase, actions), (Phase::Undecided(MayRun::Destination), asked));
}

#[test]
fn a_destination_that_ended_before_its_source_is_not_waited_for() {
    let ended = [Input::Destination(Seen::Gone), Input::Source(Seen::Gone)];
    let (phase, actions) = follow(START, &ended);
    assert_eq!(actions, [Action::CancelSource, Action::ProveDestination]);
    assert_eq!(phase.next(&Input::Destination(Seen::Gone)), (Phase::Lost, None));
    let (phase, _) = follow(phase, &[Input::DestinationAlive]);
    assert_eq!(
        phase.may_run(),
        MayRun::Source,
        "one that lives may have all of the guest, and is waited for"
    );
    assert!(!phase.is_final());
}

#[test]
fn a_destination_that_still_waits_for_a_stream_long_after_its_source_ended_has_nothing_of_the_guest() {
    let waiting = destination(MigrationStatus::Setup);
    let (phase, _) = follow(START, &[Input::Source(Seen::Gone), waiting.clone()]);
    assert!(!phase.is_final(), "what its source sent last may be on its way");
    assert_eq!(follow(phase, &[Input::Overdue, waiting]), (Phase::Lost, vec![]));
    let (phase, _) = follow(phase, &[Input::Overdue, destination(MigrationStatus::Active), Input::GiveUp]);
    assert_eq!(phase, Phase::Undecided(MayRun::Destination));
}

#[test]
fn a_guest_in_any_state_but_running_goes_back_to_it_at_once() {
    for state in
        [RunState::PreLaunch, RunState::IoError, RunState::GuestPanicked, RunState::Other("new".into())]
    {
        let seen = Input::Source(Seen::State(state));
        let inputs = [seen.clone(), Input::Retreat, source(MigrationStatus::Cancelled), seen];
        assert_eq!(follow(START, &inputs).0, Phase::Back(Rest::Standing));
    }
}

#[test]
fn a_cont_that_was_lost_is_sent_again() {
    let start = Phase::Committed { guest: RUNNING, source_gone: false };
    let (phase, actions) =
        follow(start, &[Input::Overdue, Input::Destination(Seen::State(RunState::Paused))]);
    assert_eq!((phase, actions), (start, vec![Action::AskDestination, Action::ContinueDestination]));
}

#[test]
fn a_guest_that_sleeps_is_told_to_run_where_it_arrives_and_sleeps_on() {
    let sleeps = || Seen::State(RunState::Suspended);
    assert_eq!(follow(START, &[Input::Source(sleeps())]).0, START);
    let held = Phase::Streaming(HELD);
    assert_eq!(follow(held, &[Input::Source(sleeps())]).0, held, "up to 8.x `stop` does not wake it");
    let start = Phase::Committed { guest: RUNNING, source_gone: false };
    assert_eq!(follow(start, &[Input::Destination(sleeps())]).0, Phase::Arrived(Rest::Running));
    let cancelled = [Input::Retreat, source(MigrationStatus::Cancelled), Input::Source(sleeps())];
    assert_eq!(follow(START, &cancelled).0, Phase::Back(Rest::Standing));
}

#[test]
fn a_guest_that_stops_of_itself_on_the_way_arrives_so_and_gets_no_cont() {
    for state in [RunState::GuestPanicked, RunState::IoError, RunState::Watchdog, RunState::InternalError] {
        let inputs = [
            Input::Source(Seen::Stopped),
            Input::Source(Seen::State(state)),
            destination(MigrationStatus::Completed),
            source(MigrationStatus::Completed),
        ];
        assert_eq!(follow(START, &inputs), (Phase::Arrived(Rest::Standing), vec![Action::AskSource]));
    }
}

#[test]
fn a_guest_that_ran_there_and_stopped_of_itself_has_arrived() {
    let start = Phase::Committed { guest: RUNNING, source_gone: false };
    let panicked = Input::Destination(Seen::State(RunState::GuestPanicked));
    assert_eq!(start.next(&panicked), (Phase::Arrived(Rest::Running), None));
    let waits = Input::Destination(Seen::State(RunState::InMigrate));
    assert_eq!(start.next(&waits), (start, None));
}

#[test]
fn a_source_that_is_failing_is_waited_for() {
    let failing = source(MigrationStatus::Failing);
    let inputs = [source(MigrationStatus::Device), failing, Input::Source(Seen::Resumed)];
    let (phase, actions) = follow(START, &inputs);
    assert!(matches!(phase, Phase::Switchover { source: SourceEnd::Sending, .. }) && actions.is_empty());
    let after =
        follow(phase, &[source(MigrationStatus::Failed), Input::Source(Seen::State(RunState::Running))]);
    assert_eq!(after, (Phase::Back(Rest::Running), vec![Action::AskSource]));
}

#[test]
fn a_destination_that_takes_its_word_back_gets_no_cont_as_long_as_there_is_a_way_back() {
    let failed = destination(MigrationStatus::Failed);
    let start = Phase::Armed { guest: RUNNING, source_gone: false };
    let clearing = Phase::Retreating(RUNNING, Retreat::Clearing);
    assert_eq!(start.next(&failed), (clearing, Some(Action::KillDestination)));
    let alone = Phase::Armed { guest: RUNNING, source_gone: true };
    assert_eq!(alone.next(&failed), (alone, None), "its word is the guest's only chance");
    // An answer from before.
    assert_eq!(start.next(&destination(MigrationStatus::Active)), (start, None));
}

#[test]
fn a_destination_that_is_seen_to_run_has_the_guest_though_its_word_was_lost() {
    let runs = Input::Destination(Seen::State(RunState::Running));
    let armed = Phase::Armed { guest: RUNNING, source_gone: false };
    for phase in [START, follow(START, &[source(MigrationStatus::Device)]).0, armed] {
        assert_eq!(phase.next(&runs), (Phase::Arrived(Rest::Running), None));
    }
    let stopping = Phase::Retreating(RUNNING, Retreat::Stopping);
    let clearing = Phase::Retreating(RUNNING, Retreat::Clearing);
    assert_eq!(stopping.next(&runs), (clearing, Some(Action::KillDestination)));
}

#[test]
fn a_guest_that_the_engine_is_about_to_stop_is_not_somebody_elses_to_stop() {
    let held = Phase::Streaming(HELD);
    let late = [
        Input::Source(Seen::State(RunState::Running)),
        Input::Source(Seen::Stopped),
        Input::Source(Seen::State(RunState::Paused)),
    ];
    assert_eq!(follow(held, &late), (held, vec![]), "an answer from before the stop");
    let somebodys = [Input::Source(Seen::Resumed), Input::Source(Seen::State(RunState::Paused))];
    let Phase::Streaming(guest) = follow(held, &somebodys).0 else { panic!("it streams") };
    assert_eq!(guest.at_source, AtSource::Standing);
}
