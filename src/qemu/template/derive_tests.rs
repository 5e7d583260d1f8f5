//! What becomes of a QEMU's command line in its template, option by option.

use std::ffi::OsString;

use proptest::prelude::*;

use super::*;
use crate::host::Credentials;
use crate::qemu::rewrite::{Setting, Shared, ThisHost, own_global, rewrite};
use crate::qemu::template::{Parsed, fill, parse};
use crate::record::MigrationId;

fn view(environment: &[(&str, &str)]) -> ProcessView {
    ProcessView {
        pid: 1,
        arguments: Vec::new(),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        executable: PathBuf::new(),
        working_directory: PathBuf::from("/lab"),
        credentials: Credentials::own().unwrap(),
    }
}

fn line(words: &[&str]) -> CommandLine {
    let words: Vec<OsString> = ["qemu-system-x86_64"].iter().chain(words).map(Into::into).collect();
    CommandLine::parse(&words).unwrap()
}

fn derived(line: &CommandLine) -> Derived {
    let runtime = Path::new("/run/qmigrate");
    derive(Origin { view: &view(&[]), line, machine: Some("pc-i440fx-10.0"), runtime })
}

/// The lines of options in the template of a QEMU with this command line.
fn options(text: &str) -> Vec<String> {
    let words = shell_words::split(text).unwrap();
    let line = line(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let text = derived(&line).template.to_string();
    let lines = text.lines().skip_while(|line| !line.starts_with("  ")).map(|line| line.trim().to_owned());
    lines.filter(|line| line != "{incoming}" && line != "-machine pc-i440fx-10.0").collect()
}

#[test]
fn what_differs_from_start_to_start_becomes_a_placeholder() {
    for (text, lines) in [
        ("-name web", &["-name guest={name=web}"][..]),
        ("-name guest=web,process=x", &["-name guest={name=web},process=x"]),
        ("-name process=x,guest=a,,b", &["-name process=x,guest={name=a,b}"]),
        ("-qmp unix:/q,,1,server,nowait", &["-qmp unix:{qmp=/q,1},server,nowait"]),
        (
            "-qmp unix:/q,server=on -qmp unix:/r,server=on",
            &["-qmp unix:{qmp=/q},server=on", "-qmp unix:/r,server=on"],
        ),
        (
            "-chardev socket,id=m,path=/q,server=on,wait=off -mon chardev=m,mode=control",
            &["-chardev socket,id=m,path={qmp=/q},server=on,wait=off", "-mon chardev=m,mode=control"],
        ),
        ("-pidfile /p,1", &["-pidfile {pidfile=/p,1}"]),
        (
            "-serial unix:s,server=on -serial file:/t",
            &["-serial unix:{serial=s},server=on", "-serial file:/t"],
        ),
        ("-serial mon:file:/a,b", &["-serial mon:file:{serial=/a,b}"]),
        ("-vnc :1,password=on -vnc :2", &["-vnc {vnc=:1,password=on}", "-vnc :2"]),
        ("-M pc,accel=tcg", &["-machine pc-i440fx-10.0,accel=tcg"]),
        ("-daemonize -S disk.img", &["-S", "disk.img"]),
        (r#"-device '{"driver":"x","a":{"b":1}}'"#, &[r#"-device '{"driver":"x","a":{"b":1}}'"#]),
        ("-chardev socket,id=c,port=1,server=on", &["-chardev socket,id=c,port=1,server=on"]),
        ("-append '{quiet} $x'", &["-append '{{quiet} $x'"]),
    ] {
        assert_eq!(options(text), lines, "{text}");
    }
}

#[test]
fn what_a_migration_added_comes_off_again() {
    let text = "-qmp unix:/run/.qmigrate-k3f9x2ab/q,server=on -pidfile .qmigrate-k3f9x2ab/p \
         -vnc unix:/run/.qmigrate-k3f9x2ab/v,password=on -chardev file,append=on,id=c,path=/c \
         -chardev file,id=qmigrate0,path=/l/a,,b,append=on -serial chardev:qmigrate0 -D /l/q.log.k3f9x2ab \
         -qmp unix:/run/qmigrate/k3f9x2ab/qmp,server=on,wait=off -S \
         -global driver=migration,property=x-events,value=on -global driver=migration,property=x-return-path,value=on \
         -global x.y=z -incoming tcp:0:0";
    assert_eq!(
        options(text),
        [
            "-qmp unix:{qmp=/run/q},server=on",
            "-pidfile {pidfile=p}",
            "-vnc {vnc=unix:/run/v,password=on}",
            "-chardev file,id=c,path=/c",
            "-serial file:{serial=/l/a,b}",
            "-D /l/q.log",
            "-global x.y=z",
        ]
    );
    assert_eq!(options("-S -m 1G -S -incoming defer"), ["-S", "-m 1G"]);
    // The same from somebody who has written it so.
    let own = "-chardev file,append=on,id=qmigrate0,path=/c -serial chardev:qmigrate0 \
         -global driver=migration,property=x-events,value=on";
    let lines = ["-chardev file,append=on,id=qmigrate0,path=/c", "-serial chardev:qmigrate0"];
    assert_eq!(options(own)[..2], lines);
    assert_eq!(options(own)[2], "-global driver=migration,property=x-events,value=on");
}

#[test]
fn only_what_is_qemus_comes_from_the_environment_and_always_in_one_order() {
    let view = view(&[("QEMU_Z", "a b"), ("HOME", "/root"), ("LD_LIBRARY_PATH", "/l"), ("QEMU_A", "")]);
    let line = line(&[]);
    let made =
        derive(Origin { view: &view, line: &line, machine: None, runtime: Path::new("/run/qmigrate") });
    assert_eq!(
        made.template.to_string(),
        "cd {dir=/lab}\nLD_LIBRARY_PATH=/l\nQEMU_A=\nQEMU_Z='a b'\nqemu-system-x86_64\n  {incoming}\n"
    );
}

#[test]
fn a_loader_stands_on_a_line_of_its_own() {
    let words = ["/q/ld.so", "--library-path", "/q/lib", "/q/qemu-system-x86_64", "-S"].map(OsString::from);
    let text = derived(&CommandLine::parse(&words).unwrap()).template.to_string();
    assert!(text.contains("\n/q/ld.so --library-path /q/lib\n/q/qemu-system-x86_64\n  -S\n"), "{text}");
}

#[test]
fn where_a_daemon_was_started_is_not_known() {
    let made = derived(&line(&["-daemonize"]));
    assert!(!made.directory_is_known);
    assert!(made.template.to_string().starts_with("cd {dir}\n"));
    assert_eq!(made.values.get(Placeholder::Dir), None);
}

#[test]
fn secrets_are_told() {
    for (option, value) in [
        ("-object", "secret,id=s,data=x"),
        ("-object", r#"{"qom-type":"secret","id":"s","data":"x"}"#),
        ("-spice", "port=1,password=x"),
    ] {
        assert_eq!(derived(&line(&[option, value])).secrets, [option], "{value}");
    }
    for (option, value) in [("-object", "secret,id=s,file=/s"), ("-vnc", ":1,password=on")] {
        assert_eq!(derived(&line(&[option, value])).secrets, [] as [&str; 0], "{value}");
    }
}

fn filled(parsed: &Parsed) -> CommandLine {
    fill::fill(parsed, &Values::default(), Path::new("/file")).unwrap().line
}

/// The destination of a guest with this command line.
fn moved(source: &CommandLine, globals: &[String]) -> CommandLine {
    let id = MigrationId::new();
    let runtime = Path::new("/run/qmigrate").join(id.as_str());
    let host = ThisHost { source: 1, user: Credentials::own().unwrap(), open_files: Vec::new() };
    let setting = Setting {
        id: &id,
        shared: Shared::SIDE_BY_SIDE,
        surroundings: &host,
        maps: &[],
        working_directory: Path::new("/lab"),
        runtime_directory: &runtime,
        machine: Some("pc-i440fx-10.0"),
        incoming: "defer",
        qemu: None,
        globals,
        taps: &[],
    };
    rewrite(source, &setting).unwrap().line
}

#[test]
fn a_template_is_the_same_after_every_move() {
    let source = line(&[
        "-name",
        "web",
        "-qmp",
        "unix:vm.qmp,server=on,wait=off",
        "-pidfile",
        "/p/vm.pid",
        "-serial",
        "mon:file:a,b",
        "-serial",
        "unix:/p/s,,1,server=on,wait=off",
        "-chardev",
        "file,id=c,path=/c",
        "-D",
        "q.log",
        "-vnc",
        "unix:/p/vnc",
    ]);
    let template = derived(&source).template;
    let globals = [own_global("x-multifd", "on")];
    let mut now = source;
    for turn in 0..3 {
        now = moved(&now, if turn == 1 { &globals } else { &[] });
        assert_eq!(derived(&now).template.to_string(), template.to_string());
        // A destination from the template is one from the source.
        let from_template = moved(&filled(&parse(&template.to_string()).unwrap()), &[]);
        assert_eq!(derived(&from_template).template, template);
    }
    let without_qmp = line(&["-m", "1G"]);
    assert_eq!(derived(&moved(&without_qmp, &[])).template, derived(&without_qmp).template);
}

proptest! {
    #[test]
    fn a_guest_is_started_as_it_was(
        options in prop::collection::vec(
            ("(m|device|append|drive|pidfile|vnc|D|mon)|chardev|qmp|serial", "(unix:|file:|socket,(path=)?)?[a-c{}'\"\\\\ \n#$=,ö/-]{1,12}(,server=on)?"),
            0..8,
        ),
    ) {
        let mut words: Vec<OsString> = vec!["qemu-system-x86_64".into()];
        for (name, value) in options {
            words.extend([format!("-{name}").into(), value.into()]);
        }
        let line = CommandLine::parse(&words).unwrap();
        let runtime = Path::new("/run/qmigrate");
        let made = derive(Origin { view: &view(&[]), line: &line, machine: None, runtime });
        let text = made.template.to_string();
        prop_assert_eq!(filled(&parse(&text).unwrap()).render(), words, "{}", text);
    }
}
