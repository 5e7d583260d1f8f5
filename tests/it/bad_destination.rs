//! What `migrate` says of a destination that cannot be had, and that the guest is where it was.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::small_qemu::{Place, Source, qemu_or_skip};

/// Writes a program that is no QEMU, or that becomes one with other words.
fn script(place: &Place, lines: &str) -> PathBuf {
    let path = place.at("qemu-system-x86_64.log");
    std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_destination_binary_that_is_not_there_or_cannot_be_executed_is_named() {
    const TEST: &str = "a_destination_binary_that_is_not_there_or_cannot_be_executed_is_named";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    let path = source.place.at("none");
    let said = source.refuses(&["--qemu", text(&path)]);
    said.tells(&[text(&path), "cannot be started", "--qemu PATH"]);
    let path = source.place.at("plain.log");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    let said = source.refuses(&["--qemu", text(&path)]);
    said.tells(&[text(&path), "cannot be started", "executable"]);
    source.moves();
}

#[test]
fn a_destination_that_dies_as_it_starts_is_quoted() {
    let Some(qemu) = qemu_or_skip("a_destination_that_dies_as_it_starts_is_quoted") else { return };
    let source = Source::start(&qemu, &[]);
    // One that can be asked what it is, and then cannot be a destination.
    let answers = format!("case \"$*\" in *'-machine none'*) exec '{}' \"$@\" ;; esac\n", qemu.display());
    let dies = |lines: &str| script(&source.place, &format!("{answers}{lines}"));
    let program = dies("echo 'the sky has fallen' >&2\nprintf '\\033[2J' >&2\nexit 7");
    let said = source.refuses(&["--qemu", text(&program)]);
    said.tells(&["the destination ended as it started", "exit status: 7", "the sky has fallen"]);
    assert!(!said.text.contains('\x1b'), "{said:?}");
    dies("kill -9 $$");
    source.refuses(&["--qemu", text(&program)]).tells(&["ended as it started", "signal: 9"]);
    dies("exit 0");
    source.refuses(&["--qemu", text(&program)]).tells(&["ended as it started", "it said: nothing"]);
    // One that cannot even be asked.
    script(&source.place, "echo 'no QEMU' >&2; exit 1");
    source.refuses(&["--qemu", text(&program)]).tells(&["ended as it started", "no QEMU", "system emulator"]);
    source.moves();
}

#[test]
fn a_destination_without_the_machine_type_is_told_as_that() {
    const TEST: &str = "a_destination_without_the_machine_type_is_told_as_that";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    // A QEMU that knows none of the machines that the source's has: every version's own is renamed on its way.
    let lines = format!(
        "for word; do shift; case $word in pc-*) word=pc-i440fx-99.9 ;; esac; set -- \"$@\" \"$word\"; done\n\
         exec '{}' \"$@\"",
        qemu.display()
    );
    let program = script(&source.place, &lines);
    let said = source.refuses(&["--qemu", text(&program)]);
    said.tells(&["unsupported machine type", "does not know the guest's machine type", "--qemu PATH"]);
    source.moves();
}

#[test]
fn a_port_in_use_is_named() {
    let Some(qemu) = qemu_or_skip("a_port_in_use_is_named") else { return };
    let source = Source::start(&qemu, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("tcp:127.0.0.1:{}", listener.local_addr().unwrap().port());
    let said = source.refuses(&["--incoming", &place]);
    said.tells(&["Address already in use", "hint: ", "--incoming"]);
    drop(listener);
    source.moves();
}

#[test]
fn a_port_that_the_guest_itself_listens_on_is_another_one_on_the_destination() {
    let Some(qemu) = qemu_or_skip("a_port_that_the_guest_itself_listens_on") else { return };
    let source = Source::start(&qemu, &["-serial", "tcp:127.0.0.1:0,server=on,wait=off"]);
    // Port 0 is another one for each: such a guest can be moved.
    source.moves();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let serial = format!("tcp:127.0.0.1:{port},server=on,wait=off");
    let source = Source::start(&qemu, &["-serial", &serial]);
    source.moves();
}

#[test]
fn an_incoming_where_nothing_can_be_sent_is_named() {
    let Some(qemu) = qemu_or_skip("an_incoming_where_nothing_can_be_sent_is_named") else { return };
    let source = Source::start(&qemu, &[]);
    for place in ["carrier-pigeon:1", "exec:cat", "fd:3", "tcp:127.0.0.1", "tcp:127.0.0.1:99999", "unix:", ""]
    {
        source.refuses(&["--incoming", place]).tells(&[place, "--incoming takes defer, tcp:HOST:PORT"]);
    }
    let place = "tcp:no.such.host.invalid:1";
    source.refuses(&["--incoming", place]).tells(&["ended as it started", place, "--incoming takes"]);
    source.moves();
}

#[test]
fn a_destination_of_ones_own_that_does_not_wait_is_refused() {
    const TEST: &str = "a_destination_of_ones_own_that_does_not_wait_is_refused";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    let none = source.place.at("none");
    let said = source.refuses(&["--destination-qmp", text(&none)]);
    said.tells(&["the destination at", text(&none), "there is no such socket"]);

    // One that runs a guest, and keeps it.
    let other = Source::start(&qemu, &[]);
    let before = other.snapshot();
    let said = source.refuses(&["--destination-qmp", text(&other.qmp())]);
    said.tells(&[text(&other.qmp()), "does not wait for a guest (state 'running'", "-incoming defer"]);
    assert_eq!(other.snapshot(), before);

    // The source itself.
    for name in [text(&source.qmp()), &format!("pid:{}", source.process.pid())] {
        source.refuses(&["--destination-qmp", name]).tells(&["are the same QEMU"]);
    }
    source.moves();
}
