//! A destination that the user has started, as it is found.

use std::time::Duration;

use crate::check::{Blocker, Code};
use crate::host::ProcessView;
use crate::qemu::{Inventory, QemuName, locate};
use crate::qmp::words::{MigrationStatus, RunState};
use crate::qmp::{Address, Client, Deadlines, Leg};

/// A monitor that is free greets at once; people wait this long for one that is not.
pub const GREETING_WITHIN: Duration = Duration::from_secs(3);

/// A destination that the user started, found waiting and not touched yet.
#[derive(Debug)]
pub struct Waiting {
    pub(super) address: Address,
    pub(super) client: Client,
    /// What it is.
    pub inventory: Inventory,
    pub(super) view: ProcessView,
}

/// Finds a destination that the user started; changes nothing.
pub async fn find(name: &QemuName) -> Result<Waiting, Blocker> {
    let located = locate(name, Leg::Destination, Deadlines { connect: GREETING_WITHIN }).await?;
    let client = located.client;
    let inventory = Inventory::take(&client).await?;
    let waits = inventory.state == RunState::InMigrate;
    let is_fresh = matches!(inventory.migration_status(), MigrationStatus::None | MigrationStatus::Setup);
    if !waits || !is_fresh {
        return Err(Blocker::new(
            Code::NotWaiting,
            format!(
                "the QEMU at {} does not wait for a guest (state '{}', migration '{}')",
                located.address,
                inventory.state,
                inventory.migration_status()
            ),
            "start it with the source's command line and -incoming defer",
        ));
    }
    let Some((view, _)) = located.process else {
        return Err(Blocker::new(
            Code::NoProcess,
            format!("the process behind {} cannot be told from its address", located.address),
            "name the process: --destination-qmp pid:PID",
        ));
    };
    Ok(Waiting { address: located.address, client, inventory, view })
}
