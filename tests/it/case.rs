//! One migration that is not to succeed, held somewhere on its way, and what must be true after it.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use qapi_qmp as words;
use qmigrate::guest::Accelerator;
use qmigrate::lab::subject::{Board, SECOND_MONITOR};
use qmigrate::qmp::words::commands::{CapabilityState, MigrateSetCapabilities};
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus};
use qmigrate::qmp::{Client, Deadlines, Leg};
use qmigrate::record::MigrationId;
use serde_json::Value;

use crate::audit::Audit;
use crate::lab::{
    Ended, Held, Lab, SOON, is_signal_pending, lives, settings, signal, until, until_it_has_read_all,
};
use crate::support;

/// A migration on its way, and how all was before it.
pub(crate) struct Case {
    pub(crate) lab: Lab,
    pub(crate) migration: MigrationId,
    pub(crate) somebody: Client,
    pub(crate) engine: Held,
    audit: Audit,
    before: (Value, Value),
}

impl Case {
    pub(crate) async fn begin(test: &str, phase: &str, arguments: &[&str]) -> Option<Self> {
        let lab = Lab::start(test, 16, Some("4MiB/s")).await?;
        Some(Self::of(lab, phase, arguments).await)
    }

    pub(crate) async fn of(lab: Lab, phase: &str, arguments: &[&str]) -> Self {
        let (migration, somebody) = (MigrationId::new(), lab.somebody().await);
        let (before, audit) = (settings(&somebody).await, Audit::before(lab.directory.path()));
        let mut all = vec!["--detached", migration.as_str()];
        all.extend(arguments);
        let engine = lab.migrate_held(phase, &all);
        Self { lab, migration, somebody, engine, audit, before }
    }

    async fn info(&self) -> MigrationInfo {
        self.somebody.call_as(&words::query_migrate {}, SOON).await.unwrap()
    }

    pub(crate) async fn status(&self) -> MigrationStatus {
        self.info().await.status.unwrap_or(MigrationStatus::None)
    }

    pub(crate) async fn until(&self, status: MigrationStatus) {
        until(&format!("the status is {status}"), async || {
            let now = self.status().await;
            assert!(
                now == status || now != MigrationStatus::Completed,
                "it has ended before it was {status}"
            );
            now == status
        })
        .await;
    }

    /// Waits until a good part of the guest has been sent.
    pub(crate) async fn until_it_streams(&self) {
        until("the stream runs", async || self.transferred().await > 1 << 20).await;
    }

    pub(crate) async fn transferred(&self) -> u64 {
        self.info().await.ram.map_or(0, |ram| ram.transferred_bytes)
    }

    /// A client on the second monitor of the destination that the engine has started.
    pub(crate) async fn at_destination(&self) -> Client {
        let own = format!(".qmigrate-{}", self.migration);
        let path = self.lab.directory.path().join(own).join(SECOND_MONITOR);
        let address = format!("unix:{}", path.display()).parse().unwrap();
        Client::connect(&address, Leg::Destination, Deadlines::default()).await.unwrap()
    }

    /// A signal to the engine: its way to be told to cancel.
    pub(crate) async fn interrupt_by(&self, by: Signal) {
        let engine = self.engine.child.id().try_into().unwrap();
        signal(engine, by);
        until("the engine has taken the signal", async || !is_signal_pending(engine)).await;
        until_it_has_read_all(engine).await;
    }

    pub(crate) async fn interrupt(&self) {
        self.interrupt_by(Signal::SIGINT).await;
    }

    /// The guest runs on its source, which is as it was found, and nothing is left.
    pub(crate) async fn back(self) -> (Lab, Ended) {
        let Self { lab, migration, audit, before, somebody, engine } = self;
        let ended = tokio::task::spawn_blocking(|| engine.end()).await.unwrap();
        assert_eq!((ended.code, &ended.result()["guest"]), (1, &"running_on_source".into()), "{ended:?}");
        assert_eq!(settings(&somebody).await, before, "{ended:?}");
        let left = audit.left(&migration);
        assert!(left.is_empty(), "{left:?}");
        lab.beats_on(lab.source());
        (lab, ended)
    }

    /// The same, and the next attempt succeeds.
    pub(crate) async fn goes_back(self) {
        arrives_with(&self.back().await.0, &[]).await;
    }

    /// The guest runs on its destination, and the source has gone.
    pub(crate) async fn arrives(self) -> Ended {
        let Self { lab, engine, .. } = self;
        let ended = tokio::task::spawn_blocking(|| engine.end()).await.unwrap();
        has_arrived(&lab, &ended).await;
        ended
    }
}

/// Moves a guest that has stayed where it was, and proves its memory.
pub(crate) async fn arrives_with(lab: &Lab, arguments: &[&str]) -> Ended {
    let ended = lab.migrate(&[&["--max-downtime", "20s"], arguments].concat());
    has_arrived(lab, &ended).await;
    ended
}

async fn has_arrived(lab: &Lab, ended: &Ended) {
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"running_on_destination".into()), "{ended:?}");
    lab.never_two(lab.source(), lab.destination());
    assert!(!lives(lab.source()));
    lab.prove().await;
}

/// A version of QEMU, and how its guest may be moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    pub(crate) name: &'static str,
    /// TCG before 9.0 loses writes of a guest that is moved live.
    pub(crate) mode: &'static [&'static str],
}

pub(crate) const OLDEST: Version = Version { name: "5.2", mode: &["--non-live"] };
pub(crate) const OLD: Version = Version { name: "7.2", mode: &["--non-live"] };
pub(crate) const NEW: Version = Version { name: "10.0", mode: &[] };
pub(crate) const NEWEST: Version = Version { name: "11.1", mode: &[] };
pub(crate) const ALL: [Version; 4] = [OLDEST, OLD, NEW, NEWEST];

impl Version {
    /// Where it is. `None` where it is not to be had.
    pub(crate) fn qemu(self, test: &str) -> Option<PathBuf> {
        support::qemu_version(test, self.name)
    }

    /// A guest on it.
    pub(crate) async fn guest(self, test: &str) -> Option<Lab> {
        Some(self.guest_of(&self.qemu(test)?).await)
    }

    /// A guest on a QEMU of this version.
    pub(crate) async fn guest_of(self, qemu: &Path) -> Lab {
        Lab::start_on(qemu, Board::newest(Accelerator::Tcg), 16, Some("4MiB/s")).await
    }
}

/// Switches capabilities on or off.
pub(crate) async fn set(client: &Client, names: &[&str], state: bool) {
    let capability = |name: &&str| CapabilityState { capability: (*name).to_owned(), state };
    let command = MigrateSetCapabilities { capabilities: names.iter().map(capability).collect() };
    client.call(&command, SOON).await.unwrap();
}

/// The capabilities that are on.
pub(crate) async fn switched_on(client: &Client) -> Vec<String> {
    let all = client.call(&words::query_migrate_capabilities {}, SOON).await.unwrap();
    let is_on = |entry: &&Value| entry["state"] == true;
    let name = |entry: &Value| entry["capability"].as_str().unwrap().to_owned();
    all.as_array().unwrap().iter().filter(is_on).map(name).collect()
}
