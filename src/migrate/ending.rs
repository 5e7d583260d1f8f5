//! All that is left to bring to an end once the driver is through: the guest is made sure of, settings go back, what is
//! not needed any more goes away, and what is left of it is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::driver::Conclusion;
use super::history::History;
use super::outcome::{self, Arrived, Left};
use super::phase::{Phase, Rest};
use super::plan::{SourceAfter, StartedBy};
use super::side::{Contact, Side};
use super::step::destination;
use super::step::finish::{self, QuitError};
use super::step::prepare::{self, Originals, PrepareError};
use super::step::tap::{self, NewTap};
use crate::host::{Credentials, PrivateDirectory};
use crate::qemu::rewrite::Rename;
use crate::qemu::twin;
use crate::qmp::words::RunState;
use crate::qmp::{CallError, Leg};
use crate::record::{MayRun, MigrationId, Moved, Observed, Outcome};

/// What became of a guest that arrived and did not stay.
const DIED_THERE: &str = "it ran on the destination, and then the destination's process ended";
/// A QEMU that shuts its machine down has ended within this.
pub(super) const LAST_BREATH: Duration = Duration::from_secs(5);
/// A destination that cannot take the guest has said why and ended within this.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// An outcome, and whether the destination still needs the migration's directory.
struct Arrival {
    outcome: Outcome,
    keeps_directory: bool,
}

impl From<Outcome> for Arrival {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, keeps_directory: false }
    }
}

/// Whether a QEMU is set as it was found, or as far as it lets itself be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Restored {
    /// It is, or it has refused, or it has ended.
    Done,
    /// It lives and cannot be spoken to: `recover` can try again.
    Open(Leg),
}

impl Restored {
    /// Tells what is open in an outcome.
    pub(super) fn told(self, outcome: Outcome, id: &MigrationId) -> Outcome {
        match self {
            Self::Done => outcome,
            Self::Open(leg) => outcome::unrestored(outcome, leg, id),
        }
    }
}

/// Sets a QEMU's settings back; what does not work is told.
pub(super) async fn restore(side: &mut Side, originals: &Originals, history: &mut History) -> Restored {
    side.heal().await;
    let Err(error) = prepare::restore(&side.client, side.limits_by, originals).await else {
        return Restored::Done;
    };
    if side.process.ended_within(LAST_BREATH).await {
        return Restored::Done;
    }
    let leg = side.leg;
    history.warn(
        "not-restored",
        format!("the {leg}'s migration settings could not be set back: {error}"),
        None,
    );
    let was_refused = matches!(error, PrepareError::Call(CallError::Refused { .. }));
    if was_refused { Restored::Done } else { Restored::Open(leg) }
}

/// All that is left to bring to an end.
pub(super) struct Ending {
    pub(super) source: Side,
    pub(super) destination: Side,
    /// What becomes of the source once the guest runs elsewhere.
    pub(super) source_after: SourceAfter,
    pub(super) started_by: StartedBy,
    /// The migration's own directory.
    pub(super) directory: PrivateDirectory,
    /// What was made beside the user's own files.
    pub(super) directories: Vec<PrivateDirectory>,
    pub(super) renames: Vec<Rename>,
    /// Whom the source belongs to.
    pub(super) owner: Credentials,
    pub(super) moved: Vec<Moved>,
    pub(super) log: Option<PathBuf>,
    /// The taps that were made for the destination.
    pub(super) taps: Vec<NewTap>,
    pub(super) originals: Originals,
}

impl Ending {
    /// Brings it to an end, whichever it is.
    pub(super) async fn conclude(
        self,
        conclusion: &Conclusion,
        history: &mut History,
        observed: &mut (dyn FnMut() -> Observed + Send),
    ) -> Outcome {
        let directory = self.directory.clone();
        let arrival = match conclusion.phase {
            Phase::Arrived(rest) => self.arrived(conclusion, rest, history, observed).await,
            Phase::Back(rest) => self.back(conclusion, rest, history).await.into(),
            Phase::Lost => self.lost(conclusion, history).await.into(),
            _ => self.undecided(conclusion, history).await,
        };
        if !arrival.keeps_directory {
            twin::remove(std::slice::from_ref(&directory));
        }
        arrival.outcome
    }

    /// The guest is on the destination. First it is made sure of, then the source goes, then its names are taken over.
    async fn arrived(
        mut self,
        conclusion: &Conclusion,
        rest: Rest,
        history: &mut History,
        observed: &mut (dyn FnMut() -> Observed + Send),
    ) -> Arrival {
        let mut remainder = Vec::new();
        let mut over = finish::over(&self.source.client, &self.source.process).await;
        if over.is_err() && self.source.client.is_closed() {
            // The connection broke under the question; the next one is asked on another.
            self.source.heal().await;
            over = finish::over(&self.source.client, &self.source.process).await;
        }
        let figures = finish::figures(&self.source.client).await;
        let mut verified = self.verify(rest).await;
        if matches!(verified, Verified::Unknown(_)) && self.destination.client.is_closed() {
            self.destination.heal().await;
            verified = self.verify(rest).await;
        }
        let restored = match verified {
            Verified::Lost(_) if self.source.process.has_ended() => Restored::Done,
            // The guest may be run there again, by hand.
            Verified::Lost(_) => restore(&mut self.source, &self.originals, history).await,
            _ => restore(&mut self.destination, &self.originals, history).await,
        };
        let mut moved = self.end_source(over, &verified, &mut remainder).await;
        let blackout = outcome::blackout(conclusion, rest, figures.as_ref(), observed());
        let has_ended = self.destination.process.has_ended();
        let keeps_directory = !has_ended && self.uses(self.directory.path(), &moved, history);
        if moved.is_empty() || has_ended {
            twin::remove(&self.directories);
        }
        if has_ended {
            tap::remove(&self.taps);
        }
        moved.extend(tap::moved(&self.taps));
        let outcome = match &verified {
            Verified::Lost(why) => outcome::lost(conclusion, why, self.left()),
            _ if has_ended => outcome::lost(conclusion, DIED_THERE, self.left()),
            verified => {
                let state = match verified {
                    Verified::Well(state) => Some(state),
                    _ => None,
                };
                let how = Arrived::of(rest, state);
                outcome::moved(&how, &self.destination, blackout, figures.as_ref(), moved, &remainder)
            }
        };
        Arrival { outcome: restored.told(outcome, &history.record().id), keeps_directory }
    }

    /// Ends the source, if that is wanted and the guest is well, and gives the guest its names; what has another name
    /// now is told, and what did not work is added to the remainder.
    async fn end_source(
        &mut self,
        over: Result<(), QuitError>,
        verified: &Verified,
        remainder: &mut Vec<String>,
    ) -> Vec<Moved> {
        let kept = || finish::kept_names(&self.renames);
        let mut names = match (&self.source_after, verified, over) {
            (_, Verified::Lost(_), _) | (SourceAfter::Keep, _, Ok(())) => kept(),
            (_, _, Err(error)) => {
                remainder.push(error.to_string());
                kept()
            }
            (_, Verified::Unknown(why), Ok(())) => {
                remainder.push(format!("{why}, so that the source was not ended"));
                kept()
            }
            (after, Verified::Well(_), Ok(())) => {
                let ended = match after {
                    SourceAfter::StopUnit(unit) => {
                        finish::stop_unit(unit, &self.source.process, &self.destination.process).await
                    }
                    _ => finish::quit(&self.source.client, &self.source.process).await,
                };
                match ended {
                    Ok(()) => {
                        tap::remove_left(&self.taps);
                        finish::take_names(&self.renames, &self.owner)
                    }
                    Err(error) => {
                        remainder.push(error.to_string());
                        kept()
                    }
                }
            }
        };
        for (rename, error) in names.failures {
            let (what, public) = (rename.what, rename.public.display());
            remainder.push(format!("{what} could not be given its name {public}: {error}"));
        }
        names.moved.append(&mut self.moved);
        names.moved
    }

    /// Whether the destination still has something in the migration's directory.
    fn uses(&self, directory: &Path, moved: &[Moved], history: &History) -> bool {
        self.destination.address.path().is_some_and(|path| path.starts_with(directory))
            || moved.iter().any(|moved| Path::new(&moved.to).starts_with(directory))
            || history.record().warnings.iter().any(|warning| warning.code == "console")
    }

    /// Whether the guest does what it should where it has arrived.
    async fn verify(&self, rest: Rest) -> Verified {
        let died = || Verified::Lost(DIED_THERE.to_owned());
        if self.destination.process.has_ended() {
            return died();
        }
        match (finish::state(&self.destination.client).await, rest) {
            (Ok(RunState::InternalError | RunState::GuestPanicked), Rest::Running) => {
                let (process, monitor) = (self.destination.process.pid(), &self.destination.address);
                Verified::Lost(format!(
                    "it arrived and then crashed on the destination (process {process}, monitor {monitor}), where it \
                     is kept as it stands"
                ))
            }
            // A guest that somebody pauses right after its arrival has arrived.
            (Ok(state), _) => Verified::Well(state),
            // A process on its way out closes its monitor first.
            (Err(_), _) if self.destination.process.ended_within(LAST_BREATH).await => died(),
            (Err(error), _) => Verified::Unknown(error.to_string()),
        }
    }

    /// The guest is on its source, as it was.
    async fn back(mut self, conclusion: &Conclusion, rest: Rest, history: &mut History) -> Outcome {
        let may_blame_it = conclusion.may_blame_destination();
        if may_blame_it && self.started_by == StartedBy::Engine {
            // One that could not take the guest says why and ends by itself, a moment after its source has failed.
            self.destination.process.ended_within(LAST_WORDS_WITHIN).await;
        }
        self.clear_destination().await;
        let state = finish::state(&self.source.client).await.ok();
        // A machine that is being shut down ends its migration first.
        let is_ending = state.is_none() || conclusion.shutdown.is_some();
        if is_ending && self.source.process.ended_within(LAST_BREATH).await {
            return outcome::lost(conclusion, "the source's process has ended", Left::Disks);
        }
        let restored = restore(&mut self.source, &self.originals, history).await;
        let words = self.last_words().filter(|_| may_blame_it);
        let outcome = outcome::back(conclusion, rest, state.as_ref(), words.as_deref());
        restored.told(outcome, &history.record().id)
    }

    /// Neither side has the guest, or at most as it was at the switch.
    async fn lost(mut self, conclusion: &Conclusion, history: &mut History) -> Outcome {
        self.clear_destination().await;
        let left = self.left();
        let restored = match left {
            Left::Source => restore(&mut self.source, &self.originals, history).await,
            Left::Disks => Restored::Done,
        };
        let why = conclusion.reason.as_deref().unwrap_or("both sides have ended");
        restored.told(outcome::lost(conclusion, why, left), &history.record().id)
    }

    /// What there is of a guest that was lost after it had arrived.
    fn left(&self) -> Left {
        if self.source.process.has_ended() { Left::Disks } else { Left::Source }
    }

    /// Where the guest is cannot be told. What may run it is left alone; what certainly may not is ended.
    async fn undecided(mut self, conclusion: &Conclusion, history: &mut History) -> Arrival {
        let keeps_directory =
            conclusion.phase.may_run() == MayRun::Destination && !self.destination.process.has_ended();
        if !keeps_directory {
            self.clear_destination().await;
        }
        if self.source.contact == Contact::Heard {
            // It is open in any case.
            let _ = restore(&mut self.source, &self.originals, history).await;
        }
        let id = history.record().id.clone();
        let outcome = outcome::undecided(conclusion, &self.source, &self.destination, &id);
        Arrival { outcome, keeps_directory }
    }

    /// Ends the destination for certain, unless it is the user's: that one has failed its incoming stream, or was ended
    /// by the driver where it had to be.
    async fn clear_destination(&self) {
        if self.started_by == StartedBy::Engine {
            destination::end(&self.destination.process).await;
        }
        twin::remove(&self.directories);
        tap::remove(&self.taps);
    }

    /// What a destination that failed had to say.
    fn last_words(&self) -> Option<String> {
        let words = twin::last_words(self.log.as_deref()?);
        (words != "nothing").then_some(words)
    }
}

/// What became of a guest that has arrived.
enum Verified {
    /// It does what it should, and is in this state.
    Well(RunState),
    /// It cannot be told.
    Unknown(String),
    /// It is gone.
    Lost(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ProcessHandle;
    use crate::qmp::{Address, Client};
    use crate::record::{LimitsBy, Record, Request};

    #[tokio::test(start_paused = true)]
    async fn settings_of_a_qemu_that_lives_and_cannot_be_reached_stay_open() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let client = Client::unconnected(Leg::Source, pid);
        let mut side = Side {
            leg: Leg::Source,
            address: Address::unix("/nowhere/qmp").unwrap(),
            events: client.events(),
            client,
            process: ProcessHandle::open(pid).unwrap(),
            limits_by: LimitsBy::Parameters,
            contact: Contact::Lost,
        };
        let found = r#"{"capabilities":[],"limits":{"downtime_ms":300,"bytes_per_second":0}}"#;
        let originals: Originals = serde_json::from_str(found).unwrap();
        let id: MigrationId = "k3f9x2ab".parse().unwrap();
        let record = Record::new(id.clone(), Request::in_a_test("x"), jiff::Timestamp::UNIX_EPOCH);
        let mut history = History::new(record, Vec::new());
        let restored = restore(&mut side, &originals, &mut history).await;
        assert_eq!(restored, Restored::Open(Leg::Source));
        assert!(history.record().warnings.iter().any(|warning| warning.code == "not-restored"));
        assert!(restored.told(outcome::untouched(), &id).open);
    }
}
