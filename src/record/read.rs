//! A record from a file: as a whole, or line by line as `--json` prints it.

use serde::Deserialize;
use serde_json::Value;

use super::{Allowed, MigrationId, Record, Request, SCHEMA, our_policy};
use crate::units::DowntimeMs;

/// What the budget was where nobody says: `--json` does not tell it.
const USUAL_DOWNTIME: DowntimeMs = match DowntimeMs::new(300) {
    Some(usual) => usual,
    None => panic!("300 ms is a downtime"),
};

/// A record that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// What was read.
    pub record: Record,
    /// What the file does not tell.
    pub gaps: Vec<Gap>,
}

/// What a file does not tell of its migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// The last line is not whole.
    #[error("it is cut off in line {line}: what came after that is not known")]
    CutOff {
        /// Counted from 1.
        line: usize,
    },
    /// It ends before the migration did.
    #[error("it does not tell how the migration ended")]
    NoEnd,
    /// Lines tell no budgets.
    #[error("it does not tell the budgets: {USUAL_DOWNTIME} of blackout are taken, and no other")]
    NoRequest,
}

/// A file is no record that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is something else.
    #[error("this is no record of a migration")]
    NotARecord,
    /// It is what `recover` goes by.
    #[error("this is a journal: it says what was about to be done, and holds no samples")]
    Journal,
    /// A line in the middle cannot be read.
    #[error("line {line} cannot be read")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// It was written by a newer version.
    #[error("the record is of schema {found}, and this version reads {SCHEMA} at most")]
    Newer {
        /// Its schema.
        found: u64,
    },
    /// It is a whole record, but for its end.
    #[error("the record is cut off: {0}")]
    CutOff(String),
}

impl Record {
    /// Reads a record: a whole one (`--report`, `status --json`), or lines of `--json`.
    pub fn read(text: &str) -> Result<Reading, ReadError> {
        match serde_json::from_str::<Value>(text) {
            Ok(value) if value.get("request").is_some() => whole(value),
            Err(error) if error.is_eof() && is_begin_of_a_whole_one(text) => {
                Err(ReadError::CutOff(error.to_string()))
            }
            Ok(_) | Err(_) => lines(text),
        }
    }
}

/// A whole record begins with its schema, as a line does, and goes on with no type.
fn is_begin_of_a_whole_one(text: &str) -> bool {
    let text: String = text.chars().filter(|letter| !letter.is_whitespace()).take(400).collect();
    text.starts_with(r#"{"schema":"#) && text.contains(r#""engine_version":"#)
}

fn whole(value: Value) -> Result<Reading, ReadError> {
    check_schema(&value)?;
    let record: Record = serde_json::from_value(value).map_err(|_| ReadError::NotARecord)?;
    let gaps = if record.outcome.is_none() { vec![Gap::NoEnd] } else { Vec::new() };
    Ok(Reading { record, gaps })
}

fn lines(text: &str) -> Result<Reading, ReadError> {
    #[derive(Deserialize)]
    struct Line {
        id: MigrationId,
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let (mut record, mut gaps): (Option<Record>, _) = (None, vec![Gap::NoRequest]);
    for (number, line) in (1..).zip(&lines) {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            if record.is_none() {
                return Err(ReadError::NotARecord);
            }
            if number < lines.len() {
                return Err(ReadError::Line { line: number });
            }
            gaps.push(Gap::CutOff { line: number });
            break;
        };
        if value.get("step").is_some() {
            return Err(ReadError::Journal);
        }
        check_schema(&value)?;
        let Line { id } = Line::deserialize(&value).map_err(|_| ReadError::NotARecord)?;
        let record = record.get_or_insert_with(|| Record::new(id, unknown(), jiff::Timestamp::UNIX_EPOCH));
        match serde_json::from_value(value) {
            Ok(entry) => record.apply(entry),
            // Whatever is new is left out; a line of a kind that is known must be as it was.
            Err(_) if !is_known(line) => {}
            Err(_) => return Err(ReadError::Line { line: number }),
        }
    }
    let record = record.ok_or(ReadError::NotARecord)?;
    if record.outcome.is_none() {
        gaps.push(Gap::NoEnd);
    }
    Ok(Reading { record, gaps })
}

/// Whether a line is of a kind that a replay needs.
fn is_known(line: &str) -> bool {
    ["sample", "phase", "decision", "result"].iter().any(|kind| line.contains(&format!(r#""type":"{kind}""#)))
}

fn check_schema(value: &Value) -> Result<(), ReadError> {
    match value.get("schema").and_then(Value::as_u64) {
        None => Err(ReadError::NotARecord),
        Some(found) if found > u64::from(SCHEMA) => Err(ReadError::Newer { found }),
        Some(_) => Ok(()),
    }
}

/// What may have been asked for.
fn unknown() -> Request {
    Request {
        source: "a guest".to_owned(),
        max_downtime_ms: USUAL_DOWNTIME,
        grace_ms: 2000,
        max_time_ms: None,
        max_bandwidth_bytes_per_second: None,
        live: true,
        allowed: Allowed::default(),
        policy: our_policy(),
        budgets_enforced: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Entry, PhaseChange, PhaseName};

    fn record() -> Record {
        let mut record =
            Record::new(MigrationId::from_number(1), Request::in_a_test("/vm"), jiff::Timestamp::UNIX_EPOCH);
        record.apply(Entry::Phase(PhaseChange { phase: PhaseName::Stream, at_ms: 5.0 }));
        record
    }

    fn line(entry: &str) -> String {
        format!(r#"{{"schema":1,"id":"{}",{entry}}}"#, MigrationId::from_number(1))
    }

    const PHASE: &str = r#""type":"phase","phase":"stream","at_ms":5.0"#;

    #[test]
    fn a_whole_record_and_its_lines_read_back() {
        for text in
            [serde_json::to_string(&record()).unwrap(), serde_json::to_string_pretty(&record()).unwrap()]
        {
            let reading = Record::read(&text).unwrap();
            assert_eq!((reading.record, reading.gaps), (record(), vec![Gap::NoEnd]));
        }
        let reading =
            Record::read(&format!("{}\n{}\n", line(PHASE), line(r#""type":"news","at_ms":1"#))).unwrap();
        assert_eq!((reading.record.id, reading.record.phases), (record().id, record().phases));
        assert_eq!(reading.gaps, [Gap::NoRequest, Gap::NoEnd]);
    }

    #[test]
    fn a_record_that_is_cut_off_says_so_and_lines_are_read_as_far_as_they_go() {
        let whole = serde_json::to_string(&record()).unwrap();
        assert!(matches!(Record::read(&whole[..whole.len() - 9]), Err(ReadError::CutOff(_))));
        let reading = Record::read(&format!("{}\n{{\"schema\":1,\"id\":", line(PHASE))).unwrap();
        assert_eq!(reading.gaps, [Gap::NoRequest, Gap::CutOff { line: 2 }, Gap::NoEnd]);
        let broken = format!("{}\n{{\"schema\":\n{}\n", line(PHASE), line(PHASE));
        assert_eq!(Record::read(&broken), Err(ReadError::Line { line: 2 }));
    }

    #[test]
    fn what_is_no_record_is_refused_by_its_kind() {
        for text in
            ["", "hello", "[]", "{}", r#"{"schema":1}"#, "{\"schema\":1,\"id\":\"x\",\"type\":\"phase\"}"]
        {
            assert_eq!(Record::read(text), Err(ReadError::NotARecord), "{text}");
        }
        let mut newer = serde_json::to_value(record()).unwrap();
        newer["schema"] = 2.into();
        assert_eq!(Record::read(&newer.to_string()), Err(ReadError::Newer { found: 2 }));
        let newer = line(PHASE).replace(r#""schema":1"#, r#""schema":7"#);
        assert_eq!(Record::read(&newer), Err(ReadError::Newer { found: 7 }));
        assert_eq!(Record::read(r#"{"step":"begun","schema":1}"#), Err(ReadError::Journal));
        assert_eq!(
            Record::read(&line(r#""type":"phase","phase":"stream""#)),
            Err(ReadError::Line { line: 1 })
        );
    }
}
