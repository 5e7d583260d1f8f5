//! What is told of a guest, held against where it is.

use super::*;
use crate::migrate::phase::Phase;

fn conclusion(phase: Phase) -> Conclusion {
    Conclusion {
        phase,
        reason: Some("cancelled".to_owned()),
        stopped_at_us: None,
        resumed_at_us: None,
        heard: (None, None),
        shutdown: None,
    }
}

#[test]
fn a_guest_that_has_arrived_is_told_as_it_is_found() {
    for (rest, state, expected) in [
        (Rest::Running, Some(RunState::Running), Arrived::Running),
        (Rest::Running, Some(RunState::Suspended), Arrived::Running),
        (Rest::Running, Some(RunState::Paused), Arrived::Paused),
        (Rest::Running, Some(RunState::IoError), Arrived::Stopped(RunState::IoError)),
        (Rest::Running, Some(RunState::Watchdog), Arrived::Stopped(RunState::Watchdog)),
        (Rest::Running, Some(RunState::Shutdown), Arrived::Stopped(RunState::Shutdown)),
        (Rest::Running, None, Arrived::Unheard),
        (Rest::Standing, Some(RunState::Paused), Arrived::Standing),
        (Rest::Standing, Some(RunState::GuestPanicked), Arrived::Panicked),
        (Rest::Standing, None, Arrived::Standing),
    ] {
        assert_eq!(Arrived::of(rest, state.as_ref()), expected, "{rest:?} {state:?}");
    }
}

#[test]
fn a_guest_that_is_back_is_never_said_to_run_where_it_stands() {
    let is_back = |rest, state: Option<RunState>| {
        let outcome = back(&conclusion(Phase::Back(rest)), rest, state.as_ref(), None);
        (outcome.guest, outcome.message.contains("as before"), outcome.hint.is_some())
    };
    let running = Whereabouts::RunningOnSource;
    assert_eq!(is_back(Rest::Running, Some(RunState::Running)), (running, true, false));
    assert_eq!(is_back(Rest::Standing, Some(RunState::Running)), (running, false, false));
    for state in [RunState::Paused, RunState::PostMigrate, RunState::IoError, RunState::Watchdog] {
        for rest in [Rest::Running, Rest::Standing] {
            assert_eq!(is_back(rest, Some(state.clone())), (Whereabouts::PausedOnSource, false, true));
        }
    }
}

#[test]
fn what_could_not_be_set_back_stays_open_and_is_no_refusal() {
    let id: MigrationId = "k3f9x2ab".parse().unwrap();
    for (end, told) in [
        (End::Refused, End::NotMigrated),
        (End::NotMigrated, End::NotMigrated),
        (End::Migrated, End::MigratedWithRemainder),
        (End::Lost, End::Lost),
    ] {
        let before = outcome(end, Whereabouts::Unchanged, "so", Some("first this".to_owned()));
        let after = unrestored(before, Leg::Source, &id);
        assert_eq!((after.end, after.exit_code, after.open), (told, told.exit_code(), true));
        let hint = after.hint.unwrap();
        assert!(hint.contains("qmigrate recover k3f9x2ab") && hint.ends_with("first this"), "{hint}");
    }
}
