//! What `migrate` says to a source that cannot be moved: a sentence, a hint, exit 2, and the source untouched.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::unistd::geteuid;
use serde_json::json;

use crate::small_qemu::{Place, Said, Source, Talker, command, migrate, qemu_or_skip, run, wait_for};
use crate::support::{Process, skip};

/// A user that has nothing.
const NOBODY: u32 = 65534;

fn refused(source: &str) -> Said {
    let said = migrate(source, &[]);
    said.is_refusal();
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_socket_that_is_not_there_is_named() {
    let place = Place::new();
    let path = place.at("none");
    refused(text(&path)).tells(&[text(&path), "there is no such socket", "qmigrate list"]);
    refused("tcp:127.0.0.1:1").tells(&["tcp:127.0.0.1:1", "nobody listens there"]);
}

#[test]
fn a_name_that_names_nothing_is_shown_with_what_would_do() {
    for name in ["", "unix:", "tcp:localhost", "tcp:localhost:0", "tcp:::1:4444", "pid:", "pid:x", "pid:-1"] {
        refused(name);
    }
    refused("ssh://far/run/vm.qmp").tells(&["on one machine"]);
    refused(&"x".repeat(200)).tells(&["107 bytes"]);
}

#[test]
fn a_process_that_is_not_there_or_is_no_qemu_is_named() {
    refused("pid:999999999").tells(&["there is no process 999999999", "qmigrate list"]);
    let own = std::process::id();
    refused(&format!("pid:{own}")).tells(&[&format!("process {own}"), "QEMU"]);
}

#[test]
fn a_socket_that_a_dead_qemu_left_is_told_from_one_that_is_not_there() {
    let place = Place::new();
    let path = place.at("left");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    refused(text(&path)).tells(&[text(&path), "nobody listens there"]);
}

#[test]
fn a_file_that_is_no_socket_is_told_from_a_dead_one() {
    let place = Place::new();
    let path = place.at("file");
    std::fs::write(&path, "x").unwrap();
    refused(text(&path)).tells(&[text(&path), "not a socket"]);
    refused(text(place.path())).tells(&[text(place.path()), "not a socket"]);
}

#[test]
fn a_socket_that_is_not_qmp_is_said_to_be_none() {
    let place = Place::new();
    for (name, greeting, part) in [
        ("http", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "HTTP/1.1 400"),
        ("json", b"{\"hello\": \"\x1b[31mworld\"}\n", "not a QMP monitor"),
        ("bytes", b"\x16\x03\x01\x02\0\n", "not a QMP monitor"),
        ("mute", b"", "closed before any greeting"),
    ] {
        let path = place.at(name);
        let _talker = Talker::listen(path.clone(), greeting);
        let said = refused(text(&path));
        said.tells(&[text(&path), part, "-qmp"]);
        assert!(!said.text.contains('\x1b'), "{said:?}");
    }
}

#[test]
fn a_busy_monitor_is_refused_with_the_process_that_holds_it() {
    let Some(qemu) = qemu_or_skip("a_busy_monitor_is_refused_with_the_process_that_holds_it") else { return };
    let place = Place::new();
    let second = format!("unix:{},server=on,wait=off", place.at("second").display());
    let process = place.start(&qemu, "qmp", &["-qmp", &second]);
    let source = Source { process, place };
    // A process of its own that holds the monitor, as somebody's `socat` does.
    let (monitor, log) = (source.monitor().into_stream(), source.place.at("holder.log"));
    let holder = Process::start_with_input(Path::new("sleep"), &["1000".into()], log, monitor);
    let said = source.refuses_at(&source.place.at("second"), text(&source.qmp()), &[]);
    said.tells(&[text(&source.qmp()), &format!("process {} holds it (sleep 1000)", holder.pid())]);
    drop(holder);
    source.moves();
}

#[test]
fn a_user_who_may_not_connect_is_told_whose_the_qemu_is() {
    const TEST: &str = "a_user_who_may_not_connect_is_told_whose_the_qemu_is";
    if !geteuid().is_root() {
        return skip(TEST, "only root can run the command as somebody else");
    }
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    std::fs::set_permissions(source.place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The command may be in a directory that nobody else may enter.
    let program = source.place.at("qmigrate.log");
    std::fs::copy(env!("CARGO_BIN_EXE_qmigrate"), &program).unwrap();
    let runtime = source.place.at("runtime");
    std::fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::chown(&runtime, Some(NOBODY), Some(NOBODY)).unwrap();

    let as_nobody = |name: &str| {
        let mut command = std::process::Command::new(&program);
        command.args(["migrate", name]).uid(NOBODY).gid(NOBODY).env("XDG_RUNTIME_DIR", &runtime);
        command.env("XDG_STATE_HOME", runtime.join("state"));
        let said = Said::of(&run(command));
        said.is_refusal();
        let left = runtime.join("qmigrate").read_dir().map_or(0, Iterator::count);
        assert_eq!(left, 0, "{said:?}");
        said
    };
    let before = source.snapshot();
    let (path, pid) = (source.qmp(), format!("pid:{}", source.process.pid()));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    as_nobody(text(&path)).tells(&[text(&path), "may not connect", "as root"]);
    as_nobody(&pid).tells(&["belongs to another user", "as root"]);
    // One may be let into somebody else's monitor, and still not start a QEMU as that user.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    as_nobody(text(&path)).tells(&["another user", "as root"]);
    assert_eq!(source.snapshot(), before);
    std::fs::remove_dir_all(&runtime).unwrap();
    source.moves();
}

#[test]
fn a_qemu_that_waits_for_a_guest_itself_is_refused() {
    let Some(qemu) = qemu_or_skip("a_qemu_that_waits_for_a_guest_itself_is_refused") else { return };
    let source = Source::start(&qemu, &["-incoming", "defer"]);
    source.refuses(&[]).tells(&["is itself a destination"]);
    let pid = format!("pid:{}", source.process.pid());
    source.refuses_at(&source.qmp(), &pid, &["--non-live"]).tells(&["is itself a destination"]);
}

#[test]
fn a_guest_that_has_left_already_is_refused_and_told_how_to_come_back() {
    const TEST: &str = "a_guest_that_has_left_already_is_refused_and_told_how_to_come_back";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    let file = source.place.at("stream.log");
    let mut monitor = source.monitor();
    monitor.execute("migrate", &json!({ "uri": format!("file:{}", file.display()) }));
    monitor.wait_for_migration("completed");
    wait_for("postmigrate", || (monitor.ask("query-status")["status"] == "postmigrate").then_some(()));
    drop(monitor);
    source.refuses(&[]).tells(&["has left this QEMU already", "`cont`"]);
    // As the hint says.
    source.monitor().ask("cont");
    source.moves();
}

#[test]
fn a_guest_that_is_being_moved_already_is_refused_until_that_has_ended() {
    const TEST: &str = "a_guest_that_is_being_moved_already_is_refused_until_that_has_ended";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    let stream = source.place.at("stream");
    // Somebody who takes the connection and reads nothing: the stream stands still for as long as it takes.
    let listener = std::os::unix::net::UnixListener::bind(&stream).unwrap();
    let mut monitor = source.monitor();
    monitor.execute("migrate", &json!({ "uri": format!("unix:{}", stream.display()) }));
    let end = listener.accept().unwrap();
    monitor.wait_for_migration("active");
    drop(monitor);
    let said = source.refuses_in_motion();
    said.tells(&["is being migrated already (status 'active')", "qmigrate cancel"]);

    let mut command = command();
    command.args(["cancel", text(&source.qmp())]);
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    drop(end);
    source.monitor().wait_for_migration("cancelled");
    std::fs::remove_file(stream).unwrap();
    source.moves();
}

#[test]
fn a_device_that_cannot_be_moved_is_named() {
    let Some(qemu) = qemu_or_skip("a_device_that_cannot_be_moved_is_named") else { return };
    let source = Source::start(&qemu, &["-device", "nvme,serial=x,id=disk"]);
    for flags in [&[][..], &["--non-live"], &["--unsafe"]] {
        source.refuses(flags).tells(&["cannot be migrated", "nvme", "remove the device"]);
    }
}

#[test]
fn all_that_is_in_the_way_is_said_at_once() {
    let Some(qemu) = qemu_or_skip("all_that_is_in_the_way_is_said_at_once") else { return };
    let source = Source::start(
        &qemu,
        &[
            "-device",
            "nvme,serial=x,id=disk",
            "-object",
            "memory-backend-ram,id=shared,size=1M,share=on",
            "-device",
            "ivshmem-plain,memdev=shared",
        ],
    );
    source.refuses(&[]).tells(&["nvme", "ivshmem"]);
}

#[test]
fn a_monitor_for_people_is_named_with_the_option_that_adds_one_for_programs() {
    const TEST: &str = "a_monitor_for_people_is_named_with_the_option_that_adds_one_for_programs";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let place = Place::new();
    let path = place.at("human");
    let human = format!("unix:{},server=on,wait=off", path.display());
    let process = place.start_without_monitor(&qemu, "qmp", &["-monitor", &human]);
    wait_for("a monitor", || std::os::unix::net::UnixStream::connect(&path).ok());
    let option = "-qmp unix:PATH,server=on,wait=off";
    refused(&format!("pid:{}", process.pid())).tells(&["only a human monitor", text(&path), option]);
    refused(text(&path)).tells(&[text(&path), "human monitor", option]);
    assert_eq!(place.qemus(), [process.pid()]);
}

#[test]
fn a_qemu_without_any_monitor_is_told_the_option_that_adds_one() {
    let Some(qemu) = qemu_or_skip("a_qemu_without_any_monitor_is_told_the_option_that_adds_one") else {
        return;
    };
    let place = Place::new();
    let name = place.at("name");
    let process = place.start_without_monitor(&qemu, "qmp", &["-name", text(&name)]);
    // The wrapper of a QEMU has another command line at first.
    wait_for("a QEMU", || (place.qemus() == [process.pid()]).then_some(()));
    refused(&format!("pid:{}", process.pid()))
        .tells(&["has no QMP monitor", "-qmp unix:PATH,server=on,wait=off"]);
}

#[test]
fn a_guest_that_an_engine_moves_is_refused_with_the_migration() {
    const TEST: &str = "a_guest_that_an_engine_moves_is_refused_with_the_migration";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    // Memory with something in it, so that there is something to send for as long as it takes.
    let place = Place::new();
    let content = place.at("content.log");
    std::fs::write(&content, vec![0x5a; 8 << 20]).unwrap();
    let loader = format!("loader,file={},addr=0x1000000,force-raw=on", content.display());
    let source = Source { process: place.start(&qemu, "qmp", &["-device", &loader]), place };
    let (log, path) = (source.place.at("engine.log"), source.qmp());
    let words = ["migrate", text(&path), "--max-bandwidth", "256KiB/s"].map(Into::into);
    let engine = Process::start(Path::new(env!("CARGO_BIN_EXE_qmigrate")), &words, log);
    wait_for("a pass", || engine.log().contains("pass 1").then_some(()));
    let said = migrate(text(&path), &[]);
    said.is_refusal();
    said.tells(&[text(&path), &format!("process {} holds it", engine.pid()), "qmigrate cancel"]);
    // What the hint names does it.
    let mut command = command();
    command.args(["cancel", text(&path)]);
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    wait_for("the end of the engine", || engine.log().contains("cancelled").then_some(()));
    drop(engine);
    source.moves();
}
