//! Brings a migration to its end whose engine has ended before it.
//!
//! | the journal's last word | what is done |
//! |---|---|
//! | before `migrate` was about to be sent | undone: the destination is ended, the source's settings go back |
//! | streaming, switchover, both completed | taken up: the stream runs in QEMU, and is decided on as before |
//! | `cont` was about to be sent | finished: the destination is asked, and told to run again if it stands still |
//! | on the way back | gone on with |
//! | arrived, back, lost | what was left to be done is done |
//! | undecided | tried again from the phase before; lost, where the destination was told to run it and has ended |
//!
//! All of it can be done again: a recovery that is itself killed leaves the same journal, and the next one goes on.
//!
//! A journal is input: a process is ended only if number, start, user and executable are those that were written down,
//! or if it is a QEMU of the source's user that has this migration's id on its command line; a directory is removed
//! only if it is called as this migration's are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::driver::Driver;
use super::ending::{Ending, Restored, restore};
use super::engine::{Services, end};
use super::journal::{Destination, Source, Story};
use super::outcome;
use super::phase::{Phase, Rest};
use super::plan::{Limits, StartedBy};
use super::side::{Contact, Side};
use super::step::destination::{START_ANEW, end as end_process};
use super::step::finish::state;
use super::step::tap;
use crate::host::{
    Credentials, PrivateDirectory, ProcError, ProcessHandle, ProcessView, processes, runtime_directory,
};
use crate::qemu::argv::CommandLine;
use crate::qemu::rewrite::private_directory_name;
use crate::qemu::twin;
use crate::qmp::words::RunState;
use crate::qmp::{Address, Client, Deadlines, Leg};
use crate::record::{Entry, LimitsBy, MayRun, Outcome};

/// A source may be in the last copy, in which it greets nobody.
const GREETING_WITHIN: Duration = Duration::from_secs(10);

/// Brings it to its end.
pub async fn recover(story: Story, mut services: Services<'_>) -> Outcome {
    if let Some(outcome) = story.outcome {
        // Its engine ended as it told its end.
        services.history.add(Entry::Result(Box::new(outcome.clone())));
        return outcome;
    }
    let outcome = match story.source.clone() {
        Some(source) => {
            let id = story.begun.id.clone();
            let mended = mend(story, &source, &mut services).await;
            mended.unwrap_or_else(|error| outcome::unseen(&error, &id))
        }
        // The engine ended before it had made anything.
        None => outcome::untouched(),
    };
    end(outcome, services.history, services.journal)
}

/// An error is a process that cannot be looked at: whether it lives is then not guessed at.
async fn mend(story: Story, source: &Source, services: &mut Services<'_>) -> Result<Outcome, ProcError> {
    services.history.add(Entry::Source(source.party.clone()));
    let from = reach(Leg::Source, &source.address, source.running.find()?, source.limits_by).await;
    let Some(phase) = story.last_open_phase() else { return undo(&story, source, from, services).await };
    let parts = (story.started.clone(), story.originals.clone(), story.destination.clone());
    let (Some((running, limits_by)), Some(originals), Some(made)) = parts else {
        return undo(&story, source, from, services).await;
    };
    let to = reach(Leg::Destination, &name_now(&made), running.find()?, limits_by).await;

    // Taken up where it stands, and brought to its end as its own engine would have.
    let Services { history, orders, journal, observed } = services;
    let (mut limits, tuning) = (Limits::of(&story.begun.request), originals.tuning());
    if !tuning.throttle.is_usable() {
        limits.consents.throttle_percent = None;
    }
    let driver = Driver::new((from, to), phase, limits, limits.build_policy(), history, orders, *journal);
    let driver = driver.tuned(tuning);
    let (mut conclusion, from, to) = driver.resume().await;
    if conclusion.phase == Phase::Undecided(MayRun::Destination) && to.process.has_ended() {
        // It may have run there, and nobody will ever know more; unless somebody has run it on its source since.
        conclusion.phase = match state(&from.client).await {
            Ok(RunState::Running | RunState::Suspended) => Phase::Back(Rest::Running),
            _ => Phase::Lost,
        };
    }
    let owner = Credentials::from(&source.owner);
    let ending = Ending {
        source: from,
        destination: to,
        source_after: story.begun.source_after.clone(),
        started_by: made.started_by,
        directory: own_directory(&story, &owner),
        directories: directories(&story, &made, &owner),
        // What has its name already needs no other.
        renames: made.renames.into_iter().filter(|rename| rename.temporary.exists()).collect(),
        owner,
        moved: made.moved,
        log: made.log,
        taps: made.taps,
        originals,
    };
    Ok(ending.conclude(&conclusion, history, *observed).await)
}

/// Takes back what was done before the stream.
async fn undo(
    story: &Story,
    source: &Source,
    mut from: Side,
    services: &mut Services<'_>,
) -> Result<Outcome, ProcError> {
    let owner = Credentials::from(&source.owner);
    for process in started_for(story, &owner)? {
        end_process(&process).await;
    }
    if let Some(made) = &story.destination {
        twin::remove(&directories(story, made, &owner));
        tap::remove(&made.taps);
    }
    twin::remove(&[own_directory(story, &owner)]);
    if from.process.has_ended() {
        return Ok(outcome::undone_without_source());
    }
    let restored = match &story.originals {
        Some(originals) => restore(&mut from, originals, services.history).await,
        None => Restored::Done,
    };
    let is_users = story.destination.as_ref().is_some_and(|made| made.started_by == StartedBy::User);
    let state = state(&from.client).await.ok();
    let outcome = outcome::undone(state.as_ref(), is_users.then_some(START_ANEW));
    Ok(restored.told(outcome, &story.begun.id))
}

/// A side as it was written down; one that has ended, or that cannot be reached, finds out as it is spoken to.
async fn reach(leg: Leg, address: &Address, process: ProcessHandle, limits_by: LimitsBy) -> Side {
    let connected = if process.has_ended() {
        None
    } else {
        Client::connect(address, leg, Deadlines { connect: GREETING_WITHIN }).await.ok()
    };
    let is_it = |client: &Client| client.peer_pid().is_none_or(|peer| peer == process.pid());
    let client = connected.filter(is_it).unwrap_or_else(|| Client::unconnected(leg, process.pid()));
    let events = client.events();
    Side { leg, address: address.clone(), client, events, process, limits_by, contact: Contact::Heard }
}

/// Where the destination's monitor is: at its own name, or at the source's if that was taken over already.
fn name_now(made: &Destination) -> Address {
    let path = made.address.path();
    let taken = made.renames.iter().find(|rename| {
        path == Some(rename.temporary.as_path()) && !rename.temporary.exists() && rename.public.exists()
    });
    taken.and_then(|rename| Address::unix(rename.public.clone()).ok()).unwrap_or_else(|| made.address.clone())
}

/// The processes that were started for this migration: the one written down, or what carries its id.
fn started_for(story: &Story, owner: &Credentials) -> Result<Vec<ProcessHandle>, ProcError> {
    let Some(made) = story.destination.as_ref().filter(|made| made.started_by == StartedBy::Engine) else {
        return Ok(Vec::new());
    };
    if let Some((running, _)) = &story.started {
        return Ok(vec![running.find()?]);
    }
    let places: Vec<&Path> =
        made.directories.iter().map(PathBuf::as_path).chain([story.begun.directory.as_path()]).collect();
    let carries = |view: &ProcessView| {
        let names_it = view.arguments.iter().any(|word| {
            places.iter().any(|place| word.to_string_lossy().contains(&*place.to_string_lossy()))
        });
        names_it
            && view.credentials.user == owner.user
            && CommandLine::of_process(&view.arguments, &view.executable).is_ok()
    };
    let held = |pid: i32| {
        // First the hold, then the look: what is read after it belongs to the process held.
        let process = ProcessHandle::open(pid).ok()?;
        ProcessView::read(pid).is_ok_and(|view| carries(&view)).then_some(process)
    };
    Ok(processes().into_iter().filter_map(held).collect())
}

fn own_directory(story: &Story, owner: &Credentials) -> PrivateDirectory {
    let id = story.begun.id.as_str();
    let written_down = Some(story.begun.directory.clone());
    // Its engine may have had another runtime directory than this one has.
    let own =
        written_down.filter(|path| path.file_name().is_some_and(|name| name == id) && !path.is_symlink());
    let path = own.unwrap_or_else(|| runtime_directory().unwrap_or_default().join(id));
    PrivateDirectory::of_another_engine(path, owner.clone())
}

/// The directories beside the user's own files, of those written down that are called as this migration's are.
fn directories(story: &Story, made: &Destination, owner: &Credentials) -> Vec<PrivateDirectory> {
    let name = private_directory_name(&story.begun.id);
    let is_ours = |path: &&PathBuf| path.file_name().is_some_and(|own| *own == *name) && !path.is_symlink();
    let known = |path: &PathBuf| PrivateDirectory::of_another_engine(path.clone(), owner.clone());
    made.directories.iter().filter(is_ours).map(known).collect()
}
