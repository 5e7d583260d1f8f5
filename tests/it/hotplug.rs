//! Guests that were changed since they were started: what stands on no command line is repeated on the destination, or
//! named as what cannot be.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::small_qemu::{Monitor, Source, migrate};
use crate::support::qemu_version;

/// What the guest is started with, and what is done to it then. `DIR` is a directory with the files `disk` and `iso`.
struct Change {
    name: &'static str,
    line: &'static [&'static str],
    commands: &'static [(&'static str, &'static str)],
}

const DISK: (&str, &str) = (
    "blockdev-add",
    r#"{"driver":"raw","node-name":"d1","file":{"driver":"file","filename":"DIR/disk","node-name":"f1"}}"#,
);
const NETWORK: (&str, &str) = ("netdev_add", r#"{"type":"user","id":"n1"}"#);
const NULL_DEVICE: (&str, &str) = ("chardev-add", r#"{"id":"c1","backend":{"type":"null","data":{}}}"#);

const CHANGES: [Change; 18] = [
    Change {
        name: "a disk",
        line: &[],
        commands: &[
            DISK,
            (
                "device_add",
                r#"{"driver":"virtio-blk-pci","id":"disk1","drive":"d1","serial":"abc","bootindex":2}"#,
            ),
        ],
    },
    Change {
        name: "a disk with a thread of its own, at an address, without an id",
        line: &[],
        commands: &[
            DISK,
            ("object-add", r#"{"qom-type":"iothread","id":"t1"}"#),
            ("device_add", r#"{"driver":"virtio-blk-pci","drive":"d1","iothread":"t1","addr":"9"}"#),
        ],
    },
    Change {
        name: "network cards",
        line: &[],
        commands: &[
            NETWORK,
            (
                "device_add",
                r#"{"driver":"virtio-net-pci","id":"nic1","netdev":"n1","mac":"52:54:00:00:00:99","romfile":""}"#,
            ),
            ("device_add", r#"{"driver":"e1000","id":"nic2","addr":"8"}"#),
        ],
    },
    Change {
        name: "memory",
        line: &["-m", "32,slots=3,maxmem=1G"],
        commands: &[
            ("object-add", r#"{"qom-type":"memory-backend-ram","id":"m1","size":67108864}"#),
            ("device_add", r#"{"driver":"pc-dimm","id":"dimm1","memdev":"m1","slot":2}"#),
            ("object-add", r#"{"qom-type":"memory-backend-memfd","id":"m2","size":67108864,"share":false}"#),
            ("device_add", r#"{"driver":"pc-dimm","id":"dimm2","memdev":"m2"}"#),
        ],
    },
    Change {
        name: "a processor",
        line: &["-smp", "1,maxcpus=3", "-cpu", "qemu64"],
        commands: &[(
            "device_add",
            r#"{"driver":"qemu64-x86_64-cpu","id":"cpu2","socket-id":0,"core-id":2,"thread-id":0}"#,
        )],
    },
    Change {
        name: "USB devices, one of them on a hub whose name comes later",
        line: &["-usb"],
        commands: &[
            ("device_add", r#"{"driver":"usb-hub","id":"zz","port":"2"}"#),
            ("device_add", r#"{"driver":"usb-tablet","id":"tab","port":"2.3"}"#),
            ("device_add", r#"{"driver":"usb-kbd"}"#),
        ],
    },
    Change {
        name: "a disk of USB",
        line: &["-usb"],
        commands: &[DISK, ("device_add", r#"{"driver":"usb-storage","id":"stick","drive":"d1"}"#)],
    },
    Change {
        name: "randomness",
        line: &[],
        commands: &[
            ("object-add", r#"{"qom-type":"rng-random","id":"r1","filename":"/dev/urandom"}"#),
            ("device_add", r#"{"driver":"virtio-rng-pci","id":"rng1","rng":"r1"}"#),
            ("device_add", r#"{"driver":"virtio-rng-pci"}"#),
        ],
    },
    Change {
        name: "a controller of ports, and a port",
        line: &[],
        commands: &[
            NULL_DEVICE,
            ("device_add", r#"{"driver":"virtio-serial-pci","id":"zz"}"#),
            (
                "device_add",
                r#"{"driver":"virtserialport","id":"port","bus":"zz.0","nr":3,"chardev":"c1","name":"org.a"}"#,
            ),
        ],
    },
    Change {
        name: "a controller of disks, and a disk",
        line: &[],
        commands: &[
            DISK,
            ("device_add", r#"{"driver":"virtio-scsi-pci","id":"zz"}"#),
            ("device_add", r#"{"driver":"scsi-hd","id":"sd1","bus":"zz.0","drive":"d1","lun":4}"#),
        ],
    },
    Change {
        name: "another medium where the command line has one by a short option",
        line: &["-cdrom", "DIR/old"],
        commands: &[(
            "blockdev-change-medium",
            r#"{"device":"ide1-cd0","filename":"DIR/iso","format":"raw"}"#,
        )],
    },
    Change {
        name: "another medium in a drive with a name",
        line: &[
            "-drive",
            "if=none,id=cd,media=cdrom,format=raw,file=DIR/old",
            "-device",
            "ide-cd,id=c,drive=cd",
        ],
        commands: &[("blockdev-change-medium", r#"{"id":"c","filename":"DIR/iso","format":"raw"}"#)],
    },
    Change {
        name: "another medium in a drive that stands on a node",
        line: &[
            "-device",
            "ide-cd,id=c,drive=old",
            "-blockdev",
            "raw,node-name=old,read-only=on,file.driver=file,file.filename=DIR/old",
        ],
        commands: &[
            ("blockdev-change-medium", r#"{"id":"c","filename":"DIR/iso","format":"raw"}"#),
            ("blockdev-del", r#"{"node-name":"old"}"#),
        ],
    },
    Change {
        name: "a node as another medium",
        line: &["-device", "ide-cd,id=c"],
        commands: &[
            (
                "blockdev-add",
                r#"{"driver":"raw","node-name":"new","read-only":true,"file":{"driver":"file","filename":"DIR/iso"}}"#,
            ),
            ("blockdev-open-tray", r#"{"id":"c","force":true}"#),
            ("blockdev-insert-medium", r#"{"id":"c","node-name":"new"}"#),
            ("blockdev-close-tray", r#"{"id":"c"}"#),
        ],
    },
    Change {
        name: "no medium any more",
        line: &[
            "-cdrom",
            "DIR/old",
            "-drive",
            "if=none,id=cd,media=cdrom,format=raw,file=DIR/old",
            "-device",
            "ide-cd,id=c,drive=cd",
        ],
        commands: &[
            ("eject", r#"{"device":"ide1-cd0","force":true}"#),
            ("eject", r#"{"id":"c","force":true}"#),
        ],
    },
    Change {
        name: "limits on a disk of the command line",
        line: &["-blockdev", "null-co,node-name=n,read-zeroes=on", "-device", "virtio-blk-pci,id=vb,drive=n"],
        commands: &[(
            "block_set_io_throttle",
            r#"{"id":"/machine/peripheral/vb/virtio-backend","bps":1000000,"bps_rd":0,"bps_wr":0,"iops":0,"iops_rd":7,"iops_wr":9,"bps_max":3000000}"#,
        )],
    },
    Change {
        name: "another top image in a drive with a name",
        line: &["-drive", "if=virtio,id=v,format=raw,file=DIR/disk"],
        commands: &[(
            "blockdev-snapshot-sync",
            r#"{"device":"v","snapshot-file":"DIR/top","format":"qcow2"}"#,
        )],
    },
    Change {
        name: "another top node",
        line: &[
            "-blockdev",
            "raw,node-name=a,file.driver=file,file.filename=DIR/disk",
            "-device",
            "virtio-blk-pci,drive=a",
        ],
        commands: &[(
            "blockdev-snapshot-sync",
            r#"{"node-name":"a","snapshot-file":"DIR/top","snapshot-node-name":"top","format":"qcow2"}"#,
        )],
    },
];

/// Starts a guest and changes it.
fn changed(qemu: &Path, change: &Change) -> (Source, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    for name in ["disk", "iso", "old"] {
        std::fs::File::create(directory.path().join(name)).unwrap().set_len(1 << 20).unwrap();
    }
    let with_directory = |text: &str| text.replace("DIR", directory.path().to_str().unwrap());
    let line: Vec<String> = change.line.iter().map(|word| with_directory(word)).collect();
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let source = Source::start(qemu, &line);
    let mut monitor = source.monitor();
    for (command, arguments) in change.commands {
        monitor.execute(command, &serde_json::from_str(&with_directory(arguments)).unwrap());
    }
    // Whoever has put in another medium may have removed the old one.
    std::fs::remove_file(directory.path().join("old")).unwrap();
    (source, directory)
}

/// What makes the devices of a guest, as far as it stays the same from move to move: which there are, where, on what.
fn equipment(monitor: &mut Monitor) -> Value {
    const TOLD: [&str; 14] = [
        "addr",
        "bootindex",
        "chardev",
        "drive",
        "iothread",
        "lun",
        "mac",
        "memdev",
        "name",
        "netdev",
        "nr",
        "romfile",
        "serial",
        "slot",
    ];
    let mut people = |command: &str| -> String {
        let text = monitor.execute("human-monitor-command", &json!({ "command-line": command }));
        text.as_str().unwrap().replace('\r', "")
    };
    let tree = people("info qtree");
    let is_told = |line: &&str| {
        line.starts_with("dev: ")
            || line.starts_with("bus: ")
            || line.contains(", port ")
            || line
                .split_once(" = ")
                .is_some_and(|(name, value)| TOLD.contains(&name) && !value.contains("#block"))
    };
    let mut tree: Vec<String> = tree
        .lines()
        .map(str::trim)
        .filter(is_told)
        // The guest gives a USB device its number.
        .map(|line| line.split_once(", port ").map_or(line, |(_, port)| port).to_owned())
        .collect();
    tree.sort_unstable();
    let networks: BTreeSet<String> = people("info network").lines().map(str::to_owned).collect();
    let mut list = |command: &str| monitor.ask(command).as_array().unwrap().clone();
    let mut drives: Vec<Value> = list("query-block")
        .into_iter()
        .map(|drive| {
            let inserted = &drive["inserted"];
            let limits = ["bps", "iops_rd", "iops_wr", "bps_max"].map(|name| inserted[name].clone());
            json!([drive["device"], drive["qdev"], inserted["file"], inserted["drv"], inserted["ro"], limits])
        })
        .collect();
    drives.sort_by_key(Value::to_string);
    let mut sorted = |command| {
        let mut all = list(command);
        all.sort_by_key(Value::to_string);
        all
    };
    let (memory, processors) = (sorted("query-memory-devices"), sorted("query-hotpluggable-cpus"));
    json!({ "tree": tree, "networks": networks, "drives": drives, "memory": memory, "processors": processors })
}

/// Each change alone: the guest is moved twice, and has the same both times.
fn each_change_is_repeated(test: &str, version: &str, way: &[&str]) {
    let Some(qemu) = qemu_version(test, version) else { return };
    for change in &CHANGES {
        let (source, _directory) = changed(&qemu, change);
        let before = equipment(&mut source.monitor());
        for number in 1..=2 {
            let said = migrate(source.qmp().to_str().unwrap(), way);
            assert_eq!(said.code, Some(0), "{}, move {number}: {said:?}", change.name);
            let after = equipment(&mut source.monitor());
            assert_eq!(after, before, "{}, move {number}", change.name);
        }
    }
}

#[test]
fn each_change_is_repeated_on_10_0() {
    each_change_is_repeated("each_change_is_repeated_on_10_0", "10.0", &[]);
}

#[test]
fn each_change_is_repeated_on_11_1() {
    each_change_is_repeated("each_change_is_repeated_on_11_1", "11.1", &[]);
}

#[test]
fn each_change_is_repeated_on_7_2() {
    each_change_is_repeated("each_change_is_repeated_on_7_2", "7.2", &["--non-live"]);
}
