//! What a status, or a run state, means for a phase.

use super::Seen;
use crate::qmp::words::{MigrationStatus, RunState};

/// The migration has ended without success on this side.
pub(super) fn has_given_up(status: &MigrationStatus) -> bool {
    matches!(status, MigrationStatus::Failed | MigrationStatus::Cancelled)
}

/// The source has begun to switch over.
pub(super) fn is_switching(status: &MigrationStatus) -> bool {
    matches!(
        status,
        MigrationStatus::PreSwitchover | MigrationStatus::Device | MigrationStatus::PostcopyDevice
    )
}

/// The guest's processors are on the destination, whose memory is not. On a source that is the point of no return: it
/// refuses `cont`, and up to 9.x `migrate_cancel` wedges it. A destination says so 10 ms before (run on 11.1), while the
/// source can still fail and run the guest again.
pub(super) fn is_postcopy(status: &MigrationStatus) -> bool {
    matches!(
        status,
        MigrationStatus::PostcopyActive
            | MigrationStatus::PostcopyPaused
            | MigrationStatus::PostcopyRecoverSetup
            | MigrationStatus::PostcopyRecover
    )
}

/// The guest runs, or sleeps (ACPI S3) and may be woken at any time. A sleeping guest stops for the switchover as a
/// running one does, stands as `paused` on a destination under `-S`, where nothing wakes it, and sleeps on after `cont`
/// (run on 5.2, 7.2, 10.0 and 11.1).
pub(super) fn runs(seen: &Seen) -> bool {
    matches!(seen, Seen::Resumed | Seen::State(RunState::Running | RunState::Suspended))
}

/// Whether a guest in this state stands still by itself or by somebody's will. It does so elsewhere too: its state
/// travels in the stream, and a destination takes it over in spite of `-S` (`guest-panicked`, `shutdown`: run on 5.2 to
/// 11.1). `cont` would run a guest that has panicked, so that it gets none. Of a state of a newer QEMU nothing is known
/// but that the guest does not run in it: such a guest is left as it is.
pub(super) fn is_standing(state: &RunState) -> bool {
    !matches!(
        state,
        RunState::Running
            | RunState::Suspended
            | RunState::FinishMigrate
            | RunState::PostMigrate
            | RunState::InMigrate
    )
}

/// Whether a guest in this state has run since it was told to. One that was never told is `paused` under `-S`, or
/// before its launch if somebody has reset it; what else has brought it to a stop came while it ran.
pub(super) fn has_run(state: &RunState) -> bool {
    matches!(
        state,
        RunState::Debug
            | RunState::GuestPanicked
            | RunState::InternalError
            | RunState::IoError
            | RunState::Shutdown
            | RunState::Watchdog
    )
}
