//! Policies that are only asked: while a guest is moved (`--shadow`), and of its record afterwards (`replay`).

use std::path::Path;

use crate::lab::{Ended, Lab, command, run};

/// What a command says on standard output, line by line.
fn stdout(arguments: &[&str]) -> Vec<String> {
    let output = command(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shadows_say_what_they_would_do_change_nothing_and_the_record_is_replayed() {
    let Some(lab) = Lab::start("shadows", 64, Some("20MiB/s")).await else { return };
    let report = lab.directory.path().join("report.json");
    let report = report.to_str().unwrap();
    let shadows = ["--shadow", "fixed", "--shadow", "proxmox"];
    let ended = lab.migrate(&[&["--max-bandwidth", "60MiB/s", "--report", report], &shadows[..]].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    lab.prove().await;

    let decisions = ended.entries("decision");
    for policy in ["fixed", "proxmox"] {
        let own: Vec<_> = decisions.iter().filter(|decision| decision["policy"] == policy).collect();
        assert!(own[0]["reason"].as_str().unwrap().starts_with("begins with"), "{own:?}");
        assert!(ended.stderr.contains(&format!("shadow     {policy} would")), "{}", ended.stderr);
    }
    assert_eq!(decisions.iter().find(|one| one["policy"] == "fixed").unwrap()["downtime_limit_ms"], 300);
    // None of it was done: our limit begins far below either of theirs.
    assert_eq!(ended.entries("sample")[0]["downtime_limit_ms"], 2);

    let id = ended.result()["id"].as_str().unwrap().to_owned();
    for named in [report, &id] {
        let replayed = run(command(&["replay", named, "--policy", "fixed", "--policy", "nova", "--json"]));
        assert_eq!(replayed.code, 0, "{replayed:?}");
        let replays = replayed.entries("replay");
        assert_eq!(replays.iter().map(|one| &one["policy"]).collect::<Vec<_>>(), ["fixed", "nova"]);
        assert!(replays.iter().all(|one| one["id"] == id.as_str() && !one["decisions"][0].is_null()));
        assert!(!replayed.entries("recorded")[0]["source"].is_null());
    }
    let lines = stdout(&["replay", report]);
    assert!(lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("kubevirt (keeps no budgets)")), "{lines:#?}");

    let printed: Vec<String> = ended.lines.iter().map(ToString::to_string).collect();
    let file = lab.directory.path().join("lines.jsonl");
    std::fs::write(&file, printed.join("\n")).unwrap();
    let replayed = run(command(&["replay", file.to_str().unwrap(), "--policy", "fixed", "--json"]));
    assert_eq!(replayed.entries("replay").len(), 1, "{replayed:?}");
    assert!(replayed.stderr.contains("does not tell the budgets"), "{}", replayed.stderr);
}

fn refused(arguments: &[&str], said: &[&str]) -> Ended {
    let ended = run(command(arguments));
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(said.iter().all(|said| ended.stderr.contains(said)), "{}", ended.stderr);
    ended
}

#[test]
fn a_policy_that_there_is_not_is_told_those_that_there_are() {
    let those = ["there is no policy 'proxmix'", "qmigrate, fixed", "proxmox", "libvirt"];
    refused(&["replay", "k3f9x2ab", "--policy", "proxmix"], &those);
    refused(&["migrate", "/run/none", "--shadow", "proxmix"], &those);
}

#[test]
fn a_record_that_cannot_be_had_is_refused_with_what_would_do() {
    refused(&["replay", "00000000"], &["no record of a migration 00000000", "hint: ", "--report"]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let replay = |path: &Path, said: &[&str]| {
        refused(&["replay", path.to_str().unwrap()], said);
    };
    replay(&file("text", "hello\n"), &["this is no record of a migration", "hint: "]);
    replay(
        &file("newer", r#"{"schema":99,"id":"00000000","type":"phase"}"#),
        &["schema 99", "newer qmigrate"],
    );
    replay(
        &file("cut", r#"{"schema":1,"id":"00000000","engine_version":"0.1.0","started_at":"19"#),
        &["cut off"],
    );
    replay(&file("journal", r#"{"step":"begun","schema":1}"#), &["this is a journal", "replay ID"]);
    let phase = r#"{"schema":1,"id":"00000000","type":"phase","phase":"stream","at_ms":1.0}"#;
    replay(&file("begun", phase), &["holds no samples", "does not tell how the migration ended"]);
}
