//! `qmigrate check`: everything that stands in the way in one run, and `migrate` refuses with the same.

use std::net::TcpListener;
use std::process::Command;

use qmigrate::check::Code;
use serde_json::{Value, json};

use crate::lab::{Lab, lives};
use crate::small_qemu::{Said, Source, command, qemu_or_skip, run};
use crate::support::{qemu_version, skip};

/// A command's code, its standard output, and the objects on it.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    text: String,
    objects: Vec<Value>,
}

fn told(command: Command) -> Told {
    let output = run(command);
    let text = String::from_utf8(output.stdout).unwrap();
    let objects = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Told { code: output.status.code(), text, objects }
}

fn typed(verb: &str, source: &str, arguments: &[&str]) -> Told {
    let mut command = command();
    command.args([verb, source]).args(arguments);
    told(command)
}

impl Told {
    fn codes(&self, kind: &str) -> Vec<&str> {
        let found = self.objects.iter().filter(|object| object["type"] == kind);
        found.map(|object| object["code"].as_str().unwrap()).collect()
    }

    fn messages(&self) -> Vec<&str> {
        let found = self.objects.iter().filter(|object| object["type"] == "blocker");
        found.map(|object| object["message"].as_str().unwrap()).collect()
    }
}

#[test]
fn eight_blockers_are_named_in_one_run_and_migrate_refuses_with_the_same() {
    const TEST: &str = "eight_blockers_are_named_in_one_run";
    const EXPECTED: [&str; 8] = [
        "not-healthy",
        "blocked",
        "colo",
        "dialect",
        "image-gone",
        "snapshot",
        "port-taken",
        "unknown-machine",
    ];
    let (Some(qemu), Some(older)) = (qemu_version(TEST, "10.0"), qemu_version(TEST, "7.2")) else { return };
    let place = tempfile::Builder::new().prefix("qmi").tempdir().unwrap();
    let image = |name: &str| {
        let path = place.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (gone, temporary) = (image("gone"), image("temporary"));
    let directory = place.path().join("files");
    std::fs::create_dir(&directory).unwrap();
    let files = [gone.clone(), format!("{temporary},snapshot=on"), format!("fat:rw:{}", directory.display())];
    let drives = files.map(|file| format!("if=virtio,format=raw,file={file}"));
    let mut options = vec!["-no-reboot", "-no-shutdown"];
    options.extend(drives.iter().flat_map(|drive| ["-drive", drive]));
    let source = Source::start(&qemu, &options);
    let capability = json!({"capabilities": [{"capability": "x-colo", "state": true}]});
    source.monitor().execute("migrate-set-capabilities", &capability);
    // With -no-reboot a reset is the end, and with -no-shutdown the end is a state.
    source.monitor().ask("system_reset");
    crate::small_qemu::wait_for("the end", || {
        (source.monitor().ask("query-status")["status"] == "shutdown").then_some(())
    });
    std::fs::remove_file(&gone).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let incoming = format!("tcp:127.0.0.1:{}", listener.local_addr().unwrap().port());
    let flags = ["--incoming", &incoming, "--dialect", "legacy", "--qemu", older.to_str().unwrap()];

    let qmp = source.qmp();
    let (qmp, before) = (qmp.to_str().unwrap(), source.snapshot());
    let json = typed("check", qmp, &[&flags[..], &["--json"]].concat());
    let mut codes = json.codes("blocker");
    codes.dedup();
    assert_eq!((json.code, &codes[..]), (Some(2), &EXPECTED[..]), "{json:?}");
    let whole = json.objects.last().unwrap();
    assert_eq!((&whole["type"], &whole["exit_code"]), (&"check".into(), &2.into()), "{json:?}");
    assert_eq!(whole["blockers"], json.messages().len());
    assert!(json.codes("warning").contains(&"older-qemu"), "{json:?}");

    let text = typed("check", qmp, &flags);
    assert_eq!(text.code, Some(2));
    for code in EXPECTED {
        assert!(text.text.contains(&format!("[{code}]")), "{code}: {text:?}");
    }
    assert!(text.text.trim_end().ends_with("this guest cannot be moved as it is"), "{text:?}");

    let migrate = typed("migrate", qmp, &[&flags[..], &["--json"]].concat());
    assert_eq!((migrate.code, migrate.messages()), (Some(2), json.messages()), "{migrate:?}");
    assert_eq!(migrate.codes("blocker"), json.codes("blocker"));
    assert_eq!(source.snapshot(), before, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_in_whose_way_nothing_stands_is_told_so_and_left_alone() {
    let Some(lab) = Lab::start("a_guest_in_whose_way_nothing_stands", 16, Some("4MiB/s")).await else {
        return;
    };
    let told = typed("check", &lab.monitor(), &[]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.text.contains("nothing stands in the way"), "{told:?}");
    lab.beats_on(lab.source());
    assert_eq!(lab.left_behind(), [] as [std::path::PathBuf; 0]);
    assert_eq!(lab.migrate(&[]).code, 0);
    lab.prove().await;
}

#[test]
fn what_a_host_lends_is_named_with_the_line_that_ends_it() {
    let Some(qemu) = qemu_or_skip("what_a_host_lends_is_named") else { return };
    // No device is like this one: the guest has the port of one that is not there.
    let source = Source::start(&qemu, &["-usb", "-device", "usb-host,id=stick,vendorid=1,productid=1"]);
    let qmp = source.qmp();
    let told = typed("check", qmp.to_str().unwrap(), &["--json"]);
    assert_eq!((told.code, told.codes("blocker")), (Some(2), vec!["host-usb"]), "{told:?}");
    let hint = told.objects[0]["hint"].as_str().unwrap();
    let line: Value = serde_json::from_str(&hint[hint.find('{').unwrap()..]).unwrap();
    source.monitor().execute(line["execute"].as_str().unwrap(), &line["arguments"]);
    assert_eq!(typed("check", qmp.to_str().unwrap(), &[]).code, Some(0));
}

#[test]
fn an_image_without_a_lock_is_a_warning() {
    let Some(qemu) = qemu_version("an_image_without_a_lock", "10.0") else { return };
    let place = tempfile::Builder::new().prefix("qmi").tempdir().unwrap();
    let path = place.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    for (more, expected) in [("", vec![]), (",file.locking=off", vec!["no-image-lock"])] {
        let drive = format!("if=virtio,format=raw,file={}{more}", path.display());
        let source = Source::start(&qemu, &["-drive", &drive]);
        let told = typed("check", source.qmp().to_str().unwrap(), &["--json"]);
        assert_eq!((told.code, told.codes("warning")), (Some(0), expected), "{told:?}");
        source.moves();
    }
}

/// What the guest has is the file that is open, and not whatever has its name.
#[test]
fn another_file_in_the_place_of_an_image_or_of_memory_is_refused() {
    let Some(qemu) = qemu_version("another_file_in_the_place", "10.0") else { return };
    let place = tempfile::Builder::new().prefix("qmi").tempdir().unwrap();
    let (image, memory) = (place.path().join("image"), place.path().join("memory"));
    let make = |path| std::fs::File::create(path).unwrap().set_len(1 << 20).unwrap();
    make(&image);
    let drive = format!("if=virtio,format=raw,file={}", image.display());
    let object = format!("memory-backend-file,id=m,size=32M,share=on,mem-path={}", memory.display());
    let source =
        Source::start(&qemu, &["-drive", &drive, "-object", &object, "-machine", "memory-backend=m"]);
    // Once it answers it has opened both.
    source.monitor().ask("query-status");
    for (path, code) in [(&image, "image-gone"), (&memory, "shared-memory")] {
        let away = path.with_extension("away");
        std::fs::rename(path, &away).unwrap();
        std::fs::copy(&away, path).unwrap();
        let told = typed("check", source.qmp().to_str().unwrap(), &["--json"]);
        assert_eq!((told.code, told.codes("blocker")), (Some(2), vec![code]), "{told:?}");
        std::fs::rename(&away, path).unwrap();
    }
    source.moves();
}

/// Once it has been there the guest's memory is not the first any more, though it be taken away again.
#[test]
fn memory_that_no_device_uses_crashes_a_live_source_and_is_refused() {
    for version in ["10.0", "11.1"] {
        let Some(qemu) = qemu_version("memory_that_no_device_uses", version) else { continue };
        let source = Source::start(&qemu, &["-object", "memory-backend-ram,id=left,size=1M"]);
        source.refuses(&[]).tells(&["may crash in a live migration", "\"pc.ram\"", "hint: ", "--non-live"]);
        source.monitor().execute("object-del", &json!({ "id": "left" }));
        source.refuses(&[]).tells(&["may crash in a live migration", "--non-live"]);
        source.moves_with(&["--non-live"]);
    }
}

#[test]
fn a_source_in_other_namespaces_is_refused_with_the_way_in() {
    const TEST: &str = "a_source_in_other_namespaces";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let can = |options: &[&str]| {
        Command::new("unshare").args(options).arg("true").status().is_ok_and(|it| it.success())
    };
    if !can(&["--net"]) {
        return skip(TEST, "no network namespace can be made here");
    }
    let place = tempfile::Builder::new().prefix("qmi").tempdir().unwrap();
    let program = place.path().join("qemu-system-x86_64.sh");
    std::fs::write(&program, format!("#!/bin/sh\nexec unshare --net '{}' \"$@\"\n", qemu.display())).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let source = Source::start(&program, &[]);
    let (pid, qmp) = (source.process.pid(), source.qmp());
    let told = typed("check", qmp.to_str().unwrap(), &["--json"]);
    assert_eq!((told.code, told.codes("blocker")), (Some(2), vec!["other-namespace"]), "{told:?}");
    let way = format!("nsenter -t {pid} -n");
    assert!(told.objects[0]["hint"].as_str().unwrap().contains(&way), "{told:?}");
    // By the way that was told it can be moved.
    let mut inside = Command::new("nsenter");
    inside.args(["-t", &pid.to_string(), "-n", env!("CARGO_BIN_EXE_qmigrate"), "migrate"]).arg(&qmp);
    let said = Said::of(&run(inside));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!lives(pid));
}

#[test]
fn what_can_be_known_without_the_source_is_told_beside_what_is_wrong_with_it() {
    let place = tempfile::Builder::new().prefix("qmi").tempdir().unwrap();
    let (none, qemu) = (place.path().join("none"), place.path().join("qemu"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let incoming = format!("tcp:127.0.0.1:{}", listener.local_addr().unwrap().port());
    let flags = ["--json", "--incoming", &incoming, "--qemu", qemu.to_str().unwrap()];
    let told = typed("check", none.to_str().unwrap(), &flags);
    assert_eq!(told.codes("blocker"), ["no-socket", "port-taken", "no-binary"], "{told:?}");
}

#[test]
fn a_destination_of_ones_own_is_looked_at_and_left_alone() {
    const TEST: &str = "a_destination_of_ones_own_is_looked_at";
    let (Some(qemu), Some(older)) = (qemu_version(TEST, "10.0"), qemu_version(TEST, "7.2")) else { return };
    let source = Source::start(&qemu, &["-machine", "pc-i440fx-7.2"]);
    let qmp = source.qmp();
    let check = |destination: &Source| {
        let there = destination.qmp();
        typed("check", qmp.to_str().unwrap(), &["--json", "--destination-qmp", there.to_str().unwrap()])
    };
    let runs = Source::start(&qemu, &[]);
    let told = check(&runs);
    assert_eq!((told.code, told.codes("blocker")), (Some(2), vec!["not-waiting"]), "{told:?}");
    let waits = Source::start(&older, &["-machine", "pc-i440fx-7.2", "-incoming", "defer"]);
    let before = waits.snapshot();
    let told = check(&waits);
    assert_eq!((told.code, told.codes("warning")), (Some(0), vec!["older-qemu"]), "{told:?}");
    assert_eq!(waits.snapshot(), before);
}

#[test]
fn the_list_of_codes_is_whole_and_fits_a_terminal() {
    let mut command = command();
    command.args(["check", "--list"]);
    let told = told(command);
    assert_eq!((told.code, told.text.lines().count()), (Some(0), Code::ALL.len()));
    for (line, code) in told.text.lines().zip(Code::ALL) {
        assert_eq!(line.split_whitespace().next(), Some(code.word()));
        assert!(line.len() <= 80 && line.ends_with(code.meaning()), "{line}");
    }
}
