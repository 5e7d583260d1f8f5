//! How a QEMU starts, stays and ends.

use qapi_qmp as qmp;
use qmigrate::qmp::{Client, Deadlines, Leg};
use serde_json::json;

use super::*;
use crate::lab::SOON;
use crate::small_qemu::{command, run};

#[test]
fn a_copied_incoming_listens_twice_and_a_replaced_one_does_not() {
    let Some(qemu) = qemu_or_skip("a_copied_incoming") else { return };
    let source = Source::start(&qemu, &[]);
    let incoming = format!("tcp:127.0.0.1:{}", port());
    moved(&source, &["--incoming", &incoming]);
    let destination = listening_process(&source.qmp()).unwrap();
    assert!(words(destination).contains(&incoming));
    let (_, next) = moved(&source, &[]);
    assert!(!words(next).contains(&incoming) && !lives(destination));
}

#[test]
fn a_copied_loadvm_is_refused_by_qemu_and_left_out_of_a_rewritten_line() {
    let Some(qemu) = qemu_or_skip("a_copied_loadvm") else { return };
    let place = Place::new();
    let (disk, empty) = (place.at("disk.qcow2"), place.at("empty.qcow2"));
    let helper = place.start(&qemu, "helper", &[]);
    let mut monitor = Monitor::connect(&place.at("helper"));
    let create = |monitor: &mut Monitor, id: &str, options: serde_json::Value| {
        monitor.execute("blockdev-create", &json!({ "job-id": id, "options": options }));
        wait_for("the image", || {
            (monitor.ask("query-jobs").as_array()?.iter().all(|job| job["status"] == "concluded"))
                .then_some(())
        });
        monitor.execute("job-dismiss", &json!({ "id": id }));
    };
    create(&mut monitor, "file", json!({ "driver": "file", "filename": empty, "size": 0 }));
    monitor.execute("blockdev-add", &json!({ "driver": "file", "node-name": "f", "filename": empty }));
    create(&mut monitor, "image", json!({ "driver": "qcow2", "file": "f", "size": 1 << 20 }));
    monitor.ask("quit");
    drop(helper);
    std::fs::rename(&empty, &disk).unwrap();
    let drive = format!("file={},format=qcow2,if=virtio", disk.display());
    let first = place.start(&qemu, "first", &["-drive", &drive]);
    let mut monitor = Monitor::connect(&place.at("first"));
    monitor.execute("human-monitor-command", &json!({ "command-line": "savevm then" }));
    monitor.ask("quit");
    drop(first);

    let source = Source { process: place.start(&qemu, "qmp", &["-drive", &drive, "-loadvm", "then"]), place };
    copy_dies(&source, "mutually exclusive");
    let (_, destination) = moved(&source, &[]);
    assert!(!words(destination).contains(&"-loadvm".to_owned()));
}

#[tokio::test]
async fn a_copy_in_preconfig_takes_no_guest_and_a_rewritten_one_does() {
    let Some(qemu) = qemu_or_skip("a_copy_in_preconfig") else { return };
    let source = Source::start(&qemu, &["-preconfig"]);
    source.monitor().ask("x-exit-preconfig");
    let mut monitor = source.monitor();
    wait_for("its machine", || monitor.attempt("query-kvm", &json!({})).ok());
    drop(monitor);
    let _copy = copy_waits(&source);
    let address = format!("unix:{}", source.place.at("copy").display()).parse().unwrap();
    let client = Client::connect(&address, Leg::Destination, Deadlines::default()).await.unwrap();
    let refused = client.call(&qmp::query_migrate_capabilities {}, SOON).await.unwrap_err();
    assert!(refused.to_string().contains("only after machine initialization"), "{refused}");
    drop(client);
    moved(&source, &[]);
}

#[test]
fn a_copied_daemon_leaves_its_starter_and_a_rewritten_one_stays() {
    let Some(qemu) = qemu_or_skip("a_copied_daemon") else { return };
    let place = Place::new();
    let pidfile = place.at("pid");
    let daemon = place.start(&qemu, "qmp", &["-daemonize", "-pidfile", pidfile.to_str().unwrap()]);
    let source = || std::fs::read_to_string(&pidfile).unwrap().trim().parse::<i32>().unwrap();
    wait_for("the end of its starter", || (!lives(daemon.pid())).then_some(()));
    assert!(lives(source()) && daemon.pid() != source());
    let monitor = place.at("qmp");
    let said = migrate(monitor.to_str().unwrap(), &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!words(source()).contains(&"-daemonize".to_owned()));
    assert_eq!(listening_process(&monitor), Some(source()));
}

#[test]
fn a_copy_that_ends_with_its_parent_dies_with_the_command_and_a_moved_guest_does_not() {
    let Some(qemu) = qemu_version("a_copy_that_ends_with_its_parent", "11.1") else { return };
    let source = Source::start(&qemu, &["-run-with", "exit-with-parent=on"]);
    // Its parent is a shell that ends at once.
    let words = words(source.process.pid())
        .into_iter()
        .map(|word| word.replace(source.qmp().to_str().unwrap(), source.place.at("copy").to_str().unwrap()));
    let line = shell_words::join(words.chain(["-S", "-incoming", "defer"].map(str::to_owned)));
    let log = source.place.at("copy.log");
    let monitor = source.place.at("copy");
    let line = format!("{line} > {} 2>&1 & while ! [ -S {} ]; do :; done", log.display(), monitor.display());
    let mut shell = std::process::Command::new("/bin/sh");
    shell.arg("-c").arg(line);
    shell.envs(ProcessView::read(source.process.pid()).unwrap().environment);
    assert!(shell.status().unwrap().success());
    wait_for("the end of the copy", || (source.place.qemus() == [source.process.pid()]).then_some(()));

    let (_, destination) = moved(&source, &["--qemu", qemu.to_str().unwrap()]);
    let mut monitor = source.monitor();
    assert_eq!(monitor.ask("query-status")["status"], "running");
    assert!(lives(destination));
}

#[test]
fn a_copy_cannot_become_the_user_that_it_is_and_a_moved_guest_need_not() {
    let Some(qemu) = qemu_or_skip("a_copy_cannot_become") else { return };
    let test = "a_copy_cannot_become_the_user_that_it_is";
    let Ok(Some(nobody)) = nix::unistd::User::from_name("nobody") else {
        return skip(test, "no user nobody");
    };
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "only root can start a QEMU that becomes another user");
    }
    let reach = std::process::Command::new("setpriv")
        .args(["--reuid", "nobody", "--clear-groups", "--regid"])
        .arg(nobody.gid.to_string())
        .arg(&qemu)
        .arg("--version")
        .output();
    if !reach.is_ok_and(|output| output.status.success()) {
        return skip(test, "the user nobody cannot start this QEMU");
    }
    let place = Place::new();
    nix::unistd::chown(place.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
    let process = place.start(&qemu, "qmp", &["-run-with", "user=nobody"]);
    let source = Source { process, place };
    let is_nobody = |pid: i32| ProcessView::read(pid).unwrap().credentials.user == nobody.uid;
    wait_for("another user", || is_nobody(source.process.pid()).then_some(()));
    // As the engine starts it: as the user that the source is now.
    let own = |word: String| word.replace("/qmp,", "/copy,");
    let mut words: Vec<OsString> =
        ["--reuid", "nobody", "--clear-groups", "--regid"].map(OsString::from).to_vec();
    words.extend([nobody.gid.to_string().into(), OsString::from("/usr/bin/env")]);
    let view = ProcessView::read(source.process.pid()).unwrap();
    words
        .extend(view.environment.iter().map(|(name, value)| [name.as_os_str(), value].join(OsStr::new("="))));
    words.extend(super::words(source.process.pid()).into_iter().map(|word| own(word).into()));
    words.extend(["-S", "-incoming", "defer"].map(OsString::from));
    let copy = Process::start(Path::new("setpriv"), &words, source.place.at("copy.log"));
    wait_for("the end of the copy", || (!lives(copy.pid())).then_some(()));

    let (_, destination) = moved(&source, &[]);
    assert!(is_nobody(destination) && !super::words(destination).contains(&"-run-with".to_owned()));
}

/// A guest that is moved from its terminal: what was in the migration's directory stays for as long as it lives.
struct Attached {
    monitor: PathBuf,
    said: Said,
    socket: Option<PathBuf>,
}

impl Attached {
    #[track_caller]
    fn moved(monitor: &Path) -> Self {
        let mut migrate = command();
        migrate.arg("migrate").arg(monitor);
        let said = Said::of(&run(migrate));
        assert_eq!(said.code, Some(0), "{said:?}");
        let socket = said.text.split("UNIX-CONNECT:").nth(1);
        let socket = socket.and_then(|hint| hint.split_whitespace().next()).map(PathBuf::from);
        Self { monitor: monitor.to_owned(), said, socket }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Some(directory) = self.socket.as_deref().and_then(Path::parent) else { return };
        if let Some(pid) = listening_process(&self.monitor) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
        }
        std::fs::remove_dir_all(directory).ok();
    }
}

#[test]
fn terminals_stay_with_the_source_and_sockets_last_as_long_as_the_guest() {
    let Some(qemu) = qemu_or_skip("terminals_stay") else { return };
    for options in [
        &["-serial", "mon:stdio"][..],
        &["-chardev", "stdio,id=c,mux=on,signal=off", "-serial", "chardev:c"],
        &["-nographic", "-serial", "stdio"],
    ] {
        let source = Source::start(&qemu, options);
        let graphics = || {
            let property = json!({ "path": "/machine", "property": "graphics" });
            source.monitor().execute("qom-get", &property)
        };
        let before = graphics();
        let first = Attached::moved(&source.qmp());
        let socket = first.socket.clone().unwrap();
        for _ in 0..2 {
            assert_eq!(listening_process(&socket), listening_process(&source.qmp()), "{options:?}");
            assert_eq!(graphics(), before, "{options:?}");
            let (said, _) = moved(&source, &[]);
            assert!(!said.text.contains("terminal"), "it is told once: {said:?}");
        }
    }
}

#[test]
fn what_a_guest_has_kept_stays_while_it_lives_and_goes_with_the_next_migration() {
    let Some(qemu) = qemu_or_skip("what_a_guest_has_kept") else { return };
    let (source, other) = (Source::start(&qemu, &["-serial", "mon:stdio"]), Source::start(&qemu, &[]));
    let attached = Attached::moved(&source.qmp());
    let socket = attached.socket.clone().unwrap();
    let kept = socket.parent().unwrap();
    other.moves();
    assert!(kept.is_dir(), "its guest lives");
    let guest = listening_process(&socket).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(guest), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("its end", || listening_process(&socket).is_none().then_some(()));
    other.moves();
    assert!(!kept.exists(), "nobody needs it any more");
}

#[test]
fn a_machine_without_graphics_keeps_its_serial_port_and_its_hardware() {
    let Some(qemu) = qemu_or_skip("a_machine_without_graphics") else { return };
    let place = Place::new();
    let monitor = place.at("qmp");
    let qmp = format!("unix:{},server=on,wait=off", monitor.display());
    let options = ["-nographic", "-m", "32", "-accel", "tcg", "-qmp", &qmp].map(OsString::from);
    let _source = Process::start(&qemu, &options, place.at("source.log"));
    drop(Monitor::connect(&monitor));
    let attached = Attached::moved(&monitor);
    attached.said.tells(&["-nographic", "socat -,rawer UNIX-CONNECT:"]);
    let devices = Monitor::connect(&monitor).ask("query-chardev");
    let serial = devices.as_array().unwrap().iter().find(|device| device["label"] == "serial0").unwrap();
    assert!(serial["filename"].as_str().unwrap().contains("terminal0"), "{serial}");
}
