//! Looks at the source, and at all that stands in the way.

use std::time::Duration;

use crate::check::{Blocker, Intent, blockers};
use crate::host::{ProcessHandle, ProcessView};
use crate::migrate::plan::{LostWrites, Mode, Plan};
use crate::qemu::argv::CommandLine;
use crate::qemu::{Inventory, Located, locate};
use crate::qmp::{Address, Client, Deadlines, Events, Leg};

/// A monitor that is free greets at once; people wait this long for one that is not.
pub const GREETING_WITHIN: Duration = Duration::from_secs(3);

/// The source, known and spoken to.
#[derive(Debug)]
pub struct Source {
    /// Where its monitor is.
    pub address: Address,
    /// The connection.
    pub client: Client,
    /// All its events since it was connected to.
    pub events: Events,
    /// What it is.
    pub inventory: Inventory,
    /// How it was started.
    pub view: ProcessView,
    /// Its command line.
    pub line: CommandLine,
    /// A hold on its process.
    pub process: ProcessHandle,
}

/// Finds the source and everything that stands in the way of moving it. Changes nothing.
pub async fn survey(plan: &Plan) -> Result<Source, Vec<Blocker>> {
    let one = |blocker| vec![blocker];
    let deadlines = Deadlines { connect: GREETING_WITHIN };
    let located = locate(&plan.source, Leg::Source, deadlines).await.map_err(|error| one(error.into()))?;
    let Located { address, client, process } = located;
    let events = client.events();
    let inventory = Inventory::take(&client).await.map_err(|error| one(error.into()))?;
    let found = blockers(&inventory, intent(plan));
    if !found.is_empty() {
        return Err(found);
    }
    let Some((view, line)) = process else {
        return Err(one(Blocker::new(
            "no-process",
            format!("the process behind {address} cannot be told from its address"),
            "name the process: qmigrate migrate pid:PID",
        )));
    };
    let process = ProcessHandle::open(view.pid).map_err(|error| {
        one(Blocker::bare("process", format!("process {} cannot be watched: {error}", view.pid)))
    })?;
    Ok(Source { address, client, events, inventory, view, line, process })
}

fn intent(plan: &Plan) -> Intent {
    match (plan.mode, plan.lost_writes) {
        (Mode::NonLive, _) => Intent::NonLive,
        (Mode::Live, LostWrites::Refuse) => Intent::Live,
        (Mode::Live, LostWrites::Accept) => Intent::LiveUnsafe,
    }
}
