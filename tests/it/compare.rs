//! Destinations that differ from their source: each difference is named with both values before anything is sent, where
//! QEMU would find it when the source has stopped, or never.

use serde_json::json;

use crate::small_qemu::{Source, migrate, wait_for};
use crate::support::qemu_version;

/// What the source has more than the destination, what the destination has, and what must be said of it.
struct Case {
    source: &'static [&'static str],
    destination: &'static [&'static str],
    tells: &'static [&'static str],
}

const fn case(
    source: &'static [&'static str],
    destination: &'static [&'static str],
    tells: &'static [&'static str],
) -> Case {
    Case { source, destination, tells }
}

/// The rows of the reference's table of mismatches, with what QEMU does by itself.
const CASES: [Case; 17] = [
    // Ended early, by a sentence of QEMU's own.
    case(&[], &["-m", "64"], &["\"pc.ram\" is 32.0 MiB on the source and 64.0 MiB on the destination"]),
    case(&[], &["-machine", "q35"], &["the machine type is pc-i440fx-", "on the source and pc-q35-"]),
    case(&["-device", "VGA"], &[], &["the destination has no VGA at addr 02.0 on pci.0"]),
    case(
        &["-device", "virtio-net-pci"],
        &["-device", "virtio-net-pci,addr=7"],
        &[
            "the destination has no virtio-net-pci at addr 02.0",
            "the source has no virtio-net-pci at addr 07.0",
        ],
    ),
    case(
        &["-device", "VGA,vgamem_mb=16"],
        &["-device", "VGA,vgamem_mb=32"],
        &[
            "the size of the memory called \"0000:00:02.0/vga.vram\" is 16.0 MiB on the source and 32.0 MiB",
            "'vgamem_mb'",
        ],
    ),
    case(
        &["-object", "memory-backend-ram,id=one,size=32M", "-machine", "memory-backend=one"],
        &["-object", "memory-backend-ram,id=two,size=32M", "-machine", "memory-backend=two"],
        &["the destination has no memory called \"one\" (32.0 MiB)"],
    ),
    // Found when the source has completed.
    case(&["-smp", "2"], &[], &["the number of processors is 2 on the source and 1 on the destination"]),
    case(&["-serial", "null"], &[], &["the destination has no isa-serial on isa.0"]),
    case(
        &["-usb", "-device", "usb-tablet"],
        &["-usb"],
        &["the destination has no usb-tablet at port 1 on usb-bus.0"],
    ),
    case(
        &["-device", "virtio-blk-pci,drive=d,num-queues=4", "-blockdev", "null-co,node-name=d"],
        &["-device", "virtio-blk-pci,drive=d,num-queues=2", "-blockdev", "null-co,node-name=d"],
        &[
            "'num-queues' of virtio-blk-device on virtio-bus is 4 (0x4) on the source and 2 (0x2) on the destination",
        ],
    ),
    case(
        &["-device", "virtio-rng-pci,vectors=4"],
        &["-device", "virtio-rng-pci,vectors=2"],
        &["'vectors' of virtio-rng-pci at addr 02.0 on pci.0 is 4 (0x4) on the source and 2 (0x2)"],
    ),
    // Never found by QEMU: the guest runs on other hardware.
    case(&[], &["-smp", "2"], &["the number of processors is 1 on the source and 2 on the destination"]),
    case(
        &["-smp", "2,sockets=2,cores=1,threads=1"],
        &["-smp", "2,sockets=1,cores=2,threads=1"],
        &["the topology of the processors is "],
    ),
    case(
        &[],
        &["-device", "virtio-balloon-pci"],
        &["the source has no virtio-balloon-pci at addr 02.0 on pci.0"],
    ),
    case(
        &["-uuid", "00000000-0000-0000-0000-000000000001"],
        &["-uuid", "00000000-0000-0000-0000-000000000002"],
        &["the uuid is 00000000-0000-0000-0000-000000000001 on the source and "],
    ),
    case(
        &["-cpu", "qemu64"],
        &["-cpu", "Nehalem"],
        &["the processor model is qemu64-x86_64-cpu on the source and Nehalem-x86_64-cpu on the destination"],
    ),
    case(&["-cpu", "qemu64"], &["-cpu", "qemu64,-sse3"], &["lacks features of the source's: ", "pni"]),
];

/// The source as it was, whatever it was compared with; and moved to a destination that is like it.
fn each_difference_is_named(version: &str, way: &[&str]) {
    const TEST: &str = "each_difference_is_named";
    let Some(qemu) = qemu_version(TEST, version) else { return };
    for Case { source: here, destination: there, tells } in CASES {
        let source = Source::start(&qemu, here);
        let words: Vec<&str> = ["-incoming", "defer"].iter().chain(there).copied().collect();
        let other = Source::start(&qemu, &words);
        let monitor = other.qmp();
        let typed: Vec<&str> =
            way.iter().copied().chain(["--destination-qmp", monitor.to_str().unwrap()]).collect();
        source.refuses(&typed).tells(tells);
        let said = migrate(source.qmp().to_str().unwrap(), way);
        assert_eq!(said.code, Some(0), "{here:?}: {said:?}");
    }
}

#[test]
fn each_difference_is_named_on_10_0() {
    each_difference_is_named("10.0", &[]);
}

#[test]
fn each_difference_is_named_on_11_1() {
    each_difference_is_named("11.1", &[]);
}

#[test]
fn each_difference_is_named_on_7_2() {
    each_difference_is_named("7.2", &["--non-live"]);
}

/// What the firmware and the guest have set since their start is no difference: bridges count their buses.
#[test]
fn two_that_are_alike_do_not_differ_however_long_one_has_run() {
    const TEST: &str = "two_that_are_alike_do_not_differ_however_long_one_has_run";
    let line = [
        "-machine",
        "q35",
        "-device",
        "pcie-root-port,id=root,chassis=1",
        "-device",
        "virtio-net-pci,bus=root",
    ];
    for version in ["10.0", "11.1"] {
        let Some(qemu) = qemu_version(TEST, version) else { continue };
        let source = Source::start(&qemu, &line);
        let mut monitor = source.monitor();
        let question = json!({ "command-line": "info qtree" });
        wait_for("the firmware", || {
            let tree = monitor.execute("human-monitor-command", &question);
            tree.as_str().unwrap().contains("busnr = 1 ").then_some(())
        });
        drop(monitor);
        source.moves();
    }
}

#[test]
fn a_destination_that_differs_gets_the_guest_of_whoever_insists() {
    const TEST: &str = "a_destination_that_differs_gets_the_guest_of_whoever_insists";
    let Some(qemu) = qemu_version(TEST, "10.0") else { return };
    let source = Source::start(&qemu, &[]);
    let other = Source::start(&qemu, &["-incoming", "defer", "-device", "virtio-balloon-pci"]);
    let said = migrate(
        source.qmp().to_str().unwrap(),
        &["--unsafe", "--destination-qmp", other.qmp().to_str().unwrap()],
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    said.tells(&[
        "warning: the source has no virtio-balloon-pci at addr 02.0 on pci.0, and the destination has",
    ]);
    assert_eq!(other.monitor().ask("query-status")["status"], "running");

    let source = Source::start(&qemu, &[]);
    let other = Source::start(&qemu, &["-incoming", "defer", "-device", "virtio-balloon-pci", "-m", "64"]);
    let said = source.keeps_its_guest(&["--unsafe", "--destination-qmp", other.qmp().to_str().unwrap()]);
    said.tells(&["not moved: ", "the guest runs on its source, as before"]);
    source.moves();
}
