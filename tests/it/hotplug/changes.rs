//! What is done to guests after their start: what is repeated, what is taken out, and what cannot be repeated.

/// What the guest is started with, and what is done to it then. `DIR` is a directory with the files `disk` and `iso`.
pub(super) struct Change {
    pub(super) name: &'static str,
    pub(super) line: &'static [&'static str],
    pub(super) commands: &'static [(&'static str, &'static str)],
}

pub(super) const DISK: (&str, &str) = (
    "blockdev-add",
    r#"{"driver":"raw","node-name":"d1","file":{"driver":"file","filename":"DIR/disk","node-name":"f1"}}"#,
);
pub(super) const NETWORK: (&str, &str) = ("netdev_add", r#"{"type":"user","id":"n1"}"#);
pub(super) const NULL_DEVICE: (&str, &str) =
    ("chardev-add", r#"{"id":"c1","backend":{"type":"null","data":{}}}"#);

pub(super) const CHANGES: [Change; 18] = [
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

/// What is taken out of a guest, and what must stand on the destination's command line no more.
pub(super) struct Unplugged {
    pub(super) line: &'static [&'static str],
    pub(super) commands: &'static [(&'static str, &'static str)],
    pub(super) gone: &'static [&'static str],
    pub(super) stays: &'static [&'static str],
}

pub(super) const UNPLUGGED: [Unplugged; 5] = [
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

/// What cannot be repeated, what is said of it, and what a template says so that it need not be repeated.
pub(super) struct Refused {
    pub(super) change: Change,
    pub(super) tells: &'static [&'static str],
    pub(super) template: &'static [&'static str],
}

pub(super) const REFUSED: [Refused; 7] = [
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
