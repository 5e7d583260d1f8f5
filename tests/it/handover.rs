//! The hand-over when something goes wrong in it: never two, never none, and a second attempt that works.

use std::time::Duration;

use nix::sys::signal::Signal;
use qapi_qmp as words;
use std::os::unix::net::UnixStream;

use crate::lab::{
    Ended, Lab, SOON, command, kill_for_certain, lives, run, settings, signal, state_of, until,
    until_it_has_read_all,
};

/// The default grace: the budget once more, and 2 s at least.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// How much later than budget and grace the source may run again.
const MARGIN: Duration = Duration::from_secs(1);

/// The guest is on its source and runs, nothing of the destination is left, and the next attempt succeeds.
async fn back_and_again(lab: &Lab, ended: &Ended, destination: i32, budget: Duration) {
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.result()["guest"], "running_on_source", "{ended:?}");
    let source = lab.source();
    let stood = lab.subject.observer.heart(source).unwrap().worst_gap.unwrap().length();
    assert!(
        stood < budget + LEAST_GRACE.max(budget) + MARGIN,
        "the guest stood still for {stood:?}: {ended:?}"
    );
    lab.beats_on(source);
    assert!(!lives(destination), "the destination is gone");
    assert!(
        lab.subject.observer.heart(destination).is_none_or(|heart| heart.beats == 0),
        "it never ran the guest"
    );
    assert_eq!(lab.left_behind(), [] as [std::path::PathBuf; 0]);
    lab.prove().await;

    let again = lab.migrate(&["--max-downtime", "20s"]);
    assert_eq!(again.code, 0, "{again:?}");
    let destination = lab.destination();
    lab.never_two(source, destination);
    lab.prove().await;
}

/// Stops a destination, and waits until what an engine that is held has heard of it is no sign of life any more: it
/// says nothing more, and the engine has read all that it said.
async fn fall_silent(destination: i32, engine: i32) {
    signal(destination, Signal::SIGSTOP);
    until("the destination has stopped", async || state_of(destination) == 'T').await;
    until_it_has_read_all(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_frozen_in_the_final_copy_gives_the_guest_back_within_budget_and_grace() {
    let Some(lab) = Lab::start("frozen_in_the_final_copy", 256, None).await else { return };
    let budget = Duration::from_secs(3);
    let before = settings(&lab.subject.connect().await.unwrap()).await;
    // The final copy of a quarter of a gibibyte takes a few hundred milliseconds, on a busy machine more than a second;
    // the engine is held as it hears of it.
    let mut engine = lab.migrate_held("switchover", &["--max-downtime", "3s"]);
    let hold = engine.wait();
    let destination = lab.destination();
    signal(destination, Signal::SIGSTOP);
    drop(hold);
    let ended = engine.end();
    assert_eq!(settings(&lab.subject.connect().await.unwrap()).await, before, "the source is left as found");
    back_and_again(&lab, &ended, destination, budget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_lost_after_both_completed_gives_the_guest_back_within_budget_and_grace() {
    let Some(lab) = Lab::start("control_lost_after_both_completed", 16, Some("10MiB/s")).await else {
        return;
    };
    let before = settings(&lab.subject.connect().await.unwrap()).await;
    let mut engine = lab.migrate_held("armed", &[]);
    let hold = engine.wait();
    let destination = lab.destination();
    fall_silent(destination, engine.child.id().try_into().unwrap()).await;
    drop(hold);
    let ended = engine.end();
    assert_eq!(settings(&lab.subject.connect().await.unwrap()).await, before, "the source is left as found");
    back_and_again(&lab, &ended, destination, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_killed_after_both_completed_gives_the_guest_back() {
    let Some(lab) = Lab::start("killed_after_both_completed", 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("armed", &[]);
    let hold = engine.wait();
    let destination = lab.destination();
    kill_for_certain(destination).await;
    drop(hold);
    back_and_again(&lab, &engine.end(), destination, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_killed_while_it_is_sent_to_leaves_the_guest_where_it_is() {
    let Some(lab) = Lab::start("killed_while_sent_to", 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("streaming", &["--max-bandwidth", "5MiB/s"]);
    let hold = engine.wait();
    let destination = lab.destination();
    kill_for_certain(destination).await;
    drop(hold);
    back_and_again(&lab, &engine.end(), destination, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_killed_after_both_completed_does_not_take_the_guest_with_it() {
    let Some(lab) = Lab::start("source_killed_after_both_completed", 16, Some("10MiB/s")).await else {
        return;
    };
    let mut engine = lab.migrate_held("armed", &[]);
    let hold = engine.wait();
    let destination = lab.destination();
    kill_for_certain(lab.source()).await;
    drop(hold);
    let ended = engine.end();
    assert_eq!(ended.result()["guest"], "running_on_destination", "{ended:?}");
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.never_two(lab.source(), destination);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_while_memory_is_sent_leaves_the_source_as_it_was() {
    let Some(lab) = Lab::start("ctrl_c_while_sent", 16, Some("10MiB/s")).await else { return };
    let before = settings(&lab.subject.connect().await.unwrap()).await;
    let mut engine = lab.migrate_held("streaming", &["--max-bandwidth", "5MiB/s"]);
    let hold = engine.wait();
    let destination = lab.destination();
    signal(engine.child.id().try_into().unwrap(), Signal::SIGINT);
    drop(hold);
    let ended = engine.end();
    assert!(ended.stderr.contains("Ctrl-C"), "{ended:?}");
    assert_eq!(settings(&lab.subject.connect().await.unwrap()).await, before);
    back_and_again(&lab, &ended, destination, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_after_both_completed_still_gives_the_guest_back() {
    let Some(lab) = Lab::start("sigterm_after_both_completed", 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("armed", &[]);
    let hold = engine.wait();
    let destination = lab.destination();
    // Stopped, so that its silence keeps the engine from `cont` until the signal is heard.
    let engine_process = engine.child.id().try_into().unwrap();
    fall_silent(destination, engine_process).await;
    signal(engine_process, Signal::SIGTERM);
    drop(hold);
    let ended = engine.end();
    assert!(ended.stderr.contains("SIGTERM"), "{ended:?}");
    back_and_again(&lab, &ended, destination, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_after_cont_was_sent_comes_too_late_and_says_so() {
    let Some(lab) = Lab::start("a_cancel_after_cont", 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("committed", &[]);
    let hold = engine.wait();
    let (source, destination) = (lab.source(), lab.destination());
    signal(engine.child.id().try_into().unwrap(), Signal::SIGINT);
    drop(hold);
    let ended = engine.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.never_two(source, destination);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_dies_right_after_it_has_run_the_guest_is_no_success() {
    let Some(lab) = Lab::start("dies_right_after", 16, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("arrived", &[]);
    let hold = engine.wait();
    let destination = lab.destination();
    kill_for_certain(destination).await;
    drop(hold);
    let ended = engine.end();
    assert_eq!((ended.code, &ended.result()["guest"]), (4, &"lost".into()), "{ended:?}");
    assert!(ended.result()["hint"].as_str().unwrap().contains("on its source's monitor"), "{ended:?}");
    assert_eq!(lab.left_behind(), [] as [std::path::PathBuf; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_is_heard_while_somebody_else_has_the_sources_monitor() {
    let Some(lab) = Lab::start("while_somebody_has_the_monitor", 16, Some("10MiB/s")).await else { return };
    let somebody = lab.somebody().await;
    // A budget in which the source is waited for as long as this test may take.
    let slowly = ["--max-bandwidth", "5MiB/s", "--max-downtime", "30s"];
    let mut engine = lab.migrate_held("streaming", &slowly);
    let hold = engine.wait();
    let destination = lab.destination();
    // It waits in line, and is next.
    let next = UnixStream::connect(lab.directory.path().join("qmp")).unwrap();
    let monitor = words::YankInstanceChardev { id: "compat_monitor0".to_owned() };
    let cut = words::yank { instances: vec![words::YankInstance::chardev(monitor)] };
    somebody.send_out_of_band(&cut).within(SOON).await.unwrap();
    signal(engine.child.id().try_into().unwrap(), Signal::SIGINT);
    drop(hold);
    until("the engine goes back", async || {
        let status = run(command(&["status", &lab.monitor(), "--json"]));
        let phases = status.lines.first().and_then(|record| record["phases"].as_array().cloned());
        phases.is_some_and(|phases| phases.last().is_some_and(|phase| phase["phase"] == "retreat"))
    })
    .await;
    drop(next);
    let ended = engine.end();
    assert!(ended.stderr.contains("Ctrl-C"), "{ended:?}");
    back_and_again(&lab, &ended, destination, Duration::from_secs(30)).await;
}
