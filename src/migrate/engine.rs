//! One migration, from the plan to its outcome.
//!
//! The order of a migration can be read in the private functions `attempt` and `with_destination`: survey, destination, prepare, drive, and one of the ends.
//! After the outcome the guest is in exactly one of the places that [`Whereabouts`](crate::record::Whereabouts) names, and the exit code says
//! which kind of end it was.

use super::driver::Driver;
use super::ending::{Ending, LAST_BREATH, restore};
use super::history::History;
use super::journal::{Journal, Step};
use super::order::Orders;
use super::outcome;
use super::phase::{AtSource, Guest, Phase};
use super::plan::{Mode, Plan};
use super::side::{Contact, Side};
use super::step::destination::Held;
use super::step::limits::QemuLimits;
use super::step::prepare::{self, Originals};
use super::step::survey::Source;
use super::step::{destination, finish, survey};
use crate::check::{Blocker, chain, lost_writes};
use crate::converge::Controller;
use crate::host::PrivateDirectory;
use crate::qemu::twin;
use crate::qmp::Leg;
use crate::qmp::words::RunState;
use crate::record::{End, Entry, Observed, Outcome, PhaseName};

/// What a migration works with besides its plan.
pub struct Services<'a> {
    /// Where its history is written.
    pub history: &'a mut History,
    /// Where orders come from.
    pub orders: &'a mut Orders,
    /// Where it is written down what is about to be done. Whoever has told the outcome closes it, unless that is
    /// undecided.
    pub journal: &'a mut Journal,
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
    let Services { history, orders, journal, observed } = services;
    let outcome = match attempt(plan, history, orders, journal, observed).await {
        Ok(outcome) => outcome,
        Err(blockers) => outcome::refused(&blockers),
    };
    end(outcome, history, journal)
}

/// Tells the outcome. One that is not open any more is also written down: the guest is free for its next migration.
pub(super) fn end(outcome: Outcome, history: &mut History, journal: &mut Journal) -> Outcome {
    let outcome = outcome::with_totals(outcome, history);
    if outcome.end != End::Undecided
        && let Err(error) = journal.write(&Step::Ended { outcome: Box::new(outcome.clone()) })
    {
        tracing::warn!(%error, "the end is not written down");
    }
    history.enter(PhaseName::Ended);
    history.add(Entry::Result(Box::new(outcome.clone())));
    outcome
}

async fn attempt(
    plan: &Plan,
    history: &mut History,
    orders: &mut Orders,
    journal: &mut Journal,
    observed: &mut (dyn FnMut() -> Observed + Send),
) -> Result<Outcome, Vec<Blocker>> {
    history.enter(PhaseName::Check);
    let source = tokio::select! {
        source = survey::survey(plan) => source?,
        reason = orders.cancelled() => return Err(vec![cancelled(&reason)]),
    };
    let (pid, address) = (source.view.pid, source.address.to_string());
    let party = source.inventory.party(Some(pid), address, source.limits_by);
    history.add(Entry::Source(party.clone()));
    journal.claim(source.as_written_down(party)).map_err(|error| vec![error.into()])?;

    if plan.mode == Mode::Live
        && let Some(accepted) = lost_writes(&source.inventory)
    {
        history.warn(accepted.code, accepted.message, accepted.hint.as_deref());
    }

    history.enter(PhaseName::Destination);
    let directory = PrivateDirectory::create(plan.directory.clone(), &source.view.credentials)
        .map_err(|error| vec![error.into()])?;
    let result = with_destination(plan, history, orders, journal, observed, source, &directory).await;
    if result.is_err() {
        twin::remove(std::slice::from_ref(&directory));
    }
    result
}

async fn with_destination(
    plan: &Plan,
    history: &mut History,
    orders: &mut Orders,
    journal: &mut Journal,
    observed: &mut (dyn FnMut() -> Observed + Send),
    source: Source,
    directory: &PrivateDirectory,
) -> Result<Outcome, Vec<Blocker>> {
    let abort = async { drop(orders.cancelled().await) };
    let (held, warnings) =
        destination::get(plan, &source, journal, abort).await.map_err(|blocker| vec![blocker])?;
    let (pid, address) = (held.process.pid(), held.address.to_string());
    history.add(Entry::Destination(held.inventory.party(Some(pid), address, held.limits_by)));
    for warning in warnings {
        history.add(Entry::Warning(warning));
    }

    #[cfg(feature = "hold-points")]
    super::hold::at_point("destination").await;
    history.enter(PhaseName::Prepare);
    let (uri, originals) = match prepare_both(plan, &source, &held, orders, journal).await {
        Ok(prepared) => prepared,
        Err((originals, blocker)) => {
            held.clear().await;
            if source.client.is_closed() && source.process.ended_within(LAST_BREATH).await {
                twin::remove(std::slice::from_ref(directory));
                return Ok(outcome::gone(&blocker));
            }
            if let Some(originals) = originals {
                restore(&source.client, source.limits_by, &originals, history).await;
            }
            return Err(vec![held.blame(blocker)]);
        }
    };
    #[cfg(feature = "hold-points")]
    super::hold::at_point("prepared").await;
    let Held {
        address,
        client,
        events,
        process,
        limits_by,
        directories,
        renames,
        moved,
        log,
        started_by,
        ..
    } = held;
    let owner = source.view.credentials;
    let mut sides = (
        Side {
            leg: Leg::Source,
            address: source.address,
            client: source.client,
            events: source.events,
            process: source.process,
            limits_by: source.limits_by,
            contact: Contact::Heard,
        },
        Side { leg: Leg::Destination, address, client, events, process, limits_by, contact: Contact::Heard },
    );
    let guest = Guest { at_source: look(&mut sides.0).await, at_destination: plan.at_destination };
    let phase = Phase::Streaming(guest);
    let written = journal.write(&Step::Phase { phase });
    let driver = Driver::new(sides, phase, plan.limits, history, orders, journal);
    let (conclusion, source, destination) = match written {
        Ok(()) => driver.run(&uri, plan.mode).await,
        Err(error) => driver.give_up(&chain(&error)),
    };
    let ending = Ending {
        source,
        destination,
        source_after: plan.source_after,
        started_by,
        directory: directory.clone(),
        directories,
        renames,
        owner,
        moved,
        log,
        originals,
    };
    Ok(ending.conclude(&conclusion, history, observed).await)
}

fn cancelled(reason: &str) -> Blocker {
    Blocker::bare("cancelled", format!("{reason}; nothing had been moved yet"))
}

/// Sets up the destination, then the source: as long as the destination can refuse, the source is untouched.
async fn prepare_both(
    plan: &Plan,
    source: &Source,
    held: &Held,
    orders: &mut Orders,
    journal: &mut Journal,
) -> Result<(String, Originals), (Option<Originals>, Blocker)> {
    let blocker = |error: &prepare::PrepareError| Blocker::bare("prepare", chain(error));
    let socket = destination::stream_socket(plan);
    let asked = async {
        let uri = prepare::destination(&held.client, &socket).await?;
        Ok((uri, prepare::originals(&source.client, source.limits_by).await?))
    };
    let (uri, originals) = tokio::select! {
        biased;
        asked = asked => asked.map_err(|error| (None, blocker(&error)))?,
        reason = orders.cancelled() => return Err((None, cancelled(&reason))),
    };
    // From here on a cancel waits until the source is set up, a matter of milliseconds: it is not left half set.
    let written = journal.write(&Step::Originals { originals: originals.clone() });
    written.map_err(|error| (None, error.into()))?;
    let limits =
        QemuLimits::both(Controller::new(plan.limits.budget()).limit_ms(), plan.limits.max_bandwidth);
    match prepare::source(&source.client, source.limits_by, limits, &originals).await {
        Ok(()) => Ok((uri, originals)),
        Err(error) => Err((Some(originals), blocker(&error))),
    }
}

/// What the guest does now. It may have changed while the destination was starting; what was heard of that is old
/// news from here on.
async fn look(source: &mut Side) -> AtSource {
    source.events = source.client.events();
    match finish::state(&source.client).await {
        // Where it does not answer the driver asks again, and finds out what is wrong.
        // One that sleeps may be woken at any time, and sleeps on where it is told to run.
        Ok(RunState::Running | RunState::Suspended) | Err(_) => AtSource::Running,
        Ok(_) => AtSource::Standing,
    }
}
