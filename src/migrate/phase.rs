//! The phases of moving one guest, as one pure function of phase and input.
//!
//! ```text
//!                 S stopped itself            both completed            D answers         D runs the guest
//!   Streaming ───────────────────► Switchover ─────────────► Armed ─────────────► Committed ─────────────► Arrived
//!    │  S failed                    │  S failed               │ D silent,           │   `cont` is sent: the point
//!    │  or cancelled                │  or cancelled           │ cancel, too long    │   of no return
//!    │                              │                         │                     │
//!    │ cancel, D gone, silence      │ cancel, too long, D gone│                     ├─ refused ──► Clearing
//!    ▼                              ▼                         ▼                     ├─ D gone, silent ──► Undecided
//!   Stopping ── S failed or cancelled ──► Settling         Clearing                 ▼
//!    │                                       │                │ D has ended        (nothing goes back from here)
//!    └── S completed after all ─► Clearing   │                ▼
//!                                            └──────────►  Reviving ── S runs (or stands, as it did) ──► Back
//!   S gone: on, D may have all of the guest; Lost when D fails, ends or still waits for it, Undecided when it is silent.
//!   D runs the guest without our `cont` (another client's): Arrived.   S does, after completed: Clearing.
//!   S in postcopy (another client's): on without a way back; Undecided when the link breaks, Lost when D ends.
//! ```
//!
//! S is the source, D the destination, which `-S` holds until `cont`. Three rules carry the promise that never two
//! run, and a property test holds the function to them: `cont` goes to the destination only when both have completed
//! (or the source is gone); `cont` goes to a source that has completed only when the destination has ended for
//! certain; after `cont` has been sent to the destination none goes to the source, unless it certainly did not arrive.
//!
//! Facts behind it (run on 5.2, 7.2, 10.0 and 11.1): without
//! `return-path` a source says completed though the destination has died, so that capability is always on; in the
//! blackout `migrate_cancel` is not answered and an out-of-band `yank` is; after completed, `cont` on the source is
//! stopped by nothing but image locks; it fails with "Migration is not finalized yet" until its run state is
//! `postmigrate`; QEMU up to 10 reports failed before it runs the guest again, 11 after.
//!
//! A guest that has panicked and was stopped for it (`-action panic=pause`) is in the state `guest-panicked`, which goes
//! with it: its destination is in the same state, where `cont` would run it (run on 7.2, 10.0 and 11.1). It stands still
//! by itself, gets no `cont`, and is kept as it is for whoever wants to know why.
//!
//! One thing cannot be told apart: a `stop` by another client in the very moment before the switchover. QEMU says `STOP`
//! once, and its run state is its own from then on; such a guest is run on the destination.

use serde::{Deserialize, Serialize};

use crate::qmp::words::{MigrationStatus, RunState};
use crate::record::{MayRun, PhaseName};

/// What the guest does on its source, switchover aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtSource {
    /// It runs.
    Running,
    /// It stands still: it did before, or somebody paused it on the way. It stays so wherever it ends up.
    Standing,
    /// The engine stopped it, with consent: it is to run again wherever it ends up.
    Held,
}

/// What the guest is to do on its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtDestination {
    /// What it did on the source.
    AsBefore,
    /// Stand still, as the user asked.
    Standing,
}

/// What the guest does, and is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Guest {
    /// On the source.
    pub at_source: AtSource,
    /// On the destination.
    pub at_destination: AtDestination,
}

/// What the guest does where it has ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// It runs.
    Running,
    /// It stands still, as it did before or as somebody asked.
    Standing,
}

impl Guest {
    fn is_to_run_there(self) -> bool {
        self.at_source != AtSource::Standing && self.at_destination == AtDestination::AsBefore
    }

    fn now(self, at_source: AtSource) -> Self {
        Self { at_source, ..self }
    }
}

/// How far the two have come in the switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceEnd {
    /// It still sends.
    Sending,
    /// It sends what the destination asks for, which has the guest: somebody has started postcopy.
    Postcopy,
    /// It has sent all, and the destination has told it so.
    Completed,
    /// Its process has ended.
    Gone,
    /// It ended so long ago that a destination which still waits for a stream will never have one.
    LongGone,
}

impl SourceEnd {
    fn is_gone(self) -> bool {
        matches!(self, Self::Gone | Self::LongGone)
    }
}

/// Where a retreat stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retreat {
    /// The source has been told to stop the migration; its answer is awaited.
    Stopping,
    /// The source has ended the migration; it is on its way to the state that it was in.
    Settling,
    /// The source has completed; the destination is being ended, for certain.
    Clearing,
    /// The destination has ended; the source is being started again.
    Reviving,
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Memory is sent; the guest is the source's.
    Streaming(Guest),
    /// The source has stopped the guest and sends the rest.
    Switchover {
        /// What the guest does, and is to do.
        guest: Guest,
        /// How far the source is.
        source: SourceEnd,
        /// Whether the destination has loaded all of it.
        destination_completed: bool,
    },
    /// Both have completed. The destination is asked for a sign of life before it is told to run.
    Armed {
        /// What the guest does, and is to do.
        guest: Guest,
        /// Whether there is no source to go back to.
        source_gone: bool,
    },
    /// `cont` has been sent to the destination.
    Committed {
        /// What the guest does, and is to do.
        guest: Guest,
        /// Whether there is no source to go back to, should QEMU refuse.
        source_gone: bool,
    },
    /// The guest is on the destination and does what it is to do.
    Arrived(Rest),
    /// The guest goes back to its source.
    Retreating(Guest, Retreat),
    /// The guest is on its source and does what it did before.
    Back(Rest),
    /// The side named may run the guest or not, and cannot be asked; the other is held or has ended.
    Undecided(MayRun),
    /// Neither side has the guest.
    Lost,
}

/// What has been seen of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A status, from an event or a reply.
    Status(MigrationStatus),
    /// A run state, from a reply to `query-status`.
    State(RunState),
    /// `STOP`.
    Stopped,
    /// `RESUME`.
    Resumed,
    /// `cont` was refused.
    ContinueRefused,
    /// Its process has ended.
    Gone,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// On the source.
    Source(Seen),
    /// On the destination.
    Destination(Seen),
    /// The destination has given a sign of life since both completed.
    DestinationAlive,
    /// It has given none in time.
    DestinationSilent,
    /// The guest is to go back: a person, a budget, or the engine's own trouble.
    Retreat,
    /// The blackout outlasts the budget and its grace.
    BlackoutOver,
    /// The engine stopped the guest itself, by consent: it is to run again wherever it ends up.
    StoppedByConsent,
    /// The present step takes too long.
    Overdue,
    /// A retreat or a hand-over has been tried for as long as makes sense.
    GiveUp,
}

/// What is to be done. All of it can be done again without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// `query-status` on the source.
    AskSource,
    /// `migrate_cancel` on the source.
    CancelSource,
    /// `yank` on the source, out of band.
    YankSource,
    /// `cont` on the source.
    ContinueSource,
    /// Get a sign of life from the destination, then say [`Input::DestinationAlive`] or
    /// [`Input::DestinationSilent`].
    ProveDestination,
    /// `cont` on the destination: the point of no return.
    ContinueDestination,
    /// `query-status` on the destination.
    AskDestination,
    /// End the destination's process, for certain.
    KillDestination,
}

impl Phase {
    /// Which side may run the guest.
    pub fn may_run(self) -> MayRun {
        match self {
            Self::Switchover { source: SourceEnd::Postcopy, .. }
            | Self::Committed { .. }
            | Self::Arrived(_) => MayRun::Destination,
            Self::Streaming(_)
            | Self::Switchover { .. }
            | Self::Retreating(_, Retreat::Stopping | Retreat::Settling | Retreat::Reviving)
            | Self::Back(_) => MayRun::Source,
            Self::Armed { .. } | Self::Retreating(_, Retreat::Clearing) | Self::Lost => MayRun::Neither,
            Self::Undecided(may_run) => may_run,
        }
    }

    /// Whether nothing more happens.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Arrived(_) | Self::Back(_) | Self::Undecided(_) | Self::Lost)
    }

    /// Whether the guest can still go back to its source.
    pub fn can_retreat(self) -> bool {
        match self {
            Self::Streaming(_) => true,
            Self::Switchover { source, .. } => !source.is_gone() && source != SourceEnd::Postcopy,
            Self::Armed { source_gone, .. } => !source_gone,
            _ => false,
        }
    }

    /// What is to be done as a migration is taken up in this phase that another engine has left.
    pub fn pending(self) -> Option<Action> {
        match self {
            Self::Streaming(_)
            | Self::Switchover { .. }
            | Self::Retreating(_, Retreat::Settling | Retreat::Reviving) => Some(Action::AskSource),
            Self::Armed { .. } => Some(Action::ProveDestination),
            // Its `cont` may have been sent, or not.
            Self::Committed { .. } => Some(Action::AskDestination),
            Self::Retreating(_, Retreat::Stopping) => Some(Action::CancelSource),
            Self::Retreating(_, Retreat::Clearing) => Some(Action::KillDestination),
            Self::Arrived(_) | Self::Back(_) | Self::Undecided(_) | Self::Lost => None,
        }
    }

    /// The phase as people know it.
    pub fn name(self) -> PhaseName {
        match self {
            Self::Streaming(_) => PhaseName::Stream,
            Self::Switchover { .. } => PhaseName::Switchover,
            Self::Armed { .. } | Self::Committed { .. } => PhaseName::Handover,
            Self::Arrived(_) => PhaseName::Finish,
            Self::Retreating(..) => PhaseName::Retreat,
            Self::Back(_) | Self::Undecided(_) | Self::Lost => PhaseName::Ended,
        }
    }

    /// The phase that follows, and what is to be done as it begins.
    pub fn next(self, input: &Input) -> (Self, Option<Action>) {
        match self {
            Self::Streaming(guest) => streaming(guest, input),
            Self::Switchover { guest, source, destination_completed } => {
                switchover(guest, source, destination_completed, input)
            }
            Self::Armed { guest, source_gone } => armed(guest, source_gone, input),
            Self::Committed { guest, source_gone } => committed(guest, source_gone, input),
            Self::Retreating(guest, retreat) => retreating(guest, retreat, input),
            Self::Arrived(_) | Self::Back(_) | Self::Undecided(_) | Self::Lost => (self, None),
        }
    }
}

fn is_over(status: &MigrationStatus) -> bool {
    matches!(status, MigrationStatus::Failed | MigrationStatus::Cancelled)
}

/// The source has begun to switch over.
fn is_switching(status: &MigrationStatus) -> bool {
    matches!(status, MigrationStatus::PreSwitchover | MigrationStatus::Device)
}

/// The guest's processors are on the destination, whose memory is not. On a source that is the point of no return: it
/// refuses `cont`, and up to 9.x `migrate_cancel` wedges it. A destination says so 10 ms before (run on 11.1), while the
/// source can still fail and run the guest again.
fn is_postcopy(status: &MigrationStatus) -> bool {
    matches!(
        status,
        MigrationStatus::PostcopyActive
            | MigrationStatus::PostcopyPaused
            | MigrationStatus::PostcopyRecoverSetup
            | MigrationStatus::PostcopyRecover
    )
}

/// Whether a guest in this state stands still by itself or by somebody's will, and would do so elsewhere too.
fn is_standing(state: &RunState) -> bool {
    !matches!(
        state,
        RunState::Running | RunState::FinishMigrate | RunState::PostMigrate | RunState::InMigrate
    )
}

/// Whether a guest in this state, which was not in it before, has run and then stopped by itself.
fn has_run(state: &RunState) -> bool {
    matches!(
        state,
        RunState::GuestPanicked
            | RunState::InternalError
            | RunState::IoError
            | RunState::Shutdown
            | RunState::Suspended
            | RunState::Watchdog
    )
}

fn streaming(guest: Guest, input: &Input) -> (Phase, Option<Action>) {
    let stay = Phase::Streaming(guest);
    let switching = |source, destination_completed| both(guest, source, destination_completed);
    let is_held = guest.at_source == AtSource::Held;
    match input {
        // Our own `stop`, by consent, is no news; a guest that is reset while it stands still is before its launch.
        Input::Source(Seen::Stopped | Seen::State(RunState::Paused | RunState::PreLaunch)) if is_held => {
            (stay, None)
        }
        // Somebody's `stop`, or the switchover: the run state tells. Only a guest that ran can stop.
        Input::Source(Seen::Stopped) => {
            (Phase::Streaming(guest.now(AtSource::Running)), Some(Action::AskSource))
        }
        Input::Source(Seen::State(state)) if is_standing(state) => {
            (Phase::Streaming(guest.now(AtSource::Standing)), None)
        }
        Input::Source(Seen::State(RunState::Running) | Seen::Resumed) => {
            (Phase::Streaming(guest.now(AtSource::Running)), None)
        }
        Input::StoppedByConsent if guest.at_source == AtSource::Running => {
            (Phase::Streaming(guest.now(AtSource::Held)), None)
        }
        Input::Source(Seen::State(RunState::FinishMigrate)) => switching(SourceEnd::Sending, false),
        Input::Source(Seen::Status(status)) if is_switching(status) => switching(SourceEnd::Sending, false),
        Input::Source(Seen::Status(status)) if is_postcopy(status) => switching(SourceEnd::Postcopy, false),
        Input::Source(Seen::Status(MigrationStatus::Completed)) => switching(SourceEnd::Completed, false),
        Input::Destination(Seen::Status(MigrationStatus::Completed)) => switching(SourceEnd::Sending, true),
        Input::Source(Seen::Status(status)) if is_over(status) => {
            (Phase::Retreating(guest, Retreat::Settling), Some(Action::AskSource))
        }
        Input::Source(Seen::Gone) => switching(SourceEnd::Gone, false),
        // Somebody else has told the destination to run it. It has all of the guest, or it could not.
        Input::Destination(Seen::Resumed) => (Phase::Arrived(Rest::Running), None),
        Input::Destination(Seen::Gone | Seen::Status(MigrationStatus::Failed)) | Input::Retreat => {
            (Phase::Retreating(guest, Retreat::Stopping), Some(Action::CancelSource))
        }
        Input::BlackoutOver => (Phase::Retreating(guest, Retreat::Stopping), Some(Action::YankSource)),
        // The source lives and cannot be spoken to any more.
        Input::GiveUp => (Phase::Undecided(MayRun::Source), None),
        _ => (stay, None),
    }
}

/// The switchover, or what comes after it once both have completed.
fn both(guest: Guest, source: SourceEnd, destination_completed: bool) -> (Phase, Option<Action>) {
    if matches!(source, SourceEnd::Sending | SourceEnd::Postcopy) || !destination_completed {
        (Phase::Switchover { guest, source, destination_completed }, None)
    } else if guest.is_to_run_there() {
        (Phase::Armed { guest, source_gone: source.is_gone() }, Some(Action::ProveDestination))
    } else {
        (Phase::Arrived(Rest::Standing), None)
    }
}

fn switchover(
    guest: Guest,
    source: SourceEnd,
    destination_completed: bool,
    input: &Input,
) -> (Phase, Option<Action>) {
    let retreat = |retreat, action| (Phase::Retreating(guest, retreat), Some(action));
    match (input, source) {
        (Input::Destination(Seen::Status(MigrationStatus::Completed)), _) => both(guest, source, true),
        // Somebody else has told the destination to run it.
        (Input::Destination(Seen::Resumed), _) => (Phase::Arrived(Rest::Running), None),
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
            if is_over(status) =>
        {
            retreat(Retreat::Settling, Action::AskSource)
        }
        (Input::Destination(Seen::Gone | Seen::Status(MigrationStatus::Failed)), _) => match source {
            SourceEnd::Sending => retreat(Retreat::Stopping, Action::YankSource),
            SourceEnd::Completed => retreat(Retreat::Clearing, Action::KillDestination),
            SourceEnd::Gone | SourceEnd::LongGone | SourceEnd::Postcopy => (Phase::Lost, None),
        },
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
        // The last two: somebody else has told the source to run it, after it had completed; then it must stay there.
        (
            Input::Retreat
            | Input::BlackoutOver
            | Input::Source(Seen::Resumed | Seen::State(RunState::Running)),
            SourceEnd::Completed,
        ) => retreat(Retreat::Clearing, Action::KillDestination),
        // What a source that has ended sent last may still be on its way into a destination that is slow or stopped:
        // that one is the guest's only chance, and is left as it is.
        (Input::GiveUp, SourceEnd::Gone | SourceEnd::LongGone) => {
            (Phase::Undecided(MayRun::Destination), None)
        }
        (Input::GiveUp, SourceEnd::Sending) => (Phase::Undecided(MayRun::Source), None),
        _ => (Phase::Switchover { guest, source, destination_completed }, None),
    }
}

fn armed(guest: Guest, source_gone: bool, input: &Input) -> (Phase, Option<Action>) {
    let stay = Phase::Armed { guest, source_gone };
    let back = |retreat, action| (Phase::Retreating(guest, retreat), Some(action));
    match input {
        Input::DestinationAlive => {
            (Phase::Committed { guest, source_gone }, Some(Action::ContinueDestination))
        }
        // Somebody else was quicker.
        Input::Destination(Seen::Resumed) => (Phase::Arrived(Rest::Running), None),
        Input::Destination(Seen::Gone) if source_gone => (Phase::Lost, None),
        Input::Destination(Seen::Gone) => back(Retreat::Reviving, Action::AskSource),
        // The last two: somebody else has told the source to run it, after it had completed; then it must stay there.
        Input::DestinationSilent
        | Input::Retreat
        | Input::BlackoutOver
        | Input::Source(Seen::Resumed | Seen::State(RunState::Running))
            if !source_gone =>
        {
            back(Retreat::Clearing, Action::KillDestination)
        }
        Input::Source(Seen::Gone) => (Phase::Armed { guest, source_gone: true }, None),
        // There is nothing to go back to: the destination is the guest's only chance.
        Input::Overdue if source_gone => (stay, Some(Action::ProveDestination)),
        Input::GiveUp if source_gone => (Phase::Undecided(MayRun::Destination), None),
        _ => (stay, None),
    }
}

fn committed(guest: Guest, source_gone: bool, input: &Input) -> (Phase, Option<Action>) {
    let stay = Phase::Committed { guest, source_gone };
    match input {
        Input::Destination(Seen::Resumed | Seen::State(RunState::Running)) => {
            (Phase::Arrived(Rest::Running), None)
        }
        // The `cont` was lost with its connection. It is past the point of no return: another one does no harm.
        Input::Destination(Seen::State(RunState::Paused)) => (stay, Some(Action::ContinueDestination)),
        Input::Destination(Seen::State(state)) if has_run(state) => (Phase::Arrived(Rest::Running), None),
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

fn retreating(guest: Guest, retreat: Retreat, input: &Input) -> (Phase, Option<Action>) {
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

        // The cancel came too late, or somebody else has told the destination to run it while the source is about to:
        // either way the destination must not run it any more.
        (
            Retreat::Stopping | Retreat::Settling,
            Input::Source(Seen::Status(MigrationStatus::Completed)) | Input::Destination(Seen::Resumed),
        ) => on(Retreat::Clearing, Action::KillDestination),
        (Retreat::Stopping, Input::Source(Seen::Status(status))) if is_over(status) => {
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
        (Seen::State(RunState::PostMigrate), AtSource::Standing) => (Phase::Back(Rest::Standing), None),
        (Seen::State(RunState::PostMigrate), AtSource::Running | AtSource::Held)
        | (Seen::State(RunState::Paused | RunState::PreLaunch), AtSource::Held) => carry_on,
        // Somebody has reset it since it completed.
        (Seen::State(RunState::PreLaunch), AtSource::Running) if retreat == Retreat::Reviving => carry_on,
        // As before, or somebody paused it while it was on its way back, or it stopped by itself.
        (Seen::State(state), _) if is_standing(state) => (Phase::Back(Rest::Standing), None),
        _ => (stay, None),
    }
}

#[cfg(test)]
#[path = "phase_tests.rs"]
mod tests;
