//! The runner of plans, with real QEMUs: killed, stopped and started again it does each run once; what takes too long is
//! ended; the shaped link shapes, and is gone afterwards.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use qmigrate::host::{command_line, open_files, processes};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::{Ended, command, run, signal, until};
use crate::support;

/// A plan and its results, in a directory of their own.
struct Desk {
    directory: TempDir,
    qemu: PathBuf,
}

impl Desk {
    fn new(test: &str, plan: &Value) -> Option<Self> {
        let Some(qemu) = support::qemu() else {
            support::skip(test, "there is no qemu-system-x86_64; tests/run gets one");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("plan.json"), plan.to_string()).unwrap();
        Some(Self { directory, qemu })
    }

    fn results(&self) -> PathBuf {
        self.directory.path().join("results.jsonl")
    }

    fn runner(&self, arguments: &[&str]) -> Command {
        let mut command = command(&["lab", "run"]);
        command.arg(self.directory.path().join("plan.json")).arg("--out").arg(self.results());
        command.arg("--qemu").arg(&self.qemu).args(arguments);
        command
    }

    /// A runner that works until it is told otherwise.
    fn begin(&self, arguments: &[&str]) -> Child {
        self.runner(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Waits until so many whole lines are there.
    async fn has_lines(&self, number: usize) {
        until("the results have more lines", async || {
            std::fs::read_to_string(self.results()).is_ok_and(|text| text.matches('\n').count() >= number)
        })
        .await;
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.results()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn pid(child: &Child) -> i32 {
    child.id().try_into().unwrap()
}

/// Where a runner keeps its guests; it has opened what another one has left, too, while it clears that.
async fn place(runner: &Child, left: Option<&Path>) -> PathBuf {
    let is_place = |path: &PathBuf| {
        let is_lab = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lab-"));
        is_lab && Some(path.as_path()) != left && path.is_dir()
    };
    let mut found = None;
    until("the runner has a place", async || {
        found = open_files(pid(runner)).into_iter().find(is_place);
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// The processes whose command line names something below this path.
fn users_of(path: &Path) -> Vec<i32> {
    let name = path.to_string_lossy();
    let names = |pid: &i32| {
        command_line(*pid).unwrap_or_default().iter().any(|word| word.to_string_lossy().contains(&*name))
    };
    processes().into_iter().filter(names).collect()
}

fn small(name: &str) -> Value {
    json!({ "name": name, "memory": "64MiB", "working_set": "8MiB", "rate": "1MiB/s", "warm_up": "100ms" })
}

/// Guests by the names of the cells, and repeats.
fn keys(lines: &[Value]) -> Vec<(String, u64)> {
    let key = |line: &Value| (line["guest"].as_str().unwrap().to_owned(), line["repeat"].as_u64().unwrap());
    lines.iter().map(key).collect()
}

fn held(line: &Value) {
    assert_eq!(line["type"], "run", "{line}");
    for finding in ["memory_verified", "never_two"] {
        assert_eq!(line[finding], true, "{finding}: {line}");
    }
    assert_eq!(line["faults"], json!([]), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_done_whole_by_runners_that_are_killed_and_stopped() {
    let plan = json!({
        "name": "small", "repeats": 2, "guests": [small("a"), small("b")], "policies": [{ "name": "ours" }],
        "budgets": [{ "name": "usual" }], "links": [{ "name": "none" }], "cells": [{}],
    });
    let Some(desk) = Desk::new("killed_and_stopped", &plan) else { return };

    let mut killed = desk.begin(&[]);
    let left = place(&killed, None).await;
    desk.has_lines(1).await;
    until("another guest is there", async || !users_of(&left).is_empty()).await;
    signal(pid(&killed), Signal::SIGKILL);
    killed.wait().unwrap();
    let first = std::fs::read_to_string(desk.results()).unwrap();
    let first = first.split_inclusive('\n').next().unwrap();
    std::fs::write(desk.results(), format!("{first}{{\"schema\":1,\"pl")).unwrap();

    let mut stopped = desk.begin(&[]);
    let its_place = place(&stopped, Some(&left)).await;
    desk.has_lines(2).await;
    until("another guest is there", async || !users_of(&its_place).is_empty()).await;
    signal(pid(&stopped), Signal::SIGINT);
    assert_eq!(stopped.wait().unwrap().code(), Some(1));
    for place in [&left, &its_place] {
        assert_eq!(users_of(place), [0_i32; 0], "{}", place.display());
        assert!(!place.exists(), "{}", place.display());
    }

    let ended = run(desk.runner(&[]));
    assert_eq!(ended.code, 0, "{ended:?}");
    let lines = desk.lines();
    let order = [("a", 1), ("b", 1), ("b", 2), ("a", 2)].map(|(guest, repeat)| (guest.to_owned(), repeat));
    assert_eq!(keys(&lines), order);
    assert!(
        std::fs::read_to_string(desk.results()).unwrap().starts_with(first),
        "the first run was done again"
    );
    for line in &lines {
        held(line);
        assert_eq!((&line["exit_code"], &line["link_kind"]), (&json!(0), &json!("unix socket")));
        assert!(
            line["observed_blackout_ms"].as_f64().unwrap() > 0.0 && line["lost_work"]["of_ms"].is_f64(),
            "{line}"
        );
    }
    let again = run(desk.runner(&[]));
    assert_eq!((again.code, desk.lines().len()), (0, 4), "{again:?}");
    let mut table = command(&["lab", "table"]);
    let output = table.arg(desk.results()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("| a | ours | usual | none (unix socket) | 2 of 2 |"),
        "{text}"
    );
}

#[test]
fn what_takes_too_long_is_ended_three_times_and_then_left() {
    let mut busy = small("busy");
    busy["working_set"] = "16MiB".into();
    busy.as_object_mut().unwrap().remove("rate");
    let plan = json!({
        "name": "slow", "repeats": 5, "censor_after": "1500ms", "guests": [busy], "policies": [{ "name": "ours" }],
        "budgets": [{ "name": "tight", "options": ["--max-downtime", "20ms"] }],
        "links": [{ "name": "slow", "rate": "40Mbit/s" }], "cells": [{}],
    });
    let Some(desk) = Desk::new("takes_too_long", &plan) else { return };
    let ended = run(desk.runner(&["--link", "max-bandwidth"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    let lines = desk.lines();
    assert_eq!(lines.len(), 3, "{ended:?}");
    for line in &lines {
        held(line);
        let expected = json!([true, 1, "not_migrated", "max-bandwidth 40 Mbit/s"]);
        let found = json!([line["censored"], line["exit_code"], line["end"], line["link_kind"]]);
        assert_eq!(found, expected, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shaped_link_shapes_and_is_gone_afterwards() {
    const TEST: &str = "shaped_link";
    let mut guest = small("a");
    // Little enough for a host that does much else, and so much that its stream takes seconds.
    guest["working_set"] = "32MiB".into();
    let plan = json!({
        "name": "links", "guests": [guest], "policies": [{ "name": "ours" }], "budgets": [{ "name": "usual" }],
        "links": [
            { "name": "fast", "rate": "160Mbit/s" }, { "name": "slow", "rate": "40Mbit/s" },
            { "name": "step", "rate": "40Mbit/s", "steps": [{ "after": "2s", "rate": "160Mbit/s" }] },
        ],
        "cells": [{}],
    });
    if !nix::unistd::geteuid().is_root() {
        return support::skip(TEST, "only root can shape a link");
    }
    let Some(desk) = Desk::new(TEST, &plan) else { return };
    let mut runner = desk.begin(&["--link", "tbf"]);
    desk.has_lines(1).await;
    let network = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let (its, own) = (network(pid(&runner)).unwrap(), network(pid_of_this()).unwrap());
    assert_ne!(its, own);
    desk.has_lines(3).await;
    assert_eq!(runner.wait().unwrap().code(), Some(0));

    let lines = desk.lines();
    let kinds: Vec<_> = lines.iter().map(|line| line["link_kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["tbf 160 Mbit/s", "tbf 40 Mbit/s", "tbf 40 Mbit/s"]);
    lines.iter().for_each(held);
    let rates: Vec<f64> = lines
        .iter()
        .map(|line| line["transferred_bytes"].as_f64().unwrap() / line["stream_ms"].as_f64().unwrap())
        .collect();
    let ratio = rates[0] / rates[1];
    assert!((3.2..4.8).contains(&ratio), "{ratio}: {rates:?} bytes per millisecond");
    assert!(rates[0] <= 20_000.0 * 1.2 && rates[1] <= 5_000.0 * 1.2, "{rates:?} bytes per millisecond");
    assert!(rates[2] > rates[1] * 1.2, "the step was not taken: {rates:?}");
    let steps = |line: &Value| line["link_steps_ms"].as_array().unwrap().len();
    assert_eq!(lines.iter().map(steps).collect::<Vec<_>>(), [0, 0, 1]);

    assert!(
        processes().into_iter().all(|pid| network(pid).as_ref() != Some(&its)),
        "somebody is in it still"
    );
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!devices.contains("stream-"), "{devices}");
}

fn pid_of_this() -> i32 {
    std::process::id().try_into().unwrap()
}

/// Without root there is no namespace; without the tools there is nothing in it.
#[test]
fn where_no_link_can_be_shaped_max_bandwidth_stands_in_and_it_is_said_loudly() {
    let plan = json!({
        "name": "fallback", "guests": [small("a")], "policies": [{ "name": "ours" }], "budgets": [{ "name": "usual" }],
        "links": [{ "name": "gigabit", "rate": "1Gbit/s" }], "cells": [{}],
    });
    let Some(desk) = Desk::new("fallback", &plan) else { return };
    let bin = desk.directory.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink("/bin/false", bin.join("ip")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut runner = desk.runner(&[]);
    let ended: Ended = run({
        runner.env("PATH", &path);
        runner
    });
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("WARNING: there is no shaped link"), "{ended:?}");
    let line = &desk.lines()[0];
    held(line);
    assert_eq!(line["link_kind"], "max-bandwidth 1 Gbit/s");
    let mut runner = desk.runner(&["--link", "tbf"]);
    runner.env("PATH", &path);
    assert_eq!(run(runner).code, 2);
}

#[test]
fn a_plan_that_cannot_be_followed_names_the_field_and_an_option_that_nobody_knows_is_told() {
    let mut plan = json!({
        "name": "wrong", "guests": [small("a")], "policies": [{ "name": "odd", "options": ["--no-such-option"] }],
        "budgets": [{ "name": "usual" }], "links": [{ "name": "none" }], "cells": [{}], "repeats": 2,
    });
    let Some(desk) = Desk::new("wrong_plan", &plan) else { return };
    let ended = run(desk.runner(&[]));
    assert_eq!(ended.code, 1, "{ended:?}");
    let lines = desk.lines();
    assert_eq!(lines.len(), 1, "{ended:?}");
    assert!(lines[0]["error"].as_str().unwrap().contains("--no-such-option"), "{lines:?}");
    plan["guests"][0]["rate"] = "fast".into();
    std::fs::write(desk.directory.path().join("plan.json"), plan.to_string()).unwrap();
    let ended = run(desk.runner(&[]));
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("guests[0].rate"), "{ended:?}");
}
