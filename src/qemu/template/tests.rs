//! Templates as values: what is wrong in them, what they become, and that nothing is lost on the way through a file.

use proptest::prelude::*;

use super::*;

fn fault(text: &str) -> (usize, usize, Wrong) {
    let Fault { at, wrong } = parse(text).expect_err(text);
    (at.line, at.column, wrong)
}

#[test]
fn what_is_wrong_is_named_with_line_and_column() {
    let unknown = |word: &str| Wrong::UnknownPlaceholder(UnknownPlaceholder { word: word.to_owned() });
    let two =
        |column| Wrong::TwoDefaults { placeholder: Placeholder::Qmp, first: Position { line: 1, column } };
    for (text, line, column, wrong) in [
        ("", 1, 1, Wrong::Empty),
        ("# nothing\n\n", 1, 1, Wrong::Empty),
        ("cd", 1, 1, Wrong::NoDirectory),
        ("sleep 1000", 1, 1, Wrong::NotQemu),
        ("cd /x\nA=b\n  sleep 1000", 3, 3, Wrong::NotQemu),
        ("cd /x\nA=b", 2, 1, Wrong::NotQemu),
        ("qemu-system-x86_64\n  -m", 2, 3, Wrong::WithoutValue("-m".to_owned())),
        ("qemu-system-x86_64 -m {incoming}", 1, 20, Wrong::WithoutValue("-m".to_owned())),
        ("qemu-system-x86_64\n -name 'web\n", 2, 8, Wrong::UnclosedQuote('\'')),
        ("qemu-system-x86_64 -name ä\"", 1, 27, Wrong::UnclosedQuote('"')),
        ("qemu-system-x86_64 -name '{name=web'}", 1, 27, Wrong::UnclosedPlaceholder),
        ("qemu-system-x86_64 -name {name", 1, 26, Wrong::UnclosedPlaceholder),
        ("qemu-system-x86_64 -name {name web}", 1, 26, Wrong::UnclosedPlaceholder),
        ("qemu-system-x86_64 -name {name=a b}", 1, 26, Wrong::UnclosedPlaceholder),
        ("qemu-system-x86_64 -name {name=a'b}", 1, 33, Wrong::UnclosedQuote('\'')),
        ("qemu-system-x86_64\n\t-name x{nmae}", 2, 9, unknown("nmae")),
        ("qemu-system-x86_64 -device {driver=\"x\"}", 1, 28, unknown("driver")),
        ("qemu-system-x86_64 {qmp=a}\n {qmp=b}", 2, 2, two(20)),
        ("qemu-system-x86_64 {qmp={name}} {name={qmp}}", 1, 33, Wrong::Cycle(Placeholder::Name)),
        ("qemu-system-x86_64 {qmp={dir={qmp}}}", 1, 30, Wrong::Cycle(Placeholder::Qmp)),
        ("qemu-system-x86_64 -m 1{incoming}", 1, 23, Wrong::IncomingWithinWord),
        ("cd {incoming} qemu-system-x86_64", 1, 4, Wrong::IncomingWithinWord),
        ("A={incoming} qemu-system-x86_64", 1, 1, Wrong::IncomingWithinWord),
        ("qemu-system-x86_64 {name={incoming}}", 1, 20, Wrong::IncomingWithinWord),
        ("qemu-system-x86_64\n -m\0", 2, 4, Wrong::Nul),
    ] {
        assert_eq!(fault(text), (line, column, wrong), "{text:?}");
    }
    parse("qemu-system-x86_64 {qmp=a} {qmp} {qmp=a} -S -incoming defer").unwrap();
}

#[test]
fn each_fault_is_shown_with_its_place_and_says_what_to_type() {
    let path = Path::new("vm.template");
    let file = |text: &[u8]| TemplateFile::from_bytes(path, text.to_vec());
    for text in
        ["", "cd", "sleep 1", "qemu-system-x86_64 -m", "'", "{name", "{nmae}", "{qmp={qmp}}", "a{incoming}"]
    {
        let error = file(text.as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("vm.template:1:"), "{error}");
        assert!(!error.hint().is_empty(), "{error}");
    }
    let error = file(b"qemu-system-x86_64\n -name \xff").unwrap_err();
    assert!(matches!(&error, TemplateError::Fault { fault, .. } if fault.wrong == Wrong::NotUtf8), "{error}");
    assert_eq!(error.to_string(), "vm.template:2:8: here are bytes that are not UTF-8");
    let nearest = fault("{nmae}").2;
    assert!(nearest.to_string().ends_with("; is {name} meant?"), "{nearest}");
    assert!(fault("{elephant}").2.to_string().ends_with("{elephant}"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let file = |text: &str| TemplateFile::from_bytes(Path::new("vm"), format!("\u{feff}{text}").into_bytes());
    let read = file("cd /x\nqemu-system-x86_64").unwrap();
    assert_eq!(read.template(), &parse("cd /x\nqemu-system-x86_64").unwrap().template);
    let error = file("{nmae}").unwrap_err();
    assert!(error.to_string().starts_with("vm:1:1:"), "{error}");
    let excerpt = "    {nmae}\n    ^";
    assert!(
        matches!(&error, TemplateError::Fault { excerpt: Some(shown), .. } if shown == excerpt),
        "{error:?}"
    );
}

fn filled(text: &str, values: &[(Placeholder, &str)]) -> Result<Filled, Fault> {
    let mut given = Values::default();
    for &(placeholder, value) in values {
        given.set(placeholder, value);
    }
    fill::fill(&parse(text).unwrap(), &given, Path::new("/file"))
}

fn command(text: &str, values: &[(Placeholder, &str)]) -> Vec<String> {
    let words = filled(&format!("qemu-system-x86_64 {text}"), values).unwrap().line.render();
    words.into_iter().skip(1).map(|word| word.into_string().unwrap()).collect()
}

#[test]
fn a_value_is_written_as_its_place_wants_it() {
    use Placeholder::{Name, Pidfile, Qmp, Serial, Vnc};
    let value = "/a,b\"c";
    for (text, placeholder, word) in [
        ("-qmp unix:{qmp},server=on", Qmp, "unix:/a,,b\"c,server=on"),
        ("-name guest={name}", Name, "guest=/a,,b\"c"),
        ("-vnc {vnc}", Vnc, value),
        ("-pidfile {pidfile}", Pidfile, value),
        ("-pidfile /run{pidfile}", Pidfile, "/run/a,b\"c"),
        ("-serial file:{serial}", Serial, "file:/a,b\"c"),
        ("-serial mon:file:{serial}", Serial, "mon:file:/a,b\"c"),
        ("-append name={name}", Name, "name=/a,b\"c"),
        ("-device '{\"serial\":\"{name}\"}'", Name, "{\"serial\":\"/a,b\\\"c\"}"),
        ("-drive file='{dir}'/x", Placeholder::Dir, "file=/a,,b\"c/x"),
    ] {
        assert_eq!(command(text, &[(placeholder, value)])[1], word, "{text}");
    }
    assert_eq!(command("/disks{name}", &[(Name, value)]), ["/disks/a,b\"c"]);
}

#[test]
fn incoming_is_nothing_for_a_guest_and_options_for_a_destination() {
    assert_eq!(command("-m 1G {incoming} -smp 2", &[]), ["-m", "1G", "-smp", "2"]);
    let defer = [(Placeholder::Incoming, "defer")];
    assert_eq!(command("{incoming} -m 1G", &defer), ["-S", "-incoming", "defer", "-m", "1G"]);
    assert_eq!(command("-m 1G", &defer), ["-m", "1G", "-S", "-incoming", "defer"]);
    assert_eq!(command("-daemonize -m 1G", &[]), ["-m", "1G"]);
}

#[test]
fn a_value_that_was_given_counts_before_the_default_and_the_file_has_a_directory() {
    let text = "cd {dir} Q={name} qemu-system-x86_64 -qmp unix:{qmp={dir}/{name=web}.qmp},server=on";
    let made = filled(text, &[]).unwrap();
    assert_eq!(made.working_directory, Path::new("/file"));
    assert_eq!(made.environment, [("Q".to_owned(), "web".to_owned())]);
    assert_eq!(made.line.values("qmp").next(), Some("unix:/file/web.qmp,server=on"));
    let made = filled(text, &[(Placeholder::Name, "db"), (Placeholder::Dir, "/srv")]).unwrap();
    assert_eq!(made.line.values("qmp").next(), Some("unix:/srv/db.qmp,server=on"));
    assert_eq!(made.working_directory, Path::new("/srv"));
    let made = filled("cd sub qemu-system-x86_64", &[]).unwrap();
    assert_eq!(made.working_directory, Path::new("/file/sub"));
}

#[test]
fn a_placeholder_without_a_value_is_named_where_it_stands() {
    let text = "qemu-system-x86_64\n  -qmp unix:{qmp},server=on";
    let fault = filled(text, &[]).unwrap_err();
    assert_eq!(
        fault,
        Fault { at: Position { line: 2, column: 13 }, wrong: Wrong::MissingValue(Placeholder::Qmp) }
    );
    assert_eq!(fault.wrong.hint(), "type --set qmp=PATH, or write a default: {qmp=PATH}");
    filled(text, &[(Placeholder::Qmp, "/q")]).unwrap();
}

#[test]
fn names_that_counted_from_another_directory_are_made_whole() {
    let mut values = Values::default();
    for placeholder in Placeholder::ALL {
        values.set(placeholder, "x");
    }
    let whole = values.from_directory(Path::new("/d"));
    assert_eq!(whole.get(Placeholder::Qmp), Some("/d/x"));
    assert_eq!(whole.get(Placeholder::Name), Some("x"));
}

/// Text with all that could go wrong in it.
const TEXT: &str = "[a-c{}'\"\\\\ \n#$=,ö/-]{0,6}";

fn word() -> impl Strategy<Value = Word> {
    let hole = prop::sample::select(
        Placeholder::ALL.iter().copied().filter(|hole| *hole != Placeholder::Incoming).collect::<Vec<_>>(),
    );
    prop::collection::vec((TEXT, prop::option::of(hole)), 0..4).prop_map(|parts| {
        let mut word = Word::default();
        for (text, hole) in parts {
            word.push_text(&text);
            if let Some(hole) = hole {
                word.push_hole(hole);
            }
        }
        word
    })
}

/// Keeps of the defaults those that are written, with holes for later placeholders only: no cycle.
fn only_written(template: &mut Template) {
    let mut written = BTreeMap::new();
    let words = template.directory.iter().chain(template.environment.iter().map(|(_, word)| word));
    let mut left: Vec<Placeholder> = words.chain(&template.words).flat_map(holes).collect();
    while let Some(placeholder) = left.pop() {
        if let Some(mut default) = template.defaults.remove(&placeholder) {
            default.0.retain(|piece| !matches!(piece, Piece::Hole(hole) if *hole <= placeholder));
            let mut whole = Word::default();
            for piece in &default.0 {
                match piece {
                    Piece::Text(text) => whole.push_text(text),
                    Piece::Hole(hole) => whole.push_hole(*hole),
                }
            }
            left.extend(holes(&whole));
            written.insert(placeholder, whole);
        }
    }
    template.defaults = written;
}

fn holes(word: &Word) -> impl Iterator<Item = Placeholder> {
    word.pieces().iter().filter_map(|piece| match piece {
        Piece::Hole(hole) => Some(*hole),
        Piece::Text(_) => None,
    })
}

prop_compose! {
    fn template()(
        directory in prop::option::of(word()),
        environment in prop::collection::vec(("[A-Z_][A-Z0-9_]{0,3}", word()), 0..3),
        launcher in any::<bool>(),
        options in prop::collection::vec(("(m|name|device|append|serial)", word()), 0..6),
        incoming in any::<bool>(),
        defaults in prop::collection::btree_map(prop::sample::select(Placeholder::ALL.to_vec()), word(), 0..7),
    ) -> Template {
        let mut words = Vec::new();
        if launcher {
            words.extend(["/q/ld.so", "--library-path", "/q lib"].map(Word::from));
        }
        words.push(Word::from("/q/qemu-system-x86_64"));
        for (name, value) in options {
            words.extend([Word::from(format!("-{name}").as_str()), value]);
        }
        if incoming {
            words.push(Word::hole(Placeholder::Incoming));
        }
        let mut template = Template { directory, environment, words, defaults };
        only_written(&mut template);
        template
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_template_is_read_as_it_was_written(template in template()) {
        let text = template.to_string();
        let parsed = parse(&text);
        prop_assert_eq!(parsed.map(|parsed| parsed.template), Ok(template), "{}", text);
    }
}
