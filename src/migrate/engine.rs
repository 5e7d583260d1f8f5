//! One migration, from the plan to its outcome.
//!
//! The order of a migration can be read in the private functions `attempt` and `with_destination`: survey, destination,
//! prepare, drive, and one of the ends. After the outcome the guest is in exactly one of the places that
//! [`Whereabouts`](crate::record::Whereabouts) names, and the exit code says which kind of end it was.

use super::driver::Driver;
use super::ending::{Ending, LAST_BREATH, Restored, restore};
use super::history::History;
use super::journal::{Journal, Step};
use super::order::Orders;
use super::outcome;
use super::phase::{AtSource, Guest, Phase};
use super::plan::{self, Limits, MadeFrom, Mode, Plan, Risks, StartedBy};
use super::side::{Contact, Side};
use super::step::agree::{Agreement, Twin};
use super::step::destination::Held;
use super::step::limits::QemuLimits;
use super::step::prepare::{self, Originals, PrepareError, Settings};
use super::step::survey::Source;
use super::step::tuning::{Knob, Tuning};
use super::step::{self, destination, finish, survey, throttle};
use crate::check::{Blocker, Code, chain};
use crate::converge::{Shadows, Throttle, Wish};
use crate::host::PrivateDirectory;
use crate::qemu::rewrite::Memory;
use crate::qemu::twin;
use crate::qmp::Leg;
use crate::qmp::words::RunState;
use crate::record::{Entry, LimitsBy, Observed, Outcome, PhaseName};

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
pub async fn run(plan: &Plan, mut services: Services<'_>) -> Outcome {
    let outcome = match attempt(plan, &mut services).await {
        Ok(outcome) => outcome,
        Err(blockers) => {
            for blocker in blockers.iter().filter(|blocker| blocker.code != Code::Cancelled) {
                services.history.add(Entry::Blocker(blocker.clone().into()));
            }
            outcome::refused(&blockers)
        }
    };
    end(outcome, services.history, services.journal)
}

/// Tells the outcome. One that is not open any more is also written down: the guest is free for its next migration.
pub(super) fn end(outcome: Outcome, history: &mut History, journal: &mut Journal) -> Outcome {
    let outcome = outcome::with_totals(outcome, history);
    if !outcome.open
        && let Err(error) = journal.write(&Step::Ended { outcome: Box::new(outcome.clone()) })
    {
        tracing::warn!(%error, "the end is not written down");
    }
    history.enter(PhaseName::Ended);
    history.add(Entry::Result(Box::new(outcome.clone())));
    outcome
}

async fn attempt(plan: &Plan, services: &mut Services<'_>) -> Result<Outcome, Vec<Blocker>> {
    let Services { history, orders, journal, .. } = services;
    history.enter(PhaseName::Check);
    let source = tokio::select! {
        source = survey::survey(plan) => source?,
        reason = orders.cancelled() => return Err(vec![cancelled(&reason)]),
    };
    let (pid, address) = (source.view.pid, source.address.to_string());
    let party = source.inventory.party(Some(pid), address, source.limits_by);
    history.add(Entry::Source(party.clone()));
    journal.claim(source.as_written_down(party)).map_err(|error| vec![error.into()])?;

    for warning in &source.warnings {
        history.add(Entry::Warning(warning.clone()));
    }

    history.enter(PhaseName::Destination);
    let directory = PrivateDirectory::create(plan.directory.clone(), &source.view.credentials)
        .map_err(|error| vec![error.into()])?;
    let result = with_destination(plan, services, source, &directory).await;
    if result.is_err() {
        twin::remove(std::slice::from_ref(&directory));
    }
    result
}

async fn with_destination(
    plan: &Plan,
    services: &mut Services<'_>,
    source: Source,
    directory: &PrivateDirectory,
) -> Result<Outcome, Vec<Blocker>> {
    let Services { history, orders, journal, observed } = services;
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
    let prepared = prepare_both(plan, &source, &held, history, orders, journal).await;
    let Ready { uri, originals, limits, tuning } = match prepared {
        Ok(prepared) => prepared,
        Err(Unready { originals, blockers }) => {
            held.clear().await;
            if source.client.is_closed() && source.process.ended_within(LAST_BREATH).await {
                twin::remove(std::slice::from_ref(directory));
                return Ok(outcome::gone(&blockers));
            }
            let Some(originals) = originals else { return Err(blockers) };
            return match restore(&mut source.into_side(), &originals, history).await {
                Restored::Done => Err(blockers),
                open @ Restored::Open(_) => {
                    twin::remove(std::slice::from_ref(directory));
                    Ok(open.told(outcome::refused(&blockers), &plan.id))
                }
            };
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
        taps,
        started_by,
        ..
    } = held;
    let owner = source.view.credentials.clone();
    let mut sides = (
        source.into_side(),
        Side { leg: Leg::Destination, address, client, events, process, limits_by, contact: Contact::Heard },
    );
    let guest = Guest { at_source: look(&mut sides.0).await, at_destination: plan.at_destination };
    let phase = Phase::Streaming(guest);
    let written = journal.write(&Step::Phase { phase });
    let shadows = Shadows::new(&plan.shadows, limits.budget(), limits.consents);
    let driver = Driver::new(sides, phase, limits, limits.build_policy(), history, orders, *journal);
    let driver = driver.tuned(tuning).beside(shadows);
    let (conclusion, source, destination) = match written {
        Ok(()) => driver.run(&uri, plan.mode).await,
        Err(error) => driver.give_up(&chain(&error)),
    };
    let ending = Ending {
        source,
        destination,
        source_after: plan.source_after.clone(),
        started_by,
        directory: directory.clone(),
        directories,
        renames,
        owner,
        moved,
        log,
        taps,
        originals,
    };
    Ok(ending.conclude(&conclusion, history, *observed).await)
}

fn cancelled(reason: &str) -> Blocker {
    Blocker::bare(Code::Cancelled, format!("{reason}; nothing had been moved yet"))
}

/// Both sides can go.
struct Ready {
    uri: String,
    /// How the source was set up before.
    originals: Originals,
    /// The plan's, less what the source cannot do.
    limits: Limits,
    /// What of the source is set besides its limits.
    tuning: Tuning,
}

/// Both sides could not be made ready.
struct Unready {
    /// How the source was set up before, if that may have been changed.
    originals: Option<Originals>,
    blockers: Vec<Blocker>,
}

/// Sets up the destination, then the source: as long as the destination can refuse, the source is untouched.
async fn prepare_both(
    plan: &Plan,
    source: &Source,
    held: &Held,
    history: &mut History,
    orders: &mut Orders,
    journal: &mut Journal,
) -> Result<Ready, Unready> {
    let untouched = |blocker| Unready { originals: None, blockers: vec![blocker] };
    let prepared = tokio::select! {
        biased;
        prepared = prepare_destination(plan, source, held, history) => prepared,
        reason = orders.cancelled() => Err(untouched(held.blame(cancelled(&reason)))),
    };
    // From here on a cancel waits until the source is set up, a matter of milliseconds: it is not left half set.
    let Prepared { uri, found, mut agreement } = prepared?;
    let (limits, wish, tuning) = possible(plan, source, &found, history);
    if tuning.throttle.is_usable() {
        agreement = agreement.with_throttle(found.capabilities());
    }
    let originals = found.originals(source.limits_by, tuning);
    let written = journal.write(&Step::Originals { originals: originals.clone() });
    written.map_err(|error| untouched(error.into()))?;
    for (name, why) in &agreement.dropped {
        history.warn("switched-off", format!("the source's '{name}' is off for this migration: {why}"), None);
    }
    let parameters = throttle::at_start(wish.throttle, found.parameters());
    let of_qemu = QemuLimits::both(wish.downtime_limit_ms, limits.max_bandwidth);
    match prepare::source(&source.client, source.limits_by, of_qemu, &agreement, parameters).await {
        Ok(()) => Ok(Ready { uri, originals, limits, tuning }),
        Err(error) => Err(Unready { originals: Some(originals), blockers: vec![held.blame(error.into())] }),
    }
}

/// The plan's limits with what the source can do of that, how it is to be set at first, and what of it is set besides
/// its limits. What is allowed and cannot be done is told, and stops nothing.
fn possible(plan: &Plan, source: &Source, found: &Settings, history: &mut History) -> (Limits, Wish, Tuning) {
    let tells = source.limits_by == LimitsBy::Parameters
        && plan.mode == Mode::Live
        && source.inventory.dialect.has_command("calc-dirty-rate");
    let able = found.tuning(if tells { Knob::Usable } else { Knob::Absent });
    let mut limits = plan.limits;
    let mut wish = limits.permitted(limits.build_policy().wish());
    if wish.throttle != Throttle::Never && !able.throttle.is_usable() {
        limits.consents.throttle_percent = None;
        wish.throttle = Throttle::Never;
        history.warn(
            "no-throttle",
            "the source's QEMU cannot slow its guest down as far as is needed: it goes without",
            Some("QEMU has all that it takes from 5.0 on"),
        );
    }
    (limits, wish, able.for_plan(wish, limits.max_bandwidth))
}

/// A destination that listens.
struct Prepared {
    uri: String,
    /// How the source was found.
    found: Settings,
    agreement: Agreement,
}

/// Gives the destination what was plugged into the source, holds it against that, and makes it listen. With consent
/// differences are told, and stop nothing.
async fn prepare_destination(
    plan: &Plan,
    source: &Source,
    held: &Held,
    history: &mut History,
) -> Result<Prepared, Unready> {
    // A destination of the user's has been told to `stop`: without `cont` it would not run a guest that comes.
    let blamed = |blockers: Vec<Blocker>| blockers.into_iter().map(|blocker| held.blame(blocker)).collect();
    let refused = |blockers| Unready { originals: None, blockers: blamed(blockers) };
    if held.started_by == StartedBy::Engine {
        let repeated = step::repeat::repeat(&held.client, &source.repetitions).await;
        repeated.map_err(|blocker| refused(vec![blocker]))?;
    }
    let differences = step::compare::compare(&source.client, &held.client).await;
    let differences = differences.map_err(|error| refused(vec![error.into()]))?;
    if matches!(plan.destination, plan::Destination::Start { made_from: MadeFrom::Source, .. }) {
        let others = step::compare::images(&source.client, &held.client, &plan.maps).await;
        let others = others.map_err(|error| refused(vec![error.into()]))?;
        if !others.is_empty() {
            return Err(refused([differences, others].concat()));
        }
    }
    if plan.risks == Risks::Refuse && !differences.is_empty() {
        return Err(refused(differences));
    }
    for accepted in differences {
        history.warn(accepted.code.word(), accepted.message, None);
    }
    if held.started_by == StartedBy::Engine {
        let (from, to) = ((&source.client, source.view.pid), (&held.client, held.process.pid()));
        let pinned = step::pin::pin(from, to).await.map_err(|error| refused(vec![error.into()]))?;
        if let Some(warning) = pinned {
            history.add(Entry::Warning(warning));
        }
    }
    let listen = async {
        let found = prepare::settings(&source.client).await?;
        let socket = destination::stream_socket(plan);
        let twin = match (held.started_by, &source.rewritten) {
            (StartedBy::Engine, Some(rewritten)) => {
                prepare::only_these_are_shared(&source.client, &rewritten.in_place).await?;
                Twin::OfTheEngine(rewritten.memory())
            }
            (StartedBy::Engine, None) => Twin::OfTheEngine(Memory::Sent),
            (StartedBy::User, _) => Twin::OfTheUser,
        };
        let prepared = prepare::destination(&held.client, &socket, &found, twin).await;
        let (uri, agreement) = prepared?;
        Ok(Prepared { uri, found, agreement })
    };
    listen.await.map_err(|error: PrepareError| refused(vec![error.into()]))
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
