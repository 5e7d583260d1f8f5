//! What a guest dirties, measured on real QEMUs.

use std::time::Duration;

use qapi_qmp as words;
use qmigrate::guest::Accelerator;
use qmigrate::lab::subject::Board;
use qmigrate::qemu::dirty_rate::{SampleError, sample};
use serde_json::json;

use crate::lab::{Lab, SOON, settings, until};
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
