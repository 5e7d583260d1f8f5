//! Guests started from a template: one that cannot be, and one that would be in another's way, leave nothing.

use super::*;

#[test]
fn a_guest_that_dies_as_it_starts_is_quoted_and_leaves_nothing() {
    let Some(qemu) = qemu_or_skip("a_guest_that_dies_as_it_starts_is_quoted_and_leaves_nothing") else {
        return;
    };
    let place = Place::new();
    let file = write(&place, "vm.template", &small(&qemu, "-device nonesuch -pidfile {dir}/vm.pid"));
    for _ in 0..2 {
        qmigrate(&["start", text(&file)]).fails(1, &["ended as it started", "'nonesuch'", "hint: "]);
        assert_eq!(names(&place), ["vm.template"]);
        assert_eq!(place.qemus(), [] as [i32; 0]);
    }
    let none = place.at("none");
    for (arguments, parts) in [
        (&["--qemu", text(&none)][..], &["none cannot be started", "--qemu PATH"][..]),
        (&["--set", &format!("dir={}", none.display())], &["none is not there", "--set dir=DIRECTORY"]),
        (&["--set", "qmp=none/qmp"], &["none/qmp.log, cannot be written: No such file", "--set qmp=PATH"]),
        (&["--set", &format!("qmp={}", "x".repeat(120))], &["107 bytes", "--set qmp=PATH"]),
    ] {
        qmigrate(&[&["start", text(&file)], arguments].concat()).fails(2, parts);
        assert_eq!(names(&place), ["vm.template"]);
    }
    fs::write(&file, small(&qemu, "-pidfile {dir}/vm.pid")).unwrap();
    let pid = start(&file, &[]);
    assert_eq!(fs::read_to_string(place.at("vm.pid")).unwrap().trim(), pid.to_string());
    quit(&place.at("qmp"), pid);
    assert_eq!(names(&place), ["qmp.log", "vm.template"]);
}

#[test]
fn a_script_that_runs_qemu_as_its_child_is_told_and_leaves_nothing() {
    const TEST: &str = "a_script_that_runs_qemu_as_its_child_is_told_and_leaves_nothing";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let place = Place::new();
    let script = |exec: &str| format!("#!/bin/sh\n{exec} {} \"$@\"\n", qemu.display());
    let program = write(&place, "qemu-system-x86_64", &script(""));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let file = write(&place, "vm.template", &small(&program, ""));
    qmigrate(&["start", text(&file)]).fails(1, &["listens process", "has to `exec` QEMU"]);
    wait_for("the end of the script's child", || place.qemus().is_empty().then_some(()));
    assert_eq!(names(&place), ["qemu-system-x86_64", "vm.template"]);
    fs::write(&program, script("exec")).unwrap();
    quit(&place.at("qmp"), start(&file, &[]));
}

#[test]
fn a_start_that_is_given_up_leaves_nothing() {
    let Some(qemu) = qemu_or_skip("a_start_that_is_given_up_leaves_nothing") else { return };
    let place = Place::new();
    // QEMU waits for somebody at its serial port, and its monitor does not answer until then.
    let waits = small(&qemu, "-pidfile {dir}/vm.pid -serial unix:{dir}/serial,server=on,wait=on");
    let file = write(&place, "vm.template", &waits);
    let mut command = command();
    command.args(["start", text(&file)]).stdout(Stdio::piped());
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("a serial port", || place.at("serial").exists().then_some(()));
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    ran(child.wait_with_output().unwrap()).fails(1, &["cancelled while QEMU was starting"]);
    assert_eq!(names(&place), ["vm.template"]);
    assert_eq!(place.qemus(), [] as [i32; 0]);
    fs::write(&file, waits.replace("wait=on", "wait=off")).unwrap();
    quit(&place.at("qmp"), start(&file, &[]));
}

#[test]
fn a_guest_is_not_started_over_another() {
    let Some(qemu) = qemu_or_skip("a_guest_is_not_started_over_another") else { return };
    let source = Source::start(&qemu, &[]);
    let place = &source.place;
    let file = write(place, "vm.template", &small(&qemu, ""));
    let before = source.snapshot();
    let pid = format!("process {} listens at {}", source.process.pid(), source.qmp().display());
    qmigrate(&["start", text(&file)]).fails(2, &[&pid, "--set: qmp=PATH"]);
    // Whatever listens is somebody's, and a file is no socket.
    let second = format!("-monitor unix:{},server=on,wait=off", source.qmp().display());
    let others = write(place, "others.log", &small(&qemu, &second));
    qmigrate(&["start", text(&others), "--set", "qmp=other"]).fails(2, &[&pid]);
    let set = format!("qmp={}", file.display());
    qmigrate(&["start", text(&file), "--set", &set]).fails(2, &["is no socket; QEMU would remove it"]);
    let silent = write(place, "silent.log", &small(&qemu, "").replace("-qmp unix:", "-serial file:"));
    qmigrate(&["start", text(&silent)])
        .fails(2, &["no QMP monitor", "-qmp unix:{qmp=PATH},server=on,wait=off"]);
    assert_eq!(source.snapshot(), before);

    let pid = start(&file, &["--set", "qmp=other"]);
    quit(&place.at("other"), pid);
    // What a QEMU left that was killed is nobody's.
    let pid = start(&file, &["--set", "qmp=other"]);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    ended(pid);
    assert!(fs::metadata(place.at("other")).unwrap().file_type().is_socket());
    quit(&place.at("other"), start(&file, &["--set", "qmp=other"]));
    source.moves();
}

#[test]
fn of_starts_at_the_same_time_one_has_the_guest_and_its_names() {
    let Some(qemu) = qemu_or_skip("of_starts_at_the_same_time_one_has_the_guest_and_its_names") else {
        return;
    };
    let place = Place::new();
    let more = "-pidfile {dir}/vm.pid -serial unix:{dir}/serial,server=on,wait=off";
    let file = write(&place, "vm.template", &small(&qemu, more));
    let starts = [(); 4].map(|()| {
        let mut command = command();
        command.args(["start", text(&file)]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    });
    let starts = starts.map(|start| ran(start.wait_with_output().unwrap()));
    let (started, refused): (Vec<_>, Vec<_>) = starts.into_iter().partition(|start| start.code == Some(0));
    assert_eq!(started.len(), 1, "{started:?} {refused:?}");
    for start in refused {
        start.fails(2, &["already; a second QEMU would take the socket away"]);
    }
    assert_eq!(names(&place), ["qmp", "qmp.log", "serial", "vm.pid", "vm.template"]);
    let pid = fs::read_to_string(place.at("vm.pid")).unwrap().trim().parse().unwrap();
    assert_eq!(place.qemus(), [pid]);
    quit(&place.at("qmp"), pid);
    quit(&place.at("qmp"), start(&file, &[]));
}

#[test]
fn a_daemon_is_started_and_shown_like_any_other_guest() {
    let Some(qemu) = qemu_or_skip("a_daemon_is_started_and_shown_like_any_other_guest") else { return };
    let place = Place::new();
    let file = write(&place, "vm.template", &small(&qemu, "-daemonize -S"));
    let pid = start(&file, &[]);
    let monitor = place.at("qmp");
    assert_eq!(Monitor::connect(&monitor).ask("query-status")["status"], "prelaunch");
    let first = template(text(&monitor));
    assert!(first.contains("\n  -S\n") && !first.contains("daemonize"), "{first}");
    quit(&monitor, pid);

    // One that has daemonized itself: where it was started is not known.
    let line = qmigrate(&["start", text(&file), "--dry-run"]).works();
    let line = format!("{} -daemonize", line.trim());
    let status = std::process::Command::new("sh").args(["-c", &line]).status().unwrap();
    assert!(status.success());
    let shown = qmigrate(&["template", text(&monitor)]);
    assert!(shown.text.contains("-daemonize") && shown.text.contains("hint: "), "{shown:?}");
    let (_, shown) = shown.data.split_once('\n').unwrap();
    let known = format!("cd {{dir={}}}", place.path().display());
    assert_eq!(shown.replacen("cd {dir}", &known, 1), first);
    Monitor::connect(&monitor).ask("quit");
}
