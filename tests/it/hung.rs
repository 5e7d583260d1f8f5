//! A QEMU that hangs, wherever it is waited for: a cancel is heard, and the engine comes to an end that it tells truly.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::lab::{Ended, Held, Lab, command, lives, run, signal};

fn interrupt(engine: &Held) {
    signal(engine.child.id().try_into().unwrap(), Signal::SIGINT);
}

/// Nothing has happened to the guest, nothing is left of the attempt, and the next one succeeds.
async fn untouched_and_again(lab: &Lab, ended: &Ended) {
    assert_eq!((ended.code, &ended.result()["guest"]), (1, &"unchanged".into()), "{ended:?}");
    assert!(ended.stderr.contains("cancelled by Ctrl-C; nothing had been moved yet"), "{ended:?}");
    assert_eq!(lab.left_behind(), [] as [PathBuf; 0]);
    lab.beats_on(lab.source());
    let again = lab.migrate(&["--max-downtime", "20s"]);
    assert_eq!(again.code, 0, "{again:?}");
    lab.never_two(lab.source(), lab.destination());
    lab.prove().await;
}

/// A cancel while one of the two hangs as it is asked, once the destination is there.
async fn a_cancel_is_heard_while_one_hangs(name: &str, hangs: impl FnOnce(&Lab) -> i32) {
    let Some(lab) = Lab::start(name, 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("destination", &[]);
    let hold = engine.wait();
    let (destination, hung) = (lab.destination(), hangs(&lab));
    signal(hung, Signal::SIGSTOP);
    interrupt(&engine);
    drop(hold);
    let ended = engine.end();
    assert!(!lives(destination));
    if hung != destination {
        signal(hung, Signal::SIGCONT);
    }
    untouched_and_again(&lab, &ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_heard_while_the_destination_hangs_as_it_is_set_up() {
    a_cancel_is_heard_while_one_hangs("the_destination_hangs_as_it_is_set_up", Lab::destination).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_heard_while_the_source_hangs_as_it_is_looked_at() {
    a_cancel_is_heard_while_one_hangs("the_source_hangs_as_it_is_looked_at", Lab::source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_hangs_for_good_as_it_is_to_send_is_given_up_and_goes_on_later() {
    let Some(lab) = Lab::start("hangs_for_good", 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("prepared", &[]);
    let hold = engine.wait();
    let destination = lab.destination();
    signal(lab.source(), Signal::SIGSTOP);
    interrupt(&engine);
    drop(hold);
    let ended = engine.end();
    let id = ended.lines[0]["id"].as_str().unwrap().to_owned();
    assert_eq!((ended.code, &ended.result()["guest"]), (3, &"unknown".into()), "{ended:?}");
    assert!(
        ended.stderr.contains("Ctrl-C") && ended.stderr.contains("the guest is the source's"),
        "{ended:?}"
    );
    assert!(!lives(destination), "the one that certainly does not run it");
    signal(lab.source(), Signal::SIGCONT);
    lab.beats_on(lab.source());
    let recovered = run(command(&["recover", &id, "--json"]));
    assert_eq!(
        (recovered.code, &recovered.result()["guest"]),
        (1, &"running_on_source".into()),
        "{recovered:?}"
    );
    let again = lab.migrate(&["--max-downtime", "20s"]);
    assert_eq!(again.code, 0, "{again:?}");
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_hangs_for_good_once_the_guest_has_left_is_told_as_what_is_left_to_do() {
    let Some(lab) = Lab::start("hangs_once_the_guest_has_left", 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("arrived", &[]);
    let hold = engine.wait();
    let destination = lab.destination();
    signal(lab.source(), Signal::SIGSTOP);
    drop(hold);
    let ended = engine.end();
    assert_eq!((ended.code, &ended.result()["guest"]), (5, &"running_on_destination".into()), "{ended:?}");
    lab.never_two(lab.source(), destination);
    signal(lab.source(), Signal::SIGKILL);
    let again = run(command(&["migrate", &format!("pid:{destination}"), "--json"]));
    assert_eq!(again.code, 0, "{again:?}");
    lab.prove().await;
}
