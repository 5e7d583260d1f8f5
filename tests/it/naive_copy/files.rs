//! Files that QEMU cuts, locks or looks for.

use qmigrate::host::open_files;

use super::*;

const BYTES: &str = "what the guest said before\n";

/// Files that a QEMU writes; each takes `FILE`.
const WRITTEN: [&[&str]; 6] = [
    &["-serial", "file:FILE"],
    &["-chardev", "file,id=c,path=FILE", "-serial", "chardev:c"],
    &["-chardev", "null,id=c,logfile=FILE", "-serial", "chardev:c"],
    &["-d", "guest_errors", "-D", "FILE"],
    &["-trace", "enable=vm_state_notify,file=FILE"],
    &["-netdev", "user,id=n", "-object", "filter-dump,id=f,netdev=n,file=FILE"],
];

fn start(qemu: &Path, options: &[&str]) -> (Source, PathBuf) {
    let place = Place::new();
    let file = place.at("file");
    let options: Vec<String> =
        options.iter().map(|word| word.replace("FILE", file.to_str().unwrap())).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    (Source { process: place.start(qemu, "qmp", &options), place }, file)
}

#[test]
fn copied_logs_are_cut_and_rewritten_ones_keep_their_bytes() {
    let Some(qemu) = qemu_or_skip("copied_logs") else { return };
    for written in WRITTEN {
        let begin = || {
            let (source, file) = start(&qemu, written);
            // A capture begins with what it is, and a trace of the state with the first one.
            let has_begin = written.iter().any(|word| ["-object", "-trace"].contains(word));
            let begins = |file: &Path| !has_begin || file.metadata().unwrap().len() > 0;
            let is_open = || open_files(source.process.pid()).contains(&file) && begins(&file);
            wait_for("its file", || is_open().then_some(()));
            std::fs::write(&file, BYTES).unwrap();
            (source, file)
        };
        let has_all = |file: &Path| std::fs::read(file).unwrap().starts_with(BYTES.as_bytes());
        let (source, file) = begin();
        let _copy = copy_waits(&source);
        wait_for("the cut", || (!has_all(&file)).then_some(()));

        let (source, file) = begin();
        moved(&source, &[]);
        assert!(has_all(&file), "{written:?}");
        // A second time too, with what the first has written on the command line.
        moved(&source, &[]);
        assert!(has_all(&file), "{written:?}");
    }
}

#[test]
fn a_copied_pidfile_is_locked_and_a_rewritten_one_is_taken_over() {
    let Some(qemu) = qemu_or_skip("a_copied_pidfile") else { return };
    let (source, file) = start(&qemu, &["-pidfile", "FILE"]);
    copy_dies(&source, "cannot create PID file");
    let (_, destination) = moved(&source, &[]);
    assert_eq!(std::fs::read_to_string(file).unwrap().trim(), destination.to_string());
}

#[test]
fn a_copied_configuration_file_does_what_is_in_it_and_a_rewritten_one_does_not() {
    let Some(qemu) = qemu_or_skip("a_copied_configuration_file") else { return };
    let begin = || {
        let place = Place::new();
        let (log, socket, file) = (place.at("file"), place.at("socket"), place.at("guest.conf"));
        let text = format!(
            "[chardev \"c\"]\n  backend = \"file\"\n  path = \"{}\"\n[chardev \"m\"]\n  backend = \"socket\"\n  \
             path = \"{}\"\n  server = \"on\"\n  wait = \"off\"\n[mon]\n  chardev = \"m\"\n  mode = \"control\"\n\
             [device]\n  driver = \"isa-serial\"\n  chardev = \"c\"\n",
            log.display(),
            socket.display()
        );
        std::fs::write(&file, text).unwrap();
        let process = place.start(&qemu, "qmp", &["-readconfig", file.to_str().unwrap()]);
        wait_for("its file", || open_files(process.pid()).contains(&log).then_some(()));
        std::fs::write(&log, BYTES).unwrap();
        (Source { process, place }, log, socket)
    };
    let (source, log, socket) = begin();
    let copy = copy_waits(&source);
    wait_for("the theft", || (listening_process(&socket) == Some(copy.pid())).then_some(()));
    assert_eq!(std::fs::read(log).unwrap().len(), 0);

    let (source, log, socket) = begin();
    moved_beside(&source);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), BYTES);
    assert_eq!(listening_process(&socket), Some(source.process.pid()));
    let (source, log, socket) = begin();
    let (_, destination) = moved(&source, &[]);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), BYTES);
    assert_eq!(listening_process(&socket), Some(destination));
}

/// What stands in the file was there from the start, and is not taken for plugged in.
#[test]
fn a_disk_and_a_network_of_a_configuration_file_move_and_are_not_plugged_in_again() {
    let Some(qemu) = qemu_or_skip("a_disk_and_a_network_of_a_configuration_file") else { return };
    let place = Place::new();
    let (file, image) = (place.at("guest.conf"), place.at("image"));
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let text = format!(
        "[netdev \"n0\"]\n  type = \"user\"\n  net = \"10.9.0.0/24\"\n[device \"nic\"]\n  driver = \"virtio-net-pci\"\n  \
         netdev = \"n0\"\n[drive \"d0\"]\n  if = \"none\"\n  format = \"raw\"\n  file = \"{}\"\n\
         [device \"disk\"]\n  driver = \"virtio-blk-pci\"\n  drive = \"d0\"\n",
        image.display()
    );
    std::fs::write(&file, text).unwrap();
    let options =
        ["-readconfig", file.to_str().unwrap(), "-drive", "if=none,id=other,driver=null-co,size=1M"];
    let process = place.start(&qemu, "qmp", &options);
    moved(&Source { process, place }, &[]);
}

#[test]
fn a_configuration_file_that_options_cannot_say_is_refused_with_its_place() {
    let Some(qemu) = qemu_or_skip("a_configuration_file_that_options_cannot_say") else { return };
    let place = Place::new();
    let file = place.at("guest.conf");
    std::fs::write(&file, "[vnc \"v\"]\n  vnc = \"none\"\n").unwrap();
    let source =
        Source { process: place.start(&qemu, "qmp", &["-readconfig", file.to_str().unwrap()]), place };
    source.refuses(&[]).tells(&["-readconfig", "line 1, column 2", "[vnc]"]);
    std::fs::write(&file, "").unwrap();
    source.moves();
}

#[test]
fn a_copy_does_not_see_what_a_snapshot_holds_and_such_a_guest_is_refused() {
    let Some(qemu) = qemu_or_skip("a_copy_does_not_see") else { return };
    let place = Place::new();
    let disk = place.at("disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let drive = format!("file={},format=raw,if=none,id=d", disk.display());
    for options in [&["-snapshot", "-drive", &drive][..], &["-drive", &format!("{drive},snapshot=on")]] {
        let place = Place::new();
        let source = Source { process: place.start(&qemu, "qmp", options), place };
        let io = |monitor: &mut Monitor, what: &str| {
            let line = format!("qemu-io d \"{what}\"");
            monitor.execute("human-monitor-command", &serde_json::json!({ "command-line": line }))
        };
        io(&mut source.monitor(), "write -P 0x77 0 512");
        let copy = copy_waits(&source);
        io(&mut Monitor::connect(&source.place.at("copy")), "read -P 0x77 0 512");
        let said =
            wait_for("what was read", || Some(copy.log()).filter(|said| said.contains("512/512 bytes")));
        assert!(said.contains("Pattern verification failed"), "{said}");
        source.monitor().ask("query-status");
    }
    for options in [&["-snapshot", "-drive", &drive][..], &["-drive", &format!("{drive},snapshot=on")]] {
        Source::start(&qemu, options).refuses(&[]).tells(&["snapshot", "temporary file"]);
    }
    Source::start(&qemu, &["-drive", &drive]).moves();
}

#[test]
fn a_copy_that_starts_elsewhere_finds_no_relative_path_and_a_moved_daemon_does() {
    let Some(qemu) = qemu_or_skip("a_copy_that_starts_elsewhere") else { return };
    let place = Place::new();
    std::fs::write(place.at("disk.raw"), vec![0; 1 << 20]).unwrap();
    let pidfile = place.at("pid");
    let status = std::process::Command::new(qemu.canonicalize().unwrap())
        .args(["-nodefaults", "-display", "none", "-m", "32", "-accel", "tcg", "-daemonize"])
        .args(["-drive", "file=disk.raw,format=raw,if=virtio,auto-read-only=off", "-serial", "file:log"])
        .args(["-qmp", "unix:qmp,server=on,wait=off", "-pidfile"])
        .arg(&pidfile)
        .current_dir(place.path())
        .status()
        .unwrap();
    assert!(status.success());
    let source: i32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    assert_eq!(ProcessView::read(source).unwrap().working_directory, Path::new("/"));
    let mut words: Vec<OsString> = command_line(source).unwrap();
    words.retain(|word| word != "-daemonize");
    words.extend(["-S", "-incoming", "defer"].map(OsString::from));
    let pidfile_at = words.iter().position(|word| word == "-pidfile").unwrap();
    words.drain(pidfile_at..pidfile_at + 2);
    words.splice(0..0, ["-C", "/"].map(OsString::from));
    let copy = Process::start(Path::new("/usr/bin/env"), &words, place.at("copy.log"));
    wait_for("the end of the copy", || (!lives(copy.pid())).then_some(()));
    assert!(copy.log().contains("disk.raw"), "{}", copy.log());

    let monitor = place.at("qmp");
    for _ in 0..2 {
        let before = listening_process(&monitor).unwrap();
        let said = migrate(monitor.to_str().unwrap(), &[]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let after = listening_process(&monitor).unwrap();
        assert_ne!(before, after);
        assert_eq!(ProcessView::read(after).unwrap().working_directory, place.path());
        assert_eq!(std::fs::read_to_string(&pidfile).unwrap().trim(), after.to_string());
    }
}

#[test]
fn a_daemon_that_cannot_let_go_of_its_image_is_refused() {
    let Some(qemu) = qemu_or_skip("a_daemon_that_cannot_let_go") else { return };
    for (drive, may_go) in
        [("file=disk.raw,format=raw,if=virtio", false), ("file=DISK,format=raw,if=virtio", true)]
    {
        let place = Place::new();
        let (disk, monitor) = (place.at("disk.raw"), place.at("qmp"));
        std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let status = std::process::Command::new(qemu.canonicalize().unwrap())
            .args(["-nodefaults", "-display", "none", "-m", "32", "-accel", "tcg", "-daemonize", "-drive"])
            .args([&drive.replace("DISK", disk.to_str().unwrap()), "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .current_dir(place.path())
            .status();
        assert!(status.unwrap().success());
        let said = migrate(monitor.to_str().unwrap(), &[]);
        assert_eq!(said.code, Some(if may_go { 0 } else { 2 }), "{said:?}");
        assert!(may_go || said.text.contains("opens them anew"), "{said:?}");
    }
}

#[test]
fn what_both_may_have_is_copied() {
    let Some(qemu) = qemu_or_skip("what_both_may_have") else { return };
    let place = Place::new();
    let (disk, variables) = (place.at("disk.raw"), place.at("variables.raw"));
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    std::fs::write(&variables, vec![0; 1 << 17]).unwrap();
    let blockdev = format!(
        r#"{{"driver":"raw","node-name":"d","file":{{"driver":"file","filename":"{}"}}}}"#,
        disk.display()
    );
    let options = [
        "-blockdev",
        &blockdev,
        "-drive",
        &format!("if=none,id=v,format=raw,file={}", variables.display()),
        "-device",
        r#"{"driver":"virtio-blk-pci","drive":"d"}"#,
        "-name",
        "guest=a,,b,debug-threads=on",
        "-uuid",
        "6f1c8b3a-3f57-4c0e-8f5e-0f2f7a1c9d10",
        "-sandbox",
        "on,spawn=deny",
        "-global",
        "virtio-blk-pci.physical_block_size=4096",
    ];
    let source = Source::start(&qemu, &options);
    let (_, destination) = moved(&source, &[]);
    let there = words(destination);
    assert!(there.windows(options.len()).any(|words| words == options), "{there:?}");
}
