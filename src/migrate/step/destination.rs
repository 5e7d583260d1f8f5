//! Starts the destination, or takes the one that the user started.

use std::path::PathBuf;

use qapi_qmp as words;

use super::survey::Source;
use super::tap::NewTap;
use super::waiting::Waiting;
use super::{standing, tap};
use crate::check::{Blocker, Code};
use crate::host::{PrivateDirectory, ProcessHandle, ProcessView};
use crate::migrate::journal::{self, Journal, Running, Step};
use crate::migrate::plan::{Plan, StartedBy};
use crate::qemu::dialect::Wish;
use crate::qemu::rewrite::Rename;
use crate::qemu::{ANSWER_WITHIN, Inventory, twin};
use crate::qmp::{Address, Client, Events};
use crate::record::{LimitsBy, Moved, Warning};

/// Where the destination's own output goes, in the migration's directory.
const LOG: &str = "destination.log";
/// The socket of the stream, in the migration's directory.
const STREAM: &str = "stream";

/// What a destination of the user's needs that has been told to wait for a stream: QEMU takes that once.
pub const START_ANEW: &str =
    "the destination that you started has been changed: start it anew before the next attempt";

/// A destination that is there and held.
#[derive(Debug)]
pub struct Held {
    /// Where its monitor is.
    pub address: Address,
    /// The connection.
    pub client: Client,
    /// Its events since it was connected to.
    pub events: Events,
    /// What it is.
    pub inventory: Inventory,
    /// How it is told its limits: as its source, if it can be.
    pub limits_by: LimitsBy,
    /// Its process.
    pub process: ProcessHandle,
    /// What was made for it.
    pub directories: Vec<PrivateDirectory>,
    /// What takes over the source's names at the end.
    pub renames: Vec<Rename>,
    /// What has another name for good.
    pub moved: Vec<Moved>,
    /// Where it writes what it has to say, if the engine started it.
    pub log: Option<PathBuf>,
    /// The taps that were made for it.
    pub taps: Vec<NewTap>,
    /// Who started it.
    pub started_by: StartedBy,
}

/// Gets a destination that waits, held. When `abort` comes true first, nothing of it is left.
pub async fn get(
    plan: &Plan,
    source: &Source,
    journal: &mut Journal,
    abort: impl Future<Output = ()>,
) -> Result<(Held, Vec<Warning>), Blocker> {
    if let Some(waiting) = &source.waiting {
        return Ok((started(waiting, plan.dialect, journal).await?, Vec::new()));
    }
    let Some(rewritten) = source.rewritten.clone() else {
        return Err(Blocker::bare(Code::Destination, "there is no destination in this plan"));
    };
    let log = plan.directory.join(LOG);
    let address = Address::unix(rewritten.qmp.clone())
        .map_err(|error| Blocker::bare(Code::Destination, error.to_string()))?;
    journal.write(&Step::Destination(Box::new(journal::Destination {
        address: address.clone(),
        started_by: StartedBy::Engine,
        directories: rewritten.directories.clone(),
        renames: rewritten.renames.clone(),
        moved: rewritten.moved.clone(),
        log: Some(log.clone()),
        taps: source.taps.iter().map(|planned| planned.tap.clone()).collect(),
    })))?;
    let taps = tap::make(&source.taps, &source.view)?;
    let started = twin::start(
        &rewritten,
        &source.view,
        source.standing.as_ref().map(|wanted| &wanted.standing),
        log,
        abort,
    )
    .await;
    let twin = started.inspect_err(|_| tap::remove(&taps))?;
    let twin::Twin { client, process, directories, log } = twin;
    let events = client.events();
    let held = async {
        let inventory = Inventory::take(&client).await?;
        let limits_by = inventory.dialect.limits_by_or_else(plan.dialect)?;
        let running = Running::of(&process, &ProcessView::read(process.pid())?);
        journal.write(&Step::Started { running, limits_by })?;
        let warning = match &source.standing {
            Some(wanted) => standing::warning(wanted, process.pid())?,
            None => None,
        };
        Ok::<_, Blocker>((inventory, limits_by, warning))
    };
    match held.await {
        Ok((inventory, limits_by, warning)) => {
            let held = Held {
                address,
                client,
                events,
                inventory,
                limits_by,
                process,
                directories,
                renames: rewritten.renames,
                moved: rewritten.moved,
                log: Some(log),
                started_by: StartedBy::Engine,
                taps,
            };
            let warnings = rewritten.warnings.into_iter().chain(warning).chain(tap::warnings(&held.taps));
            Ok((held, warnings.collect()))
        }
        Err(blocker) => {
            end(&process).await;
            twin::remove(&directories);
            tap::remove(&taps);
            Err(blocker)
        }
    }
}

/// Takes a destination that the user started, and holds it: `stop` while it waits equals `-S`.
async fn started(waiting: &Waiting, wish: Wish, journal: &mut Journal) -> Result<Held, Blocker> {
    let Waiting { address, client, inventory, view } = waiting;
    let limits_by = inventory.dialect.limits_by_or_else(wish)?;
    let events = client.events();
    let process = ProcessHandle::open(view.pid).map_err(|error| {
        Blocker::bare(Code::Process, format!("process {} cannot be watched: {error}", view.pid))
    })?;
    journal.write(&Step::Destination(Box::new(journal::Destination {
        address: address.clone(),
        started_by: StartedBy::User,
        directories: Vec::new(),
        renames: Vec::new(),
        moved: Vec::new(),
        log: None,
        taps: Vec::new(),
    })))?;
    journal.write(&Step::Started { running: Running::of(&process, view), limits_by })?;
    client.call(&words::stop {}, ANSWER_WITHIN).await?;
    Ok(Held {
        address: address.clone(),
        client: client.clone(),
        events,
        inventory: inventory.clone(),
        limits_by,
        process,
        directories: Vec::new(),
        renames: Vec::new(),
        moved: Vec::new(),
        log: None,
        taps: Vec::new(),
        started_by: StartedBy::User,
    })
}

/// Where the stream's socket is.
pub fn stream_socket(plan: &Plan) -> PathBuf {
    plan.directory.join(STREAM)
}

/// Ends a destination for certain.
pub async fn end(process: &ProcessHandle) {
    if let Err(error) = process.kill() {
        tracing::warn!(%error, "the destination cannot be ended");
    }
    process.ended_within(ANSWER_WITHIN).await;
}

impl Held {
    /// Ends it for certain, if the engine started it, and removes what was made for it.
    pub async fn clear(&self) {
        if self.started_by == StartedBy::Engine {
            end(&self.process).await;
        }
        twin::remove(&self.directories);
        tap::remove(&self.taps);
    }

    /// Adds to a blocker what it means for a destination of the user's, which has been told to wait.
    pub fn blame(&self, mut blocker: Blocker) -> Blocker {
        if self.started_by == StartedBy::User {
            blocker.hint = Some(
                blocker.hint.map_or_else(|| START_ANEW.to_owned(), |old| format!("{old}\n{START_ANEW}")),
            );
        }
        blocker
    }
}
