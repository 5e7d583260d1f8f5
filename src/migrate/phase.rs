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
//! run, and a test that goes through all that can be reached holds the function to them: `cont` goes to the destination
//! only when both have completed (or the source is gone); `cont` goes to a source that has completed only when the
//! destination has ended for certain; after `cont` has been sent to the destination none goes to the source, unless it
//! certainly did not arrive. A fourth carries the promise that a guest which runs nowhere is written down: an action
//! belongs to the phase that is entered with it, and that is in the journal before the action is performed.
//!
//! # All of it
//!
//! A test compares this table with the function: every place that can be reached, every input. `Streaming` is all
//! three of them; the switchover goes by how far the source is (`Sending` to `LongGone`); `-alone` is without a source
//! to go back to. Where two lines begin alike, the guest decides, and whether D has completed before. What is not here
//! changes nothing and does nothing.
//!
//! | in | by | to | and is done |
//! |---|---|---|---|
//! | Streaming running | S STOP | same | ask S |
//! | Streaming running | S stands | Streaming standing | |
//! | Streaming standing | S STOP | Streaming running | ask S |
//! | Streaming standing | S runs | Streaming running | |
//! | Streaming running | consent | Streaming held | |
//! | Streaming held | S RESUME | Streaming running | |
//! | Streaming held | S has run, S is colo, S is restore-vm, S is save-vm | Streaming standing | |
//! | Streaming held | S is preconfig, S is in an unknown state | Streaming standing | |
//! | Streaming | S switching, S is finish-migrate, D completed | Sending | |
//! | Streaming | cancel, D gone, D given up, S colo | Stopping | migrate_cancel |
//! | Streaming, Sending | too long | Stopping | yank |
//! | Sending | cancel, D gone, D given up | Stopping | yank |
//! | Sending | S colo | Stopping | migrate_cancel |
//! | Streaming, Sending | S in postcopy | Postcopy | |
//! | Streaming, Sending, Postcopy | S completed | Completed | |
//! | Streaming, Sending, Postcopy, Completed | S gone | Gone | |
//! | Streaming, Sending, Postcopy, Stopping | S given up | Settling | ask S |
//! | Streaming, Sending, Postcopy, Completed, Gone, LongGone, Armed, Armed-alone | D runs | Arrived running | |
//! | Streaming, Sending, Stopping, Settling, Reviving | give up | Undecided Source | |
//! | Sending, Postcopy | S completed | Armed | prove D |
//! | Sending, Postcopy | S gone | Armed-alone | prove D |
//! | Sending, Postcopy | S completed, S gone | Arrived standing | |
//! | Completed | D completed | Armed | prove D |
//! | Gone, LongGone | D completed | Armed-alone | prove D |
//! | Completed, Gone, LongGone | D completed | Arrived standing | |
//! | Completed | cancel, too long, D gone, D given up, S runs | Clearing | kill D |
//! | Gone | overdue | LongGone | |
//! | Gone, Postcopy | D gone, D given up | Lost | |
//! | LongGone | D gone, D given up, D none, D setup | Lost | |
//! | Postcopy | cancel, give up, S postcopy-paused, D postcopy-paused | Undecided Destination | |
//! | Gone, LongGone, Armed-alone | give up | Undecided Destination | |
//! | Armed | D alive | Committed | cont D |
//! | Armed-alone | D alive | Committed-alone | cont D |
//! | Armed | D silent, cancel, too long, D given up, S runs | Clearing | kill D |
//! | Armed | S gone | Armed-alone | |
//! | Armed-alone | overdue | same | prove D |
//! | Armed-alone | D gone | Lost | |
//! | Committed, Committed-alone | D runs, D has run | Arrived running | |
//! | Committed, Committed-alone | D is paused, D is prelaunch | same | cont D |
//! | Committed, Committed-alone | overdue | same | ask D |
//! | Committed | D refuses | Clearing | kill D |
//! | Committed | S gone | Committed-alone | |
//! | Committed, Committed-alone | D gone, give up | Undecided Destination | |
//! | Committed-alone | D refuses | Undecided Destination | |
//! | Stopping | overdue, too long | same | yank |
//! | Stopping | S pre-switchover | same | migrate_cancel |
//! | Stopping | S in postcopy | Postcopy | |
//! | Stopping | S gone | Gone | prove D |
//! | Stopping, Settling | S completed, D runs | Clearing | kill D |
//! | Clearing | overdue | same | kill D |
//! | Armed, Clearing | D gone | Reviving | ask S |
//! | Clearing | give up | Undecided Neither | |
//! | Settling, Reviving | overdue | same | ask S |
//! | Settling, Reviving | S is postmigrate, S is paused, S is prelaunch | same | cont S |
//! | Settling, Reviving | S RESUME, S is running | Back running | |
//! | Settling, Reviving | S stands, S is suspended, S is postmigrate | Back standing | |
//! | Settling, Clearing, Reviving | S gone | Lost | |
//!
//! `given up`, `switching`, `in postcopy`, `runs`, `stands` and `has run` are words of the private module `meaning`.
//! `failing` (11.0) is no end: the source runs the guest again before it says `failed`. What D says of its end after it
//! has completed counts only while there is a way back.
//!
//! Facts behind it (run on 5.2, 7.2, 10.0 and 11.1): without
//! `return-path` a source says completed though the destination has died, so that capability is always on; in the
//! blackout `migrate_cancel` is not answered and an out-of-band `yank` is; after completed, `cont` on the source is
//! stopped by nothing but image locks; it fails with "Migration is not finalized yet" until its run state is
//! `postmigrate`; QEMU up to 10 reports failed before it runs the guest again, 11 after.
//!
//! One thing cannot be told apart: a guest that stops in the very moment before the switchover, by another client's
//! `stop` or of itself. QEMU says `STOP` once, and its run state is its own from then on; such a guest is run on the
//! destination.

/// What a status, or a run state, means for a phase.
mod meaning;
/// Memory is sent, and then the rest: until both have completed.
mod streaming;
/// Both have completed: the destination is made sure of, and told to run the guest.
mod handover;
/// The guest goes back to its source.
mod retreat;

use handover::{armed, committed};
use retreat::retreating;
use serde::{Deserialize, Serialize};
use streaming::{streaming, switchover};

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

#[cfg(test)]
mod tests;
