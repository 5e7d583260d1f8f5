//! Guests that were changed since they were started: what stands on no command line is repeated on the destination, or
//! named as what cannot be.

use std::collections::BTreeSet;
use std::path::Path;

use qmigrate::qemu::hardware::Hardware;
use qmigrate::qmp::{Client, Deadlines, Leg};
use serde_json::{Value, json};

use crate::back_and_forth::BackAndForth;
use crate::linux_guest::LinuxGuest;
use crate::small_qemu::{Monitor, Source, command, migrate, run, wait_for};
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
        let arguments = serde_json::from_str(&with_directory(arguments)).unwrap();
        if matches!(*command, "chardev-remove" | "blockdev-del") {
            // A device lets go of what it stood on some time after it has gone.
            wait_for(command, || monitor.attempt(command, &arguments).ok());
        } else {
            monitor.execute(command, &arguments);
        }
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
    // What is empty some versions tell, and others do not.
    let says_something =
        |(name, value): (&str, &str)| TOLD.contains(&name) && !value.contains("#block") && value != "\"\"";
    let is_told = |line: &&str| {
        line.starts_with("dev: ")
            || line.starts_with("bus: ")
            || line.contains(", port ")
            || line.split_once(" = ").is_some_and(says_something)
    };
    let mut tree: Vec<String> = tree
        .lines()
        .map(str::trim)
        .filter(is_told)
        // The guest gives a USB device its number.
        .map(|line| line.split_once(", port ").map_or(line, |(_, port)| port).to_owned())
        .collect();
    tree.sort_unstable();
    // A network that no card uses may stay on the destination for its number's sake.
    let is_used = |line: &&str| line.starts_with(' ') || line.contains("type=nic");
    let networks: BTreeSet<String> =
        people("info network").lines().filter(is_used).map(str::to_owned).collect();
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

/// What is taken out of a guest, and what must stand on the destination's command line no more.
struct Unplugged {
    line: &'static [&'static str],
    commands: &'static [(&'static str, &'static str)],
    gone: &'static [&'static str],
    stays: &'static [&'static str],
}

const UNPLUGGED: [Unplugged; 5] = [
    Unplugged {
        line: &[
            "-device",
            "qemu-xhci,id=x",
            "-device",
            "usb-tablet,id=t",
            "-device",
            "usb-kbd",
            "-device",
            r#"{"driver":"usb-mouse","id":"m"}"#,
        ],
        commands: &[
            ("device_del", r#"{"id":"t"}"#),
            ("device_del", r#"{"id":"/machine/peripheral-anon/device[0]"}"#),
        ],
        gone: &["usb-tablet", "usb-kbd"],
        stays: &["usb-mouse"],
    },
    // A port with all that it stood on; an object that is in use by nobody.
    Unplugged {
        line: &[
            "-object",
            "rng-builtin,id=r",
            "-device",
            "virtio-serial-pci,id=vs",
            "-chardev",
            "null,id=c",
            "-device",
            "virtserialport,id=p,bus=vs.0,chardev=c",
            "-chardev",
            "null,id=c2",
            "-device",
            "virtserialport,id=p2,bus=vs.0,chardev=c2",
        ],
        commands: &[
            ("device_del", r#"{"id":"p"}"#),
            ("chardev-remove", r#"{"id":"c"}"#),
            ("object-del", r#"{"id":"r"}"#),
        ],
        gone: &["id=p,", "id=c ", "rng-builtin"],
        stays: &["id=p2,", "id=c2 "],
    },
    // User networks are numbered as they come: one that goes leaves its number free, or a gap.
    Unplugged {
        line: &["-netdev", "user,id=a", "-netdev", "user,id=b,hostname=x"],
        commands: &[("netdev_add", r#"{"type":"user","id":"c"}"#), ("netdev_del", r#"{"id":"b"}"#)],
        gone: &["hostname"],
        stays: &["user,id=a", "user,id=b"],
    },
    Unplugged {
        line: &["-netdev", "user,id=a", "-netdev", "user,id=b,hostname=x"],
        commands: &[("netdev_del", r#"{"id":"b"}"#), ("netdev_add", r#"{"type":"user","id":"c"}"#)],
        gone: &["hostname"],
        stays: &["user,id=a", "user,id=b"],
    },
    // One that came back as another under the same name.
    Unplugged {
        line: &[
            "-usb",
            "-blockdev",
            "null-co,node-name=n,read-zeroes=on",
            "-device",
            "usb-storage,id=s,drive=n",
        ],
        commands: &[
            ("device_del", r#"{"id":"s"}"#),
            ("blockdev-del", r#"{"node-name":"n"}"#),
            DISK,
            ("device_add", r#"{"driver":"usb-storage","id":"s","drive":"d1","port":"2"}"#),
        ],
        gone: &["usb-storage", "null-co"],
        stays: &[],
    },
];

/// What is not there any more is off the destination's command line, and what stands beside it stays.
fn each_device_that_was_taken_out_stays_out(test: &str, version: &str) {
    let Some(qemu) = qemu_version(test, version) else { return };
    for Unplugged { line, commands, gone, stays } in UNPLUGGED {
        let (source, _directory) = changed(&qemu, &Change { name: "", line, commands });
        let before = equipment(&mut source.monitor());
        let mut plan = command();
        plan.args(["migrate", "--dry-run"]).arg(source.qmp());
        let plan = String::from_utf8(run(plan).stdout).unwrap();
        let line = plan.lines().next().unwrap().replace('\'', " ");
        for word in gone {
            assert!(!line.contains(word), "{word}: {line}");
        }
        for word in stays {
            assert!(line.contains(word), "{word}: {line}");
        }
        for _ in 0..2 {
            let said = migrate(source.qmp().to_str().unwrap(), &[]);
            assert_eq!(said.code, Some(0), "{line}: {said:?}");
            assert_eq!(equipment(&mut source.monitor()), before);
        }
    }
}

#[test]
fn each_device_that_was_taken_out_stays_out_on_10_0() {
    each_device_that_was_taken_out_stays_out("each_device_that_was_taken_out_stays_out_on_10_0", "10.0");
}

#[test]
fn each_device_that_was_taken_out_stays_out_on_11_1() {
    each_device_that_was_taken_out_stays_out("each_device_that_was_taken_out_stays_out_on_11_1", "11.1");
}

/// What cannot be repeated, what is said of it, and what a template says so that it need not be repeated.
struct Refused {
    change: Change,
    tells: &'static [&'static str],
    template: &'static [&'static str],
}

const REFUSED: [Refused; 7] = [
    Refused {
        change: Change {
            name: "a network of which not all can be read",
            line: &[],
            commands: &[
                ("netdev_add", r#"{"type":"hubport","id":"h1","hubid":0}"#),
                ("device_add", r#"{"driver":"virtio-net-pci","id":"nic1","netdev":"h1","addr":"7"}"#),
            ],
        },
        tells: &[
            "the virtio-net-pci \"nic1\" was plugged in with the network \"h1\"",
            "QEMU does not tell what it is",
        ],
        template: &[
            "-netdev hubport,id=h1,hubid=0",
            "-device virtio-net-pci,id=nic1,netdev=h1,addr=7,mac=52:54:00:12:34:56",
        ],
    },
    Refused {
        change: Change {
            name: "a user network of its own addresses",
            line: &[],
            commands: &[
                ("netdev_add", r#"{"type":"user","id":"u","net":"192.168.7.0/25"}"#),
                ("device_add", r#"{"driver":"e1000","netdev":"u","addr":"7","id":"n"}"#),
            ],
        },
        tells: &["the e1000 \"n\"", "QEMU does not tell its mask"],
        template: &["-netdev user,id=u,net=192.168.7.0/25", "-device e1000,netdev=u,addr=7,id=n"],
    },
    Refused {
        change: Change {
            name: "a socket that listens",
            line: &["-device", "virtio-serial-pci,id=vs"],
            commands: &[
                (
                    "chardev-add",
                    r#"{"id":"c","backend":{"type":"socket","data":{"server":true,"wait":false,"addr":{"type":"unix","data":{"path":"DIR/c"}}}}}"#,
                ),
                ("device_add", r#"{"driver":"virtserialport","id":"p","nr":1,"chardev":"c"}"#),
            ],
        },
        tells: &["the virtserialport \"p\"", "it listens on a socket, which can be had once"],
        template: &["-chardev null,id=c", "-device virtserialport,id=p,nr=1,chardev=c"],
    },
    Refused {
        change: Change {
            name: "a disk whose node is not all told",
            line: &[],
            commands: &[
                ("blockdev-add", r#"{"driver":"null-co","node-name":"below","read-zeroes":true}"#),
                ("blockdev-add", r#"{"driver":"copy-on-read","node-name":"c","file":"below"}"#),
                ("device_add", r#"{"driver":"virtio-blk-pci","id":"d","drive":"c","addr":"7"}"#),
            ],
        },
        tells: &["the virtio-blk-pci \"d\" was plugged in with the block node \"c\"", "'copy-on-read'"],
        template: &[
            "-blockdev null-co,node-name=below,read-zeroes=on",
            "-blockdev copy-on-read,node-name=c,file=below",
            "-device virtio-blk-pci,id=d,drive=c,addr=7",
        ],
    },
    Refused {
        change: Change {
            name: "memory in a file that both would share",
            line: &["-m", "32,slots=2,maxmem=1G"],
            commands: &[
                (
                    "object-add",
                    r#"{"qom-type":"memory-backend-file","id":"m","size":16777216,"share":true,"mem-path":"DIR/memory"}"#,
                ),
                ("device_add", r#"{"driver":"pc-dimm","id":"d","memdev":"m","slot":0}"#),
            ],
        },
        tells: &["the pc-dimm \"d\" was plugged in with memory that is shared through a file"],
        template: &["-object memory-backend-ram,id=m,size=16M", "-device pc-dimm,id=d,memdev=m,slot=0"],
    },
    Refused {
        change: Change {
            name: "a block job",
            line: &[
                "-blockdev",
                "null-co,node-name=a,read-zeroes=on",
                "-device",
                "virtio-blk-pci,id=v,drive=a",
            ],
            commands: &[
                ("blockdev-add", r#"{"driver":"null-co","node-name":"b"}"#),
                (
                    "blockdev-mirror",
                    r#"{"job-id":"copies","device":"a","target":"b","sync":"full","speed":1}"#,
                ),
            ],
        },
        tells: &["the block job \"copies\" (mirror) runs"],
        template: &[],
    },
    Refused {
        change: Change {
            name: "one of two that are alike",
            line: &["-device", "qemu-xhci,id=x", "-device", "usb-tablet", "-device", "usb-tablet"],
            commands: &[("device_del", r#"{"id":"/machine/peripheral-anon/device[0]"}"#)],
        },
        tells: &["one of several usb-tablet without an id was unplugged"],
        template: &[],
    },
];

/// What cannot be repeated is named, and stops nothing once a template says it.
#[test]
fn what_cannot_be_repeated_is_named_and_moves_by_a_template() {
    const TEST: &str = "what_cannot_be_repeated_is_named_and_moves_by_a_template";
    let Some(qemu) = qemu_version(TEST, "10.0") else { return };
    for Refused { change, tells, template } in REFUSED {
        let (source, directory) = changed(&qemu, &change);
        source.refuses(&[]).tells(tells);
        match change.name {
            "a block job" => {
                let mut monitor = source.monitor();
                monitor.execute("block-job-cancel", &json!({ "device": "copies" }));
                wait_for("the job's end", || {
                    monitor.ask("query-block-jobs").as_array()?.is_empty().then_some(())
                });
            }
            "one of two that are alike" => {
                let last = json!({ "id": "/machine/peripheral-anon/device[1]" });
                source.monitor().execute("device_del", &last);
            }
            _ => {
                let file = directory.path().join("template");
                let mut print = command();
                print.arg("template").arg(source.qmp());
                let text = String::from_utf8(run(print).stdout).unwrap();
                let added = template.join("\n  ");
                let text = text.replace("{incoming}", &format!("{added}\n  {{incoming}}"));
                std::fs::write(&file, text).unwrap();
                let before = equipment(&mut source.monitor())["tree"].clone();
                let said = migrate(source.qmp().to_str().unwrap(), &["--template", file.to_str().unwrap()]);
                assert_eq!(said.code, Some(0), "{}: {said:?}", change.name);
                assert_eq!(equipment(&mut source.monitor())["tree"], before, "{}", change.name);
            }
        }
        let said = migrate(source.qmp().to_str().unwrap(), &[]);
        assert_eq!(said.code, Some(0), "{}: {said:?}", change.name);
    }
}

/// A destination of the user's is the user's to make like its source.
#[test]
fn nothing_is_plugged_into_a_destination_that_the_user_started() {
    const TEST: &str = "nothing_is_plugged_into_a_destination_that_the_user_started";
    let Some(qemu) = qemu_version(TEST, "10.0") else { return };
    let (source, _directory) = changed(&qemu, &CHANGES[7]);
    let other = Source::start(&qemu, &["-incoming", "defer"]);
    let monitor = other.qmp();
    source.refuses(&["--destination-qmp", monitor.to_str().unwrap()]).tells(&[
        "the destination has no virtio-rng-pci at addr 02.0 on pci.0 (id \"rng1\")",
        "the destination has no virtio-rng-pci at addr 03.0 on pci.0",
    ]);
    source.moves();
}

/// What QEMU does not take is named with its words, and the source is as it was.
#[test]
fn a_repetition_that_fails_names_the_device_and_changes_nothing() {
    const TEST: &str = "a_repetition_that_fails_names_the_device_and_changes_nothing";
    let Some(qemu) = qemu_version(TEST, "10.0") else { return };
    let (source, directory) = changed(&qemu, &CHANGES[0]);
    let (disk, away) = (directory.path().join("disk"), directory.path().join("away"));
    std::fs::rename(&disk, &away).unwrap();
    source.refuses(&[]).tells(&[
        "the virtio-blk-pci \"disk1\" cannot be repeated on the destination: blockdev-add says: Could not open '",
        "No such file or directory",
    ]);
    std::fs::rename(&away, &disk).unwrap();
    source.moves();
}

#[test]
fn a_dry_run_prints_what_is_repeated_as_lines_of_qmp() {
    const TEST: &str = "a_dry_run_prints_what_is_repeated_as_lines_of_qmp";
    let Some(qemu) = qemu_version(TEST, "10.0") else { return };
    let (source, _directory) = changed(&qemu, &CHANGES[5]);
    let mut plan = command();
    plan.args(["migrate", "--dry-run"]).arg(source.qmp());
    let output = run(plan);
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = printed.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<_> = lines
        .iter()
        .map(|line| (line["execute"].as_str().unwrap(), line["arguments"]["driver"].as_str().unwrap()))
        .collect();
    assert_eq!(
        said,
        [("device_add", "usb-hub"), ("device_add", "usb-kbd"), ("device_add", "usb-tablet")],
        "the hub first, whatever its name"
    );
    source.moves();
}

/// A guest as people start it, on a board that two versions have.
const LINUX: [&str; 46] = [
    "-machine",
    "pc-q35-10.0",
    "-m",
    "slots=3,maxmem=1G",
    "-smp",
    "1,maxcpus=3",
    "-cpu",
    "qemu64",
    "-device",
    "pcie-root-port,id=port1,chassis=1,slot=1",
    "-device",
    "pcie-root-port,id=port2,chassis=2,slot=2",
    "-device",
    "pcie-root-port,id=port3,chassis=3,slot=3",
    "-device",
    "pcie-root-port,id=port4,chassis=4,slot=4",
    "-drive",
    "if=none,id=disk,format=raw,file=DIR/disk",
    "-device",
    "virtio-blk-pci,id=first,drive=disk",
    "-netdev",
    "user,id=lan",
    "-device",
    "virtio-net-pci,id=card,netdev=lan,mac=52:54:00:00:00:01",
    "-netdev",
    "user,id=going",
    "-device",
    "virtio-net-pci,id=goes,netdev=going,bus=port4",
    "-device",
    "qemu-xhci,id=usb",
    "-device",
    "usb-tablet,id=tablet",
    "-device",
    "usb-kbd,id=keys",
    "-device",
    "VGA",
    "-vnc",
    "unix:DIR/vnc",
    "-device",
    "virtio-rng-pci",
    "-device",
    "virtio-balloon-pci,id=balloon",
    "-drive",
    "if=none,id=cd,media=cdrom,file=DIR/other-disk,format=raw",
    "-device",
    "ide-cd,id=cdrom,drive=cd",
];

/// Disk, card, memory and processor plugged in, a card and a tablet taken out, another medium.
fn change(guest: &LinuxGuest) {
    let mut monitor = Monitor::connect(&guest.monitor());
    let image = |name: &str| guest.at(name).to_str().unwrap().to_owned();
    let file = |name: &str| json!({ "driver": "file", "filename": image(name) });
    for (command, arguments) in [
        ("device_del", json!({ "id": "goes" })),
        ("device_del", json!({ "id": "keys" })),
        (
            "blockdev-change-medium",
            json!({ "id": "cdrom", "filename": image("iso"), "format": "raw", "read-only-mode": "read-only" }),
        ),
        ("blockdev-add", json!({ "driver": "raw", "node-name": "new", "file": file("other-disk") })),
        (
            "device_add",
            json!({ "driver": "virtio-blk-pci", "id": "second", "drive": "new", "bus": "port1", "serial": "s2" }),
        ),
        ("netdev_add", json!({ "type": "user", "id": "wan" })),
        (
            "device_add",
            json!({ "driver": "virtio-net-pci", "id": "new-card", "netdev": "wan", "bus": "port2" }),
        ),
        ("object-add", json!({ "qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20 })),
        ("device_add", json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" })),
        (
            "device_add",
            json!({ "driver": "qemu64-x86_64-cpu", "id": "processor", "socket-id": 0, "core-id": 1, "thread-id": 0 }),
        ),
    ] {
        monitor.execute(command, &arguments);
    }
    // The kernel lets go of the card.
    wait_for("the card's end", || {
        let tree = monitor.execute("qom-list", &json!({ "path": "/machine/peripheral" }));
        (!tree.to_string().contains("\"goes\"")).then_some(())
    });
    monitor.execute("netdev_del", &json!({ "id": "going" }));
}

async fn hardware(monitor: &Path) -> Hardware {
    let address = format!("unix:{}", monitor.display()).parse().unwrap();
    let client = Client::connect(&address, Leg::Source, Deadlines::default()).await.unwrap();
    Hardware::ask(&client).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linux_guest_that_was_changed_in_every_way_goes_on_with_the_same_hardware() {
    let test = "a_linux_guest_that_was_changed_in_every_way_goes_on_with_the_same_hardware";
    let Some(old) = qemu_version(test, "10.0") else { return };
    let Some(new) = qemu_version(test, "11.1") else { return };
    let Some(guest) = LinuxGuest::start_with(test, &old, (32, 16), &LINUX) else { return };
    guest.proves_itself(guest.source(), 1);
    change(&guest);
    let monitor = guest.monitor();
    let before = (hardware(&monitor).await, equipment(&mut Monitor::connect(&monitor)));
    // 10.0 to 10.0, to 11.1, and back.
    BackAndForth::of(&monitor)
        .between(&[&old, &old, &new])
        .times(3)
        .run(async |done| {
            guest.proves_itself(done.destination, 1);
            let after = hardware(&monitor).await;
            assert_eq!(before.0.differences(&after), [], "move {}", done.number);
            assert_eq!(after.differences(&before.0), [], "move {}", done.number);
            assert_eq!(equipment(&mut Monitor::connect(&monitor)), before.1, "move {}", done.number);
        })
        .await;
}
