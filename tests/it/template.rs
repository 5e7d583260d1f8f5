//! Templates as their users have them: what is wrong in one is shown, a guest is started and moved by one, and the
//! template of a guest is the same wherever it went.

/// Guests started from a template.
mod start;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmigrate::host::command_line;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::lab::Lab;
use crate::small_qemu::{MOST, Monitor, Place, Source, command, migrate, qemu_or_skip, run, wait_for};
use crate::support::qemu_version;

/// What a command said on both streams, and how it ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    data: String,
    text: String,
}

fn qmigrate(arguments: &[&str]) -> Ran {
    let mut command = command();
    command.args(arguments);
    ran(run(command))
}

fn ran(output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), data: text(output.stdout), text: text(output.stderr) }
}

impl Ran {
    /// Exit 0; gives what it said to programs.
    fn works(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.data
    }

    /// Exit `code`, a sentence, a hint, and each of these parts.
    fn fails(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!((self.code, self.data.as_str()), (Some(code), ""), "{self:?}");
        assert!(self.text.starts_with("error: ") && !self.text.contains("panicked"), "{self:?}");
        for part in parts {
            assert!(self.text.contains(part), "'{part}' is not in {self:?}");
        }
        self
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A template of a small guest, with more words.
fn small(qemu: &Path, more: &str) -> String {
    format!(
        "cd {{dir}}\n{}\n  -nodefaults -display none -machine pc -accel tcg -m 32\n  \
         -qmp unix:{{qmp={{dir}}/qmp}},server=on,wait=off {{incoming}}\n{more}\n",
        qemu.display()
    )
}

fn write(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.at(name);
    fs::write(&path, text).unwrap();
    path
}

/// `start FILE arguments`; gives the process of the guest.
fn start(file: &Path, arguments: &[&str]) -> i32 {
    let data = qmigrate(&[&["start", text(file)], arguments].concat()).works();
    data.lines().find_map(|line| line.strip_prefix("process    ")).unwrap().parse().unwrap()
}

/// The template of a guest, without the comment that tells which process it is from.
fn template(source: &str) -> String {
    let data = qmigrate(&["template", source]).works();
    let (comment, template) = data.split_once('\n').unwrap();
    assert!(comment.starts_with("# qmigrate template, from "), "{data}");
    template.to_owned()
}

/// Ends a guest as its user would.
fn quit(monitor: &Path, pid: i32) {
    Monitor::connect(monitor).ask("quit");
    ended(pid);
}

/// Waits until a process has ended with all its threads: until then one of them may hold its sockets.
fn ended(pid: i32) {
    let handle = match pidfd_open(rustix::process::Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return,
        handle => handle.unwrap(),
    };
    let mut polled = [PollFd::new(&handle, PollFlags::IN)];
    let bound = Timespec { tv_sec: MOST.as_secs().try_into().unwrap(), tv_nsec: 0 };
    assert_eq!(poll(&mut polled, Some(&bound)).unwrap(), 1, "process {pid} does not end");
}

fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_wrong_in_a_template_is_shown_with_line_and_column() {
    let place = Place::new();
    let path = place.at("vm.template");
    for (content, position, parts) in [
        ("", "1:1", &["no words", "qmigrate template SOURCE"][..]),
        ("# nothing\n", "1:1", &["no words"]),
        ("cd\n", "1:1", &["names no directory"]),
        ("sleep 1\n", "1:1", &["QEMU system emulator"]),
        ("qemu-system-x86_64\n\t-name 'web\n", "2:8", &["this ' is not closed", "     -name 'web\n"]),
        ("qemu-system-x86_64\n  -name {name=web\n", "2:9", &["not closed by a }", "{{"]),
        ("qemu-system-x86_64\n  -name {nmae}\n", "2:9", &["{nmae}", "is {name} meant?", "{pidfile} {qmp}"]),
        ("qemu-system-x86_64 -m\n", "1:20", &["the option -m has no value"]),
        ("qemu-system-x86_64 {qmp=a}\n{qmp=b}\n", "2:1", &["another default already, in line 1, column 20"]),
        ("qemu-system-x86_64 {qmp={name}}\n{name={qmp}}\n", "2:1", &["leads back to itself"]),
        ("qemu-system-x86_64 -m {qmp}\n", "1:23", &["{qmp} has no value", "--set qmp=PATH", "{qmp=PATH}"]),
        ("qemu-system-x86_64 漢{incoming}\n", "1:20", &["a word of its own"]),
        ("qemu-system-x86_64 -m\0\n", "1:22", &["NUL"]),
    ] {
        fs::write(&path, content).unwrap();
        let ran = qmigrate(&["start", text(&path)]).fails(2, parts);
        let place = format!("error: {}:{position}: ", path.display());
        assert!(ran.text.starts_with(&place), "{ran:?}");
        let mut lines: Vec<&str> = ran.text.lines().collect();
        if content.is_empty() {
            // There is no line to show.
            lines.splice(1..1, ["", "    ^"]);
        }
        let column: usize = position.split_once(':').unwrap().1.parse().unwrap();
        assert_eq!(lines[2], format!("    {}^", " ".repeat(column - 1)), "{ran:?}");
        assert!(lines[3].starts_with("hint: "), "{ran:?}");
        if !content.contains("-m {qmp}") {
            // Found before anybody asks for the source.
            let ran = qmigrate(&["migrate", "/none", "--template", text(&path)]);
            assert!(ran.fails(2, parts).text.starts_with(&place));
        }
    }
    fs::write(&path, b"qemu-system-x86_64 -name \xff\x1b").unwrap();
    let ran = qmigrate(&["start", text(&path)]).fails(2, &[":1:26: ", "not UTF-8"]);
    assert!(!ran.text.contains('\x1b'), "{ran:?}");
    fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    qmigrate(&["start", text(&path)]).fails(2, &["larger than 1024 KiB"]);
    qmigrate(&["start", text(&place.at("none"))]).fails(2, &["cannot be read", "No such file"]);
    qmigrate(&["start", text(place.path())]).fails(2, &["not a plain file"]);
    let fifo = place.at("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    qmigrate(&["start", text(&fifo)]).fails(2, &["not a plain file"]);
    // What was wrong is mended.
    fs::write(&path, "qemu-system-x86_64 -m {{qmp}").unwrap();
    let data = qmigrate(&["start", text(&path), "--dry-run"]).works();
    assert_eq!(data, format!("cd {} && qemu-system-x86_64 -m {{qmp}}\n", place.path().display()));
}

#[test]
fn a_value_that_goes_nowhere_is_refused_and_one_that_is_missing_can_be_typed() {
    let place = Place::new();
    let path =
        write(&place, "vm.template", "A={name} qemu-system-x86_64 -name guest={name} -vnc '{vnc= :1 }'\n");
    let start = |more: &[&str]| qmigrate(&[&["start", text(&path), "--dry-run"], more].concat());
    start(&[]).fails(2, &[":1:3: ", "--set name=NAME"]);
    for without in ["name", "name="] {
        start(&["--set", without]).fails(2, &["there is no value", "NAME=VALUE"]);
    }
    start(&["--set", "nam=x"]).fails(2, &["is {name} meant?", "{vnc}"]);
    start(&["--set", "serial=x"]).fails(2, &["there is no {serial} in "]);
    let data = start(&["--set", "name=a,b c", "--set", "dir=/"]).works();
    assert_eq!(data, "cd / && A='a,b c' qemu-system-x86_64 -name 'guest=a,,b c' -vnc ' :1 '\n");
    let data = start(&["--set", "name=x", "--set", "incoming=defer", "--qemu", "/q"]).works();
    assert!(data.ends_with(" A=x /q -name 'guest=x' -vnc ' :1 ' -S -incoming defer\n"), "{data}");
    let file = text(&path);
    qmigrate(&["migrate", "/none", "--template", file, "--set", "incoming=x"])
        .fails(2, &["--incoming WHERE"]);
    let both = qmigrate(&["migrate", "/none", "--template", file, "--destination-qmp", "/none"]);
    assert_eq!(both.code, Some(2), "{both:?}");
    assert_eq!(qmigrate(&["migrate", "/none", "--set", "name=x"]).code, Some(2));
}

#[test]
fn no_secret_of_a_command_line_is_printed_and_the_guest_gets_it_all_the_same() {
    const TEST: &str = "no_secret_of_a_command_line_is_printed_and_the_guest_gets_it_all_the_same";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let place = Place::new();
    let with = |more: &str| write(&place, "vm.template", &small(&qemu, more));
    let secret = "-object secret,id=s,data=geheimnis";
    let file = with(secret);
    let dry = qmigrate(&["start", text(&file), "--dry-run"]);
    assert!(dry.text.contains("-object holds a secret"), "{dry:?}");
    assert!(dry.works().contains("'secret,id=s,data=***'"));
    // QEMU says which option is wrong with the whole of it.
    let file = with(&format!("{secret},no-such-property=1"));
    let failed = qmigrate(&["start", text(&file)]);
    assert!(failed.text.contains("secret,id=s,data=***,no-such-property=1"), "{failed:?}");
    assert!(!failed.text.contains("geheimnis"), "{failed:?}");
    let file = with(secret);
    let pid = start(&file, &[]);
    assert!(command_line(pid).unwrap().iter().any(|word| word == "secret,id=s,data=geheimnis"));
    let dry = qmigrate(&["migrate", text(&place.at("qmp")), "--dry-run"]);
    assert!(!dry.text.contains("geheimnis") && !dry.data.contains("geheimnis"), "{dry:?}");
    assert!(dry.works().contains("data=***"));
    quit(&place.at("qmp"), pid);
}

#[test]
fn a_qemu_typed_as_a_relative_path_counts_from_where_it_was_typed() {
    const TEST: &str = "a_qemu_typed_as_a_relative_path_counts_from_where_it_was_typed";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    let file = write(&source.place, "vm.template", &small(&qemu, ""));
    let elsewhere = Place::new();
    std::os::unix::fs::symlink(&qemu, elsewhere.at("mine")).unwrap();
    let typed = |arguments: &[&str]| {
        let mut command = command();
        command.current_dir(elsewhere.path()).env("PATH", elsewhere.path()).args(arguments);
        ran(run(command)).works()
    };
    let (qmp, mine) = (source.qmp(), elsewhere.at("mine").display().to_string());
    for qemu in ["./mine", "mine"] {
        let data = typed(&["start", text(&file), "--dry-run", "--qemu", qemu]);
        assert!(data.contains(&format!(" && {mine} ")), "{data}");
        let data = typed(&["migrate", text(&qmp), "--dry-run", "--qemu", qemu]);
        assert!(data.starts_with(&format!("{mine} ")), "{data}");
    }
}

/// A guest with all that could go wrong in a command line.
fn rich(qemu: &Path, version: &str) -> String {
    let json = match version {
        // JSON is a `-device` from 6.2 on.
        "5.2" => "-device virtio-blk-pci,drive=json,id=disk",
        _ => r#"-device '{"driver":"virtio-blk-pci","drive":"json","id":"disk"}'"#,
    };
    small(
        qemu,
        &format!(
            r#"  -name guest={{name='a,b "c"'}},debug-threads=on # a name with everything
              -blockdev '{{"driver":"file","filename":"disk 1.img","node-name":"json"}}'
              {json}
              -drive if=none,id=comma,format=raw,file=comma,,image
              -smbios 'type=1,serial=it'\''s {{{{a}},product=$HOME'
              -pidfile {{pidfile=vm.pid}}
              -serial file:serial,log
              -serial unix:second.socket,server=on,wait=off
              -chardev file,id=log,path={{dir}}/chardev.txt -device isa-serial,chardev=log
              -vnc unix:{{dir}}/vnc
              -D qemu.log"#
        ),
    )
}

#[test]
fn the_template_of_a_guest_is_the_same_after_a_start_and_after_every_move() {
    const TEST: &str = "the_template_of_a_guest_is_the_same_after_a_start_and_after_every_move";
    for version in ["5.2", "7.2", "10.0", "11.1"] {
        let Some(qemu) = qemu_version(TEST, version) else { continue };
        let place = Place::new();
        for image in ["disk 1.img", "comma,image"] {
            fs::File::create(place.at(image)).unwrap().set_len(1 << 20).unwrap();
        }
        let own = write(&place, "own.template", &rich(&qemu, version));
        let monitor = place.at("qmp");
        let pid = start(&own, &[]);
        let first = template(text(&monitor));
        assert!(first.contains("\n  -name 'guest={name=a,b \"c\"},debug-threads=on'\n"), "{first}");
        assert!(first.contains("\n  -machine pc-i440fx-"), "{first}");
        quit(&monitor, pid);

        // As the file, with nothing else said, from another directory.
        let file = write(&place, "vm.template", &first);
        let pid = start(&file, &[]);
        assert_eq!(template(text(&monitor)), first, "{version}");
        let mode: &[&str] = if matches!(version, "5.2" | "7.2") { &["--non-live"] } else { &[] };
        let moved = |arguments: &[&str]| {
            let said = migrate(text(&monitor), &[mode, arguments].concat());
            assert_eq!(said.code, Some(0), "{version}: {said:?}");
        };
        moved(&[]);
        ended(pid);
        assert_eq!(template(text(&monitor)), first, "{version}, moved");
        moved(&["--template", text(&file)]);
        assert_eq!(template(text(&monitor)), first, "{version}, moved by its template");
        moved(&["--incoming", "tcp:127.0.0.1:0"]);
        assert_eq!(template(text(&monitor)), first, "{version}, moved with a literal -incoming");
        let pid = place.qemus()[0];
        assert_eq!(place.qemus(), [pid], "{version}");
        quit(&monitor, pid);
        let pid = start(&file, &[]);
        assert_eq!(template(text(&monitor)), first, "{version}, started once more");
        quit(&monitor, pid);
        // Where each destination has a log of its own; and only some versions remove the socket of VNC.
        let is_expected = |name: &&String| !name.starts_with("qemu.log") && *name != "vnc";
        assert_eq!(
            names(&place).iter().filter(is_expected).collect::<Vec<_>>(),
            [
                "chardev.txt",
                "comma,image",
                "disk 1.img",
                "own.template",
                "qmp.log",
                "qmp.log.1",
                "serial,log",
                "vm.template"
            ],
            "{version}"
        );
    }
}

#[test]
fn an_edited_template_is_what_the_destination_is_started_from() {
    const TEST: &str = "an_edited_template_is_what_the_destination_is_started_from";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let place = Place::new();
    let own = write(&place, "own.template", &small(&qemu, "-name {name=first} -pidfile {pidfile=vm.pid}"));
    // Started with names that are not those in the file.
    let source = start(&own, &["--set", "name=second", "--set", "pidfile=second.pid"]);
    let monitor = place.at("qmp");
    let edited = small(&qemu, "-name {name=first} -pidfile {pidfile=vm.pid} # the same, but for this")
        .replace("-accel tcg", "-accel tcg,tb-size=16")
        .replace("cd {dir}\n", "cd {dir}\nQEMU_OF_THE_TEMPLATE='a b'\n");
    let file = write(&place, "edited.template", &edited);
    let arguments = ["--template", text(&file)];

    let mut dry = command();
    dry.args(["migrate", text(&monitor), "--dry-run"]).args(arguments);
    let line = ran(run(dry)).works();
    assert!(line.contains("tcg,tb-size=16") && line.contains("second"), "{line}");
    assert_eq!(place.qemus(), [source]);

    let said = migrate(text(&monitor), &arguments);
    assert_eq!(said.code, Some(0), "{said:?}");
    ended(source);
    let pid: i32 = fs::read_to_string(place.at("second.pid")).unwrap().trim().parse().unwrap();
    assert_eq!(place.qemus(), [pid]);
    let made = template(text(&monitor));
    for line in ["QEMU_OF_THE_TEMPLATE='a b'", "  -accel tcg,tb-size=16", "  -name guest={name=second}"] {
        assert!(made.lines().any(|other| other == line), "{line}: {made}");
    }
    let variables = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(variables.split(|byte| *byte == 0).any(|entry| entry == b"QEMU_OF_THE_TEMPLATE=a b"));

    // One that is another machine is found out by QEMU where somebody insists; its words are told, and the guest stays.
    let other = write(&place, "other.template", &edited.replace("-m 32", "-m 64"));
    for _ in 0..5 {
        let said = migrate(text(&monitor), &["--unsafe", "--template", text(&other)]);
        assert_eq!(said.code, Some(1), "{said:?}");
        said.tells(&["the destination said", "Size mismatch: pc.ram"]);
        assert_eq!(place.qemus(), [pid]);
    }

    // By an engine without a terminal, from a file that is named from where the command was typed.
    let mut detach = command();
    detach.current_dir(place.path());
    detach.args(["migrate", "qmp", "--template", "edited.template", "--detach", "--set", "name=third"]);
    let id = ran(run(detach)).works();
    let ended = wait_for("the end of the engine", || {
        let status = qmigrate(&["status", id.trim(), "--json"]);
        status.data.contains(r#""end":"#).then_some(status.data)
    });
    assert!(ended.contains(r#""end":"migrated""#), "{ended}");
    assert!(template(text(&monitor)).contains("  -name guest={name=third}\n"));
    let said = migrate(text(&monitor), &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let left = ["edited.template", "other.template", "own.template", "qmp", "qmp.log", "second.pid"];
    assert_eq!(names(&place), left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_loses_nothing_where_its_destination_comes_from_a_template() {
    const TEST: &str = "a_guest_loses_nothing_where_its_destination_comes_from_a_template";
    let Some(lab) = Lab::start(TEST, 16, Some("10MiB/s")).await else { return };
    let place = Place::new();
    let first = template(&lab.monitor());
    let file = write(&place, "vm.template", &format!("# as it was\n{first}"));
    let mut source = lab.source();
    for arguments in [&["--template", text(&file)][..], &[], &["--template", text(&file)]] {
        let ended = lab.migrate(arguments);
        assert_eq!(ended.code, 0, "{ended:?}");
        lab.never_two(source, lab.destination());
        lab.prove().await;
        source = lab.destination();
        assert_eq!(template(&lab.monitor()), first);
        assert_eq!(lab.left_behind(), [] as [PathBuf; 0]);
    }
}

#[test]
fn a_destination_is_started_from_the_same_file_by_hand() {
    let Some(qemu) = qemu_or_skip("a_destination_is_started_from_the_same_file_by_hand") else { return };
    let place = Place::new();
    let file = write(&place, "vm.template", &small(&qemu, ""));
    let (source, destination) = (place.at("qmp"), place.at("other"));
    start(&file, &[]);
    let set = format!("qmp={}", destination.display());
    let pid = start(&file, &["--set", &set, "--set", "incoming=defer"]);
    assert_eq!(Monitor::connect(&destination).ask("query-status")["status"], "inmigrate");
    let before = template(text(&source));
    let said = migrate(text(&source), &["--destination-qmp", text(&destination)]);
    assert_eq!((said.code, place.qemus()), (Some(0), vec![pid]), "{said:?}");
    assert_eq!(Monitor::connect(&destination).ask("query-status")["status"], "running");
    assert_eq!(template(text(&destination)), before.replace(text(&source), text(&destination)));
}

#[test]
fn a_template_without_a_value_for_its_placeholder_is_refused_as_long_as_the_source_shows_none() {
    const TEST: &str =
        "a_template_without_a_value_for_its_placeholder_is_refused_as_long_as_the_source_shows_none";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    let lines = small(&qemu, "-name guest={name}").replace("{qmp={dir}/qmp}", "{qmp}");
    let file = write(&source.place, "vm.template", &lines);
    let arguments = ["--template", text(&file)];
    source.refuses(&arguments).tells(&["vm.template:5:13: ", "{name} has no value", "--set name=NAME"]);
    source
        .refuses(&["--template", text(&file), "--set", "dir=/none", "--set", "name=x"])
        .tells(&["/none", "dir="]);
    let said = migrate(text(&source.qmp()), &[&arguments[..], &["--set", "name=x"]].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    // Now it shows one.
    let said = migrate(text(&source.qmp()), &arguments);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_daemon_whose_paths_are_relative_is_moved_by_a_template_that_says_where_they_count_from() {
    const TEST: &str =
        "a_daemon_whose_paths_are_relative_is_moved_by_a_template_that_says_where_they_count_from";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let place = Place::new();
    let file = write(&place, "vm.template", &small(&qemu, "-serial unix:console,server=on,wait=off"));
    let line = qmigrate(&["start", text(&file), "--dry-run"]).works();
    let line = format!("{} -daemonize", line.trim());
    assert!(std::process::Command::new("sh").args(["-c", &line]).status().unwrap().success());
    let monitor = place.at("qmp");
    let daemon = place.qemus();
    let said = migrate(text(&monitor), &[]);
    said.is_refusal();
    said.tells(&["-daemonize and relative paths (console)"]);
    assert_eq!(place.qemus(), daemon);
    for _ in 0..2 {
        let said = migrate(text(&monitor), &["--template", text(&file)]);
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    assert_ne!(place.qemus(), daemon);
    assert_eq!(names(&place), ["console", "qmp", "vm.template"]);
}

#[test]
fn a_template_goes_to_a_new_file_and_a_secret_in_it_is_told() {
    const TEST: &str = "a_template_goes_to_a_new_file_and_a_secret_in_it_is_told";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &["-object", "secret,id=s,data=letmein"]);
    let (monitor, file) = (source.qmp(), source.place.at("vm.template"));
    let first = qmigrate(&["template", text(&monitor), "--output", text(&file)]);
    assert!(first.text.contains("warning: the template holds a secret, in its option -object"), "{first:?}");
    assert_eq!(first.works(), "");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.contains("\n  -object secret,id=s,data=letmein\n"), "{written}");
    let again = ["template", text(&monitor), "--output", text(&file)];
    qmigrate(&again).fails(2, &["is there already", "hint: "]);
    assert_eq!(fs::read_to_string(&file).unwrap(), written);
    let nowhere = source.place.at("none/x");
    qmigrate(&["template", text(&monitor), "--output", text(&nowhere)]).fails(2, &["No such file", "hint: "]);
    qmigrate(&["template", "/none"]).fails(2, &["no such socket"]);
    fs::remove_file(&file).unwrap();
    qmigrate(&again).works();
    assert_eq!(fs::read_to_string(&file).unwrap(), written);
}
