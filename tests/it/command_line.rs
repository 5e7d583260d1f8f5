//! What the model of a command line says of QEMU, asked of every QEMU that is here.

use std::path::Path;
use std::process::{Command, Output};

use qmigrate::qemu::argv::CommandLine;
use qmigrate::qemu::argv::configuration::{Defaults, flatten};
use qmigrate::qemu::argv::options::{Asked, Form, OPTIONS, OptionFacts};
use serde_json::{Value, json};

use crate::small_qemu::{Monitor, Place};
use crate::support::qemu_version;

const VERSIONS: [(&str, Asked); 4] =
    [("5.2", Asked::V5_2), ("7.2", Asked::V7_2), ("10.0", Asked::V10_0), ("11.1", Asked::V11_1)];

/// What QEMU says to options of which one is none: it reads all words before it does anything.
fn refusal(qemu: &Path, words: &[String]) -> String {
    let Output { stderr, .. } = Command::new(qemu).args(words).arg("-no-such-option").output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    text.lines().find(|line| line.contains("invalid option")).unwrap_or(&text).to_owned()
}

#[test]
fn every_option_is_where_the_table_says_and_takes_a_value_where_it_says() {
    for (name, version) in VERSIONS {
        let Some(qemu) = qemu_version("every_option_is_where_the_table_says", name) else { continue };
        let is_here = |facts: &&OptionFacts| facts.versions.is_some_and(|versions| versions.has(version));
        let (here, elsewhere): (Vec<_>, Vec<_>) = OPTIONS.iter().partition(is_here);
        // A value that would be an option, if it were not read as a value.
        let words = |facts: &&OptionFacts| {
            let value = (facts.form != Form::Alone).then(|| "-no-such-value".to_owned());
            [Some(format!("-{}", facts.name)), value].into_iter().flatten().collect::<Vec<_>>()
        };
        let all: Vec<String> = here.iter().flat_map(words).collect();
        let said = refusal(&qemu, &all);
        assert!(said.contains("-no-such-option: invalid option"), "{name}: {said}");
        for facts in elsewhere {
            let said = refusal(&qemu, &words(&facts));
            assert!(said.contains(&format!("-{}: invalid option", facts.name)), "{name}: {said}");
        }
    }
}

/// What a QEMU with these options says of itself.
fn answers(place: &Place, qemu: &Path, name: &str, options: &[&str]) -> Vec<Value> {
    let _process = place.start(qemu, name, options);
    let mut monitor = Monitor::connect(&place.at(name));
    let mut said = Vec::new();
    for command in ["query-name", "query-memory-size-summary", "query-memdev", "query-iothreads"] {
        said.push(monitor.ask(command));
    }
    said.push(monitor.ask("query-cpus-fast").as_array().unwrap().len().into());
    said.push(monitor.ask("query-block")[0]["inserted"]["file"].clone());
    for (path, property) in [
        ("/machine", "type"),
        ("/machine", "usb"),
        ("/machine/peripheral/net", "mac"),
        ("/machine/peripheral/net", "addr"),
        ("/machine/peripheral/rng", "rng"),
        ("/machine/peripheral/disk", "physical_block_size"),
    ] {
        said.push(monitor.execute("qom-get", &json!({ "path": path, "property": property })));
    }
    monitor.ask("quit");
    // Threads have another number in each process.
    said.iter_mut().filter_map(Value::as_array_mut).flatten().for_each(|entry| {
        entry.as_object_mut().map(|entry| entry.remove("thread-id"));
    });
    said
}

#[test]
fn a_guest_from_a_configuration_file_is_the_one_from_its_options() {
    let place = Place::new();
    let (disk, file) = (place.at("disk,1.raw"), place.at("guest.conf"));
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let configuration = CONFIGURATION.replace("DISK", disk.to_str().unwrap());
    std::fs::write(&file, &configuration).unwrap();
    for (version, _) in VERSIONS {
        let Some(qemu) = qemu_version("a_guest_from_a_configuration_file", version) else { continue };
        let from_file = answers(&place, &qemu, "file", &["-S", "-readconfig", file.to_str().unwrap()]);
        let options = flatten(&configuration, Defaults::None).unwrap();
        let flattened = CommandLine { launcher: Vec::new(), program: "-S".to_owned(), options }.render();
        let words: Vec<&str> = flattened.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(answers(&place, &qemu, "line", &words), from_file, "{version}: {words:?}");
        assert_eq!(from_file[0]["name"], "a, b");
        assert_eq!(from_file[1]["base-memory"], 48 << 20);
        assert_eq!((&from_file[4], &from_file[5]), (&json!(2), &json!(disk)));
        assert_eq!(from_file[11], 4096);
    }
}

const CONFIGURATION: &str = r#"# a guest

[name]
  guest = "a, b"
[machine]
  type = "q35"
  usb ="on"

[memory]
  size = "48M"
[smp-opts]
  cpus = "2"  # two
[object "io"]
  qom-type = "iothread"
[object "random"]
  qom-type = "rng-random"
  filename = "/dev/urandom"
[device "rng"]
  driver = "virtio-rng-pci"
  rng = "random"
[drive "d"]
  file = "DISK"
  format = "raw"
  if = "none"
[device "disk"]
  driver = "virtio-blk-pci"
  drive = "d"
  iothread = "io"
[netdev "n"]
  type = "user"
[device "net"]
  driver = "virtio-net-pci"
  netdev = "n"
[global]
  driver = "virtio-blk-device"
  property = "physical_block_size"
  value = "4096"
"#;
