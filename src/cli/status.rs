//! `status`: how far a migration is, once.

use std::process::ExitCode;

use clap::Args;
use qmigrate::record::Record;
use qmigrate::report::{foreign_line, shadow_lines, status_lines, summary};

use super::refuse;
use super::target::{Target, find};

/// Tells how far a migration is, or how the last one ended.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest as `migrate` takes it, or the migration's id; may be left out where one migration runs.
    name: Option<String>,
    /// The whole record as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match find(arguments.name.as_deref()).await? {
        Ok(Target::Engine(engine)) => show(&engine.record, arguments.json)?,
        Ok(Target::Past(record)) => show(&record, arguments.json)?,
        Ok(Target::Foreign(_, qemu)) if arguments.json => data!("{}", foreign_json(&qemu.migration)),
        Ok(Target::Foreign(_, qemu)) => show!("{}", foreign_line(&qemu.migration)),
        Err(blocker) => return Ok(refuse(&blocker, blocker.hint.as_deref())),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(record: &Record, json: bool) -> anyhow::Result<()> {
    if json {
        data!("{}", serde_json::to_string(record)?);
        return Ok(());
    }
    let lines = match &record.outcome {
        Some(outcome) => {
            let mut lines = vec![format!("{}  {}, ended", record.id, record.request.source)];
            lines.extend(summary(outcome));
            lines.extend(shadow_lines(record));
            lines
        }
        None => status_lines(record),
    };
    for line in lines {
        show!("{line}");
    }
    Ok(())
}

/// What QEMU says of a migration that is not this engine's.
fn foreign_json(info: &qmigrate::qmp::words::MigrationInfo) -> serde_json::Value {
    let ram = info.ram.as_ref();
    serde_json::json!({
        "schema": qmigrate::record::SCHEMA,
        "type": "foreign",
        "status": info.status.as_ref().map(ToString::to_string),
        "transferred_bytes": ram.map(|ram| ram.transferred_bytes),
        "remaining_bytes": ram.map(|ram| ram.remaining_bytes),
        "total_bytes": ram.map(|ram| ram.total_bytes),
        "error": info.error_desc,
    })
}
