//! What a QEMU says of itself.

use std::time::Duration;

use qapi_qmp as words;
use serde_json::Value;

use super::dialect::Dialect;
use crate::qmp::words::{MigrationInfo, MigrationStatus, RunState, StatusInfo};
use crate::qmp::{CallError, Client};
use crate::record::{LimitsBy, Party};

/// A question to a QEMU that is not in a blackout is answered in about a millisecond; one that takes this long is
/// not answered at all.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a QEMU is and does.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// Major and minor version.
    pub version: (u32, u32),
    /// The version in full.
    pub version_text: String,
    /// The guest's name.
    pub name: Option<String>,
    /// Whether KVM runs the guest; else TCG does.
    pub kvm: bool,
    /// The versioned machine type, such as `pc-i440fx-10.0`.
    pub machine: Option<String>,
    /// What the guest's processors do.
    pub state: RunState,
    /// Its migration, if any.
    pub migration: MigrationInfo,
    /// What it can do.
    pub dialect: Dialect,
}

impl Inventory {
    /// Asks it, all at once.
    pub async fn take(client: &Client) -> Result<Self, CallError> {
        let machine = words::qom_get { path: "/machine".to_owned(), property: "type".to_owned() };
        let (name, kvm, machine, status, migration, dialect) = tokio::join!(
            client.call(&words::query_name {}, ANSWER_WITHIN),
            client.call(&words::query_kvm {}, ANSWER_WITHIN),
            client.call(&machine, ANSWER_WITHIN),
            client.call_as::<StatusInfo, _>(&words::query_status {}, ANSWER_WITHIN),
            client.call_as::<MigrationInfo, _>(&words::query_migrate {}, ANSWER_WITHIN),
            Dialect::ask(client),
        );
        let version = &client.greeting().version;
        Ok(Self {
            version: (version.major, version.minor),
            version_text: format!("{}.{}.{}", version.major, version.minor, version.micro),
            name: name?.get("name").and_then(Value::as_str).map(str::to_owned),
            kvm: kvm?.get("enabled").and_then(Value::as_bool).unwrap_or(false),
            // `pc-i440fx-10.0-machine`; a QEMU that does not tell is one whose alias cannot be resolved.
            machine: machine
                .ok()
                .as_ref()
                .and_then(Value::as_str)
                .map(|class| class.strip_suffix("-machine").unwrap_or(class).to_owned()),
            state: status?.status,
            migration: migration?,
            dialect: dialect?,
        })
    }

    /// The status of its migration; `none` where it has none.
    pub fn migration_status(&self) -> MigrationStatus {
        self.migration.status.clone().unwrap_or(MigrationStatus::None)
    }

    /// The part of it that goes into a record.
    pub fn party(&self, pid: Option<i32>, qmp: String, limits_by: LimitsBy) -> Party {
        Party {
            pid,
            qmp,
            qemu_version: self.version_text.clone(),
            name: self.name.clone(),
            accelerator: Some(if self.kvm { "kvm" } else { "tcg" }.to_owned()),
            machine: self.machine.clone(),
            limits_by: Some(limits_by),
        }
    }
}
