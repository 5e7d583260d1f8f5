//! Words to options and back.

use proptest::prelude::*;

use super::options::{Form, OPTIONS};
use super::*;

fn words(text: &str) -> Vec<OsString> {
    shell_words::split(text).unwrap().into_iter().map(OsString::from).collect()
}

#[test]
fn options_with_and_without_a_value_and_disk_images_are_told_apart() {
    let text = "qemu-system-x86_64 -S --name a,b=c -nographic a,b=c.img -m 1G -perfmap";
    let line = CommandLine::parse(&words(text)).unwrap();
    assert_eq!(line.program, "qemu-system-x86_64");
    let read: Vec<_> =
        line.options.iter().map(|option| (option.name.as_str(), option.value.as_deref())).collect();
    assert_eq!(
        read,
        [
            ("S", None),
            ("name", Some("a,b=c")),
            ("nographic", None),
            ("", Some("a,b=c.img")),
            ("m", Some("1G")),
            ("perfmap", None),
        ]
    );
    assert_eq!(line.values("m").collect::<Vec<_>>(), ["1G"]);
    assert_eq!(line.render(), words(text));
}

#[test]
fn a_loader_before_qemu_is_kept_apart() {
    for (launcher, program) in [
        (&["/q/ld-linux-x86-64.so.2", "--library-path", "/q/lib"][..], "/q/bin/qemu-system-x86_64"),
        (&["/usr/bin/qemu-x86_64-static"], "/usr/bin/qemu-system-x86_64"),
        (&[], "/nix/store/a/bin/.qemu-system-x86_64-wrapped"),
        (&[], "/nix/store/a/bin/.qemu-kvm-wrapped"),
        (&[], "/usr/libexec/qemu-kvm"),
        (&[], "/usr/bin/kvm"),
        (&[], "/usr/bin/kvm-spice"),
    ] {
        let all: Vec<OsString> = launcher.iter().chain(&[program, "-S"]).map(OsString::from).collect();
        let line = CommandLine::parse(&all).unwrap();
        assert_eq!((line.launcher.as_slice(), line.program.as_str()), (&*owned(launcher), program));
        assert_eq!(line.render(), all);
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn what_is_no_qemu_is_refused() {
    for text in ["sleep 1000", "qemu-x86_64 a.out", "qemu-img info kvm.img", "/usr/bin/kvmtool"] {
        assert!(matches!(CommandLine::parse(&words(text)), Err(CommandLineError::NotQemu(_))), "{text}");
    }
    assert!(matches!(CommandLine::parse(&[]), Err(CommandLineError::NotQemu(_))));
    assert!(matches!(
        CommandLine::parse(&words("qemu-system-x86_64 -m")),
        Err(CommandLineError::WithoutValue(_))
    ));
}

#[test]
fn a_qemu_by_another_name_is_known_by_what_it_runs() {
    let qemu = Path::new("/usr/bin/qemu-system-x86_64");
    let line = CommandLine::of_process(&words("web -m 1G -D /var/log/kvm"), qemu).unwrap();
    assert_eq!((line.program.as_str(), line.memory()), ("web", Some(1 << 30)));
    assert!(CommandLine::of_process(&[], qemu).is_err());
    assert!(CommandLine::of_process(&words("web -m 1G"), Path::new("/usr/bin/web")).is_err());
}

#[test]
fn of_a_merged_option_the_last_word_counts() {
    let text = "kvm -M q35 -machine usb=on -machine type=pc,usb=off -m 64 -m slots=2,maxmem=1G -m 1.5G";
    let line = CommandLine::parse(&words(text)).unwrap();
    assert_eq!(line.machine().as_deref(), Some("pc"));
    assert_eq!(line.merged(&["machine", "M"], "usb").as_deref(), Some("off"));
    assert_eq!(line.merged(&["m"], "slots").as_deref(), Some("2"));
    assert_eq!(line.memory(), Some(3 << 29));
}

/// A value of any form that an option can have, and of many that it cannot.
fn value() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-z0-9_/.:-]{1,10}",
        "(no)?(wait|server|delay)",
        "[a-z]{1,6}(\\.[a-z0-9]{1,4}){0,2}=[ -~]{0,12}",
        "[a-z]{1,6}=[a-zé,/]{0,8}",
        "[+-][a-z0-9_.]{1,8}",
    ];
    let pairs = ("((mon:)?(unix|tcp|udp|file):)?", proptest::collection::vec(part, 1..6))
        .prop_map(|(prefix, parts)| format!("{prefix}{}", parts.join(",")));
    let scalar =
        prop_oneof!["\"[ !#-\\[\\]-~é]{0,8}\"", "-?[1-9][0-9]{0,6}", "true|false|null", "'[a-z ]{0,5}'"];
    let member = ("\"[a-z-]{1,6}\"", " ?: {0,2}", scalar)
        .prop_map(|(key, colon, value)| format!("{key}{colon}{value}"));
    let object =
        proptest::collection::vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(", ")));
    let nested = (object.clone(), object)
        .prop_map(|(first, second)| format!("{{\"a\" : {first}, \"b\":[1,{second}]}}"));
    prop_oneof![3 => pairs, 1 => nested, 1 => "[ -~]{0,20}"]
}

fn option() -> impl Strategy<Value = Vec<String>> {
    let known = (0..OPTIONS.len(), "--?", value()).prop_map(|(index, dashes, value)| {
        let facts = &OPTIONS[index];
        let name = format!("{dashes}{}", facts.name);
        if facts.form == Form::Alone { vec![name] } else { vec![name, value] }
    });
    prop_oneof![12 => known, 1 => "[a-z/.,=]{1,12}".prop_map(|image| vec![image])]
}

proptest! {
    #[test]
    fn a_command_line_renders_to_what_was_parsed(all in proptest::collection::vec(option(), 0..16)) {
        let mut given = words("/q/ld.so --library-path /q qemu-system-x86_64");
        given.extend(all.concat().into_iter().map(OsString::from));
        let mut line = CommandLine::parse(&given).unwrap();
        prop_assert_eq!(line.render(), given.clone());
        // Read as properties and written back, each option is the same too.
        for option in &mut line.options {
            if let Some(properties) = option.properties() {
                option.set_properties(&properties);
            }
        }
        prop_assert_eq!(line.render(), given);
    }

    #[test]
    fn a_property_that_is_set_is_read_back_and_no_other_changes(
        words in option(),
        path in "[a-z]{1,3}(\\.[a-z]{1,3})?|driver|type|path|model|size|wait",
        text in "[ -~é]{0,12}",
    ) {
        let name = words[0].trim_start_matches('-');
        let Some(value) = words.get(1) else { return Ok(()) };
        let Some(before) = CommandOption::with_value(name, value).properties() else { return Ok(()) };
        let mut option = CommandOption::with_value(name, value);
        let mut changed = before.clone();
        if changed.set(&path, text.as_str()).is_err() {
            return Ok(());
        }
        option.set_properties(&changed);
        let after = option.properties().unwrap();
        prop_assert_eq!(after.get(&path), Some(text.as_str()));
        for key in before.keys() {
            if key != path && !key.starts_with(&format!("{path}.")) {
                prop_assert_eq!(after.get(&key), before.get(&key), "{} of {}", key, value);
            }
        }
        let mut without = after.clone();
        without.remove(&path);
        prop_assert_eq!(without.get(&path), None);
    }

    #[test]
    fn what_is_shown_is_a_command_line_of_the_same_options(all in proptest::collection::vec(option(), 0..8)) {
        let mut given = words("qemu-system-x86_64");
        given.extend(all.concat().into_iter().map(OsString::from));
        let line = CommandLine::parse(&given).unwrap();
        let shown = line.shown();
        prop_assert_eq!(shown.shown(), shown.clone());
        prop_assert_eq!(CommandLine::parse(&shown.render()).unwrap(), shown);
    }
}
