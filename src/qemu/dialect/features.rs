//! What QEMUs can do, as a table: the rows that matter to people who migrate, and what one QEMU says to each.

use std::time::Duration;

use qapi_qmp as words;
use serde_json::{Value, json};

/// The rows of the table, and what is known beside them.
mod rows;

pub use rows::ROWS;
use rows::{COMPRESSION, OTHER_CAPABILITIES, OTHER_COMMANDS, OTHER_PARAMETERS, SET};

use super::schema::Schema;
use super::{Dialect, TCG_KEEPS_WRITES_FROM, Wish};
use crate::qemu::ANSWER_WITHIN;
use crate::qmp::words::{MigrationStatus, VersionInfo};
use crate::qmp::{CallError, Client};
use crate::record::LimitsBy;
use crate::units::{show_bytes, show_duration};

/// One row: a feature, and where it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The group that it is shown in, the same for neighbours.
    pub group: &'static str,
    /// Its name, which stays as it is from version to version.
    pub name: &'static str,
    look: Look,
}

/// Where a feature is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Command,
    /// An argument of a command.
    Argument(&'static str, &'static str),
    /// A word of an argument of a command.
    Word(&'static str, &'static str, &'static str),
    OutOfBand,
    Capability,
    Parameter,
    /// What a parameter is set to; by default in a QEMU started only to be asked.
    Setting(Unit),
    Status,
    Event,
    /// A member of the answer to `query-migrate`.
    Answer,
    /// The oldest and the newest versioned machine type of this name.
    Machines,
    LimitsBy,
    KeepsWrites,
}

/// What the number of a parameter means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Milliseconds,
    BytesPerSecond,
    Percent,
    Bare,
}

/// What one QEMU says to a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// It has it, or has it not.
    Has(bool),
    /// The value, for programs and for people; `None` where it has none.
    Is(Option<(Value, String)>),
}

impl Row {
    /// Whether it has to be said where its cells come from.
    pub fn has_footnote(&self) -> bool {
        self.look == Look::KeepsWrites
    }
}

impl Cell {
    /// For people.
    pub fn text(&self) -> &str {
        match self {
            Self::Has(true) => "yes",
            Self::Has(false) | Self::Is(None) => "-",
            Self::Is(Some((_, text))) => text,
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        match self {
            Self::Has(has) => json!(has),
            Self::Is(value) => json!(value.as_ref().map(|(value, _)| value)),
        }
    }
}

/// What has to be said about a row.
pub const FOOTNOTE: &str = "by version, which no answer tells: mended in 9.0 (commit 03bfc2188f)";

/// All that one QEMU says of itself, to be looked up.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Which it is.
    pub version: VersionInfo,
    dialect: Dialect,
    schema: Schema,
    machines: Vec<String>,
}

/// What a QEMU has that this program does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// What kind of thing.
    pub kind: &'static str,
    /// The names.
    pub names: Vec<String>,
}

impl Features {
    /// Asks it, all at once.
    pub async fn ask(client: &Client) -> Result<Self, CallError> {
        let (dialect, schema, machines) = tokio::try_join!(
            Dialect::ask(client),
            Schema::ask(client),
            client.call(&words::query_machines { compat_props: None }, ANSWER_WITHIN),
        )?;
        Ok(Self::from_answers(client.greeting().version.clone(), dialect, schema, &machines))
    }

    fn from_answers(version: VersionInfo, dialect: Dialect, schema: Schema, machines: &Value) -> Self {
        let machines = machines.as_array().into_iter().flatten();
        let names = machines.filter_map(|machine| machine.get("name")?.as_str().map(str::to_owned));
        Self { version, dialect, schema, machines: names.collect() }
    }

    /// What it says to a row.
    pub fn cell(&self, row: &Row) -> Cell {
        let Self { version, dialect, schema, machines } = self;
        let name = row.name;
        match row.look {
            Look::Command => Cell::Has(dialect.has_command(name)),
            Look::Argument(command, argument) => Cell::Has(schema.has_argument(command, argument)),
            Look::Word(command, argument, word) => {
                Cell::Has(schema.words_of_argument(command, argument).contains(&word))
            }
            Look::OutOfBand => Cell::Has(schema.is_out_of_band(name)),
            Look::Capability => Cell::Has(dialect.has_capability(name)),
            Look::Parameter => Cell::Has(dialect.parameter(name).is_some()),
            Look::Setting(unit) => {
                Cell::Is(dialect.parameter(name).map(|value| (value.clone(), shown(value, unit))))
            }
            Look::Status => Cell::Has(schema.words_of_answer("query-migrate", "status").contains(&name)),
            Look::Event => Cell::Has(schema.has_event(name)),
            Look::Answer => Cell::Has(schema.has_answer("query-migrate", name)),
            Look::Machines => Cell::Is(versions(machines, name).map(|text| (json!(text), text))),
            Look::LimitsBy => limits_by(dialect),
            Look::KeepsWrites => Cell::Has((version.major, version.minor) >= TCG_KEEPS_WRITES_FROM),
        }
    }

    /// What it has that this program does not know.
    pub fn unknown(&self) -> Vec<Unknown> {
        let in_rows = |group: &str, name: &str| ROWS.iter().any(|row| row.group == group && row.name == name);
        let known = |group: &'static str, others: &'static [&str]| {
            move |name: &str| others.contains(&name) || in_rows(group, name)
        };
        let choices = |argument: &'static str| {
            let is_known = move |word: &str| {
                let is_it =
                    |row: &Row| matches!(row.look, Look::Word(_, of, is) if of == argument && is == word);
                ["none", "normal"].contains(&word) || ROWS.iter().any(is_it)
            };
            beyond(argument, self.schema.words_of_argument(SET, argument).into_iter(), is_known)
        };
        let commands = self.dialect.commands().filter(|name| name.contains("migrat"));
        let statuses = self.schema.words_of_answer("query-migrate", "status").into_iter();
        let is_status = |word: &str| !matches!(word.into(), MigrationStatus::Other(_));
        let mut found = vec![
            beyond("commands", commands, known("commands", &OTHER_COMMANDS)),
            beyond("capabilities", self.dialect.capabilities(), known("capabilities", &OTHER_CAPABILITIES)),
            beyond("parameters", self.dialect.parameters(), known("parameters", &OTHER_PARAMETERS)),
            beyond("statuses", statuses, is_status),
            choices("mode"),
            choices(COMPRESSION),
        ];
        found.retain(|unknown| !unknown.names.is_empty());
        found
    }
}

fn beyond<'a>(
    kind: &'static str,
    names: impl Iterator<Item = &'a str>,
    is_known: impl Fn(&str) -> bool,
) -> Unknown {
    Unknown { kind, names: names.filter(|name| !is_known(name)).map(str::to_owned).collect() }
}

/// All ways in which the limits can be set.
fn limits_by(dialect: &Dialect) -> Cell {
    let ways = [Wish::Legacy, Wish::Modern].into_iter().filter_map(|wish| dialect.limits_by(wish).ok());
    let ways = ways.collect::<Vec<_>>();
    let text = match ways[..] {
        [] => return Cell::Is(None),
        [LimitsBy::OldCommands] => "commands",
        [LimitsBy::Parameters] => "parameters",
        _ => "both",
    };
    Cell::Is(Some((json!(ways), text.to_owned())))
}

/// The value of a parameter for people.
fn shown(value: &Value, unit: Unit) -> String {
    match (unit, value.as_u64(), value.as_str()) {
        (Unit::BytesPerSecond, Some(0), _) => "no bound".to_owned(),
        (Unit::BytesPerSecond, Some(rate), _) => format!("{}/s", show_bytes(rate).replace(".0 ", " ")),
        (Unit::Milliseconds, Some(limit), _) => show_duration(Duration::from_millis(limit)),
        (Unit::Percent, Some(share), _) => format!("{share} %"),
        (_, _, Some(text)) => text.to_owned(),
        _ => value.to_string(),
    }
}

/// The oldest and the newest version of a machine type.
fn versions(machines: &[String], name: &str) -> Option<String> {
    let version = |machine: &String| {
        let numbers = machine.strip_prefix(name)?.strip_prefix('-')?;
        let numbers = numbers.split('.').map(str::parse::<u32>).collect::<Result<Vec<_>, _>>();
        numbers.ok().filter(|numbers| numbers.len() > 1)
    };
    let found = || machines.iter().filter_map(version);
    let text = |numbers: Vec<u32>| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    Some(format!("{}-{}", text(found().min()?), text(found().max()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What real QEMUs answered under `-machine none`, cut down to what is looked at here.
    const ANSWERS: [(&str, &str); 4] = [
        ("5.2.0", include_str!("answers/5.2.json")),
        ("7.2.22", include_str!("answers/7.2.json")),
        ("10.0.2", include_str!("answers/10.0.json")),
        ("11.1.3", include_str!("answers/11.1.json")),
    ];

    fn features(version: &str, answers: &Value) -> Features {
        let numbers = version.split('.').map(|number| number.parse::<u32>().unwrap()).collect::<Vec<_>>();
        let version = json!({ "qemu": { "major": numbers[0], "minor": numbers[1], "micro": numbers[2] } });
        let dialect = Dialect::from_answers(
            &answers["query-commands"],
            &answers["query-migrate-capabilities"],
            answers["query-migrate-parameters"].clone(),
        );
        let schema = serde_json::from_value(answers["query-qmp-schema"].clone()).unwrap();
        Features::from_answers(
            serde_json::from_value(version).unwrap(),
            dialect,
            schema,
            &answers["query-machines"],
        )
    }

    fn all() -> [Features; 4] {
        ANSWERS.map(|(version, answers)| features(version, &serde_json::from_str(answers).unwrap()))
    }

    #[test]
    fn four_versions_differ_as_they_do() {
        let table = [
            ("commands", "migrate_set_downtime", ["yes", "-", "-", "-"]),
            ("commands", "migrate channels", ["-", "-", "yes", "yes"]),
            ("commands", "migrate-incoming exit-on-error", ["-", "-", "yes", "yes"]),
            ("commands", "calc-dirty-rate", ["yes", "yes", "yes", "yes"]),
            ("choices", "calc-dirty-rate mode dirty-ring", ["-", "yes", "yes", "yes"]),
            ("out of band", "migrate-pause", ["yes", "yes", "yes", "yes"]),
            ("out of band", "yank", ["-", "yes", "yes", "yes"]),
            ("capabilities", "compress", ["yes", "yes", "-", "-"]),
            ("capabilities", "postcopy-preempt", ["-", "yes", "yes", "yes"]),
            ("parameters", "block-bitmap-mapping", ["yes", "yes", "yes", "yes"]),
            ("parameters", "downtime-limit", ["300 ms", "300 ms", "300 ms", "300 ms"]),
            ("parameters", "max-bandwidth", ["128 MiB/s", "128 MiB/s", "128 MiB/s", "128 MiB/s"]),
            ("parameters", "max-postcopy-bandwidth", ["no bound", "no bound", "no bound", "no bound"]),
            ("parameters", "zero-page-detection", ["-", "-", "multifd", "multifd"]),
            ("choices", "mode cpr-exec", ["-", "-", "-", "yes"]),
            ("choices", "multifd-compression zstd", ["-", "yes", "yes", "yes"]),
            ("statuses", "failing", ["-", "-", "-", "yes"]),
            ("events", "VFIO_MIGRATION", ["-", "-", "yes", "yes"]),
            ("answers of query-migrate", "blocked-reasons", ["-", "yes", "yes", "yes"]),
            ("machine types", "pc-i440fx", ["1.4-5.2", "1.4-7.2", "2.4-10.0", "5.2-11.1"]),
            ("machine types", "virt", ["-", "-", "-", "-"]),
            ("in short", "downtime and speed are set by", ["both", "parameters", "parameters", "parameters"]),
            ("in short", "live under TCG keeps all writes", ["-", "-", "yes", "yes"]),
        ];
        let all = all();
        for (group, name, expected) in table {
            let row = ROWS.iter().find(|row| row.group == group && row.name == name).unwrap();
            let cells = all.each_ref().map(|features| features.cell(row));
            assert_eq!(cells.each_ref().map(Cell::text), expected, "{group}: {name}");
        }
    }

    #[test]
    fn nothing_of_these_four_is_unknown() {
        for features in all() {
            assert_eq!(features.unknown(), [], "{}", features.version);
        }
    }

    #[test]
    fn what_a_newer_qemu_has_is_told() {
        let mut answers: Value = serde_json::from_str(ANSWERS[3].1).unwrap();
        let push = |list: &mut Value, entry: Value| list.as_array_mut().unwrap().push(entry);
        push(&mut answers["query-commands"], json!({ "name": "migrate-fly" }));
        push(&mut answers["query-commands"], json!({ "name": "query-something-else" }));
        push(&mut answers["query-migrate-capabilities"], json!({ "capability": "wings", "state": false }));
        answers["query-migrate-parameters"]["height"] = json!(7);
        for entity in answers["query-qmp-schema"].as_array_mut().unwrap() {
            let is_status =
                entity["values"].as_array().is_some_and(|words| words.contains(&json!("failing")));
            if is_status {
                push(&mut entity["members"], json!({ "name": "airborne" }));
            }
        }
        let unknown = features("12.0.0", &answers).unknown();
        let told = unknown.iter().map(|unknown| (unknown.kind, unknown.names.join(" "))).collect::<Vec<_>>();
        let expected = [
            ("commands", "migrate-fly"),
            ("capabilities", "wings"),
            ("parameters", "height"),
            ("statuses", "airborne"),
        ];
        assert_eq!(told, expected.map(|(kind, names)| (kind, names.to_owned())));
    }

    #[test]
    fn every_row_stands_once_and_in_its_group() {
        let mut keys = ROWS.iter().map(|row| (row.group, row.name)).collect::<Vec<_>>();
        let groups = keys.chunk_by(|one, next| one.0 == next.0).count();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), ROWS.len());
        assert_eq!(keys.chunk_by(|one, next| one.0 == next.0).count(), groups);
    }
}
