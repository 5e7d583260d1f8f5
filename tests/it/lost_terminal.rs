//! What happens to a demo whose readers go away, or that is interrupted before anything moves.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::small_qemu::{command, qemu_or_skip, run, wait_for};

const SMALL: [&str; 5] = ["demo", "--accelerator", "tcg", "--working-set", "8MiB"];

#[test]
fn a_demo_ends_as_it_should_though_nobody_reads_what_it_says() {
    const TEST: &str = "a_demo_ends_as_it_should_though_nobody_reads_what_it_says";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut demo = command();
    demo.args(SMALL).args(["-vv", "--json", "--qemu"]).arg(qemu);
    demo.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = demo.spawn().unwrap();
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_list_that_nobody_reads_is_no_crash() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut list = command();
    list.arg("list").stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = list.spawn().unwrap();
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_demo_that_is_interrupted_while_its_guest_starts_leaves_nothing() {
    const TEST: &str = "a_demo_that_is_interrupted_while_its_guest_starts_leaves_nothing";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let mut demo = command();
    demo.args(SMALL).args(["--max-bandwidth", "1MiB/s", "--qemu"]).arg(&qemu);
    let mut child = demo.stderr(Stdio::piped()).spawn().unwrap();
    // The guest's QEMU is a child of the command; as soon as it is there, the terminal's user has had enough.
    let pid = i32::try_from(child.id()).unwrap();
    let qemus = || {
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let is_demo = |child: &i32| {
            let words = qmigrate::host::command_line(*child).unwrap_or_default();
            words.iter().any(|word| word.to_string_lossy().contains("-demo/"))
        };
        children.split_whitespace().filter_map(|child| child.parse().ok()).find(is_demo)
    };
    let guest = wait_for("the guest's QEMU", qemus);
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert!(matches!(status.code(), Some(1 | 2)), "{status}");
    let words = qmigrate::host::command_line(guest).unwrap_or_default();
    assert!(words.is_empty(), "the guest lives on: {words:?}");
    // And the next one works.
    let mut demo = command();
    demo.args(SMALL).arg("--qemu").arg(qemu);
    let output = run(demo);
    assert!(output.status.success(), "{output:?}");
}
