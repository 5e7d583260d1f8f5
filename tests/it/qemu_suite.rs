//! Cases of QEMU's own migration tests, with this engine as the driver; named as there (`/migration/...`).

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use qapi_qmp as words;
use qmigrate::qmp::Client;
use qmigrate::qmp::words::MigrationStatus;

use crate::case::{Case, NEW, NEWEST, set, switched_on};
use crate::lab::{SOON, kill_for_certain, signal};

/// Cases about capabilities: what somebody has set on the source, and what both sides must have.
mod capabilities;
/// A destination with another `-uuid`.
mod uuid;

/// Cancels a migration that is held at a phase with its source in a status, and moves the guest once more.
async fn cancelled_at(test: &str, phase: &str, status: MigrationStatus, arguments: &[&str]) {
    let Some(mut case) = Case::begin(test, phase, arguments).await else { return };
    let hold = case.engine.wait();
    case.until(status).await;
    case.interrupt().await;
    drop(hold);
    case.goes_back().await;
}

/// A rate at which the guest takes eight seconds: none of it is moved to its end.
const SLOW: [&str; 2] = ["--max-bandwidth", "2MiB/s"];

mod precopy {
    mod tcp {
        mod plain {
            use super::super::super::*;

            /// On where both know it: a destination that the engine prepares, and one that listens with it.
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn switchover_ack() {
                const NAME: &str = "switchover-ack";
                const ACK: &str = "migration.x-switchover-ack=on";
                let has_it =
                    async |client: &Client| switched_on(client).await.iter().any(|name| name == NAME);
                for version in [NEW, NEWEST] {
                    let Some(lab) = version.guest(NAME).await else { continue };
                    let listens = ["-incoming", "tcp:127.0.0.1:0"];
                    let with_ack = ["-global", "migration.x-return-path=on", "-global", ACK];
                    let (_process, qmp) = lab.by_hand(None, &[&listens[..], &with_ack].concat()).await;
                    let arguments = ["--destination-qmp", qmp.to_str().unwrap()];
                    let mut engine = lab.migrate_held("prepared", &arguments);
                    let hold = engine.wait();
                    assert!(has_it(&lab.somebody().await).await, "{version:?}");
                    drop(hold);
                    let ended = engine.end();
                    assert_eq!(ended.code, 0, "{version:?}: {ended:?}");
                    lab.never_two(lab.source(), lab.destination());

                    let Some(lab) = version.guest(NAME).await else { continue };
                    let mut case = Case::of(lab, "prepared", &[]).await;
                    let hold = case.engine.wait();
                    assert!(has_it(&case.somebody).await, "{version:?}");
                    assert!(has_it(&case.at_destination().await).await, "{version:?}");
                    drop(hold);
                    case.arrives().await;
                }
            }
        }
    }

    mod unix {
        mod cancel {
            mod src {
                mod after {
                    use super::super::super::super::super::*;

                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn none() {
                        cancelled_at("cancel after none", "prepared", MigrationStatus::None, &[]).await;
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
                        cancelled_at("cancel after active", "streaming", MigrationStatus::Active, &SLOW)
                            .await;
                    }

                    /// The engine switches that stop off; somebody else may switch it on behind its back.
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn pre_switchover() {
                        const TEST: &str = "cancel after pre-switchover";
                        let Some(mut case) = Case::begin(TEST, "prepared", &[]).await else { return };
                        let hold = case.engine.wait();
                        set(&case.somebody, &["pause-before-switchover"], true).await;
                        drop(hold);
                        case.until(MigrationStatus::PreSwitchover).await;
                        case.interrupt().await;
                        case.goes_back().await;
                    }

                    /// Both have completed, and `cont` has not been sent: the guest goes back.
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn completed() {
                        cancelled_at("cancel after completed", "armed", MigrationStatus::Completed, &[])
                            .await;
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
                        // A cancel that comes as the stream begins is told by QEMU 10.0 as a failure.
                        case.until_it_streams().await;
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
