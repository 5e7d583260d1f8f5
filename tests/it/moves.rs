//! A guest moved by the built command in every way that it offers: memory proven, never two, nothing left.

use qapi_qmp as words;
use qmigrate::qmp::words::RunState;
use qmigrate::qmp::{Client, Deadlines, Leg};

use crate::back_and_forth::BackAndForth;
use crate::lab::{Lab, SOON, command, lives, run, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_moves_in_a_row_lose_nothing_and_keep_the_first_name() {
    let Some(lab) = Lab::start("ten_moves_in_a_row", 32, Some("20MiB/s")).await else { return };
    let monitor = lab.directory.path().join("qmp");
    let moves = BackAndForth::of(&monitor);
    moves
        .run(async |done| {
            lab.never_two(done.source, done.destination);
            lab.prove().await;
            assert_eq!(lab.left_behind(), [] as [std::path::PathBuf; 0]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_and_the_json_tell_the_same_and_name_clock_and_error() {
    let Some(lab) = Lab::start("the_report_and_the_json", 16, Some("10MiB/s")).await else { return };
    let report = lab.directory.path().join("report.json");
    let ended = lab.migrate(&["--max-bandwidth", "50MiB/s", "--report", report.to_str().unwrap()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let mut result = ended.result().clone();
    for of_the_line in ["schema", "id", "type"] {
        result.as_object_mut().unwrap().remove(of_the_line);
    }
    assert_eq!(record["outcome"], result);
    assert_eq!(record["schema"], 1);
    let blackout = &record["outcome"]["blackout"];
    assert!(blackout["stop_to_resume_ms"].as_f64().unwrap() > 0.0, "{blackout}");
    assert!(blackout["error_ms"].as_f64().is_some() && blackout["clock"].is_string(), "{blackout}");
    assert_eq!(blackout["observed"]["by"], "not_observed");
    assert!(!record["samples"].as_array().unwrap().is_empty());
    let phases: Vec<_> =
        ended.entries("phase").iter().map(|entry| entry["phase"].as_str().unwrap()).collect();
    assert_eq!(
        phases,
        ["check", "destination", "prepare", "stream", "switchover", "handover", "finish", "ended"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_guest_stays_paused() {
    let Some(lab) = Lab::start("a_paused_guest", 16, Some("10MiB/s")).await else { return };
    let client = lab.subject.connect().await.unwrap();
    client.call(&words::stop {}, SOON).await.unwrap();
    drop(client);
    let ended = lab.migrate(&[]);
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"paused_on_destination".into()), "{ended:?}");
    assert_eq!(lab.state().await, RunState::Paused);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_to_be_left_paused_is() {
    let Some(lab) = Lab::start("left_paused", 16, Some("10MiB/s")).await else { return };
    let ended = lab.migrate(&["--leave-paused"]);
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"paused_on_destination".into()), "{ended:?}");
    assert_eq!(lab.state().await, RunState::Paused);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_stopped_first_runs_on_the_destination() {
    let Some(lab) = Lab::start("stopped_first", 64, None).await else { return };
    let source = lab.source();
    let ended = lab.migrate(&["--non-live"]);
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"running_on_destination".into()), "{ended:?}");
    lab.never_two(source, lab.destination());
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_kept_keeps_its_names_and_never_runs() {
    let Some(lab) = Lab::start("a_source_that_is_kept", 16, Some("10MiB/s")).await else { return };
    let source = lab.source();
    let ended = lab.migrate(&["--keep-source"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(lab.state().await, RunState::PostMigrate);
    assert!(lives(source));
    let moved = &ended.result()["moved"][0];
    let address = format!("unix:{}", moved["to"].as_str().unwrap()).parse().unwrap();
    let destination = Client::connect(&address, Leg::Destination, Deadlines::default()).await.unwrap();
    lab.never_two(source, lab.destination());
    let beats = lab.subject.observer.heart(source).unwrap().beats;
    lab.beats_on(lab.destination());
    assert_eq!(lab.subject.observer.heart(source).unwrap().beats, beats);
    destination.call(&words::quit {}, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_literal_incoming_address_is_taken_as_it_is() {
    let Some(lab) = Lab::start("a_literal_incoming_address", 16, Some("10MiB/s")).await else { return };
    let source = lab.source();
    let ended = lab.migrate(&["--incoming", "tcp:127.0.0.1:0"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.never_two(source, lab.destination());
    lab.prove().await;
    let again = lab.migrate(&["--incoming", "tcp:0:0"]);
    assert_eq!(again.code, 0, "{again:?}");
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_number_names_a_guest_too() {
    let Some(lab) = Lab::start("a_process_number", 16, Some("10MiB/s")).await else { return };
    let ended = run(command(&["migrate", &format!("pid:{}", lab.source())]));
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.prove().await;
    // The second time, its command line shows a name that it had only for a while.
    let ended = run(command(&["migrate", &format!("pid:{}", lab.destination())]));
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_its_terminal_is_followed_and_driven_from_other_shells() {
    let Some(lab) = Lab::start("an_engine_without_its_terminal", 64, Some("10MiB/s")).await else { return };
    let source = lab.source();
    let detach = command(&["migrate", &lab.monitor(), "--detach", "--max-bandwidth", "10MiB/s"]).output();
    let detach = detach.unwrap();
    assert!(detach.status.success(), "{detach:?}");
    let id = String::from_utf8(detach.stdout).unwrap().trim().to_owned();

    let status = run(command(&["status", &lab.monitor(), "--json"]));
    assert_eq!((status.code, &status.lines[0]["id"]), (0, &id.clone().into()), "{status:?}");
    let list = run(command(&["list", "--json"]));
    let row = list.lines.iter().find(|row| row["pid"] == source).unwrap();
    assert_eq!(row["state"], format!("source of {id}"));

    let set = run(command(&["set", &id, "--max-bandwidth", "1GiB/s", "--max-downtime", "200ms"]));
    assert_eq!(set.code, 0, "{set:?}");
    let watch = run(command(&["watch", &id, "--json"]));
    assert_eq!((watch.code, &watch.result()["end"]), (0, &"migrated".into()), "{watch:?}");
    lab.never_two(source, lab.destination());
    lab.prove().await;

    let after = run(command(&["status", &id, "--json"]));
    assert_eq!(after.lines[0]["outcome"]["end"], "migrated", "{after:?}");
    let late = run(command(&["cancel", &id]));
    assert_eq!(late.code, 2, "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_ends_a_migration_that_would_not_and_a_cancel_undoes_one() {
    let Some(lab) = Lab::start("a_pause_and_a_cancel", 64, Some("40MiB/s")).await else { return };
    let source = lab.source();
    let slowly = ["migrate", &lab.monitor(), "--detach", "--max-bandwidth", "20MiB/s"];
    assert!(command(&slowly).status().unwrap().success());
    let cancel = run(command(&["cancel", &lab.monitor()]));
    assert_eq!(cancel.code, 0, "{cancel:?}");
    until("the engine has ended", async || {
        run(command(&["status", &lab.monitor(), "--json"])).lines[0]["outcome"]["end"] == "not_migrated"
    })
    .await;
    lab.beats_on(source);

    assert!(command(&slowly).status().unwrap().success());
    let pause = run(command(&["pause", &lab.monitor()]));
    assert_eq!(pause.code, 0, "{pause:?}");
    let watch = run(command(&["watch", &lab.monitor()]));
    assert_eq!(watch.code, 0, "{watch:?}");
    lab.never_two(source, lab.destination());
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_migration_is_seen_and_driven_where_the_monitor_is_free() {
    let Some(lab) = Lab::start("somebody_elses_migration", 16, Some("10MiB/s")).await else { return };
    let nowhere = lab.directory.path().join("slow");
    let _listener = std::os::unix::net::UnixListener::bind(&nowhere).unwrap();
    let client = lab.subject.connect().await.unwrap();
    let uri = Some(format!("unix:{}", nowhere.display()));
    client.call(&words::migrate { uri, channels: None, detach: None, resume: None }, SOON).await.unwrap();
    drop(client);
    let status = run(command(&["status", &lab.monitor(), "--json"]));
    assert_eq!((status.code, &status.lines[0]["type"]), (0, &"foreign".into()), "{status:?}");
    let set = run(command(&["set", &lab.monitor(), "--max-downtime", "77ms"]));
    assert_eq!(set.code, 0, "{set:?}");
    let client = lab.subject.connect().await.unwrap();
    let parameters = client.call(&words::query_migrate_parameters {}, SOON).await.unwrap();
    assert_eq!(parameters["downtime-limit"], 77);
    drop(client);
    let cancel = run(command(&["cancel", &lab.monitor()]));
    assert_eq!(cancel.code, 0, "{cancel:?}");
    let watch = run(command(&["watch", &lab.monitor()]));
    assert_eq!(watch.code, 1, "{watch:?}");
    lab.beats_on(lab.source());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_the_user_started_gets_the_guest() {
    let Some(lab) = Lab::start("a_destination_of_the_users", 16, Some("10MiB/s")).await else { return };
    let source = lab.source();
    let (destination, qmp) = lab.by_hand(None, &["-incoming", "defer"]).await;
    let ended = lab.migrate(&["--destination-qmp", qmp.to_str().unwrap()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.never_two(source, destination.pid());
    lab.beats_on(destination.pid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_prints_the_destinations_command_line_and_changes_nothing() {
    let Some(lab) = Lab::start("a_dry_run", 16, Some("10MiB/s")).await else { return };
    let output = command(&["migrate", &lab.monitor(), "--dry-run"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let words = shell_words::split(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(
        words.iter().any(|word| word.starts_with("pc-i440fx-") && word.ends_with(",accel=tcg")),
        "{words:?}"
    );
    assert_eq!(words[words.len() - 3..], ["-S", "-incoming", "defer"]);
    assert_eq!(lab.left_behind(), [] as [std::path::PathBuf; 0]);
    lab.beats_on(lab.source());
    assert_eq!(lab.migrate(&[]).code, 0);
    lab.prove().await;
}
