//! What a user has allowed is carried out on real QEMUs, nothing else is, and the source is set back as it was found.

use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::process::Stdio;
use std::time::Duration;

use qapi_qmp as words;
use qmigrate::guest::Accelerator;
use qmigrate::lab::subject::Board;
use qmigrate::qmp::Client;
use qmigrate::qmp::words::commands::{CapabilityState, MigrateSetCapabilities, MigrateSetParameters};
use qmigrate::qmp::words::{MigrationInfo, RunState};
use serde_json::{Map, Value, json};

use crate::lab::{Ended, Lab, SOON, command, ended, lives, run, settings, until};
use crate::support::qemu_version;

/// Those of which all is known; under TCG 7.2 loses writes of a guest that is moved live.
const VERSIONS: [&str; 3] = ["7.2", "10.0", "11.1"];
/// A pass lasts for several of a throttle's slices: the guest has its turn in some of them however busy the machine is, so
/// that nothing arrives before the test has seen what it is to see.
const SLOW: &str = "40MiB/s";
/// Where the guest counts its writes (`guest/state.rs`).
const WRITES: &str = "xp /1gx 0x110020";

/// A guest that rewrites so much as fast as it can, on one version.
async fn hot_writer(test: &str, version: &str, mebibytes: u64) -> Option<Lab> {
    let qemu = qemu_version(test, version)?;
    Some(Lab::start_on(&qemu, Board::newest(Accelerator::Tcg), mebibytes, None).await)
}

/// What a version needs to be moved live at all.
fn live_on(version: &str) -> &'static [&'static str] {
    if matches!(version, "5.2" | "7.2") { &["--unsafe"] } else { &[] }
}

/// An engine at work, by a policy that does what is said here.
struct Engine(Child);

impl Engine {
    fn start(lab: &Lab, rehearsal: &str, arguments: &[&str]) -> Self {
        let mut command = lab.command(&["migrate", &lab.monitor(), "--json"]);
        command.args(arguments).env("QMIGRATE_REHEARSAL", rehearsal);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        ended(self.0.wait().unwrap(), &stdout, &stderr)
    }

    fn kill(mut self) -> Ended {
        self.0.kill().unwrap();
        self.end()
    }
}

async fn info(client: &Client) -> MigrationInfo {
    client.call_as(&words::query_migrate {}, SOON).await.unwrap()
}

async fn throttled_by(client: &Client, percent: u64) {
    until("the throttle is in force", async || info(client).await.cpu_throttle_percentage == Some(percent))
        .await;
}

async fn pass(client: &Client, number: u64) {
    until("the pass has begun", async || {
        info(client).await.ram.is_some_and(|ram| ram.dirty_sync_count >= number)
    })
    .await;
}

/// How often the guest writes in half a second.
async fn work(client: &Client) -> u64 {
    let count = async || {
        let read = words::human_monitor_command { command_line: WRITES.to_owned(), cpu_index: None };
        let answer = client.call(&read, SOON).await.unwrap();
        let word = answer.as_str().unwrap().split("0x").nth(1).unwrap().trim().to_owned();
        u64::from_str_radix(&word, 16).unwrap()
    };
    let before = count().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    count().await - before
}

/// A guest that is throttled no more does several times as much, even where other tests run beside it.
async fn is_released(client: &Client, throttled: u64) {
    until("the guest runs freely", async || work(client).await > 2 * throttled.max(1)).await;
}

fn cancel(lab: &Lab) {
    let cancel = run(command(&["cancel", &lab.monitor()]));
    assert_eq!(cancel.code, 0, "{cancel:?}");
}

async fn set(client: &Client, parameters: Value) {
    let Value::Object(parameters) = parameters else { panic!("{parameters}") };
    client.call(&MigrateSetParameters(parameters), SOON).await.unwrap();
}

fn choices(ended: &Ended) -> Vec<&str> {
    ended.entries("decision").iter().map(|decision| decision["choice"].as_str().unwrap()).collect()
}

fn throttles(ended: &Ended) -> Vec<u64> {
    ended.entries("sample").iter().map(|sample| sample["throttle_percent"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_writer_arrives_by_a_throttle_that_was_allowed() {
    for version in VERSIONS {
        let Some(lab) = hot_writer("arrives_by_a_throttle", version, 32).await else { continue };
        let before = settings(&lab.somebody().await).await;
        // Where the guest writes all of it in the 10 ms that it has, a pause ends it.
        let flags = ["--allow", "throttle,pause", "--max-bandwidth", "60MiB/s", "--max-downtime", "3s"];
        let policy = "throttle=99@0 limit=290@0 pause@8000";
        let engine = Engine::start(&lab, policy, &[&flags, live_on(version)].concat());
        let ended = engine.end();
        assert_eq!(
            (ended.code, &ended.result()["guest"]),
            (0, &"running_on_destination".into()),
            "{ended:?}"
        );
        assert_eq!(choices(&ended)[..2], ["throttle", "limit"], "{version}");
        assert_eq!(throttles(&ended).iter().max(), Some(&99), "{version}: {ended:?}");
        assert!(!lives(lab.source()));
        if version != "7.2" {
            lab.never_two(lab.source(), lab.destination());
            lab.prove().await;
        }
        let client = lab.subject.connect().await.unwrap();
        assert_eq!(settings(&client).await, before, "{version}: the guest's QEMU is set as its source was");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_consent_no_guest_is_throttled_or_stopped_whatever_a_policy_says() {
    for version in VERSIONS {
        let Some(lab) = hot_writer("without_consent", version, 32).await else { continue };
        let somebody = lab.somebody().await;
        let on = CapabilityState { capability: "auto-converge".to_owned(), state: true };
        somebody.call(&MigrateSetCapabilities { capabilities: vec![on] }, SOON).await.unwrap();
        let before = settings(&somebody).await;
        let flags = ["--max-bandwidth", "100MiB/s"];
        let engine = Engine::start(&lab, "pause@100 throttle=99@0", &[&flags, live_on(version)].concat());
        pass(&somebody, 8).await;
        let (capabilities, parameters) = settings(&somebody).await;
        assert!(capabilities.to_string().contains(r#"{"capability":"auto-converge","state":false}"#));
        assert_eq!(parameters["max-cpu-throttle"], before.1["max-cpu-throttle"]);
        cancel(&lab);
        let ended = engine.end();
        assert_eq!((ended.code, choices(&ended)), (1, vec![]), "{version}: {ended:?}");
        assert!(throttles(&ended).iter().all(|&percent| percent == 0), "{version}: {ended:?}");
        assert_eq!(settings(&somebody).await, before, "{version}");
        lab.beats_on(lab.source());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_releases_the_throttle_at_once_and_sets_the_source_back() {
    for version in ["5.2", "7.2", "10.0", "11.1"] {
        let Some(lab) = hot_writer("cancel_releases", version, 32).await else { continue };
        let somebody = lab.somebody().await;
        // A person's own, which is nobody's default.
        let on = CapabilityState { capability: "auto-converge".to_owned(), state: true };
        somebody.call(&MigrateSetCapabilities { capabilities: vec![on] }, SOON).await.unwrap();
        let own =
            json!({ "cpu-throttle-initial": 33, "max-cpu-throttle": 88, "cpu-throttle-tailslow": true });
        set(&somebody, own).await;
        let before = settings(&somebody).await;
        let flags = ["--allow", "throttle=95%", "--max-bandwidth", SLOW];
        let engine = Engine::start(&lab, "throttle=99@0", &[&flags, live_on(version)].concat());
        // The policy wishes for more than was allowed.
        throttled_by(&somebody, 95).await;
        let (_, parameters) = settings(&somebody).await;
        let in_force = ["max-cpu-throttle", "cpu-throttle-initial", "cpu-throttle-increment"];
        assert_eq!(in_force.map(|name| parameters[name].as_u64().unwrap()), [95, 1, 99], "{version}");
        assert_eq!(parameters["cpu-throttle-tailslow"], false);
        let throttled = work(&somebody).await;
        cancel(&lab);
        let free = work(&somebody).await;
        println!("{version}: {throttled} writes in 500 ms with the throttle, {free} after the cancel");
        let ended = engine.end();
        assert_eq!((ended.code, &ended.result()["guest"]), (1, &"running_on_source".into()), "{ended:?}");
        is_released(&somebody, throttled).await;
        assert_eq!(settings(&somebody).await, before, "{version}");
        lab.beats_on(lab.source());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttle_is_lowered_and_released_while_the_stream_runs() {
    for version in VERSIONS {
        let Some(lab) = hot_writer("lowered_and_released", version, 32).await else { continue };
        let somebody = lab.somebody().await;
        let flags = ["--allow", "throttle=90%", "--max-bandwidth", SLOW];
        let rehearsal = "throttle=90@0 throttle=40@2000 throttle=0@2000";
        let engine = Engine::start(&lab, rehearsal, &[&flags, live_on(version)].concat());
        for percent in [90, 40, 1] {
            throttled_by(&somebody, percent).await;
        }
        cancel(&lab);
        let ended = engine.end();
        assert_eq!((ended.code, choices(&ended)), (1, vec!["throttle"; 3]), "{version}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttle_that_a_killed_engine_has_left_is_released_and_set_back_by_recover() {
    for version in VERSIONS {
        let Some(lab) = hot_writer("killed_with_a_throttle", version, 32).await else { continue };
        let somebody = lab.somebody().await;
        let before = settings(&somebody).await;
        let flags = ["--allow", "throttle", "--max-bandwidth", SLOW];
        let engine = Engine::start(&lab, "throttle=90@0", &[&flags, live_on(version)].concat());
        throttled_by(&somebody, 90).await;
        let throttled = work(&somebody).await;
        let destination = lab.destination();
        let killed = engine.kill();
        let id = killed.lines[0]["id"].as_str().unwrap();
        let mut recover = command(&["recover", id, "--json"]);
        // A policy that never asks for any.
        recover.env("QMIGRATE_REHEARSAL", "limit=2@0").stdout(Stdio::piped()).stderr(Stdio::piped());
        let recover = Engine(recover.spawn().unwrap());
        throttled_by(&somebody, 1).await;
        is_released(&somebody, throttled).await;
        cancel(&lab);
        let ended = recover.end();
        assert_eq!((ended.code, &ended.result()["guest"]), (1, &"running_on_source".into()), "{ended:?}");
        until("the destination has ended", async || !lives(destination)).await;
        assert_eq!(settings(&somebody).await, before, "{version}");
        lab.beats_on(lab.source());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_before_the_stream_is_set_back_by_recover() {
    let Some(lab) = hot_writer("killed_before_the_stream", "10.0", 16).await else { return };
    let somebody = lab.somebody().await;
    let before = settings(&somebody).await;
    let mut engine = lab.migrate_held("prepared", &["--allow", "throttle", "--max-bandwidth", "100MiB/s"]);
    let hold = engine.wait();
    assert_eq!(settings(&somebody).await.1["max-cpu-throttle"], 1, "it is inert");
    engine.child.kill().unwrap();
    drop(hold);
    let id = engine.end().lines[0]["id"].as_str().unwrap().to_owned();
    let ended = run(command(&["recover", &id, "--json"]));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(settings(&somebody).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_a_policy_stops_by_consent_arrives_and_runs_there() {
    for version in ["10.0", "11.1"] {
        let Some(lab) = hot_writer("paused_by_a_policy", version, 32).await else { continue };
        let flags = ["--allow", "pause", "--max-bandwidth", "40MiB/s", "--max-downtime", "20s"];
        let ended = Engine::start(&lab, "pause@300", &flags).end();
        assert_eq!(
            (ended.code, &ended.result()["guest"]),
            (0, &"running_on_destination".into()),
            "{ended:?}"
        );
        assert_eq!(choices(&ended), ["pause"], "{version}");
        assert!(ended.result()["blackout"]["stop_to_resume_ms"].as_f64().unwrap() > 0.0, "{ended:?}");
        lab.never_two(lab.source(), lab.destination());
        assert_eq!(lab.state().await, RunState::Running);
        lab.prove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_a_policy_has_stopped_for_too_long_goes_back() {
    let Some(lab) = hot_writer("paused_for_too_long", "10.0", 32).await else { return };
    let somebody = lab.somebody().await;
    let before = settings(&somebody).await;
    // What is left takes half a minute.
    let ended = Engine::start(&lab, "pause@300", &["--allow", "pause", "--max-bandwidth", "1MiB/s"]).end();
    assert_eq!((ended.code, &ended.result()["guest"]), (1, &"running_on_source".into()), "{ended:?}");
    assert!(ended.result()["message"].as_str().unwrap().contains("longer than the budget"), "{ended:?}");
    assert_eq!(lab.state().await, RunState::Running);
    assert_eq!(settings(&somebody).await, before);
    lab.prove().await;
}

/// The lengths of the windows that a migration has sampled, in milliseconds.
async fn windows(lab: &Lab, flags: &[&str]) -> Vec<f64> {
    let somebody = lab.somebody().await;
    let engine = Engine::start(lab, "limit=2@0", flags);
    pass(&somebody, 2).await;
    cancel(lab);
    let ended = engine.end();
    assert_eq!(ended.code, 1, "{ended:?}");
    let found = ended.entries("dirty_window");
    assert!(found.iter().all(|window| window["dirtied_bytes"].as_f64().unwrap() > 0.0), "{found:?}");
    found.iter().map(|window| window["length_ms"].as_f64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_guest_dirties_is_sampled_while_the_first_pass_lasts() {
    for (version, lengths) in [
        ("5.2", &[1000.0][..]),
        ("7.2", &[1000.0]),
        ("10.0", &[50.0, 200.0, 1000.0]),
        ("11.1", &[50.0, 200.0, 1000.0]),
    ] {
        let Some(lab) = hot_writer("sampled_beside", version, 64).await else { continue };
        // The first pass takes more than three seconds.
        let flags = [&["--max-bandwidth", "16MiB/s"], live_on(version)].concat();
        let found = windows(&lab, &flags).await;
        // QEMU tells how long a window was, which may be a little more.
        let is_about = |(found, wanted): (&f64, &f64)| *found >= *wanted && *found < *wanted * 3.0;
        let fits = found.len() == lengths.len() && found.iter().zip(lengths).all(is_about);
        assert!(fits, "{version}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sampled_of_a_qemu_that_is_spoken_to_in_the_old_words() {
    let Some(lab) = hot_writer("not_sampled", "5.2", 32).await else { return };
    let found = windows(&lab, &["--unsafe", "--dialect", "legacy", "--max-bandwidth", "16MiB/s"]).await;
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_at_its_bound_has_the_bound_told_as_what_the_last_copy_gets() {
    for version in ["10.0", "11.1"] {
        let Some(lab) = hot_writer("told_of_the_switchover", version, 64).await else { continue };
        let somebody = lab.somebody().await;
        let before = settings(&somebody).await;
        let told = async |bytes: u64| {
            until("it is told", async || settings(&somebody).await.1["avail-switchover-bandwidth"] == bytes)
                .await;
        };
        let engine = Engine::start(&lab, "limit=2@0", &["--max-bandwidth", "16MiB/s"]);
        told(16 << 20).await;
        assert_eq!(run(command(&["set", &lab.monitor(), "--max-bandwidth", "1TiB/s"])).code, 0);
        // No stream reaches that.
        told(0).await;
        cancel(&lab);
        assert_eq!(engine.end().code, 1);
        assert_eq!(settings(&somebody).await, before, "{version}");

        // What a person has told it stays.
        set(&somebody, json!({ "avail-switchover-bandwidth": 123_456_789 })).await;
        let engine = Engine::start(&lab, "limit=2@0", &["--max-bandwidth", "64MiB/s"]);
        pass(&somebody, 3).await;
        assert_eq!(settings(&somebody).await.1["avail-switchover-bandwidth"], 123_456_789);
        cancel(&lab);
        assert_eq!(engine.end().code, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_of_others_is_marked_in_the_result_the_report_and_the_words() {
    let Some(lab) = Lab::start("policy_of_others", 16, Some("10MiB/s")).await else { return };
    let report = lab.directory.path().join("report.json");
    let policy = ["--policy", "fixed", "--allow", "policy=fixed"];
    let ended = lab.migrate(&[&policy[..], &["--report", report.to_str().unwrap()]].concat());
    assert_eq!((ended.code, &ended.result()["budgets_enforced"]), (0, &false.into()), "{ended:?}");
    assert!(ended.stderr.contains("budgets    not enforced"), "{ended:?}");
    let record: Map<String, Value> = read(&report);
    assert_eq!(
        (&record["request"]["policy"], &record["request"]["budgets_enforced"]),
        (&"fixed".into(), &false.into())
    );
    std::fs::remove_file(report).unwrap();
    lab.prove().await;
    let ended = lab.migrate(&[]);
    assert_eq!((ended.code, &ended.result()["budgets_enforced"]), (0, &true.into()), "{ended:?}");
    assert!(!ended.stderr.contains("not enforced"), "{ended:?}");
}

fn read(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_cannot_be_allowed_is_refused_with_what_can() {
    for (arguments, part) in [
        (&["--allow", "postcopy"][..], "postcopy is not carried out yet"),
        (&["--allow", "throttle=120%"], "1% to 99%"),
        (&["--allow", "haste"], "throttle=80%, pause, postcopy and policy=NAME"),
        (&["--policy", "fixed"], "--allow policy=fixed"),
        (&["--policy", "hope"], "there are qmigrate"),
    ] {
        let ended = run(command(&[&["migrate", "/nowhere/qmp"], arguments].concat()));
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
}
