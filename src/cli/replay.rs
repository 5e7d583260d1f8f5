//! `replay`: what other policies would have made of a recorded migration.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use qmigrate::converge::{Budget, Fitted, PolicyName, Replay, ReplayError, Simulated, replay};
use qmigrate::migrate::plan::Limits;
use qmigrate::record::{Gap, MigrationId, ReadError, Reading, Record, SCHEMA};
use qmigrate::report::{recorded_lines, replay_lines};
use qmigrate::units::{DowntimeMs, parse_duration};
use serde::Serialize;

use super::refuse;
use super::target::{Target, find};

/// Tells what policies would have made of a recorded migration: decision by decision as far as the record tells, and
/// simulated to the end.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The migration's id, its guest, or a file: a record (--report) or the lines of --json.
    record: String,
    /// A policy to ask. Repeatable; all of them, where none is named.
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<PolicyName>,
    /// Another budget than the recorded one: the longest that the guest may stand still.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    max_downtime: Option<DowntimeMs>,
    /// Another budget than the recorded one: the longest that copying may take.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    max_time: Option<Duration>,
    /// One JSON object per line on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Reading { record, gaps } = match read(&arguments.record).await? {
        Ok(reading) => reading,
        Err(refused) => return Ok(refused),
    };
    for gap in &gaps {
        say!("note: {gap}");
    }
    let budget = Budget {
        max_downtime: arguments.max_downtime.unwrap_or(record.request.max_downtime_ms),
        max_time: arguments.max_time.or(record.request.max_time_ms.map(Duration::from_millis)),
    };
    let consents = Limits::of(&record.request).consents;
    let fitted = Fitted::of(&record);
    let named = if arguments.policies.is_empty() { PolicyName::ALL } else { &arguments.policies };
    let replays: Result<Vec<Replay>, ReplayError> =
        named.iter().map(|name| replay(&record, fitted.as_ref(), *name, (budget, consents))).collect();
    let replays = match replays {
        Ok(replays) => replays,
        Err(error) => return Ok(refuse(error, None)),
    };
    let as_it_was = fitted.map(|fitted| fitted.as_it_was(budget));
    if arguments.json {
        tell_programs(&record, as_it_was.as_ref(), &replays)?;
        return Ok(ExitCode::SUCCESS);
    }
    show!("{}", recorded_lines(&record, as_it_was.as_ref()).join("\n"));
    for replay in &replays {
        show!("\n{}", replay_lines(replay, budget).join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The record: a file, or one that was kept, or that of a migration that runs.
async fn read(name: &str) -> anyhow::Result<Result<Reading, ExitCode>> {
    let path = Path::new(name);
    if path.is_file() {
        let text = std::fs::read(path).with_context(|| format!("{name} cannot be read"))?;
        let reading = Record::read(&String::from_utf8_lossy(&text));
        return Ok(reading.map_err(|error| refuse(format!("{name}: {error}"), Some(hint(&error)))));
    }
    let record = match find(Some(name)).await? {
        Ok(Target::Engine(engine)) => engine.record,
        Ok(Target::Past(record)) => *record,
        Ok(Target::Foreign(..)) => {
            return Ok(Err(refuse(format!("{name}: no migration of this guest was recorded"), Some(KEPT))));
        }
        Err(_) if name.parse::<MigrationId>().is_ok() => {
            return Ok(Err(refuse(format!("there is no record of a migration {name}"), Some(KEPT))));
        }
        Err(blocker) => return Ok(Err(refuse(&blocker, blocker.hint.as_deref().or(Some(KEPT))))),
    };
    let gaps = if record.outcome.is_none() { vec![Gap::NoEnd] } else { Vec::new() };
    Ok(Ok(Reading { record, gaps }))
}

const KEPT: &str = "the last 100 migrations are kept; `migrate --report FILE.json` keeps a record for good";

fn hint(error: &ReadError) -> &'static str {
    match error {
        ReadError::Newer { .. } => "a newer qmigrate reads it",
        ReadError::Journal => "the record of the same migration goes by its id: qmigrate replay ID",
        ReadError::NotARecord | ReadError::Line { .. } | ReadError::CutOff(_) => {
            "a record is what `migrate --report FILE.json` or `status ID --json` writes, or the lines of `migrate --json`"
        }
    }
}

/// One line of JSON.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Recorded { source: &'a str, simulated: Option<&'a Simulated> },
    Replay(&'a Replay),
}

/// A line with what every line carries.
#[derive(Serialize)]
struct Versioned<'a> {
    schema: u32,
    id: &'a MigrationId,
    #[serde(flatten)]
    line: Line<'a>,
}

fn tell_programs(record: &Record, simulated: Option<&Simulated>, replays: &[Replay]) -> anyhow::Result<()> {
    let recorded = Line::Recorded { source: &record.request.source, simulated };
    for line in [recorded].into_iter().chain(replays.iter().map(Line::Replay)) {
        data!("{}", serde_json::to_string(&Versioned { schema: SCHEMA, id: &record.id, line })?);
    }
    Ok(())
}
