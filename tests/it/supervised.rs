//! Sources that somebody would start anew: they are not ended behind that somebody's back, and the guest never runs
//! twice.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use qmigrate::guest::image::MemoryFile;
use qmigrate::guest::{Accelerator, Content, Machine, Pattern, Workload, memfd};
use qmigrate::host::command_line;
use qmigrate::observe::heartbeat::{Observer, Sequence};
use qmigrate::units::Size;

use crate::lab::{Ended, Lab, SOON, command, lives, run, until};
use crate::small_qemu::{Monitor, qemu_or_skip, wait_for};

fn executable(path: &Path, lines: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A guest whose QEMU is started anew whenever it ends.
struct Supervised {
    directory: tempfile::TempDir,
    observer: Observer,
    supervisor: Child,
    source: i32,
    /// The image lives as long as this process holds it.
    _image: MemoryFile,
}

impl Supervised {
    /// Has it started by a script of this name; `$QEMU` in its lines is the QEMU, its arguments are QEMU's.
    fn start(qemu: &Path, name: &str, lines: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("qm").tempdir().unwrap();
        let size = |mebibytes| Size::from_mebibytes(mebibytes).unwrap();
        let rate = Some("4MiB/s".parse().unwrap());
        let workload =
            Workload::new(size(64), size(16), rate, Pattern::Sweep, Content::Incompressible).unwrap();
        let image = memfd(&workload).unwrap();
        let observer = Observer::listen(&directory.path().join("beats")).unwrap();
        let machine = Machine {
            machine: "pc".to_owned(),
            accelerator: Accelerator::Tcg,
            memory: workload.memory(),
            kernel: Some(image.path()),
            qmp: directory.path().join("qmp"),
            second_qmp: None,
            heartbeat: observer.path().to_owned(),
            more: Vec::new(),
        };
        let program = directory.path().join(name);
        executable(&program, lines);
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let supervisor = Command::new(&program)
            .args(machine.arguments())
            .env("QEMU", std::path::absolute(qemu).unwrap())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let source = wait_for("a heart", || observer.pids().first().copied());
        assert!(observer.wait_for_first_beat(source, SOON).is_some());
        Self { directory, observer, supervisor, source, _image: image }
    }

    fn qmp(&self) -> PathBuf {
        self.directory.path().join("qmp")
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Ended {
        let qmp = self.qmp();
        run(command(&[&[verb, qmp.to_str().unwrap(), "--json"], arguments].concat()))
    }

    fn beats(&self, pid: i32) -> u64 {
        self.observer.heart(pid).map_or(0, |heart| heart.beats)
    }

    fn beats_on(&self, pid: i32) {
        assert!(
            self.observer.wait_for_beats(pid, self.beats(pid) + 20, SOON),
            "the heart of {pid} does not beat"
        );
    }

    /// Refused and untouched; moved where the source is kept; and never two.
    fn is_moved_only_where_it_is_kept(&self, by: &str) {
        let before = Monitor::connect(&self.qmp()).ask("query-migrate-capabilities");
        let refused = self.run("migrate", &[]);
        assert_eq!(refused.code, 2, "{refused:?}");
        let blockers = refused.entries("blocker");
        assert_eq!(blockers.len(), 1, "{refused:?}");
        assert_eq!(blockers[0]["code"], "supervised");
        let (message, hint) =
            (blockers[0]["message"].as_str().unwrap(), blockers[0]["hint"].as_str().unwrap());
        assert!(message.contains(by) && hint.contains("--keep-source"), "{message}: {hint}");
        assert_eq!(self.run("check", &[]).code, 2);

        self.beats_on(self.source);
        assert_eq!(self.observer.pids(), [self.source]);
        assert_eq!(Monitor::connect(&self.qmp()).ask("query-migrate-capabilities"), before);

        let check = self.run("check", &["--keep-source"]);
        assert_eq!((check.code, check.entries("blocker").len()), (0, 0), "{check:?}");
        assert!(check.entries("warning").iter().any(|warning| warning["code"] == "supervised"), "{check:?}");
        let moved = self.run("migrate", &["--keep-source"]);
        assert_eq!(moved.code, 0, "{moved:?}");
        let destination =
            wait_for("a second heart", || self.observer.pids().into_iter().find(|pid| *pid != self.source));
        self.beats_on(destination);
        let handover = self.observer.handover(self.source, destination).unwrap();
        assert_eq!((handover.sequence, handover.overlap), (Sequence::Continuous, None), "{handover:?}");
        assert!(lives(self.source), "whoever looks after it sees it alive");
        let stood = self.beats(self.source);
        self.beats_on(destination);
        assert_eq!(self.beats(self.source), stood, "it ran on the source again");
        assert_eq!(self.observer.pids(), [self.source, destination], "a third QEMU was started");
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // First whoever would start another one, then what is of its group, then the destination.
        self.supervisor.kill().ok();
        self.supervisor.wait().ok();
        killpg(Pid::from_raw(self.supervisor.id().try_into().unwrap()), Signal::SIGKILL).ok();
        let own = self.directory.path().to_string_lossy();
        let is_ours = |pid: &i32| {
            command_line(*pid)
                .is_ok_and(|words| words.iter().any(|word| word.to_string_lossy().contains(&*own)))
        };
        for pid in self.observer.pids().into_iter().filter(is_ours) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

#[test]
fn a_source_in_a_scripts_loop_is_not_ended_and_moves_where_it_is_kept() {
    let Some(qemu) = qemu_or_skip("a_source_in_a_scripts_loop") else { return };
    let guest = Supervised::start(&qemu, "start-vm", "while :; do\n  \"$QEMU\" \"$@\"\n  sleep 0.1\ndone");
    guest.is_moved_only_where_it_is_kept("start-vm");
}

#[test]
fn a_source_of_a_supervisor_is_not_ended_and_moves_where_it_is_kept() {
    let Some(qemu) = qemu_or_skip("a_source_of_a_supervisor") else { return };
    // It has no loop to be seen: it becomes itself again.
    let guest = Supervised::start(&qemu, "runsv", "\"$QEMU\" \"$@\"\nexec \"$0\" \"$@\"");
    guest.is_moved_only_where_it_is_kept("runsv");
}

#[test]
fn a_script_that_starts_a_guest_once_is_in_nobodys_way() {
    let Some(qemu) = qemu_or_skip("a_script_that_starts_a_guest_once") else { return };
    let lines = "for word; do last=$word; done\nwhile [ -e /nowhere ]; do sleep 1; done\n\"$QEMU\" \"$@\"";
    let guest = Supervised::start(&qemu, "start-vm", lines);
    let moved = guest.run("migrate", &[]);
    assert_eq!(moved.code, 0, "{moved:?}");
    assert_eq!(moved.entries("warning").len(), 0, "{moved:?}");
    assert!(!lives(guest.source));
}

/// A `systemctl` of our own, which writes down how it was called.
fn systemctl(lab: &Lab, lines: &str) -> std::ffi::OsString {
    let place = lab.directory.path().join("bin");
    std::fs::create_dir_all(&place).unwrap();
    let log = place.join("called");
    executable(&place.join("systemctl"), &format!("echo \"$@\" >> '{}'\n{lines}", log.display()));
    let path = std::env::var_os("PATH").unwrap();
    let places = [place].into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(places).unwrap()
}

fn migrate_with(lab: &Lab, path: &std::ffi::OsStr) -> Ended {
    let mut command = lab.command(&["migrate", &lab.monitor(), "--json", "--source-unit", "vm"]);
    command.env("PATH", path);
    run(command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_in_a_unit_is_ended_by_stopping_the_unit() {
    let Some(lab) = Lab::start("a_source_in_a_unit", 16, Some("4MiB/s")).await else { return };
    let source = lab.source();
    let path = systemctl(&lab, &format!("kill {source}"));
    let moved = migrate_with(&lab, &path);
    assert_eq!(moved.code, 0, "{moved:?}");
    let called = std::fs::read_to_string(lab.directory.path().join("bin/called")).unwrap();
    assert_eq!(called, "stop -- vm.service\n");
    assert!(!lives(source));
    lab.never_two(source, lab.destination());
    // At the name that the guest always had.
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_does_not_stop_leaves_the_source_to_whoever_looks_after_it() {
    let Some(lab) = Lab::start("a_unit_that_does_not_stop", 16, Some("4MiB/s")).await else { return };
    let source = lab.source();
    let path = systemctl(&lab, "echo 'Access denied' >&2; exit 4");
    let moved = migrate_with(&lab, &path);
    assert_eq!((moved.code, &moved.result()["guest"]), (5, &"running_on_destination".into()), "{moved:?}");
    let message = moved.result()["message"].as_str().unwrap();
    assert!(
        message.contains("vm.service could not be stopped") && message.contains("Access denied"),
        "{message}"
    );
    assert!(lives(source));
    let destination = lab.destination();
    lab.never_two(source, destination);
    // Once that is seen to, the guest moves on from where it is.
    let again = run(command(&["migrate", &format!("pid:{destination}"), "--json"]));
    assert_eq!(again.code, 0, "{again:?}");
    until("the source has stood still", async || lives(source) && !lives(destination)).await;
}
