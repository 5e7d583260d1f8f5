//! What a killed engine leaves is brought to its end by `recover`: the guest runs once, all of it, and nothing is left.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use qapi_qmp as words;
use qmigrate::host::{listening_process, runtime_directory, state_directory};
use qmigrate::qmp::words::{MigrationInfo, RunState};
use qmigrate::record::MigrationId;

use crate::lab::{Ended, Lab, SOON, command, kill_for_certain, lives, run, settings, signal, until};
use crate::player::Dice;

/// A guest whose engine was killed as it had entered a phase.
struct Orphaned {
    lab: Lab,
    id: String,
    destination: i32,
}

impl Orphaned {
    async fn at(test: &str, phase: &str, arguments: &[&str]) -> Option<Self> {
        let lab = Lab::start(test, 24, Some("10MiB/s")).await?;
        let mut engine = lab.migrate_held(phase, arguments);
        let hold = engine.wait();
        let destination = lab.destination();
        if phase == "streaming" {
            let somebody = lab.somebody().await;
            until("the source has read `migrate`", async || {
                let info: MigrationInfo = somebody.call_as(&words::query_migrate {}, SOON).await.unwrap();
                info.ram.is_some()
            })
            .await;
        }
        engine.child.kill().unwrap();
        drop(hold);
        let ended = engine.end();
        let id = ended.lines[0]["id"].as_str().unwrap().to_owned();
        Some(Self { lab, id, destination })
    }

    fn recover(&self) -> Ended {
        recover(&self.id)
    }

    /// The guest is well and runs once; nothing of the migration is left, and it can be moved again.
    async fn is_well(&self, running_in: i32) {
        nothing_is_left(&self.lab, &self.id);
        self.lab.beats_on(running_in);
        assert_eq!(self.lab.state().await, RunState::Running);
        self.lab.prove().await;
        let again = self.lab.migrate(&[]);
        assert_eq!(again.code, 0, "{again:?}");
        self.lab.never_two(running_in, self.lab.destination());
        self.lab.prove().await;
    }
}

fn recover(id: &str) -> Ended {
    run(command(&["recover", id, "--json"]))
}

/// No journal, socket, directory or file of a migration.
fn nothing_is_left(lab: &Lab, id: &str) {
    no_name_is_left(id);
    assert_eq!(lab.left_behind(), [] as [PathBuf; 0]);
}

/// Nothing in the engine's own directories is called after a migration.
fn no_name_is_left(id: &str) {
    let places = [runtime_directory().unwrap(), state_directory().unwrap().join("journal")];
    for place in places {
        let entries = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
        let left: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().contains(id)).collect();
        assert_eq!(left, [] as [PathBuf; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_still_runs_is_taken_up_and_decided_on() {
    let Some(orphaned) = Orphaned::at("taken_up", "streaming", &["--max-bandwidth", "20MiB/s"]).await else {
        return;
    };
    let ended = orphaned.recover();
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"running_on_destination".into()), "{ended:?}");
    assert!(!ended.entries("sample").is_empty(), "it was still under way: {ended:?}");
    orphaned.lab.never_two(orphaned.lab.source(), orphaned.destination);
    assert!(!lives(orphaned.lab.source()));
    orphaned.is_well(orphaned.destination).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_stands_still_since_its_engine_died_is_run_where_it_has_arrived() {
    for phase in ["switchover", "armed", "committed", "arrived"] {
        let test = format!("stands_still_{phase}");
        let Some(orphaned) = Orphaned::at(&test, phase, &[]).await else { return };
        let ended = orphaned.recover();
        let found = (ended.code, &ended.result()["guest"]);
        assert_eq!(found, (0, &"running_on_destination".into()), "{phase}: {ended:?}");
        orphaned.lab.never_two(orphaned.lab.source(), orphaned.destination);
        assert!(!lives(orphaned.lab.source()), "{phase}");
        let again = orphaned.recover();
        assert_eq!(again.code, 2, "{phase}: {again:?}");
        assert!(again.stderr.contains("there is no open migration"), "{again:?}");
        orphaned.is_well(orphaned.destination).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_on_its_way_back_gets_there() {
    for phase in ["stopping", "settling"] {
        let Some(lab) = Lab::start(&format!("way_back_{phase}"), 24, Some("10MiB/s")).await else { return };
        let before = settings(&lab.somebody().await).await;
        let mut engine = lab.migrate_held(phase, &["--max-bandwidth", "5MiB/s"]);
        until("the stream runs", async || {
            let status = run(command(&["status", &lab.monitor(), "--json"]));
            status.lines.first().is_some_and(|line| line["phases"].to_string().contains("stream"))
        })
        .await;
        signal(engine.child.id().try_into().unwrap(), Signal::SIGINT);
        let hold = engine.wait();
        let destination = lab.destination();
        engine.child.kill().unwrap();
        drop(hold);
        let id = engine.end().lines[0]["id"].as_str().unwrap().to_owned();
        let ended = recover(&id);
        let found = (ended.code, &ended.result()["guest"]);
        assert_eq!(found, (1, &"running_on_source".into()), "{phase}: {ended:?}");
        until("the destination has ended", async || !lives(destination)).await;
        assert_eq!(settings(&lab.somebody().await).await, before, "{phase}");
        let source = lab.source();
        Orphaned { lab, id, destination }.is_well(source).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_gone_is_proven_lost() {
    let Some(orphaned) = Orphaned::at("proven_lost", "armed", &[]).await else { return };
    kill_for_certain(orphaned.destination).await;
    kill_for_certain(orphaned.lab.source()).await;
    let ended = orphaned.recover();
    assert_eq!((ended.code, &ended.result()["guest"]), (4, &"lost".into()), "{ended:?}");
    assert!(ended.stderr.contains("hint: start it anew from its disks"), "{ended:?}");
    assert_eq!(recover(&orphaned.id).code, 2, "nothing is open any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_may_have_run_where_it_died_is_not_run_again_unasked() {
    let Some(orphaned) = Orphaned::at("may_have_run", "committed", &[]).await else { return };
    kill_for_certain(orphaned.destination).await;
    let ended = orphaned.recover();
    assert_eq!((ended.code, &ended.result()["guest"]), (4, &"lost".into()), "{ended:?}");
    assert!(ended.stderr.contains("`cont` on its source's monitor"), "{ended:?}");
    assert_eq!(orphaned.lab.state().await, RunState::PostMigrate);
    let client = orphaned.lab.subject.connect().await.unwrap();
    client.call(&words::cont {}, SOON).await.unwrap();
    drop(client);
    orphaned.is_well(orphaned.lab.source()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_died_meanwhile_sends_the_guest_back() {
    for phase in ["streaming", "armed"] {
        let test = format!("died_meanwhile_{phase}");
        let Some(orphaned) = Orphaned::at(&test, phase, &["--max-bandwidth", "20MiB/s"]).await else {
            return;
        };
        kill_for_certain(orphaned.destination).await;
        let ended = orphaned.recover();
        let found = (ended.code, &ended.result()["guest"]);
        assert_eq!(found, (1, &"running_on_source".into()), "{phase}: {ended:?}");
        orphaned.is_well(orphaned.lab.source()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_of_the_users_is_neither_ended_nor_forgotten() {
    for (phase, code, guest) in [("prepared", 1, "running_on_source"), ("armed", 0, "running_on_destination")]
    {
        let Some(lab) = Lab::start(&format!("users_{phase}"), 16, Some("4MiB/s")).await else { return };
        let (child, qmp) = lab.by_hand(None, &["-incoming", "defer"]).await;
        let files = lab.left_behind();
        let mut engine = lab.migrate_held(phase, &["--destination-qmp", qmp.to_str().unwrap()]);
        let hold = engine.wait();
        engine.child.kill().unwrap();
        drop(hold);
        let id = engine.end().lines[0]["id"].as_str().unwrap().to_owned();
        let ended = recover(&id);
        assert_eq!((ended.code, &ended.result()["guest"]), (code, &guest.into()), "{phase}: {ended:?}");
        let destination = child.pid();
        assert!(lives(destination), "{phase}: it is the user's");
        no_name_is_left(&id);
        assert_eq!(lab.left_behind(), files);
        if code == 0 {
            lab.never_two(lab.source(), destination);
        } else {
            assert!(ended.stderr.contains("start it anew before the next attempt"), "{ended:?}");
            lab.beats_on(lab.source());
            let again = lab.migrate(&[]);
            assert_eq!(again.code, 0, "{again:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_has_one_migration_at_a_time_and_an_open_one_is_named() {
    let Some(orphaned) = Orphaned::at("one_at_a_time", "armed", &[]).await else { return };
    let second = orphaned.lab.migrate(&[]);
    assert_eq!(second.code, 2, "{second:?}");
    assert!(second.stderr.contains(&format!("hint: `qmigrate recover {}`", orphaned.id)), "{second:?}");
    let list = run(command(&["recover", "--list"]));
    assert!(list.stderr.contains(&orphaned.id), "{list:?}");
    assert_eq!(orphaned.recover().code, 0);
    orphaned.is_well(orphaned.destination).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_engines_do_not_move_one_guest_by_two_monitors() {
    let Some(lab) = Lab::start("two_engines", 24, Some("10MiB/s")).await else { return };
    let mut first = lab.migrate_held("streaming", &["--max-bandwidth", "20MiB/s"]);
    let hold = first.wait();
    let other = format!("unix:{}", lab.directory.path().join("second-qmp").display());
    let second = run(command(&["migrate", &other, "--json"]));
    assert_eq!(second.code, 2, "{second:?}");
    drop(hold);
    assert_eq!(first.end().code, 0);
    lab.prove().await;
}

/// So many engines are killed in a run of the tests; `tests/run --full` kills 200.
const KILLS: u64 = 20;

/// Kills engines at random moments of a guest's moves, and now and then the recovery too; each time `recover` ends in
/// a state that is told, and true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_killed_at_any_moment_leaves_what_recover_brings_to_a_true_end() {
    let Some(lab) = Lab::start("killed_at_any_moment", 16, Some("10MiB/s")).await else { return };
    let kills = if std::env::var_os("QMIGRATE_FULL").is_some() { KILLS * 10 } else { KILLS };
    let mut dice = Dice::new(7);
    // The moments are spread over a move as long as one takes here and now, and a little more.
    let begun = std::time::Instant::now();
    assert_eq!(lab.migrate(&["--max-bandwidth", "60MiB/s"]).code, 0);
    let latest_ms = usize::try_from(begun.elapsed().as_millis()).unwrap() * 5 / 4;
    let (mut arrived, mut back, mut source) = (0, 0, lab.destination());
    let mut number = 0;
    // Which moments a fast or a busy machine meets is chance: it goes on until there was one of each kind.
    while number < kills || (number < kills * 5 && (arrived == 0 || back == 0)) {
        number += 1;
        let id = MigrationId::new().to_string();
        let monitor = lab.monitor();
        let arguments = ["migrate", &monitor, "--detached", &id, "--max-bandwidth", "60MiB/s"];
        // What goes back is killed before the stream begins: that is the smaller part of a move.
        let latest_ms = if number % 2 == 0 { latest_ms } else { latest_ms / 2 };
        kill_after(&arguments, dice.pick(latest_ms));
        if dice.pick(4) == 0 {
            kill_after(&["recover", &id], dice.pick(100));
        }
        let ended = recover(&id);
        let at = format!("kill {number}: {ended:?}");
        nothing_is_left(&lab, &id);
        let pid = listening_process(lab.subject.monitor.path().unwrap()).unwrap_or_else(|| panic!("{at}"));
        match ended.code {
            0 => assert_ne!(pid, source, "{at}"),
            1 => assert_eq!(pid, source, "{at}"),
            // It was over before it was killed, or had not begun; or the recovery that was killed had ended it.
            2 => assert!(ended.stderr.contains("there is no open migration"), "{at}"),
            _ => panic!("{at}"),
        }
        assert_eq!(lab.state().await, RunState::Running, "{at}");
        assert!(pid == source || !lives(source), "{at}");
        (arrived, back) = (arrived + u64::from(ended.code == 0), back + u64::from(ended.code == 1));
        lab.beats_on(pid);
        lab.prove().await;
        source = pid;
    }
    eprintln!("of {number}: {arrived} arrived, {back} went back, the others were over or had not begun");
    assert!(arrived > 0 && back > 0, "the moments are of all kinds");
}

/// Starts the command and kills it so many milliseconds later, unless it has ended.
fn kill_after(arguments: &[&str], milliseconds: usize) {
    let mut child = command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(milliseconds.try_into().unwrap()));
    child.kill().unwrap();
    child.wait().unwrap();
}
