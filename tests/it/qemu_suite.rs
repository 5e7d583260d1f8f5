//! Cases of QEMU's own migration tests, with this engine as the driver; named as there (`/migration/...`).

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use qapi_qmp as words;
use qmigrate::qmp::Client;
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus};
use qmigrate::record::MigrationId;
use serde_json::Value;

use crate::audit::Audit;
use crate::lab::{Ended, Held, Lab, SOON, kill_for_certain, lives, settings, signal, until};

/// A migration that is to be cancelled, held somewhere on its way.
struct Case {
    lab: Lab,
    migration: MigrationId,
    audit: Audit,
    before: (Value, Value),
    somebody: Client,
    engine: Held,
}

impl Case {
    async fn begin(test: &str, phase: &str, arguments: &[&str]) -> Option<Self> {
        let lab = Lab::start(test, 16, Some("4MiB/s")).await?;
        Some(Self::of(lab, phase, arguments).await)
    }

    async fn of(lab: Lab, phase: &str, arguments: &[&str]) -> Self {
        let (migration, somebody) = (MigrationId::new(), lab.somebody().await);
        let (before, audit) = (settings(&somebody).await, Audit::before(lab.directory.path()));
        let mut all = vec!["--detached", migration.as_str()];
        all.extend(arguments);
        let engine = lab.migrate_held(phase, &all);
        Self { lab, migration, audit, before, somebody, engine }
    }

    async fn status(&self) -> MigrationStatus {
        let info: MigrationInfo = self.somebody.call_as(&words::query_migrate {}, SOON).await.unwrap();
        info.status.unwrap_or(MigrationStatus::None)
    }

    async fn until(&self, status: MigrationStatus) {
        until(&format!("the status is {status}"), async || {
            let now = self.status().await;
            assert_ne!(now, MigrationStatus::Completed, "it has ended before it was {status}");
            now == status
        })
        .await;
    }

    /// SIGINT to the engine: its way to be told to cancel.
    async fn interrupt(&self) {
        signal(self.engine.child.id().try_into().unwrap(), Signal::SIGINT);
        // Until it has been taken in, and what was heard of the destination last is no sign of life any more.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// The guest runs on its source, which is as it was found, and nothing is left.
    async fn back(self) -> Lab {
        let Self { lab, migration, audit, before, somebody, engine } = self;
        let ended = engine.end();
        assert_eq!((ended.code, &ended.result()["guest"]), (1, &"running_on_source".into()), "{ended:?}");
        assert_eq!(settings(&somebody).await, before, "{ended:?}");
        let left = audit.left(&migration);
        assert!(left.is_empty(), "{left:?}");
        lab.beats_on(lab.source());
        lab
    }

    /// The same, and the next attempt succeeds.
    async fn goes_back(self) {
        again(&self.back().await).await;
    }

    /// The guest runs on its destination, and the source has gone.
    async fn arrives(self) -> Ended {
        let Self { lab, engine, .. } = self;
        let ended = engine.end();
        assert_eq!(
            (ended.code, &ended.result()["guest"]),
            (0, &"running_on_destination".into()),
            "{ended:?}"
        );
        lab.never_two(lab.source(), lab.destination());
        assert!(!lives(lab.source()));
        lab.prove().await;
        ended
    }
}

/// Moves a guest that has stayed where it was, and proves its memory.
async fn again(lab: &Lab) {
    let ended = lab.migrate(&["--max-downtime", "20s"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.never_two(lab.source(), lab.destination());
    lab.prove().await;
}

/// Whether a source is to wait for somebody's word before it switches.
async fn pause_before_switchover(client: &Client, state: bool) {
    let capability = words::MigrationCapability::pause_before_switchover;
    let capabilities = vec![words::MigrationCapabilityStatus { capability, state }];
    client.call(&words::migrate_set_capabilities { capabilities }, SOON).await.unwrap();
}

/// A rate at which the guest takes eight seconds: none of it is moved to its end.
const SLOW: [&str; 2] = ["--max-bandwidth", "2MiB/s"];

mod precopy {
    mod unix {
        mod cancel {
            mod src {
                mod after {
                    use super::super::super::super::super::*;

                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn none() {
                        let Some(mut case) = Case::begin("cancel after none", "prepared", &[]).await else {
                            return;
                        };
                        let hold = case.engine.wait();
                        assert_eq!(case.status().await, MigrationStatus::None);
                        case.interrupt().await;
                        drop(hold);
                        case.goes_back().await;
                    }

                    /// Over TCP: a connection that nobody accepts leaves the source in setup for minutes.
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn setup() {
                        let arguments = ["--incoming", "tcp:127.0.0.1:0"];
                        let Some(mut case) = Case::begin("cancel after setup", "prepared", &arguments).await
                        else {
                            return;
                        };
                        let hold = case.engine.wait();
                        let destination = case.lab.destination();
                        let queue = fill_queue(destination);
                        drop(hold);
                        case.until(MigrationStatus::Setup).await;
                        case.interrupt().await;
                        case.goes_back().await;
                        drop(queue);
                    }

                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn active() {
                        let Some(mut case) = Case::begin("cancel after active", "streaming", &SLOW).await
                        else {
                            return;
                        };
                        let hold = case.engine.wait();
                        case.until(MigrationStatus::Active).await;
                        case.interrupt().await;
                        drop(hold);
                        case.goes_back().await;
                    }

                    /// The engine does not ask for that stop; somebody else may have.
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn pre_switchover() {
                        const TEST: &str = "cancel after pre-switchover";
                        let Some(lab) = Lab::start(TEST, 16, Some("4MiB/s")).await else { return };
                        pause_before_switchover(&lab.somebody().await, true).await;
                        let mut case = Case::of(lab, "switchover", &[]).await;
                        let hold = case.engine.wait();
                        case.until(MigrationStatus::PreSwitchover).await;
                        case.interrupt().await;
                        drop(hold);
                        let lab = case.back().await;
                        // With that the source would wait for a word again.
                        pause_before_switchover(&lab.somebody().await, false).await;
                        again(&lab).await;
                    }

                    /// Both have completed, and `cont` has not been sent: the guest goes back.
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn completed() {
                        let Some(mut case) = Case::begin("cancel after completed", "armed", &[]).await else {
                            return;
                        };
                        let hold = case.engine.wait();
                        assert_eq!(case.status().await, MigrationStatus::Completed);
                        case.interrupt().await;
                        drop(hold);
                        case.goes_back().await;
                    }

                    /// The guest runs there: the cancel is refused, and all goes on.
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn completed_and_continued() {
                        let Some(mut case) = Case::begin("cancel after completed", "committed", &[]).await
                        else {
                            return;
                        };
                        let hold = case.engine.wait();
                        case.interrupt().await;
                        drop(hold);
                        let ended = case.arrives().await;
                        assert!(ended.stderr.contains("not cancelled: too late"), "{ended:?}");
                    }

                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn failed() {
                        let Some(mut case) = Case::begin("cancel after failed", "streaming", &SLOW).await
                        else {
                            return;
                        };
                        let hold = case.engine.wait();
                        case.until(MigrationStatus::Active).await;
                        kill_for_certain(case.lab.destination()).await;
                        case.until(MigrationStatus::Failed).await;
                        case.interrupt().await;
                        drop(hold);
                        case.goes_back().await;
                    }

                    /// One cancel right behind the other.
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn cancelling() {
                        let Some(mut case) = Case::begin("cancel after cancelling", "streaming", &SLOW).await
                        else {
                            return;
                        };
                        let hold = case.engine.wait();
                        case.until(MigrationStatus::Active).await;
                        let pid = case.engine.child.id().try_into().unwrap();
                        let cancel = case.somebody.send(&words::migrate_cancel {});
                        signal(pid, Signal::SIGINT);
                        drop(hold);
                        cancel.within(SOON).await.unwrap();
                        case.goes_back().await;
                    }

                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn cancelled() {
                        let Some(mut case) = Case::begin("cancel after cancelled", "streaming", &SLOW).await
                        else {
                            return;
                        };
                        let hold = case.engine.wait();
                        case.until(MigrationStatus::Active).await;
                        case.somebody.call(&words::migrate_cancel {}, SOON).await.unwrap();
                        case.until(MigrationStatus::Cancelled).await;
                        case.interrupt().await;
                        drop(hold);
                        case.goes_back().await;
                    }
                }
            }
        }
    }
}

/// Nobody listens where the source is told to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_dest() {
    let Some(mut case) = Case::begin("bad_dest", "prepared", &[]).await else { return };
    let hold = case.engine.wait();
    kill_for_certain(case.lab.destination()).await;
    drop(hold);
    case.goes_back().await;
}

/// Stops a destination that listens on TCP, and connects to it until the kernel takes no more: the next one waits for
/// an answer that does not come.
fn fill_queue(destination: i32) -> Vec<TcpStream> {
    let port = listening_port(destination);
    signal(destination, Signal::SIGSTOP);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        queue.push(stream);
        assert!(queue.len() < 4096, "the queue of a listener has an end");
    }
    queue
}

/// The TCP port on which a process listens, by its descriptors and the kernel's table.
fn listening_port(pid: i32) -> u16 {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let sockets: Vec<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = fields[3] == "0A" && sockets.iter().any(|socket| socket == fields[9]);
        listens.then(|| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
    });
    port.expect("the destination listens")
}
