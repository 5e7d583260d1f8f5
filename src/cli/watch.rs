//! `watch`: follows a migration to its end.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use qapi_qmp as words;
use qmigrate::control::{Engine, Said};
use qmigrate::migrate::history::Witness;
use qmigrate::qmp::Client;
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus};
use qmigrate::record::{End, Outcome};
use qmigrate::report::{JsonLines, Progress, foreign_line, summary};

use super::refuse;
use super::target::{Target, find, past};

/// A foreign migration tells nothing by itself: its events cannot be switched on while it runs.
const ASK_EVERY: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Follows a migration to its end, and exits as that one does.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest as `migrate` takes it, or the migration's id; may be left out where one migration runs.
    name: Option<String>,
    /// One JSON object per line on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match find(arguments.name.as_deref()).await? {
        Ok(Target::Engine(engine)) => watch(&engine, arguments.json).await,
        Ok(Target::Past(record)) => match &record.outcome {
            Some(outcome) => Ok(end(outcome)),
            None => Ok(refuse("that migration has left no outcome", None)),
        },
        Ok(Target::Foreign(client, qemu)) => watch_foreign(&client, qemu.migration).await,
        Err(blocker) => Ok(refuse(&blocker, blocker.hint.as_deref())),
    }
}

async fn watch(engine: &Engine, json: bool) -> anyhow::Result<ExitCode> {
    let mut record = engine.record.clone();
    let mut witnesses: Vec<Box<dyn Witness>> = vec![Box::new(Progress::new())];
    if json {
        witnesses.push(Box::new(JsonLines::new(std::io::stdout())));
    }
    if let Ok(mut watch) = engine.watch().await {
        while let Ok(Some(said)) = watch.next().await {
            match said {
                Said::Record(now) => record = *now,
                Said::Entry(entry) => {
                    record.apply(entry.clone());
                    for witness in &mut witnesses {
                        witness.told(&record, &entry);
                    }
                }
                Said::Done(_) | Said::Refused(_) => {}
            }
            if let Some(outcome) = &record.outcome {
                return Ok(end(outcome));
            }
        }
    }
    // It keeps its record before it closes its socket.
    match past(engine.record.id.as_str()).and_then(|record| record.outcome) {
        Some(outcome) => Ok(end(&outcome)),
        None => Ok(refuse(
            "the engine ended without an outcome",
            Some("`qmigrate list` shows which QEMUs there are and what they do"),
        )),
    }
}

fn end(outcome: &Outcome) -> ExitCode {
    for line in summary(outcome) {
        say!("{line}");
    }
    ExitCode::from(outcome.exit_code)
}

async fn watch_foreign(client: &Client, mut info: MigrationInfo) -> anyhow::Result<ExitCode> {
    let mut last = String::new();
    loop {
        let line = foreign_line(&info);
        if line != last {
            say!("{line}");
            last = line;
        }
        match &info.status {
            None | Some(MigrationStatus::None) => return Ok(refuse("this guest is not being moved", None)),
            Some(MigrationStatus::Completed) => return Ok(ExitCode::from(End::Migrated.exit_code())),
            Some(status) if status.is_terminal() => return Ok(ExitCode::from(End::NotMigrated.exit_code())),
            Some(_) => {}
        }
        tokio::time::sleep(ASK_EVERY).await;
        info = client.call_as(&words::query_migrate {}, ANSWER_WITHIN).await?;
    }
}
