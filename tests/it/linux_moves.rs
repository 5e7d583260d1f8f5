//! A Linux guest moved by the built command: its memory is its own witness.

use std::path::Path;

use qmigrate::host::listening_process;

use crate::back_and_forth::BackAndForth;
use crate::lab::{Ended, command, run};
use crate::linux_guest::{LinuxGuest, Loss};
use crate::support::qemu_version;

/// At this speed memory is sent in several passes, which is how 7.2 loses what a guest writes meanwhile.
const IN_SEVERAL_PASSES: [&str; 2] = ["--max-bandwidth", "128MiB/s"];

fn migrate(monitor: &Path, arguments: &[&str]) -> Ended {
    run(command(&[&["migrate", monitor.to_str().unwrap(), "--json"], arguments].concat()))
}

/// Moved in a row, with the guest's own word after each move; in the end it has checked all of its memory once more.
async fn is_moved_live_in_a_row(test: &str, version: &str) {
    let Some(qemu) = qemu_version(test, version) else { return };
    let Some(guest) = LinuxGuest::start(test, &qemu, 48, 48) else { return };
    let mut last = guest.source();
    guest.proves_itself(last, 1);
    BackAndForth::of(&guest.monitor())
        .with(&IN_SEVERAL_PASSES)
        .run(async |done| {
            guest.proves_itself(done.destination, 1);
            last = done.destination;
        })
        .await;
    guest.proves_itself(last, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linux_guest_is_moved_live_ten_times_in_a_row_on_10_0() {
    is_moved_live_in_a_row("a_linux_guest_is_moved_live_ten_times_in_a_row_on_10_0", "10.0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linux_guest_is_moved_live_ten_times_in_a_row_on_11_1() {
    is_moved_live_in_a_row("a_linux_guest_is_moved_live_ten_times_in_a_row_on_11_1", "11.1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_writes_on_7_2_is_real_and_is_seen() {
    let test = "the_loss_of_writes_on_7_2_is_real_and_is_seen";
    let Some(qemu) = qemu_version(test, "7.2") else { return };
    let Some(guest) = LinuxGuest::start(test, &qemu, 96, 50) else { return };
    let monitor = guest.monitor();
    let migrate = |arguments: &[&str]| migrate(&monitor, arguments);

    let refused = migrate(&[]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("loses writes of the guest in a live migration"), "{refused:?}");
    assert!(refused.stderr.contains("hint: --non-live moves it safely"), "{refused:?}");
    guest.proves_itself(guest.source(), 1);

    let stopped_first = BackAndForth::of(&monitor).with(&["--non-live"]).times(2);
    stopped_first.run(async |done| guest.proves_itself(done.destination, 2)).await;

    // Nearly each guest has lost writes at its first move.
    let loss = (1..=10).find_map(|number| {
        let ended = migrate(&[&["--unsafe"], &IN_SEVERAL_PASSES[..]].concat());
        // QEMU has moved all that it knew of, and does not see a guest's panic.
        assert_eq!(ended.code, 0, "move {number}: {ended:?}");
        assert_eq!(ended.entries("warning")[0]["code"], "tcg-loses-writes", "{ended:?}");
        let loss = guest.loses(listening_process(&monitor).unwrap(), 2);
        eprintln!("move {number}: {loss:?}");
        loss
    });
    assert!(loss.is_some(), "{}", guest.story());
}

/// Two nodes of which the second is the processor's: what the guest writes there QEMU does not keep track of.
const NODES: [&str; 10] = [
    "-object",
    "memory-backend-ram,id=first,size=96M",
    "-object",
    "memory-backend-ram,id=second,size=96M",
    "-numa",
    "node,nodeid=0,memdev=first",
    "-numa",
    "node,nodeid=1,memdev=second",
    "-numa",
    "cpu,node-id=1,socket-id=0",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_writes_to_a_second_memory_is_real_and_is_seen() {
    let test = "the_loss_of_writes_to_a_second_memory_is_real_and_is_seen";
    for version in ["10.0", "11.1"] {
        let Some(qemu) = qemu_version(test, version) else { continue };
        let Some(guest) = LinuxGuest::start_with(test, &qemu, (60, 50), &NODES) else { return };
        let monitor = guest.monitor();
        let migrate = |arguments: &[&str]| migrate(&monitor, arguments);
        let refused = migrate(&[]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains("loses writes of the guest to its memory \"second\""), "{refused:?}");
        BackAndForth::of(&monitor)
            .with(&["--non-live"])
            .times(2)
            .run(async |done| guest.proves_itself(done.destination, 2))
            .await;
        // Each guest that was tried has lost writes at its first move.
        let loss = (1..=10).find_map(|number| {
            let ended = migrate(&[&["--unsafe"], &IN_SEVERAL_PASSES[..]].concat());
            assert_eq!(ended.code, 0, "move {number}: {ended:?}");
            let loss = guest.loses(listening_process(&monitor).unwrap(), 2);
            eprintln!("{version}, move {number}: {loss:?}");
            loss
        });
        assert!(loss.is_some(), "{}", guest.story());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_that_changes_in_a_linux_guests_memory_is_found() {
    let test = "a_word_that_changes_in_a_linux_guests_memory_is_found";
    let Some(qemu) = qemu_version(test, "10.0") else { return };
    let Some(guest) = LinuxGuest::start(test, &qemu, 48, 48) else { return };
    guest.proves_itself(guest.source(), 1);
    guest.spoil(100);
    let Some(Loss::Said(finding)) = guest.loses(guest.source(), 2) else {
        panic!("nothing was found: {}", guest.story())
    };
    assert!(finding.starts_with("LOST page ") && finding.contains(" word 100 "), "{finding}");
}
