//! One migration, from the plan to its outcome.
//!
//! The order of a migration can be read in the private functions `attempt` and `with_destination`: survey, destination, prepare, drive, and one of the ends.
//! After the outcome the guest is in exactly one of the places that [`Whereabouts`](crate::record::Whereabouts) names, and the exit code says
//! which kind of end it was.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::driver::{Conclusion, Driver};
use super::history::History;
use super::order::Orders;
use super::outcome;
use super::phase::{AtSource, Guest, Phase, Rest};
use super::plan::{Plan, SourceAfter};
use super::side::{Contact, Side};
use super::step::destination::{Held, StartedBy};
use super::step::finish::{self, QuitError};
use super::step::prepare::{self, Originals};
use super::step::survey::Source;
use super::step::{destination, survey};
use crate::check::{Blocker, chain};
use crate::converge::Controller;
use crate::host::{Credentials, PrivateDirectory};
use crate::qemu::rewrite::Rename;
use crate::qemu::twin;
use crate::qmp::words::RunState;
use crate::qmp::{Client, Leg};
use crate::record::{Entry, MayRun, Moved, Observed, Outcome, PhaseName};

/// What became of a guest that arrived and did not stay.
const DIED_THERE: &str = "it ran on the destination, and then the destination's process ended";
/// A QEMU that shuts its machine down has ended within this.
const LAST_BREATH: Duration = Duration::from_secs(5);

/// What a migration works with besides its plan.
pub struct Services<'a> {
    /// Where its history is written.
    pub history: &'a mut History,
    /// Where orders come from.
    pub orders: &'a mut Orders,
    /// Asked once, when the guest has arrived: what somebody outside saw.
    pub observed: &'a mut (dyn FnMut() -> Observed + Send),
}

impl std::fmt::Debug for Services<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Services").field("history", &self.history).finish_non_exhaustive()
    }
}

/// Moves a guest. The record holds all of it, its last line is the outcome.
pub async fn run(plan: &Plan, services: Services<'_>) -> Outcome {
    let Services { history, orders, observed } = services;
    let outcome = match attempt(plan, history, orders, observed).await {
        Ok(outcome) => outcome,
        Err(blockers) => outcome::refused(&blockers),
    };
    let outcome = outcome::with_totals(outcome, history);
    history.enter(PhaseName::Ended);
    history.add(Entry::Result(Box::new(outcome.clone())));
    outcome
}

async fn attempt(
    plan: &Plan,
    history: &mut History,
    orders: &mut Orders,
    observed: &mut (dyn FnMut() -> Observed + Send),
) -> Result<Outcome, Vec<Blocker>> {
    history.enter(PhaseName::Check);
    let source = tokio::select! {
        source = survey::survey(plan) => source?,
        reason = orders.cancelled() => return Err(vec![cancelled(&reason)]),
    };
    history.add(Entry::Source(source.inventory.party(Some(source.view.pid), source.address.to_string())));

    history.enter(PhaseName::Destination);
    let directory = PrivateDirectory::create(plan.directory.clone(), &source.view.credentials)
        .map_err(|error| vec![error.into()])?;
    let result = with_destination(plan, history, orders, observed, source, &directory).await;
    if !result.as_ref().is_ok_and(|arrival| arrival.keeps_directory)
        && let Err(error) = directory.remove()
    {
        tracing::warn!(directory = %directory.path().display(), %error, "not removed");
    }
    result.map(|arrival| arrival.outcome)
}

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

async fn with_destination(
    plan: &Plan,
    history: &mut History,
    orders: &mut Orders,
    observed: &mut (dyn FnMut() -> Observed + Send),
    source: Source,
    directory: &PrivateDirectory,
) -> Result<Arrival, Vec<Blocker>> {
    let abort = async { drop(orders.cancelled().await) };
    let (held, warnings) = destination::get(plan, &source, abort).await.map_err(|blocker| vec![blocker])?;
    history.add(Entry::Destination(held.inventory.party(Some(held.process.pid()), held.address.to_string())));
    for warning in warnings {
        history.add(Entry::Warning(warning));
    }

    history.enter(PhaseName::Prepare);
    let controller = Controller::new(plan.limits.budget());
    // A cancel waits until both sides are set up, a matter of milliseconds: nothing is then left half set.
    let (uri, originals) = match prepare_both(plan, &source.client, &held, &controller).await {
        Ok(prepared) => prepared,
        Err((originals, blocker)) => {
            held.clear().await;
            if let Some(originals) = originals {
                restore(&source.client, &originals, history).await;
            }
            return Err(vec![held.blame(blocker)]);
        }
    };
    let Held { address, client, events, process, directories, renames, moved, log, started_by, .. } = held;
    let owner = source.view.credentials;
    let mut sides = (
        Side {
            leg: Leg::Source,
            address: source.address,
            client: source.client,
            events: source.events,
            process: source.process,
            contact: Contact::Heard,
        },
        Side { leg: Leg::Destination, address, client, events, process, contact: Contact::Heard },
    );
    let guest = Guest { at_source: look(&mut sides.0).await, at_destination: plan.at_destination };
    let driver = Driver::new(sides, Phase::Streaming(guest), plan.limits, controller, history, orders);
    let (conclusion, source, destination) = driver.run(&uri, plan.mode).await;
    let ending =
        Ending { plan, source, destination, started_by, directories, renames, owner, moved, log, originals };
    Ok(match conclusion.phase {
        Phase::Arrived(rest) => ending.arrived(&conclusion, rest, history, observed, directory).await,
        Phase::Back(rest) => ending.back(&conclusion, rest, history).await.into(),
        Phase::Lost => ending.lost(&conclusion).await.into(),
        _ => ending.undecided(&conclusion, history).await,
    })
}

fn cancelled(reason: &str) -> Blocker {
    Blocker::bare("cancelled", format!("{reason}; nothing had been moved yet"))
}

/// Sets up the destination, then the source: as long as the destination can refuse, the source is untouched.
async fn prepare_both(
    plan: &Plan,
    source: &Client,
    held: &Held,
    controller: &Controller,
) -> Result<(String, Originals), (Option<Originals>, Blocker)> {
    let blocker = |error: &prepare::PrepareError| Blocker::bare("prepare", chain(error));
    let socket = destination::stream_socket(plan);
    let uri = prepare::destination(&held.client, &socket).await.map_err(|error| (None, blocker(&error)))?;
    let originals = prepare::source(source, controller.limit_ms(), plan.limits.max_bandwidth)
        .await
        .map_err(|(originals, error)| (originals, blocker(&error)))?;
    Ok((uri, originals))
}

/// What the guest does now. It may have changed while the destination was starting; what was heard of that is old
/// news from here on.
async fn look(source: &mut Side) -> AtSource {
    source.events = source.client.events();
    match finish::state(&source.client).await {
        // Where it does not answer the driver asks again, and finds out what is wrong.
        Ok(RunState::Running) | Err(_) => AtSource::Running,
        Ok(_) => AtSource::Standing,
    }
}

async fn restore(client: &Client, originals: &Originals, history: &mut History) {
    if let Err(error) = prepare::restore(client, originals).await {
        history.warn(
            "not-restored",
            format!("the source's migration settings could not be set back: {error}"),
            None,
        );
    }
}

/// All that is left to bring to an end.
struct Ending<'a> {
    plan: &'a Plan,
    source: Side,
    destination: Side,
    started_by: StartedBy,
    directories: Vec<PrivateDirectory>,
    renames: Vec<Rename>,
    owner: Credentials,
    moved: Vec<Moved>,
    log: Option<PathBuf>,
    originals: Originals,
}

impl Ending<'_> {
    /// The guest is on the destination. First it is made sure of, then the source goes, then its names are taken over.
    async fn arrived(
        mut self,
        conclusion: &Conclusion,
        rest: Rest,
        history: &mut History,
        observed: &mut (dyn FnMut() -> Observed + Send),
        directory: &PrivateDirectory,
    ) -> Arrival {
        let mut remainder = Vec::new();
        let over = finish::over(&self.source.client, &self.source.process).await;
        let figures = finish::figures(&self.source.client).await;
        let verified = self.verify(rest).await;
        if !matches!(verified, Verified::Lost(_)) {
            restore(&self.destination.client, &self.originals, history).await;
        }
        let moved = self.end_source(over, &verified, &mut remainder).await;
        let blackout = outcome::blackout(conclusion, rest, figures.as_ref(), observed());
        let has_ended = self.destination.process.has_ended();
        let keeps_directory = !has_ended && self.uses(directory.path(), &moved, history);
        if moved.is_empty() || has_ended {
            twin::remove(&self.directories);
        }
        let outcome = match verified {
            Verified::Lost(why) => outcome::lost(conclusion, &why),
            _ if has_ended => outcome::lost(conclusion, DIED_THERE),
            _ => outcome::moved(rest, &self.destination, blackout, figures.as_ref(), moved, &remainder),
        };
        Arrival { outcome, keeps_directory }
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
        let mut names = match (self.plan.source_after, verified, over) {
            (_, Verified::Lost(_), _) | (SourceAfter::Keep, _, Ok(())) => kept(),
            (_, _, Err(error)) => {
                remainder.push(error.to_string());
                kept()
            }
            (SourceAfter::Quit, Verified::Unknown(why), Ok(())) => {
                remainder.push(format!("{why}, so that the source was not ended"));
                kept()
            }
            (SourceAfter::Quit, Verified::Well, Ok(())) => {
                match finish::quit(&self.source.client, &self.source.process).await {
                    Ok(()) => finish::take_names(&self.renames, &self.owner),
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
                Verified::Lost("it arrived and then crashed on the destination".to_owned())
            }
            // A guest that somebody pauses right after its arrival has arrived.
            (Ok(_), _) => Verified::Well,
            // A process on its way out closes its monitor first.
            (Err(_), _) if self.destination.process.ended_within(LAST_BREATH).await => died(),
            (Err(error), _) => Verified::Unknown(error.to_string()),
        }
    }

    /// The guest is on its source, as it was.
    async fn back(self, conclusion: &Conclusion, rest: Rest, history: &mut History) -> Outcome {
        self.clear_destination().await;
        let state = finish::state(&self.source.client).await.ok();
        // A machine that is being shut down ends its migration first.
        let is_ending = state.is_none() || conclusion.shutdown.is_some();
        if is_ending && self.source.process.ended_within(LAST_BREATH).await {
            return outcome::lost(conclusion, "the source's process has ended");
        }
        restore(&self.source.client, &self.originals, history).await;
        let words = self.last_words().filter(|_| conclusion.blames_destination());
        outcome::back(conclusion, rest, state.as_ref(), words.as_deref())
    }

    /// Neither side has the guest.
    async fn lost(self, conclusion: &Conclusion) -> Outcome {
        self.clear_destination().await;
        outcome::lost(conclusion, conclusion.reason.as_deref().unwrap_or("both sides have ended"))
    }

    /// Where the guest is cannot be told. What may run it is left alone; what certainly may not is ended.
    async fn undecided(self, conclusion: &Conclusion, history: &mut History) -> Arrival {
        let keeps_directory =
            conclusion.phase.may_run() == MayRun::Destination && !self.destination.process.has_ended();
        if !keeps_directory {
            self.clear_destination().await;
        }
        if self.source.contact == Contact::Heard {
            restore(&self.source.client, &self.originals, history).await;
        }
        Arrival { outcome: outcome::undecided(conclusion, &self.source, &self.destination), keeps_directory }
    }

    /// Ends the destination for certain, unless it is the user's: that one has failed its incoming stream, or was ended
    /// by the driver where it had to be.
    async fn clear_destination(&self) {
        if self.started_by == StartedBy::Engine {
            destination::end(&self.destination.process).await;
        }
        twin::remove(&self.directories);
    }

    /// What a destination that failed had to say.
    fn last_words(&self) -> Option<String> {
        let words = twin::last_words(self.log.as_deref()?);
        (words != "nothing").then_some(words)
    }
}

/// What became of a guest that has arrived.
enum Verified {
    /// It does what it should.
    Well,
    /// It cannot be told.
    Unknown(String),
    /// It is gone.
    Lost(String),
}
