//! Recorded conversations as the tests read them: what was said, by whom, and where it led.

use std::path::{Path, PathBuf};

use qmigrate::migrate::phase::{Phase, Rest};
use qmigrate::migrate::plan::Mode;
use qmigrate::qmp::Leg;
use serde::Deserialize;
use serde_json::Value;

/// Where a course leads an engine that takes part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing is moved in it.
    None,
    /// In one of these phases, with so many `cont` from the engine, all of them to the destination.
    At(Phase, usize),
}

/// What is done in a record, named by the last part of its file's name.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    pub(crate) ending: Ending,
    /// Commands that the engine never gives, or not here: somebody else gave them.
    pub(crate) by_others: &'static [&'static str],
}

const fn course(name: &'static str, ending: Ending) -> Course {
    Course { name, mode: Mode::Live, ending, by_others: &[] }
}

const ARRIVED: Ending = Ending::At(Phase::Arrived(Rest::Running), 1);
const BACK: Ending = Ending::At(Phase::Back(Rest::Running), 0);

/// Every course there is; a record of any other is an error.
const COURSES: &[Course] = &[
    course("introspection", Ending::None),
    course("precopy-completed", ARRIVED),
    course("limits-legacy", ARRIVED),
    Course { mode: Mode::NonLive, ..course("non-live", ARRIVED) },
    course("precopy-failed", BACK),
    course("precopy-destination-dies", BACK),
    course("switchover-destination-dies", BACK),
    course("precopy-destination-refuses-devices", BACK),
    course("precopy-destination-refuses-memory", BACK),
    course("connect-refused", BACK),
    course("cancel", BACK),
    course("yank-in-blackout", BACK),
    Course { by_others: &["migrate_cancel"], ..course("cancel-in-blackout", BACK) },
    // No engine of ours starts postcopy. Somebody else did, and told the destination to run the guest.
    Course {
        by_others: &["migrate-start-postcopy", "cont"],
        ..course("postcopy-completed", Ending::At(Phase::Arrived(Rest::Running), 0))
    },
];

/// A line of a file.
#[derive(Debug, Deserialize)]
struct Row {
    leg: Leg,
    from: From,
    at_ms: f64,
    line: Option<String>,
    #[serde(default)]
    end: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum From {
    Qemu,
    Engine,
}

/// What was said, or happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    /// A command of the engine's.
    Command { name: String, arguments: Value, id: u64 },
    /// QEMU's greeting.
    Greeting(Value),
    /// An event.
    Event(Value),
    /// What QEMU answered, whole, and to what.
    Answer { to: String, id: u64, answer: Value },
    /// The process has ended, and with it its connection.
    End,
}

/// One line of a conversation.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) leg: Leg,
    pub(crate) at_ms: f64,
    pub(crate) said: Said,
    /// As it stood on the socket.
    pub(crate) line: String,
}

/// One file.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) name: String,
    /// Whether two real QEMUs held it.
    pub(crate) is_real: bool,
    pub(crate) version: (u64, u64),
    pub(crate) course: &'static Course,
    pub(crate) entries: Vec<Entry>,
}

impl Conversation {
    fn read(path: &Path, is_real: bool) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (version, course) = name.split_once('-').expect("VERSION-COURSE.jsonl");
        let course = COURSES.iter().find(|known| known.name == course);
        let course = course.unwrap_or_else(|| panic!("{name}: no test knows where this course leads"));
        let mut numbers = version.split('.').map(|number| number.parse().unwrap());
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        let text = std::fs::read_to_string(path).unwrap();
        let mut commands = Vec::new();
        let entries = text.lines().map(|line| entry(serde_json::from_str(line).unwrap(), &mut commands));
        let entries = entries.collect();
        Self { name, is_real, version, course, entries }
    }
}

/// `commands` are those said so far, by leg and id.
fn entry(row: Row, commands: &mut Vec<(Leg, u64, String)>) -> Entry {
    let (leg, at_ms) = (row.leg, row.at_ms);
    let Some(text) = row.line else {
        assert!(row.end && row.from == From::Qemu, "neither a line nor an end");
        return Entry { leg, at_ms, said: Said::End, line: String::new() };
    };
    let mut value: Value = serde_json::from_str(&text).unwrap();
    let id = value["id"].as_u64();
    let said = if row.from == From::Engine {
        let name = value["execute"].as_str().or(value["exec-oob"].as_str()).unwrap().to_owned();
        commands.push((leg, id.unwrap(), name.clone()));
        Said::Command { name, arguments: value["arguments"].take(), id: id.unwrap() }
    } else if value.get("QMP").is_some() {
        Said::Greeting(value)
    } else if value.get("event").is_some() {
        Said::Event(value)
    } else {
        let id = id.expect("an answer has an id");
        let asked = commands.iter().find(|(of, number, _)| *of == leg && *number == id);
        Said::Answer { to: asked.expect("an answer answers something").2.clone(), id, answer: value }
    };
    Entry { leg, at_ms, said, line: text }
}

/// Every conversation in the directory, made-up ones too.
pub(crate) fn conversations() -> Vec<Conversation> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("qmp-fixtures");
    let in_directory = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.filter(|path| path.is_file()).collect();
        files.sort();
        files
    };
    let real = in_directory(&directory).into_iter().map(|path| (path, true));
    let made_up = in_directory(&directory.join("made-up")).into_iter().map(|path| (path, false));
    let all = real.chain(made_up).filter(|(path, _)| path.file_name().unwrap() != "README.md");
    let found: Vec<_> = all.map(|(path, is_real)| Conversation::read(&path, is_real)).collect();
    assert!(found.len() > 40, "the records are not where they should be: {}", found.len());
    found
}
