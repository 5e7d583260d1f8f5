//! What a guest dirties, measured on real QEMUs, and what moving it would take.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use qapi_qmp as words;
use qmigrate::guest::Accelerator;
use qmigrate::lab::subject::Board;
use qmigrate::qemu::dirty_rate::{SampleError, sample};
use serde_json::{Value, json};

use crate::lab::{Ended, Lab, SOON, ended, run, settings, signal, until};
use crate::scripted_peer::{ScriptedPeer, soon};
use crate::support::qemu_version;

const WINDOW: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_dirties_is_measured_on_every_version_and_nothing_is_set() {
    for version in ["5.2", "7.2", "10.0", "11.1"] {
        let Some(qemu) = qemu_version("what_a_guest_dirties_is_measured", version) else { continue };
        let lab = Lab::start_on(&qemu, Board::newest(Accelerator::Tcg), 32, None).await;
        let client = lab.somebody().await;
        let before = settings(&client).await;
        let second = async {
            let ask = words::query_dirty_rate { calc_time_unit: None };
            until("it is measured", async || client.call(&ask, SOON).await.unwrap()["status"] == "measuring")
                .await;
            sample(&client, WINDOW).await
        };
        let (dirtied, refused) = tokio::join!(sample(&client, WINDOW), second);
        assert!(matches!(refused, Err(SampleError::Busy)), "{version}: {refused:?}");
        let mebibytes = dirtied.unwrap_or_else(|error| panic!("{version}: {error}")).bytes / 1_048_576.0;
        // It rewrites all of its 32 MiB within a second; 512 pages of each GiB is all that 5.2 looks at.
        let share = if version == "5.2" { 10.0..60.0 } else { 24.0..42.0 };
        assert!(share.contains(&mebibytes), "{version}: {mebibytes} MiB");
        assert_eq!(settings(&client).await, before, "{version}");
        lab.beats_on(lab.source());
    }
}

#[tokio::test(start_paused = true)]
async fn a_measurement_is_asked_for_in_older_words_until_qemu_knows_them() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let qemu = async {
        let asked = peer.asked().await;
        assert_eq!(asked.name, "query-memory-size-summary");
        peer.answer(&asked, json!({"base-memory": 8_u64 << 30})).await;
        for unknown in ["calc-time-unit", "sample-pages"] {
            let asked = peer.asked().await;
            assert!(asked.arguments.get(unknown).is_some(), "{asked:?}");
            assert_eq!(asked.arguments["sample-pages"], 8192, "{asked:?}");
            peer.refuse(&asked, "GenericError", &format!("Parameter '{unknown}' is unexpected")).await;
        }
        let asked = peer.asked().await;
        assert_eq!(asked.arguments, json!({"calc-time": 1}));
        peer.answer(&asked, json!({})).await;
        for (status, rate) in [("unstarted", None), ("measuring", None), ("measured", Some(7))] {
            let asked = peer.asked().await;
            assert_eq!(asked.name, "query-dirty-rate");
            peer.answer(&asked, json!({"status": status, "dirty-rate": rate, "calc-time": 1})).await;
        }
    };
    let (dirtied, ()) = soon(async { tokio::join!(sample(&client, Duration::from_millis(50)), qemu) }).await;
    let dirtied = dirtied.unwrap();
    assert_eq!(dirtied.length, Duration::from_secs(1));
    assert!((dirtied.bytes - 7.5 * 1_048_576.0).abs() < 1.0, "{dirtied:?}");
}

#[tokio::test(start_paused = true)]
async fn a_measurement_that_cannot_be_had_says_why() {
    for (desc, expected) in [
        ("the dirty rate is already being measured.", "somebody else measures what this guest dirties"),
        ("no", "the source refused calc-dirty-rate: no"),
    ] {
        let (client, mut peer) = ScriptedPeer::connected().await;
        let qemu = async {
            no_memory(&mut peer).await;
            let asked = peer.asked().await;
            peer.refuse(&asked, "GenericError", desc).await;
        };
        let (answer, ()) = soon(async { tokio::join!(sample(&client, WINDOW), qemu) }).await;
        assert_eq!(answer.unwrap_err().to_string(), expected);
    }
    let (client, mut peer) = ScriptedPeer::connected().await;
    let qemu = async {
        no_memory(&mut peer).await;
        let asked = peer.asked().await;
        peer.refuse(&asked, "CommandNotFound", "The command calc-dirty-rate has not been found").await;
    };
    let (unknown, ()) = soon(async { tokio::join!(sample(&client, WINDOW), qemu) }).await;
    assert!(matches!(unknown, Err(SampleError::Unknown)), "{unknown:?}");
    assert!(matches!(sample(&client, Duration::from_millis(49)).await, Err(SampleError::Window)));
}

/// A QEMU that does not say how much memory its guest has.
async fn no_memory(peer: &mut ScriptedPeer) {
    let asked = peer.asked().await;
    peer.refuse(&asked, "GenericError", "no").await;
}

/// Asks what moving this guest would take.
fn estimate(lab: &Lab, arguments: &[&str]) -> Ended {
    let monitor = lab.monitor();
    run(lab.command(&[&["estimate", &monitor, "--json"], arguments].concat()))
}

fn actions(ended: &Ended) -> Vec<&str> {
    ended.entries("prospect").into_iter().map(|one| one["action"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_as_before_once_it_was_estimated() {
    for version in ["7.2", "10.0", "11.1"] {
        let Some(qemu) = qemu_version("a_source_is_as_before_once_it_was_estimated", version) else {
            continue;
        };
        let lab = Lab::start_on(&qemu, Board::newest(Accelerator::Tcg), 16, Some("4MiB/s")).await;
        let before = settings(&lab.somebody().await).await;
        let told = estimate(&lab, &["--link", "1Gbit/s", "--max-downtime", "2s"]);
        assert_eq!(told.code, 0, "{version}: {told:?}");
        assert_eq!(settings(&lab.somebody().await).await, before, "{version}");
        lab.beats_on(lab.source());
        assert_eq!(lab.left_behind(), [] as [PathBuf; 0], "{version}");
        let blockers: Vec<_> = told.entries("blocker").into_iter().map(|one| &one["code"]).collect();
        let first = actions(&told)[0].to_owned();
        if version == "7.2" {
            assert_eq!((&blockers[..], &*first), (&[&json!("tcg-loses-writes")][..], "non_live"), "{told:?}");
        } else {
            assert!(blockers.is_empty() && matches!(&*first, "wait" | "raise"), "{version}: {told:?}");
        }
        let whole = told.entries("estimate")[0];
        assert_eq!((&whole["schema"], &whole["exit_code"]), (&json!(1), &json!(0)), "{version}: {whole}");
        let in_use = whole["in_use_bytes"].as_u64().unwrap();
        assert!((16 << 20..=64 << 20).contains(&in_use), "{version}: {whole}");
        assert!(whole["command"].as_str().unwrap().starts_with("qmigrate migrate "), "{version}: {whole}");
        assert_eq!(told.entries("link")[0]["rests_on"], "said");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_forecast_comes() {
    const TEST: &str = "what_was_forecast_comes";
    const LIMITS: [&str; 4] = ["--max-bandwidth", "32MiB/s", "--max-downtime", "1s"];
    let Some(lab) = Lab::start(TEST, 32, Some("4MiB/s")).await else { return };
    let told = estimate(&lab, &LIMITS);
    assert_eq!(told.code, 0, "{told:?}");
    let wait = told.entries("prospect")[0].clone();
    let moved = lab.migrate(&LIMITS);
    assert_eq!(moved.code, 0, "{moved:?}");
    let totals = &moved.result()["totals"];
    let ratio = |forecast: &Value, came: &Value| came.as_f64().unwrap() / forecast.as_f64().unwrap();
    let bytes = ratio(&wait["sent_bytes"], &totals["transferred_bytes"]);
    let time = ratio(&wait["total_ms"], &totals["stream_ms"]);
    assert!((0.4..2.5).contains(&bytes) && (0.3..4.0).contains(&time), "{bytes} {time}: {wait} {totals}");
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_no_action_helps_is_infeasible_with_the_budgets_that_would_do() {
    let Some(lab) = Lab::start("a_guest_that_no_action_helps", 64, None).await else { return };
    let told = estimate(&lab, &["--link", "20MiB/s", "--max-downtime", "20ms"]);
    assert_eq!(told.code, 1, "{told:?}");
    let whole = told.entries("estimate")[0];
    assert_eq!((&whole["cheapest"], &whole["exit_code"]), (&Value::Null, &json!(1)), "{whole}");
    assert!(whole["smallest"]["max_downtime_ms"].as_u64().unwrap() > 1000, "{whole}");
    assert!(whole["command"].as_str().unwrap().contains(" --max-downtime "), "{whole}");
    lab.beats_on(lab.source());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_estimate_that_is_interrupted_leaves_nothing() {
    let Some(lab) = Lab::start("an_estimate_that_is_interrupted", 16, Some("4MiB/s")).await else { return };
    let client = lab.somebody().await;
    let before = settings(&client).await;
    let monitor = lab.monitor();
    let mut command = lab.command(&["estimate", &monitor, "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ask = words::query_dirty_rate { calc_time_unit: None };
    let status = async || client.call(&ask, SOON).await.unwrap()["status"].clone();
    until("it is measured", async || status().await == "measuring").await;
    signal(child.id().try_into().unwrap(), Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    let told = ended(output.status, &output.stdout, &output.stderr);
    assert_eq!((told.code, told.lines.len()), (2, 0), "{told:?}");
    assert!(told.stderr.contains("cancelled by Ctrl-C"), "{told:?}");
    assert_eq!(settings(&client).await, before);
    lab.beats_on(lab.source());
    assert_eq!(lab.left_behind(), [] as [PathBuf; 0]);
    until("QEMU has measured to the end", async || status().await == "measured").await;
    assert_eq!(estimate(&lab, &["--link", "1Gbit/s"]).code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_estimated_is_refused_with_a_hint() {
    let Some(lab) = Lab::start("what_cannot_be_estimated", 16, Some("4MiB/s")).await else { return };
    let refused = |told: &Ended, part: &str| {
        assert_eq!((told.code, told.lines.len()), (2, 0), "{told:?}");
        assert!(told.stderr.contains(part) && told.stderr.contains("\nhint: "), "{part}: {told:?}");
    };
    refused(&estimate(&lab, &["--link", "fast"]), "--link");
    refused(&run(lab.command(&["estimate", "/none/qmp"])), "/none/qmp");
    let client = lab.subject.connect().await.unwrap();
    refused(&estimate(&lab, &[]), "another client");
    drop(client);
    let mut held = lab.migrate_held("prepared", &[]);
    let point = held.wait();
    // The engine holds the monitor, and the hint names it.
    refused(&estimate(&lab, &[]), "qmigrate status");
    drop(point);
    let moved = held.end();
    assert_eq!(moved.code, 0, "{moved:?}");
    lab.prove().await;
}
