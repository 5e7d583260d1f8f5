//! Tables over what real QEMUs have told, cut to what matters.

use serde_json::from_value;

use super::*;

/// A guest as 10.0 tells of it: a board with a root port, a disk on a node, a drive for media, a user network.
fn guest() -> Value {
    json!({
        "devices": [
            { "path": "/machine/peripheral/cdrom", "kind": "ide-cd", "hotplugged": false },
            { "path": "/machine/peripheral/nic0", "kind": "virtio-net-pci", "hotplugged": false },
            { "path": "/machine/peripheral/rp1", "kind": "pcie-root-port", "hotplugged": false },
            { "path": "/machine/peripheral/vb0", "kind": "virtio-blk-pci", "hotplugged": false },
            { "path": "/machine/peripheral-anon/device[0]", "kind": "virtio-balloon-pci", "hotplugged": false },
        ],
        "processors": [
            { "type": "qemu64-x86_64-cpu", "props": { "core-id": 0 }, "qom-path": "/machine/unattached/device[0]" },
            { "type": "qemu64-x86_64-cpu", "props": { "core-id": 1 }, "qom-path": "/machine/unattached/device[2]" },
            { "type": "qemu64-x86_64-cpu", "props": { "core-id": 2 } },
        ],
        "objects": ["pc.ram"],
        "drives": [
            drive("cd", "cdrom", true, Some(("#block191", "old.iso", "raw"))),
            drive("", "/machine/peripheral/vb0/virtio-backend", false, Some(("n0", "disk", "raw"))),
        ],
        "nodes": [node("n0", "raw", "disk"), node("#block032", "file", "disk")],
        "edges": { "n0": [["file", "#block032"]] },
        "networks": { "net0": "type=user,net=10.0.2.0,restrict=off" },
        "user_networks": [{ "id": "net0", "forwards": false }],
    })
}

const LINE: [&str; 23] = [
    "qemu-system-x86_64",
    "-machine",
    "q35",
    "-smp",
    "2,maxcpus=3",
    "-device",
    "pcie-root-port,id=rp1",
    "-drive",
    "if=none,id=cd,media=cdrom,file=old.iso,format=raw",
    "-device",
    "ide-cd,drive=cd,id=cdrom",
    "-blockdev",
    "raw,node-name=n0,file.driver=file,file.filename=disk",
    "-device",
    "virtio-blk-pci,drive=n0,id=vb0",
    "-netdev",
    "user,id=net0,hostfwd=tcp::2222-:22",
    "-device",
    "virtio-net-pci,netdev=net0,id=nic0",
    "-device",
    "virtio-balloon",
    "-vnc",
    "unix:/v",
];

fn drive(device: &str, qdev: &str, removable: bool, inserted: Option<(&str, &str, &str)>) -> Value {
    let inserted = inserted.map(|(node, file, format)| {
        json!({ "node-name": node, "file": file, "drv": format, "ro": false, "bps": 0, "iops": 0 })
    });
    json!({ "device": device, "qdev": qdev, "removable": removable, "inserted": inserted })
}

fn node(name: &str, driver: &str, file: &str) -> Value {
    json!({
        "node-name": name, "drv": driver, "ro": false, "detect_zeroes": "off",
        "cache": { "direct": false, "no-flush": false, "writeback": true },
        "image": { "filename": file, "virtual-size": 1_048_576 }
    })
}

fn plugged(path: &str, kind: &str, bus: Option<&str>, properties: &Value) -> Value {
    let path = format!("/machine/peripheral/{path}");
    json!({ "path": path, "kind": kind, "hotplugged": true, "bus": bus, "properties": properties })
}

fn add(guest: &mut Value, list: &str, entry: Value) {
    guest[list].as_array_mut().unwrap().push(entry);
}

fn parsed(guest: &Value) -> (Present, CommandLine) {
    let words = LINE.map(std::ffi::OsString::from);
    (from_value(guest.clone()).unwrap(), CommandLine::parse(&words).unwrap())
}

/// The words of the line that are others now, and the commands.
fn of(guest: &Value, whose: Whose) -> (Vec<String>, Vec<String>, Repetitions) {
    let (present, line) = parsed(guest);
    let repetitions = repetitions(&present, &line, whose).unwrap();
    let words = repetitions.line.render().into_iter().map(|word| word.into_string().unwrap());
    let new = words.filter(|word| !LINE.contains(&word.as_str())).collect();
    let commands = repetitions.commands.iter().map(Repetition::line).collect();
    (new, commands, repetitions)
}

fn refused(guest: &Value) -> Vec<Part> {
    let (present, line) = parsed(guest);
    let errors = repetitions(&present, &line, Whose::Source).unwrap_err();
    errors.iter().map(|error| error.part).collect()
}

#[test]
fn a_guest_that_is_as_it_was_started_needs_nothing() {
    let (present, line) = parsed(&guest());
    for whose in [Whose::Source, Whose::Template] {
        let nothing = Repetitions { line: line.clone(), commands: Vec::new(), warnings: Vec::new() };
        assert_eq!(repetitions(&present, &line, whose), Ok(nothing));
    }
}

#[test]
fn a_disk_comes_after_the_nodes_and_the_controller_that_it_stands_on() {
    let mut guest = guest();
    add(&mut guest, "nodes", node("hp", "raw", "more"));
    add(&mut guest, "nodes", node("below", "file", "more"));
    guest["edges"]["hp"] = json!([["file", "below"]]);
    add(&mut guest, "drives", drive("", "sd", false, Some(("hp", "more", "raw"))));
    let disk = json!({ "drive": "hp", "lun": 4 });
    let bus = Some("/machine/peripheral/zz/virtio-backend/zz.0");
    add(&mut guest, "devices", plugged("sd", "scsi-hd", bus, &disk));
    let bus = Some("/machine/peripheral/rp1/rp1");
    add(&mut guest, "devices", plugged("zz", "virtio-scsi-pci", bus, &json!({ "addr": "00.0" })));
    let (line, commands, _) = of(&guest, Whose::Source);
    assert_eq!(line, [""; 0]);
    assert_eq!(
        commands,
        [
            r#"{"arguments":{"addr":"00.0","bus":"rp1","driver":"virtio-scsi-pci","id":"zz"},"execute":"device_add"}"#,
            r#"{"arguments":{"driver":"file","filename":"more","node-name":"below"},"execute":"blockdev-add"}"#,
            r#"{"arguments":{"driver":"raw","file":"below","node-name":"hp"},"execute":"blockdev-add"}"#,
            r#"{"arguments":{"bus":"zz.0","drive":"hp","driver":"scsi-hd","id":"sd","lun":4},"execute":"device_add"}"#,
        ]
    );
    guest["nodes"][2]["encrypted"] = json!(true);
    assert_eq!(refused(&guest), [Part::PluggedDisk]);
}

#[test]
fn memory_comes_with_what_it_is_made_of_and_where_it_is() {
    let mut guest = guest();
    let dimm = json!({ "memdev": "/objects/m1", "slot": 1, "addr": 4_294_967_296_u64 });
    add(&mut guest, "devices", plugged("d", "pc-dimm", None, &dimm));
    add(&mut guest, "objects", json!("m1"));
    let memory = json!({
        "size": 134_217_728, "share": false, "merge": true, "dump": true, "policy": "default", "host-nodes": [],
        "prealloc": false, "reserve": true, "x-use-canonical-path-for-ramblock-id": false, "prealloc-threads": 2
    });
    guest["used_objects"] = json!({ "m1": { "kind": "memory-backend-ram", "properties": memory } });
    assert_eq!(
        of(&guest, Whose::Source).1,
        [
            r#"{"arguments":{"id":"m1","qom-type":"memory-backend-ram","share":false,"size":134217728},"execute":"object-add"}"#,
            r#"{"arguments":{"addr":4294967296,"driver":"pc-dimm","id":"d","memdev":"/objects/m1","slot":1},"execute":"device_add"}"#,
        ]
    );
    guest["used_objects"]["m1"]["kind"] = json!("memory-backend-file");
    guest["used_objects"]["m1"]["properties"]["share"] = json!(true);
    assert_eq!(refused(&guest), [Part::SharedMemory]);
}

#[test]
fn processors_begin_where_the_first_one_is_missing() {
    let mut guest = guest();
    let plugged_processor = plugged("p", "qemu64-x86_64-cpu", None, &json!({}));
    add(&mut guest, "devices", plugged_processor);
    guest["processors"][2]["qom-path"] = json!("/machine/peripheral/p");
    let command =
        r#"{"arguments":{"core-id":2,"driver":"qemu64-x86_64-cpu","id":"p"},"execute":"device_add"}"#;
    let (line, commands, _) = of(&guest, Whose::Source);
    assert_eq!((line, commands), (vec![], vec![command.to_owned()]));
    guest["processors"][1]["qom-path"] = Value::Null;
    let (line, commands, _) = of(&guest, Whose::Source);
    assert_eq!((line, commands), (vec!["1,maxcpus=3".to_owned()], vec![command.to_owned()]));
}

/// On the source the new network has the number after that of the one that is gone.
#[test]
fn user_networks_keep_their_numbers() {
    let mut guest = guest();
    guest["devices"].as_array_mut().unwrap().remove(1);
    guest["networks"] = json!({
        "late": "type=user,net=10.0.2.0,restrict=on", "early": "type=user,net=10.0.2.0,restrict=off"
    });
    guest["user_networks"] =
        json!([{ "id": "early", "forwards": true }, { "id": "late", "forwards": false }]);
    let (line, commands, repetitions) = of(&guest, Whose::Source);
    assert_eq!(line, ["user,id=net0"], "without its ports");
    assert_eq!(
        commands,
        [
            r#"{"arguments":{"id":"early","type":"user"},"execute":"netdev_add"}"#,
            r#"{"arguments":{"id":"late","restrict":true,"type":"user"},"execute":"netdev_add"}"#,
        ]
    );
    assert_eq!(repetitions.warnings[0].code, "forwards");
    assert!(!repetitions.line.values("device").any(|value| value.contains("nic0")));
    guest["user_networks"] = json!([]);
    let card = json!({ "netdev": "late" });
    add(&mut guest, "devices", plugged("card", "e1000", None, &card));
    guest["networks"]["late"] = json!("type=tap,ifname=tap0");
    assert_eq!(refused(&guest), [Part::PluggedNetwork]);
}

/// QEMU gives out places in the order of the line.
#[test]
fn what_stays_is_told_its_place_when_something_before_it_goes() {
    let mut guest = guest();
    let devices = guest["devices"].as_array_mut().unwrap();
    devices.remove(3);
    devices[1]["properties"] = json!({ "addr": "05.0" });
    devices[1]["bus"] = json!("/machine/q35/pcie.0");
    guest["nodes"] = json!([]);
    guest["drives"].as_array_mut().unwrap().pop();
    let (line, commands, repetitions) = of(&guest, Whose::Source);
    assert_eq!(line, ["virtio-net-pci,netdev=net0,id=nic0,bus=pcie.0,addr=05.0"]);
    assert_eq!(commands, [""; 0]);
    let rest: Vec<&str> = repetitions.line.values("blockdev").collect();
    assert_eq!(rest, [""; 0], "its node has gone with it");
}

#[test]
fn a_medium_and_a_top_image_are_those_of_now() {
    for (inserted, line, commands) in [
        (
            Some(("#block1", "new.iso", "raw")),
            "if=none,id=cd,media=cdrom",
            vec![
                r#"{"arguments":{"filename":"new.iso","format":"raw","id":"cdrom","read-only-mode":"read-write"},"execute":"blockdev-change-medium"}"#,
            ],
        ),
        (None, "if=none,id=cd,media=cdrom", vec![]),
    ] {
        let mut guest = guest();
        guest["drives"][0] = drive("cd", "cdrom", true, inserted);
        let found = of(&guest, Whose::Source);
        assert_eq!(
            (found.0, found.1),
            (vec![line.to_owned()], commands.into_iter().map(str::to_owned).collect())
        );
    }
    let mut guest = guest();
    guest["drives"][1] =
        drive("", "/machine/peripheral/vb0/virtio-backend", false, Some(("top", "snapshot", "qcow2")));
    add(&mut guest, "nodes", node("top", "qcow2", "snapshot"));
    add(&mut guest, "nodes", node("#block7", "file", "snapshot"));
    guest["edges"]["top"] = json!([["backing", "n0"], ["file", "#block7"]]);
    let (line, commands, _) = of(&guest, Whose::Source);
    assert_eq!(commands, [""; 0]);
    assert_eq!(
        line,
        [
            "virtio-blk-pci,drive=top,id=vb0",
            r#"{"backing":"n0","driver":"qcow2","file":{"driver":"file","filename":"snapshot"},"node-name":"top"}"#,
        ]
    );
}

#[test]
fn what_a_template_says_is_not_repeated() {
    let mut guest = guest();
    guest["devices"][3]["hotplugged"] = json!(true);
    let (line, commands, _) = of(&guest, Whose::Template);
    assert_eq!((line, commands), (vec![], vec![]));
    let (_, commands, repetitions) = of(&guest, Whose::Source);
    assert_eq!(commands.len(), 1, "one that came back under the same name");
    assert!(!repetitions.line.values("device").any(|value| value.contains("vb0")));
}

#[test]
fn what_nobody_can_repeat_is_told() {
    let mut told = guest();
    told["vnc"] = json!("vnc");
    told["exports"] = json!([{ "id": "e", "type": "nbd", "node-name": "n0", "shutting-down": false }]);
    let warnings = of(&told, Whose::Source).2.warnings;
    assert_eq!(
        warnings.iter().map(|warning| warning.code.as_str()).collect::<Vec<_>>(),
        ["export", "vnc-password"]
    );
    for (kind, properties, part) in [
        ("vhost-vsock-pci", json!({ "guest-cid": 3 }), Part::PluggedDevice),
        ("virtio-net-pci", json!({ "failover_pair_id": "x" }), Part::PluggedDevice),
        ("virtio-sound-pci", json!({ "audiodev": "a" }), Part::PluggedDevice),
        ("virtserialport", json!({ "chardev": "c" }), Part::PluggedCharacterDevice),
        ("virtio-crypto-pci", json!({ "cryptodev": "/objects/k" }), Part::PluggedObject),
    ] {
        let mut guest = guest();
        guest["character_devices"] = json!([{ "label": "c", "filename": "unix:/s,server=on" }]);
        add(&mut guest, "objects", json!("k"));
        guest["used_objects"] = json!({ "k": { "kind": "cryptodev-backend-builtin", "properties": {} } });
        add(&mut guest, "devices", plugged("d", kind, None, &properties));
        assert_eq!(refused(&guest), [part], "{kind}");
    }
    let mut guest = guest();
    guest["jobs"] = json!([{ "device": "j", "type": "mirror", "len": 1 }]);
    assert_eq!(refused(&guest), [Part::BlockJob]);
}
