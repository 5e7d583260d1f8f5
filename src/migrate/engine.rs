//! One migration, from the plan to its outcome.
//!
//! The order of a migration can be read in [`attempt`]: survey, destination, prepare, drive, and one of the ends.
//! After the outcome the guest is in exactly one of the places that [`Whereabouts`] names, and the exit code says
//! which kind of end it was.

use qapi_qmp as words;

use super::driver::{Conclusion, Contact, Driver, Side};
use super::history::History;
use super::order::Orders;
use super::outcome;
use super::phase::{AtSource, Guest, Phase, Rest};
use super::plan::{Mode, Plan, SourceAfter};
use super::step::destination::{Held, StartedBy};
use super::step::finish::{self, Names};
use super::step::prepare::{self, Originals};
use super::step::survey::Source;
use super::step::{destination, survey};
use crate::check::{Blocker, chain};
use crate::converge::Controller;
use crate::host::PrivateDirectory;
use crate::qemu::ANSWER_WITHIN;
use crate::qmp::words::RunState;
use crate::qmp::{Client, Leg};
use crate::record::{Entry, MayRun, Observed, Outcome, PhaseName};

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
    let prepared = tokio::select! {
        prepared = prepare_both(plan, &source.client, &held, &controller) => prepared,
        reason = orders.cancelled() => Err((None, cancelled(&reason))),
    };
    let (uri, originals) = match prepared {
        Ok(prepared) => prepared,
        Err((originals, blocker)) => {
            held.clear().await;
            if let Some(originals) = originals {
                restore(&source.client, &originals, history).await;
            }
            return Err(vec![blocker]);
        }
    };
    let guest = match hold_if_wanted(plan, &source).await {
        Ok(guest) => guest,
        Err(blocker) => {
            held.clear().await;
            restore(&source.client, &originals, history).await;
            return Err(vec![blocker]);
        }
    };
    let Held { address, client, events, process, directories, renames, log, started_by, .. } = held;
    let sides = (
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
    let driver = Driver::new(sides, Phase::Streaming(guest), plan.limits, controller, history, orders);
    let (conclusion, source, destination) = driver.run(&uri).await;
    let ending = Ending { plan, source, destination, started_by, directories, renames, log, originals };
    Ok(match conclusion.phase {
        Phase::Arrived(rest) => ending.arrived(&conclusion, rest, history, observed, directory).await,
        Phase::Back(rest) => ending.back(&conclusion, rest, history).await.into(),
        Phase::Lost => ending.lost(&conclusion).await.into(),
        _ => ending.undecided(&conclusion).await,
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

/// Stops the guest first where the user wants that; says what it does and is to do.
async fn hold_if_wanted(plan: &Plan, source: &Source) -> Result<Guest, Blocker> {
    let at_source = if source.inventory.state != RunState::Running {
        AtSource::Standing
    } else if plan.mode == Mode::NonLive {
        source.client.call(&words::stop {}, ANSWER_WITHIN).await?;
        AtSource::Held
    } else {
        AtSource::Running
    };
    Ok(Guest { at_source, at_destination: plan.at_destination })
}

async fn restore(source: &Client, originals: &Originals, history: &mut History) {
    if let Err(error) = prepare::restore(source, originals).await {
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
    renames: Vec<crate::qemu::rewrite::Rename>,
    log: Option<std::path::PathBuf>,
    originals: Originals,
}

impl Ending<'_> {
    /// The guest is on the destination.
    async fn arrived(
        mut self,
        conclusion: &Conclusion,
        rest: Rest,
        history: &mut History,
        observed: &mut (dyn FnMut() -> Observed + Send),
        directory: &PrivateDirectory,
    ) -> Arrival {
        let figures = finish::figures(&self.source.client).await;
        let mut remainder = Vec::new();
        let names = match self.plan.source_after {
            SourceAfter::Keep => finish::kept_names(&self.renames),
            SourceAfter::Quit => match finish::quit(&self.source.client, &self.source.process).await {
                Ok(()) => finish::take_names(&self.renames),
                Err(error) => {
                    remainder.push(error.to_string());
                    finish::kept_names(&self.renames)
                }
            },
        };
        let Names { moved, failures } = names;
        for (rename, error) in failures {
            remainder.push(format!(
                "{} could not be given its name {}: {error}",
                rename.what,
                rename.public.display()
            ));
        }
        let running = self.verify(rest).await;
        let blackout = outcome::blackout(conclusion, rest, figures.as_ref(), observed());
        let keeps_directory =
            self.destination.address.path().is_some_and(|path| path.starts_with(directory.path()))
                || moved.iter().any(|moved| std::path::Path::new(&moved.to).starts_with(directory.path()))
                || history.record().warnings.iter().any(|warning| warning.code == "console");
        if let (false, Some(log)) = (keeps_directory, self.log.take()) {
            tracing::debug!(words = crate::qemu::twin::last_words(&log), "the destination said");
        }
        if moved.is_empty() {
            crate::qemu::twin::remove(&self.directories);
        }
        let outcome = match running {
            Ok(()) => outcome::moved(rest, &self.destination, blackout, figures.as_ref(), moved, &remainder),
            Err(why) => outcome::lost(&why),
        };
        Arrival { outcome, keeps_directory }
    }

    /// Whether the guest does what it should where it has arrived.
    async fn verify(&mut self, rest: Rest) -> Result<(), String> {
        if self.destination.process.has_ended() {
            return Err(
                "the guest ran on the destination, and then the destination's process ended".to_owned()
            );
        }
        match (finish::state(&self.destination.client).await, rest) {
            (Ok(RunState::InternalError | RunState::GuestPanicked), Rest::Running) => {
                Err("the guest arrived and then crashed on the destination".to_owned())
            }
            // A guest that somebody pauses right after its arrival has arrived; a monitor that does not answer now
            // answered `cont`.
            _ => Ok(()),
        }
    }

    /// The guest is on its source, as it was.
    async fn back(self, conclusion: &Conclusion, rest: Rest, history: &mut History) -> Outcome {
        self.clear_destination().await;
        restore(&self.source.client, &self.originals, history).await;
        outcome::back(conclusion, rest, self.last_words().as_deref())
    }

    /// Neither side has the guest.
    async fn lost(self, conclusion: &Conclusion) -> Outcome {
        self.clear_destination().await;
        outcome::lost(conclusion.reason.as_deref().unwrap_or("both sides have ended"))
    }

    /// Where the guest is cannot be told. What may run it is left alone; what certainly may not is ended.
    async fn undecided(self, conclusion: &Conclusion) -> Arrival {
        let may_run = conclusion.phase.may_run();
        if may_run != MayRun::Destination {
            self.clear_destination().await;
        }
        let keeps_directory = may_run == MayRun::Destination;
        Arrival { outcome: outcome::undecided(conclusion, &self.source, &self.destination), keeps_directory }
    }

    /// Ends the destination for certain. One that the user started has failed its incoming stream and ends by itself,
    /// or was ended by the driver where it had to be.
    async fn clear_destination(&self) {
        if self.started_by == StartedBy::Engine {
            if let Err(error) = self.destination.process.kill() {
                tracing::warn!(%error, "the destination cannot be ended");
            }
            self.destination.process.ended_within(ANSWER_WITHIN).await;
        }
        crate::qemu::twin::remove(&self.directories);
    }

    /// What a destination that failed had to say.
    fn last_words(&self) -> Option<String> {
        let words = crate::qemu::twin::last_words(self.log.as_deref()?);
        (words != "nothing").then_some(words)
    }
}
