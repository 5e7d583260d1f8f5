//! `recover`: finishes or undoes what a crash has left.

use std::process::ExitCode;

use clap::Args;
use qmigrate::check::Blocker;
use qmigrate::host::{runtime_directory, state_directory};
use qmigrate::migrate::engine::Services;
use qmigrate::migrate::journal::{Found, Journal, Story, list};
use qmigrate::migrate::kept;
use qmigrate::migrate::recover::recover;
use qmigrate::qemu::dialect::probe;
use qmigrate::record::{MigrationId, Observed, Record};
use serde_json::json;

use super::refuse;
use super::session::{OutputArguments, Session, Signals};

/// Finishes or undoes a migration whose engine has ended before its end; exits as that migration ends.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The migration's id; left out, every one that is open and has no engine.
    #[arg(conflicts_with = "list")]
    id: Option<MigrationId>,
    /// Shows what is open, and changes nothing.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    output: OutputArguments,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let state = state_directory()?;
    if arguments.list {
        show_all(list(&state)?, arguments.output.json());
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = runtime_directory()?;
    probe::clear(&runtime);
    kept::clear(&runtime, &state_directory()?);
    let has_no_engine = |found: Found| (!found.engine_lives).then_some(found.id);
    let ids: Vec<MigrationId> = match arguments.id {
        Some(id) => vec![id],
        None => list(&state)?.into_iter().filter_map(has_no_engine).collect(),
    };
    if ids.is_empty() {
        say!("there is nothing to recover: every migration has come to its end, or has an engine");
        return Ok(ExitCode::SUCCESS);
    }
    let mut worst = 0;
    for id in ids {
        // Nobody writes to the journal of an engine that has ended but the one that takes it over.
        let code = match Journal::take_over(&state, &id) {
            Ok((journal, story)) => one(journal, story, &arguments.output).await?,
            Err(error) => {
                let blocker = Blocker::from(error);
                refuse(&blocker, blocker.hint.as_deref());
                2
            }
        };
        worst = [worst, code].into_iter().max_by_key(|&code| gravity(code)).unwrap_or(code);
    }
    Ok(ExitCode::from(worst))
}

/// How much an exit code asks for: of several migrations the gravest is told.
fn gravity(code: u8) -> usize {
    [0, 1, 2, 5, 3, 4].iter().position(|&known| known == code).unwrap_or(usize::MAX)
}

async fn one(journal: Journal, story: Story, output: &OutputArguments) -> anyhow::Result<u8> {
    let (runtime, begun) = (runtime_directory()?, story.begun.clone());
    let signals = Signals::catch()?;
    let report = output.open_report()?;
    // What the engine that ended has left of itself.
    let _ = std::fs::remove_file(runtime.join(format!("{}.control", begun.id)));
    let record = Record::new(begun.id, begun.request, begun.started_at);
    let mut session =
        Session::of(record, journal, output, report, signals, &runtime).map_err(|(error, _)| error)?;
    let services = Services {
        history: &mut session.history,
        orders: &mut session.orders,
        journal: &mut session.journal,
        observed: &mut || Observed::NotObserved,
    };
    let outcome = recover(story, services).await;
    session.close(&outcome).await;
    Ok(outcome.exit_code)
}

fn show_all(found: Vec<Found>, as_json: bool) {
    if !as_json && found.is_empty() {
        say!("no migration is open");
    }
    for Found { id, story, engine_lives } in found {
        let story = match story {
            Ok(story) => story,
            Err(error) => {
                let blocker = Blocker::from(error);
                refuse(&blocker, blocker.hint.as_deref());
                continue;
            }
        };
        let phase = story.phases.last().map_or("prepare", |phase| phase.name().as_str());
        let (source, since) = (&story.begun.request.source, story.begun.started_at);
        if as_json {
            data!(
                "{}",
                json!({"id": id, "source": source, "started_at": since, "phase": phase, "engine_lives": engine_lives})
            );
            continue;
        }
        let what = if engine_lives { "its engine is at work" } else { "its engine has ended" };
        show!("{id}  {source}  since {since:.0}  {phase}: {what}");
        if !engine_lives {
            say!("hint: `qmigrate recover {id}` brings it to an end");
        }
    }
}
