//! Guests that were changed since they were started: what stands on no command line is repeated on the destination, or
//! named as what cannot be.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

/// What is done to guests after their start.
mod changes;
/// A Linux guest that was changed in every way, moved between versions.
mod linux;

use changes::{CHANGES, Change, REFUSED, Refused, UNPLUGGED, Unplugged};

use crate::small_qemu::{Monitor, Source, command, migrate, run, wait_for};
use crate::support::qemu_version;

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

/// Under TCG a second block of memory is not moved live.
const STANDING_STILL: [&str; 1] = ["--non-live"];

/// Each change alone: the guest is moved twice, and has the same both times.
fn each_change_is_repeated(test: &str, version: &str, way: &[&str]) {
    let Some(qemu) = qemu_version(test, version) else { return };
    for change in &CHANGES {
        let (source, _directory) = changed(&qemu, change);
        let before = equipment(&mut source.monitor());
        let way = if change.name == "memory" { &STANDING_STILL } else { way };
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

/// What cannot be repeated is named, and stops nothing once a template says it.
#[test]
fn what_cannot_be_repeated_is_named_and_moves_by_a_template() {
    const TEST: &str = "what_cannot_be_repeated_is_named_and_moves_by_a_template";
    let Some(qemu) = qemu_version(TEST, "10.0") else { return };
    for Refused { change, tells, template } in REFUSED {
        let (source, directory) = changed(&qemu, &change);
        let way: &[&str] = if change.name.starts_with("memory") { &STANDING_STILL } else { &[] };
        source.refuses(way).tells(tells);
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
                let way = [&["--template", file.to_str().unwrap()], way].concat();
                let said = migrate(source.qmp().to_str().unwrap(), &way);
                assert_eq!(said.code, Some(0), "{}: {said:?}", change.name);
                assert_eq!(equipment(&mut source.monitor())["tree"], before, "{}", change.name);
            }
        }
        let said = migrate(source.qmp().to_str().unwrap(), way);
        assert_eq!(said.code, Some(0), "{}: {said:?}", change.name);
    }
}

/// The copy is the disk from now on, and nothing but the drive itself says so.
fn a_disk_that_was_mirrored_goes_on_with_its_copy(test: &str, version: &str) {
    let Some(qemu) = qemu_version(test, version) else { return };
    let line = &[
        "-blockdev",
        "raw,node-name=a,file.driver=file,file.filename=DIR/disk",
        "-device",
        "virtio-blk-pci,drive=a",
        "-drive",
        "if=none,id=b,format=raw,file=DIR/iso,throttling.bps-total=1000000",
        "-device",
        "virtio-blk-pci,drive=b",
    ];
    let (source, directory) = changed(&qemu, &Change { name: "", line, commands: &[] });
    let mut monitor = source.monitor();
    for name in ["a", "b"] {
        let target = directory.path().join(format!("copy-{name}"));
        let mirror =
            json!({ "job-id": "j", "device": name, "target": target, "sync": "full", "format": "raw" });
        monitor.execute("drive-mirror", &mirror);
        wait_for("the copy", || {
            let jobs = monitor.ask("query-block-jobs");
            (jobs[0]["ready"] == true).then_some(())
        });
        monitor.execute("block-job-complete", &json!({ "device": "j" }));
        wait_for("the job's end", || monitor.ask("query-block-jobs").as_array()?.is_empty().then_some(()));
    }
    let limits =
        json!({ "device": "b", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0 });
    monitor.execute("block_set_io_throttle", &limits);
    let before = equipment(&mut monitor)["drives"].clone();
    drop(monitor);
    assert!(before.to_string().contains("/copy-a") && before.to_string().contains("/copy-b"), "{before}");
    for _ in 0..2 {
        let said = migrate(source.qmp().to_str().unwrap(), &[]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(equipment(&mut source.monitor())["drives"], before);
    }
}

#[test]
fn a_disk_that_was_mirrored_goes_on_with_its_copy_on_10_0() {
    a_disk_that_was_mirrored_goes_on_with_its_copy(
        "a_disk_that_was_mirrored_goes_on_with_its_copy_on_10_0",
        "10.0",
    );
}

#[test]
fn a_disk_that_was_mirrored_goes_on_with_its_copy_on_11_1() {
    a_disk_that_was_mirrored_goes_on_with_its_copy(
        "a_disk_that_was_mirrored_goes_on_with_its_copy_on_11_1",
        "11.1",
    );
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
    // Something else is in the first slots of the destination, and so at the disk's address.
    let program = directory.path().join("qemu-system-x86_64");
    let others = [2, 3, 4, 5].map(|slot| format!("-device virtio-rng-pci,addr={slot}")).join(" ");
    let lines = format!(
        "#!/bin/sh\ncase \"$*\" in *-incoming*) exec {0} \"$@\" {others};; *) exec {0} \"$@\";; esac\n",
        qemu.display()
    );
    std::fs::write(&program, lines).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    source.refuses(&["--qemu", program.to_str().unwrap()]).tells(&[
        "the virtio-blk-pci \"disk1\" cannot be repeated on the destination: device_add says: ",
        "in use by virtio-rng-pci",
    ]);
    source.moves();
}

#[test]
fn a_device_that_only_a_template_has_is_left_out_and_told() {
    let Some(qemu) = qemu_version("a_device_that_only_a_template_has", "10.0") else { return };
    let source = Source::start(&qemu, &[]);
    let before = equipment(&mut source.monitor())["tree"].clone();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("template");
    let mut print = command();
    print.arg("template").arg(source.qmp());
    let text = String::from_utf8(run(print).stdout).unwrap();
    let text = text.replace("{incoming}", "-device virtio-rng-pci,id=extra\n  {incoming}");
    std::fs::write(&file, text).unwrap();
    let said = migrate(source.qmp().to_str().unwrap(), &["--template", file.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{said:?}");
    said.tells(&["warning: the template's virtio-rng-pci \"extra\" is left out"]);
    assert_eq!(equipment(&mut source.monitor())["tree"], before);
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
