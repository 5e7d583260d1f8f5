//! Guest memory in a file that both map.

use qapi_qmp as words;
use qmigrate::guest::Accelerator;
use qmigrate::lab::subject::Board;
use qmigrate::qmp::words::commands::{CapabilityState, MigrateSetCapabilities};
use qmigrate::qmp::{Client, Deadlines, Leg};
use serde_json::Value;

use super::*;
use crate::back_and_forth::BackAndForth;
use crate::lab::{Lab, SOON, kill_for_certain, until};

const VERSIONS: [&str; 2] = ["10.0", "11.1"];

/// So much is rewritten, as fast as the guest can.
const WORKING_SET_MEBIBYTES: u64 = 32;

/// A guest whose memory is a file. Its QEMU is a script that adds what the lab knows nothing of.
struct Guest {
    lab: Lab,
    place: tempfile::TempDir,
}

impl Guest {
    async fn start(qemu: &Path) -> Self {
        let place = tempfile::Builder::new().prefix("qmm").tempdir().unwrap();
        let script = place.path().join("qemu-system-x86_64");
        let object = format!(
            "memory-backend-file,id=ram,size={}M,mem-path={},share=on",
            WORKING_SET_MEBIBYTES + 48,
            place.path().join("memory").display()
        );
        let qemu = qemu.canonicalize().unwrap();
        let text = format!("#!/bin/sh\nexec {} \"$@\" -object {object}\n", qemu.display());
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let board = Board { machine: "pc,memory-backend=ram", ..Board::newest(Accelerator::Tcg) };
        let lab = Lab::start_on(&script, board, WORKING_SET_MEBIBYTES, None).await;
        Self { lab, place }
    }

    async fn is_set(&self, capability: &str) -> bool {
        let client = self.lab.somebody().await;
        let found = client.call(&words::query_migrate_capabilities {}, SOON).await.unwrap();
        found
            .as_array()
            .unwrap()
            .iter()
            .any(|entry| entry["capability"] == capability && entry["state"] == true)
    }
}

async fn set(client: &Client, capability: &str) {
    let capabilities = vec![CapabilityState { capability: capability.to_owned(), state: true }];
    client.call(&MigrateSetCapabilities { capabilities }, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_writes_into_the_running_guest_and_a_moved_one_stays_whole() {
    for version in VERSIONS {
        let Some(qemu) = qemu_version("a_copy_writes_into_the_running_guest", version) else { continue };
        let guest = Guest::start(&qemu).await;
        let (_copy, qmp) = guest.lab.by_hand(None, &["-S", "-incoming", "defer"]).await;
        let address = format!("unix:{}", qmp.display()).parse().unwrap();
        let copy = Client::connect(&address, Leg::Destination, Deadlines::default()).await.unwrap();
        let source = guest.lab.somebody().await;
        set(&source, "return-path").await;
        let uri = Some(format!("unix:{}", qmp.with_extension("stream").display()));
        let incoming = words::migrate_incoming { uri: uri.clone(), channels: None, exit_on_error: None };
        copy.call(&incoming, SOON).await.unwrap();
        let migrate = words::migrate { uri, channels: None, detach: None, resume: None };
        source.call(&migrate, SOON).await.unwrap();
        until("the second pass", async || {
            let told: Value = source.call(&words::query_migrate {}, SOON).await.unwrap();
            let passes = told["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
            passes > 3 || told["status"] == "completed"
        })
        .await;
        source.call(&words::migrate_cancel {}, SOON).await.unwrap();
        let client = guest.lab.subject.connect().await.unwrap();
        let proof = guest.lab.subject.verify(&client).await;
        assert!(proof.is_err(), "{version}: the source's memory is whole: {proof:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_that_waits_for_a_guest_writes_nothing_into_memory_that_it_shares() {
    for version in ["5.2", "7.2", "10.0", "11.1"] {
        let Some(qemu) = qemu_version("a_qemu_that_waits_for_a_guest", version) else { continue };
        let guest = Guest::start(&qemu).await;
        let client = guest.lab.subject.connect().await.unwrap();
        client.call(&words::stop {}, SOON).await.unwrap();
        let memory = || std::fs::read(guest.place.path().join("memory")).unwrap();
        let before = memory();
        let (_copy, _) = guest.lab.by_hand(None, &["-S", "-incoming", "defer"]).await;
        assert!(memory() == before, "{version}");
        // One that does not wait boots into it.
        let (_copy, _) = guest.lab.by_hand(None, &[]).await;
        until("the copy boots", async || memory() != before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_in_a_file_stays_in_its_place_and_whole_from_move_to_move() {
    for version in VERSIONS {
        let Some(qemu) = qemu_version("memory_in_a_file_stays_in_its_place", version) else { continue };
        let guest = Guest::start(&qemu).await;
        let monitor = guest.lab.directory.path().join("qmp");
        let moves = BackAndForth::of(&monitor);
        moves
            .run(async |done| {
                guest.lab.never_two(done.source, done.destination);
                guest.lab.prove().await;
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_memory_that_was_added_since_is_not_left_behind() {
    let Some(qemu) = qemu_version("shared_memory_that_was_added_since", "10.0") else { return };
    let guest = Guest::start(&qemu).await;
    let somebody = guest.lab.somebody().await;
    let run = async |command_line: &str| {
        let command_line = command_line.to_owned();
        let line = words::human_monitor_command { command_line, cpu_index: None };
        somebody.call(&line, SOON).await.unwrap();
    };
    run("object_add memory-backend-memfd,id=more,size=1M,share=on").await;
    let refused = guest.lab.migrate(&[]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("'more', which was added since"), "{refused:?}");
    run("object_del more").await;
    assert_eq!(guest.lab.migrate(&[]).code, 0);
    guest.lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_whose_memory_stayed_in_its_place_goes_on_where_it_was_after_a_failure() {
    for version in VERSIONS {
        let Some(qemu) = qemu_version("a_guest_whose_memory_stayed", version) else { continue };
        for moment in ["prepared", "streaming", "switchover", "armed"] {
            let guest = Guest::start(&qemu).await;
            let source = guest.lab.source();
            let mut engine = guest.lab.migrate_held(moment, &[]);
            let hold = engine.wait();
            kill_for_certain(guest.lab.destination()).await;
            drop(hold);
            let ended = engine.end();
            assert!(matches!(ended.code, 1 | 2), "{version}, {moment}: {ended:?}");
            guest.lab.beats_on(source);
            guest.lab.prove().await;
            assert!(!guest.is_set("x-ignore-shared").await, "{version}, {moment}");
            assert_eq!(guest.lab.migrate(&[]).code, 0, "{version}, {moment}");
            guest.lab.prove().await;
        }
    }
}
