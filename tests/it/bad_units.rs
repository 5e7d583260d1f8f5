//! Sizes, rates and times that are none, in every flag that takes one.

use crate::small_qemu::{Place, Said, Source, command, qemu_or_skip, run};

const TIMES: [(&str, &[&str]); 3] = [
    ("soon", &["'soon' is not", "hint: write for example 300ms"]),
    ("0s", &["'0s' is out of range", "hint: it must be between 1ms and"]),
    ("-300ms", &["'-300ms' is out of range", "hint: it must be between 1ms and"]),
];
const RATES: [(&str, &[&str]); 5] = [
    ("fast", &["'fast' is not a rate", "hint: write for example 1GiB/s"]),
    ("12 parsecs", &["'12 parsecs' is not a rate", "hint: write for example 1GiB/s"]),
    ("0", &["'0' is out of range", "hint: it must be between 1 byte/s and 8 EiB/s"]),
    ("-1MiB/s", &["'-1MiB/s' is out of range", "hint: it must be between 1 byte/s and 8 EiB/s"]),
    ("16EiB/s", &["'16EiB/s' is out of range", "hint: it must be between 1 byte/s and 8 EiB/s"]),
];
const SIZES: [(&str, &[&str]); 5] = [
    ("big", &["'big' is not a size", "hint: write for example 256MiB"]),
    ("", &["'' is not a size", "hint: write for example 256MiB"]),
    ("0MiB", &["'0MiB' is out of range", "hint: it must be between 1 byte and 8 EiB"]),
    ("-1", &["'-1' is out of range", "hint: it must be between 1 byte and 8 EiB"]),
    (
        "99999999999999999999",
        &["'99999999999999999999' is out of range", "hint: it must be between 1 byte and 8 EiB"],
    ),
];

/// What the command says to these words, which it refuses.
fn refused(words: &[&str]) -> Said {
    let mut command = command();
    command.args(words);
    let said = Said::of(&run(command));
    assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
    assert!(said.text.starts_with("error: ") && !said.text.contains("panicked"), "{words:?}: {said:?}");
    said
}

/// Every value of the table is refused behind this flag, with the flag's name and the table's words.
fn refuses_all(words: &[&str], flag: &str, table: &[(&str, &[&str])]) {
    for (value, parts) in table {
        let said = refused(&[words, &[flag, value]].concat());
        said.tells(parts);
        said.tells(&[flag, "hint: "]);
    }
}

#[test]
fn times_that_are_none_are_refused_by_every_flag_that_takes_one() {
    for verb in [&["migrate", "/none"][..], &["demo"], &["set"]] {
        refuses_all(verb, "--max-downtime", &TIMES);
        refuses_all(
            verb,
            "--max-downtime",
            &[("2001s", &["'2001s' is out of range", "hint: it must be between 1ms and 2000s"])],
        );
    }
    for verb in [&["migrate", "/none"][..], &["demo"]] {
        refuses_all(verb, "--max-time", &TIMES);
        refuses_all(
            verb,
            "--max-time",
            &[("31days", &["'31days' is out of range", "hint: it must be between 1ms and 30days"])],
        );
    }
}

#[test]
fn rates_that_are_none_are_refused_by_every_flag_that_takes_one() {
    for verb in [&["migrate", "/none"][..], &["demo"], &["set"]] {
        refuses_all(verb, "--max-bandwidth", &RATES);
    }
    refuses_all(&["demo"], "--dirty-rate", &RATES);
}

#[test]
fn sizes_that_are_none_are_refused_by_every_flag_that_takes_one() {
    for flag in ["--working-set", "--memory"] {
        refuses_all(&["demo"], flag, &SIZES);
    }
}

#[test]
fn a_demo_that_no_guest_fits_is_refused_before_anything_starts() {
    let Some(qemu) = qemu_or_skip("a_demo_that_no_guest_fits_is_refused_before_anything_starts") else {
        return;
    };
    let place = Place::new();
    let qemu = qemu.to_str().unwrap();
    for (flags, part) in [
        (&["--memory", "1MiB"][..], "1.0 MiB"),
        (&["--working-set", "7EiB"], "7.0 EiB"),
        (&["--working-set", "1"], "1 bytes"),
        (&["--working-set", "256MiB", "--memory", "128MiB"], "256.0 MiB"),
        (&["--dirty-rate", "7EiB/s"], "7.0 EiB/s"),
    ] {
        let said = refused(&[&["demo", "--qemu", qemu], flags].concat());
        said.tells(&[part, "hint: "]);
    }
    assert!(place.qemus().is_empty());
}

#[test]
fn a_demo_that_this_machine_has_no_memory_for_says_so_and_leaves_nothing() {
    const TEST: &str = "a_demo_that_this_machine_has_no_memory_for_says_so_and_leaves_nothing";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let mut command = command();
    command.args(["demo", "--accelerator", "tcg", "--working-set", "1MiB", "--memory", "7EiB"]);
    command.arg("--qemu").arg(qemu);
    let said = Said::of(&run(command));
    assert_eq!(said.code, Some(2), "{said:?}");
    said.tells(&["\nerror: ", "Cannot allocate memory", "\nhint: ", "--memory"]);
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_starts() {
    const TEST: &str = "a_report_that_cannot_be_written_is_refused_before_anything_starts";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = Source::start(&qemu, &[]);
    let report = source.place.at("none/report.json");
    let report = report.to_str().unwrap();
    source.refuses(&["--report", report]).tells(&[report, "cannot be written", "--report"]);
    let mut demo = command();
    demo.args(["demo", "--accelerator", "tcg", "--report", report, "--qemu"]).arg(&qemu);
    let said = Said::of(&run(demo));
    assert_eq!(said.code, Some(2), "{said:?}");
    said.tells(&[report, "cannot be written", "hint: --report"]);
    source.moves();
}

#[test]
fn a_word_that_no_flag_takes_touches_nothing() {
    let Some(qemu) = qemu_or_skip("a_word_that_no_flag_takes_touches_nothing") else { return };
    let source = Source::start(&qemu, &[]);
    let (before, path) = (source.snapshot(), source.qmp());
    let path = path.to_str().unwrap();
    for words in [
        &["migrate"][..],
        &["migrate", path, path],
        &["migrate", path, "--max-downtime"],
        &["migrate", path, "--max-downtime", "5s", "--max-downtime", "0s"],
        &["migrate", path, "--qemu", "/none", "--destination-qmp", "/none"],
        &["migrate", path, "--incoming", "defer", "--destination-qmp", "/none"],
        &["migrate", path, "--no-such-flag"],
        &["set", path],
    ] {
        refused(words);
    }
    assert_eq!(source.snapshot(), before);
    source.moves();
}
