//! Old and new QEMUs: limits set in the words that each has, taking effect and set back; and what each says it can do.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;
use qapi_qmp as words;
use qmigrate::guest::Accelerator;
use qmigrate::lab::subject::Board;
use qmigrate::migrate::step::limits::{QemuLimits, send};
use qmigrate::record::LimitsBy;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::{Lab, SOON, command, lives, run, settings, signal, until};
use crate::scripted_peer::{ScriptedPeer, soon};
use crate::small_qemu::{Monitor, Said, Source, migrate, wait_for};
use crate::support::qemu_version;

/// The limits of a guest's source before the engine comes: nobody's defaults.
const BEFORE: (u64, u64) = (1003, 12_345_678);

/// A guest on QEMU 5.2, which has both the old commands and the parameters, and which writes down what it is asked.
struct OldLab {
    lab: Lab,
    _script: TempDir,
}

impl OldLab {
    async fn start(test: &str) -> Option<Self> {
        let qemu = qemu_version(test, "5.2")?;
        let directory = tempfile::tempdir().unwrap();
        let traces = format!("exec '{}' \"$@\" -trace handle_qmp_command", qemu.display());
        let (qemu, board) = (script(directory.path(), "traced", &traces), Board::newest(Accelerator::Tcg));
        let lab = Lab::start_on(&qemu, board, 16, Some("1MiB/s")).await;
        let somebody = lab.somebody().await;
        let limits = QemuLimits { downtime_ms: Some(BEFORE.0), bytes_per_second: Some(BEFORE.1) };
        send(&somebody, LimitsBy::Parameters, limits, SOON).await.unwrap();
        Some(Self { lab, _script: directory })
    }

    /// So many times has the source been asked this, by anybody.
    fn asked(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.lab.directory.path().join("source.log")).unwrap();
        log.lines().filter(|line| line.contains("handle_qmp_command") && line.contains(what)).count()
    }

    async fn limits(&self) -> (u64, u64) {
        limits_of(&settings(&self.lab.somebody().await).await.1)
    }

    async fn wait_for_migration(&self, status: &str) {
        let somebody = self.lab.somebody().await;
        until(status, async || {
            somebody.call(&words::query_migrate {}, SOON).await.unwrap()["status"] == status
        })
        .await;
    }
}

fn limits_of(parameters: &Value) -> (u64, u64) {
    (parameters["downtime-limit"].as_u64().unwrap(), parameters["max-bandwidth"].as_u64().unwrap())
}

/// An executable that does this.
fn script(directory: &Path, name: &str, does: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{does}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Limits are set in one way and not in the other, are in force while the guest moves, and are set back when it does
/// not; then the guest moves, and keeps its limits.
async fn limits_go_by(dialect: &str, limits_by: &str) {
    let Some(old) = OldLab::start(&format!("limits_by_{dialect}")).await else { return };
    let lab = &old.lab;
    let (commands, parameters) = (["migrate_set_downtime", "migrate_set_speed"], "migrate-set-parameters");
    let before = settings(&lab.somebody().await).await;
    let set_before = old.asked(parameters);
    let flags =
        ["--non-live", "--dialect", dialect, "--max-bandwidth", "100KiB/s", "--max-downtime", "1001ms"];

    let mut engine = lab.migrate_held("streaming", &flags);
    let hold = engine.wait();
    assert_eq!(old.limits().await, (2, 100 << 10), "the controller begins with 2 ms");
    let set = old.asked(parameters) - set_before;
    let expected = if limits_by == "old_commands" { ([1, 1], 0) } else { ([0, 0], 1) };
    assert_eq!((commands.map(|command| old.asked(command)), set), expected);
    drop(hold);
    old.wait_for_migration("active").await;
    let cancel = run(command(&["cancel", &lab.monitor()]));
    assert_eq!(cancel.code, 0, "{cancel:?}");
    let ended = engine.end();
    assert_eq!((ended.code, &ended.result()["guest"]), (1, &"running_on_source".into()), "{ended:?}");
    assert_eq!(ended.entries("source")[0]["limits_by"], limits_by);
    assert_eq!(settings(&lab.somebody().await).await, before, "capabilities and parameters are as they were");
    lab.beats_on(lab.source());

    let flags = ["--non-live", "--dialect", dialect, "--max-bandwidth", "1GiB/s"];
    let ended = lab.migrate(&flags);
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"running_on_destination".into()), "{ended:?}");
    assert_eq!(ended.entries("destination")[0]["limits_by"], limits_by);
    assert_eq!(old.limits().await, BEFORE, "the guest keeps its limits where it is now");
    let times = if limits_by == "old_commands" { [3, 3] } else { [0, 0] };
    assert_eq!(commands.map(|command| old.asked(command)), times, "set, set back, set");
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_sets_limits_by_the_old_commands_and_sets_them_back() {
    limits_go_by("legacy", "old_commands").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modern_sets_limits_by_parameters_on_a_qemu_that_has_both() {
    limits_go_by("modern", "parameters").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_prefers_parameters_on_a_qemu_that_has_both() {
    limits_go_by("auto", "parameters").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_limits_reach_a_running_migration_by_the_old_commands() {
    let Some(old) = OldLab::start("new_limits_by_old_commands").await else { return };
    let lab = &old.lab;
    // 16 MiB at this rate take four minutes.
    let flags = ["--non-live", "--dialect", "legacy", "--max-bandwidth", "64KiB/s"];
    let mut engine = lab.migrate_held("streaming", &flags);
    drop(engine.wait());
    old.wait_for_migration("active").await;
    let set = run(command(&["set", &lab.monitor(), "--max-bandwidth", "1GiB/s", "--max-downtime", "1ms"]));
    assert_eq!(set.code, 0, "{set:?}");
    let ended = engine.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.result()["totals"]["total_ms"].as_f64().unwrap() < 60e3,
        "the new limit is in force: {ended:?}"
    );
    // With the process its log stays: its own setting is the test's.
    assert_eq!((old.asked("migrate_set_speed"), old.asked("migrate-set-parameters")), (2, 1));
    assert_eq!(old.asked("1073741824"), 1, "the new rate");
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_leaves_an_old_qemu_keeps_its_limits_where_only_parameters_are() {
    let Some(newer) = qemu_version("leaves_an_old_qemu", "7.2") else { return };
    let Some(old) = OldLab::start("leaves_an_old_qemu").await else { return };
    let flags = ["--non-live", "--dialect", "legacy", "--qemu", newer.to_str().unwrap()];
    let ended = old.lab.migrate(&flags);
    assert_eq!(ended.code, 0, "{ended:?}");
    let limits_by =
        ["source", "destination"].map(|side| ended.entries(side)[0]["limits_by"].as_str().unwrap());
    assert_eq!(limits_by, ["old_commands", "parameters"]);
    assert_eq!(old.limits().await, BEFORE);
    old.lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_migration_on_an_old_qemu_gets_new_limits() {
    let Some(old) = OldLab::start("somebody_elses_on_an_old_qemu").await else { return };
    let lab = &old.lab;
    let nowhere = lab.directory.path().join("slow");
    let _listener = std::os::unix::net::UnixListener::bind(&nowhere).unwrap();
    let uri = Some(format!("unix:{}", nowhere.display()));
    let migrate = words::migrate { uri, channels: None, detach: None, resume: None };
    lab.somebody().await.call(&migrate, SOON).await.unwrap();
    let set = run(command(&["set", &lab.monitor(), "--max-downtime", "1003ms"]));
    assert_eq!(set.code, 0, "{set:?}");
    assert_eq!(old.limits().await, BEFORE, "what was not named stays");
    let set = run(command(&["set", &lab.monitor(), "--max-downtime", "77ms", "--max-bandwidth", "5MiB/s"]));
    assert_eq!(set.code, 0, "{set:?}");
    assert_eq!(old.limits().await, (77, 5 << 20));
    assert_eq!(run(command(&["cancel", &lab.monitor()])).code, 0);
    lab.beats_on(lab.source());
}

#[tokio::test]
async fn old_commands_go_out_in_one_go_and_the_error_of_either_is_told() {
    let both = QemuLimits { downtime_ms: Some(300), bytes_per_second: Some(5) };
    for refused in [None, Some(0), Some(1)] {
        let (client, mut peer) = ScriptedPeer::connected().await;
        let taken = send(&client, LimitsBy::OldCommands, both, SOON);
        // Both are there before either is answered.
        let asked = [peer.asked().await, peer.asked().await];
        assert_eq!(asked.each_ref().map(|asked| &*asked.name), ["migrate_set_downtime", "migrate_set_speed"]);
        assert_eq!(
            asked.each_ref().map(|asked| &asked.arguments),
            [&json!({ "value": 0.3 }), &json!({ "value": 5 })]
        );
        for (number, asked) in asked.iter().enumerate() {
            if refused == Some(number) {
                peer.refuse(asked, "GenericError", "not today").await;
            } else {
                peer.answer(asked, json!({})).await;
            }
        }
        let result = soon(taken).await;
        match refused {
            None => result.unwrap(),
            Some(number) => assert!(result.unwrap_err().to_string().contains(&asked[number].name)),
        }
    }
}

#[test]
fn legacy_is_refused_where_the_old_commands_are_gone_and_the_rest_works() {
    for version in ["7.2", "10.0", "11.1"] {
        let Some(qemu) = qemu_version("legacy_is_refused", version) else { continue };
        let source = Source::start(&qemu, &[]);
        // Under TCG a live migration is refused before 9.0.
        let mode: &[&str] = if version == "7.2" { &["--non-live"] } else { &[] };
        let said = source.refuses(&[&["--dialect", "legacy"], mode].concat());
        said.tells(&["migrate_set_downtime", "6.0", "auto"]);
        let mut detached = command(&["migrate", source.qmp().to_str().unwrap(), "--detach"]);
        let said = Said::of(&detached.args(["--dialect", "legacy"]).args(mode).output().unwrap());
        said.is_refusal();
        said.tells(&["migrate_set_downtime"]);
        for dialect in ["modern", "auto"] {
            let said = migrate(source.qmp().to_str().unwrap(), &[&["--dialect", dialect], mode].concat());
            assert_eq!(said.code, Some(0), "{version}, {dialect}: {said:?}");
            assert_eq!(source.monitor().ask("query-status")["status"], "running");
        }
    }
}

// ---- what each can do

/// The four QEMUs, or those that are to be had.
fn qemus(test: &str) -> Vec<(&'static str, PathBuf)> {
    let versions = ["5.2", "7.2", "10.0", "11.1"].into_iter();
    versions.filter_map(|version| Some((version, qemu_version(test, version)?))).collect()
}

fn features(arguments: &[&Path]) -> Output {
    command(&["features"]).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

fn json_lines(arguments: &[&Path]) -> Vec<Value> {
    let output = features(&[&[Path::new("--json")], arguments].concat());
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|entry| entry[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_table_holds_what_each_qemu_says_itself() {
    for (version, qemu) in qemus("the_table_holds") {
        let source = Source::start(&qemu, &[]);
        let mut monitor = source.monitor();
        let commands = names(&monitor.ask("query-commands"), "name");
        let capabilities = names(&monitor.ask("query-migrate-capabilities"), "capability");
        monitor.execute("migrate-set-parameters", &json!({ "max-bandwidth": 7 }));
        let parameters = monitor.ask("query-migrate-parameters");
        drop(monitor);
        let pid = PathBuf::from(format!("pid:{}", source.process.pid()));
        let rows = json_lines(&[&qemu, &source.qmp(), &pid]);
        assert_eq!(rows.len(), 3);
        for row in &rows {
            assert!(row["version"].as_str().unwrap().starts_with(version), "{row}");
            assert_eq!(row["unknown"], json!({}), "{row}");
            let said = &row["features"];
            for (name, has) in said["capabilities"].as_object().unwrap() {
                assert_eq!(*has, capabilities.contains(name), "{version}: {name}");
            }
            // A row of an argument is none of a command.
            for (name, has) in
                said["commands"].as_object().unwrap().iter().filter(|(name, _)| !name.contains(' '))
            {
                assert_eq!(*has, commands.contains(name), "{version}: {name}");
            }
            for (name, value) in
                said["parameters"].as_object().unwrap().iter().filter(|(_, value)| !value.is_boolean())
            {
                let is_set_here = name == "max-bandwidth" && row["qemu"] == qemu.to_str().unwrap();
                let expected = if is_set_here { &json!(128 << 20) } else { &parameters[name] };
                assert_eq!(value, expected, "{version}: {name}");
            }
        }
    }
}

#[test]
fn four_qemus_fit_on_a_terminal_and_the_readme_shows_what_is_printed() {
    let all = qemus("the_readme_shows");
    let [_, _, _, _] = all.as_slice() else { return };
    let paths = all.iter().map(|(_, path)| path.as_path()).collect::<Vec<_>>();
    let text = features(&paths);
    let table = stdout(&text).split("\n\n").next().unwrap();
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");

    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let markdown = features(&[&["--markdown", "--differences"].map(Path::new)[..], &paths].concat());
    let printed = stdout(&markdown);
    let (head, rows) = printed.split_once('\n').unwrap();
    // A QEMU of the same version with other patches has the same features.
    let start = readme.lines().position(|line| line.starts_with('|') && shortened(line) == shortened(head));
    let start = start.unwrap_or_else(|| panic!("no table in README.md begins with {head}"));
    let shown = readme.lines().skip(start + 1).take(rows.lines().count()).collect::<Vec<_>>();
    assert_eq!(shown, rows.lines().collect::<Vec<_>>());
}

/// The versions in the head of a table, without the last number of each.
fn shortened(head: &str) -> Vec<&str> {
    head.split('|')
        .map(str::trim)
        .map(|cell| cell.rsplit_once('.').map_or(cell, |(short, _)| short))
        .collect()
}

#[test]
fn a_qemu_that_was_started_to_be_asked_leaves_nothing() {
    let Some(qemu) = qemu_version("started_to_be_asked", "10.0") else { return };
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    let tells = format!("echo $$ $(pwd) > '{}'; exec '{}' \"$@\"", told.display(), qemu.display());
    let recorded = script(directory.path(), "told-qemu", &tells);
    stdout(&features(&[&recorded]));
    assert_gone(&told);
}

/// What a script told of itself, process and directory, is gone.
fn assert_gone(told: &Path) {
    let (pid, place) = told_by(told);
    assert!(!lives(pid), "process {pid} is left");
    assert!(
        place.file_name().unwrap().to_str().unwrap().starts_with("probe-") && !place.exists(),
        "{} is left",
        place.display()
    );
}

fn told_by(told: &Path) -> (i32, PathBuf) {
    let told = std::fs::read_to_string(told).unwrap();
    let (pid, place) = told.trim().split_once(' ').unwrap();
    (pid.parse().unwrap(), place.into())
}

#[test]
fn an_interrupt_ends_a_program_that_never_opens_a_monitor() {
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    let deaf = format!("echo $$ $(pwd) > '{0}.new'; mv '{0}.new' '{0}'; exec sleep 1000", told.display());
    let deaf = script(directory.path(), "deaf", &deaf);
    let child = command(&["features"]).arg(deaf).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the program", || told.exists().then_some(()));
    signal(child.id().try_into().unwrap(), Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_gone(&told);
    if let Some(qemu) = qemu_version("an_interrupt_ends", "5.2") {
        stdout(&features(&[&qemu]));
    }
}

#[test]
fn what_is_left_of_a_command_that_was_killed_while_it_asked_the_next_one_clears_away() {
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    // A child of its own, which no end of its parent reaches.
    let script_text = "sh -c 'echo $$ $(pwd) > TOLD.new; mv TOLD.new TOLD; sleep 1000; true' sh \"$@\"; true";
    let deaf = script(directory.path(), "deaf", &script_text.replace("TOLD", &told.display().to_string()));
    let mut child = command(&["features"]).arg(deaf).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the program", || told.exists().then_some(()));
    let (pid, place) = told_by(&told);
    child.kill().unwrap();
    child.wait().unwrap();
    // Of all migrations it would bring those of other tests to an end; this one there never was.
    let recovered = command(&["recover", "00000000"]).output().unwrap();
    wait_for("the end of what it left", || (!lives(pid)).then_some(()));
    assert!(!place.exists(), "{}: {recovered:?}", place.display());
    if let Some(qemu) = qemu_version("what_is_left_of_a_command", "5.2") {
        stdout(&features(&[&qemu]));
    }
}

#[test]
fn a_qemu_that_is_asked_ends_with_whoever_asks() {
    let Some(qemu) = qemu_version("ends_with_whoever_asks", "10.0") else { return };
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    // It stops before it opens a monitor.
    let text = format!(
        "echo $$ $(pwd) > '{0}.new'; mv '{0}.new' '{0}'; kill -STOP $$; exec '{1}' \"$@\"",
        told.display(),
        qemu.display()
    );
    let stopped = script(directory.path(), "stopped", &text);
    let mut child = command(&["features"]).arg(stopped).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the program", || told.exists().then_some(()));
    let (pid, place) = told_by(&told);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the end of the QEMU", || (!lives(pid)).then_some(()));
    stdout(&features(&[&qemu]));
    assert!(!place.exists(), "the next one clears it away: {}", place.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_newer_qemu_has_is_shown_too() {
    let answers = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/qemu/dialect/answers/11.1.json");
    let mut answers: Value = serde_json::from_slice(&std::fs::read(answers).unwrap()).unwrap();
    let wings = json!({ "capability": "wings", "state": false });
    answers["query-migrate-capabilities"].as_array_mut().unwrap().push(wings);
    answers["query-migrate-parameters"]["height\u{1b}"] = json!(7);
    for (flag, parts) in [
        ("--markdown", [r"also in 10.0.2: capabilities wings; parameters height\u{1b}", "| 300 ms |"]),
        ("--json", [r#""unknown":{"capabilities":["wings"],"parameters":["height\u001b"]}"#, "300"]),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap());
        let printed = tokio::task::spawn_blocking(move || features(&[Path::new(flag), Path::new(&address)]));
        let mut peer = ScriptedPeer::over(soon(listener.accept()).await.unwrap().0);
        peer.greet(&[]).await;
        while let Some(asked) = soon(peer.next()).await {
            peer.answer(&asked, answers[&asked.name].clone()).await;
        }
        let printed = soon(printed).await.unwrap();
        for part in parts {
            assert!(stdout(&printed).contains(part), "{part} is not in {printed:?}");
        }
    }
}

#[test]
fn what_is_no_qemu_is_refused_with_a_sentence_and_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let text = path.join("text");
    std::fs::write(&text, "no program").unwrap();
    let ends = script(path, "ends", "echo out of paper >&2; exit 1");
    let leaves = script(path, "leaves", "exit 0");
    let table: [(&Path, &[&str]); 8] = [
        (&path.join("nothing"), &["there is no such file"]),
        (Path::new("qemu-system-none"), &["none in PATH"]),
        (&text, &["cannot be started", "Permission denied"]),
        (path, &["cannot be started", "Permission denied"]),
        (&ends, &["ended as it started", "out of paper"]),
        (&leaves, &["ended as it started", "it said: nothing"]),
        (Path::new("pid:1x"), &["is not a process number"]),
        (Path::new("unix:/nowhere/qmp"), &["/nowhere/qmp"]),
    ];
    for (qemu, parts) in table {
        let said = Said::of(&features(&[qemu]));
        said.is_refusal();
        said.tells(parts);
    }
    // Without a name it is the usual one, which is not everywhere.
    let mut without = command(&["features"]);
    let said = Said::of(&without.env("PATH", path).output().unwrap());
    said.is_refusal();
    said.tells(&["there is no qemu-system-x86_64"]);
    if let Some(qemu) = qemu_version("what_is_no_qemu", "11.1") {
        script(
            path,
            "qemu-system-x86_64",
            &format!("exec /bin/sh -c 'exec \"$0\" \"$@\"' '{}' \"$@\"", qemu.display()),
        );
        let usual = std::env::join_paths([path, Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
        let mut without = command(&["features"]);
        assert!(stdout(&without.env("PATH", usual).output().unwrap()).contains("11.1"));
    }
}

#[test]
fn a_qemu_whose_monitor_is_held_is_told_as_such() {
    let Some(qemu) = qemu_version("a_held_monitor", "10.0") else { return };
    let source = Source::start(&qemu, &[]);
    let held = Monitor::connect(&source.qmp());
    let said = Said::of(&features(&[&source.qmp()]));
    said.is_refusal();
    said.tells(&["holds it"]);
    drop(held);
    assert_eq!(json_lines(&[&source.qmp()]).len(), 1);
}
