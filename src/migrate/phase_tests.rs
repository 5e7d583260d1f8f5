//! The phase machine: its happy path, its ways back, and the promise over all sequences of inputs.

use proptest::prelude::*;

use super::*;

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

fn statuses() -> impl Strategy<Value = MigrationStatus> {
    prop::sample::select(vec![
        MigrationStatus::None,
        MigrationStatus::Setup,
        MigrationStatus::Active,
        MigrationStatus::PreSwitchover,
        MigrationStatus::Device,
        MigrationStatus::PostcopyActive,
        MigrationStatus::PostcopyPaused,
        MigrationStatus::Completed,
        MigrationStatus::Failed,
        MigrationStatus::Cancelling,
        MigrationStatus::Cancelled,
        MigrationStatus::Other("status-of-qemu-12".to_owned()),
    ])
}

fn states() -> impl Strategy<Value = RunState> {
    prop::sample::select(vec![
        RunState::Running,
        RunState::Paused,
        RunState::FinishMigrate,
        RunState::PostMigrate,
        RunState::InMigrate,
        RunState::InternalError,
        RunState::Other("state-of-qemu-12".to_owned()),
    ])
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![
        4 => statuses().prop_map(Seen::Status),
        2 => states().prop_map(Seen::State),
        1 => Just(Seen::Stopped),
        1 => Just(Seen::Resumed),
        1 => Just(Seen::ContinueRefused),
        1 => Just(Seen::Gone),
    ]
}

fn inputs() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => seen().prop_map(Input::Source),
        4 => seen().prop_map(Input::Destination),
        1 => Just(Input::DestinationAlive),
        1 => Just(Input::DestinationSilent),
        1 => Just(Input::Retreat),
        1 => Just(Input::BlackoutOver),
        1 => Just(Input::StoppedByConsent),
        1 => Just(Input::Overdue),
        1 => Just(Input::GiveUp),
    ]
}

/// What the world has shown, apart from the machine.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact of its own")]
#[derive(Default)]
struct World {
    source_completed: bool,
    source_gone: bool,
    destination_completed: bool,
    destination_gone: bool,
    destination_resumed: bool,
    refused: bool,
    committed: bool,
    is_postcopy: bool,
}

impl World {
    fn take(&mut self, input: &Input) {
        match input {
            Input::Source(Seen::Status(MigrationStatus::Completed)) => self.source_completed = true,
            Input::Source(Seen::Status(status)) if is_postcopy(status) => self.is_postcopy = true,
            Input::Source(Seen::Gone) => self.source_gone = true,
            Input::Destination(Seen::Status(MigrationStatus::Completed)) => self.destination_completed = true,
            Input::Destination(Seen::Gone) => self.destination_gone = true,
            Input::Destination(Seen::Resumed) => self.destination_resumed = true,
            Input::Destination(Seen::ContinueRefused) => self.refused = true,
            _ => {}
        }
    }

    fn check(&mut self, phase: Phase, action: Option<Action>) {
        match action {
            Some(Action::ContinueDestination) => {
                assert!(self.destination_completed, "cont before the destination has the guest");
                assert!(self.source_completed || self.source_gone, "cont while the source may still run");
                self.committed = true;
            }
            Some(Action::ContinueSource) => {
                assert!(
                    !self.source_completed || self.destination_gone,
                    "the source is started while the destination may run"
                );
                assert!(
                    !self.committed || (self.refused && self.destination_gone),
                    "back after the point of no return"
                );
            }
            _ => {}
        }
        if phase.may_run() == MayRun::Destination {
            let both = self.destination_completed && (self.source_completed || self.source_gone);
            assert!(both || self.destination_resumed || self.source_gone || self.is_postcopy);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_inputs_lets_both_run(standing: bool, inputs in prop::collection::vec(inputs(), 0..30)) {
        let at_source = if standing { AtSource::Standing } else { AtSource::Running };
        let mut phase = Phase::Streaming(Guest { at_source, ..RUNNING });
        let mut world = World::default();
        for input in inputs {
            world.take(&input);
            let before = phase;
            let (after, action) = phase.next(&input);
            phase = after;
            world.check(phase, action);
            prop_assert!(!before.is_final() || (before == phase && action.is_none()), "{before:?} is final");
        }
    }
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
fn a_guest_that_crashed_where_it_was_told_to_run_has_arrived() {
    let start = Phase::Committed { guest: RUNNING, source_gone: false };
    for state in [RunState::GuestPanicked, RunState::InternalError] {
        let seen = Input::Destination(Seen::State(state));
        assert_eq!(follow(start, &[seen]), (Phase::Arrived(Rest::Running), vec![]));
    }
}
