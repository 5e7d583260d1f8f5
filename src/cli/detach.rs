//! Lets the engine run on without its terminal.
//!
//! The command starts itself once more, in a session of its own, and follows that engine by its control socket until
//! the stream runs. So long a Ctrl-C is meant for the engine, which no signal of the terminal reaches: it is handed on.

use std::ffi::OsString;
use std::process::{Child, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmigrate::control::{Engine, Said, engines, latest};
use qmigrate::host::{Credentials, Launch, Life, Output, launch, runtime_directory, state_directory};
use qmigrate::record::{Entry, MigrationId, PhaseName};

use super::session::{Signals, tell};

pub(crate) async fn run() -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let id = MigrationId::new();
    let runtime = runtime_directory()?;
    // Without a name: whoever follows may be killed, and the record is what stays.
    let output = Output::nameless()?;
    let mut command: Vec<OsString> = vec![std::env::current_exe()?.into()];
    command.extend(std::env::args_os().skip(1).filter(|word| word != "--detach"));
    command.extend(["--detached".into(), id.as_str().into()]);
    let mut child = launch(&Launch {
        command,
        environment: std::env::vars_os().collect(),
        working_directory: std::env::current_dir()?,
        credentials: Credentials::own()?,
        standing: None,
        output: output.clone(),
        life: Life::OfItsOwn,
    })
    .context("the engine cannot be started")?;
    let engine = Pid::from_raw(i32::try_from(child.id())?);
    let followed = {
        let mut follow = std::pin::pin!(follow(&id, &mut child, &runtime));
        loop {
            tokio::select! {
                followed = &mut follow => break followed?,
                // It tells its end itself, and one that has ended has told it already.
                _ = signals.next() => drop(kill(engine, Signal::SIGINT)),
            }
        }
    };
    match followed {
        Some(code) => Ok(code),
        None => repeat(&output.end(), &mut child),
    }
}

/// An engine that was refused leaves no record, and has said why.
fn repeat(words: &[u8], child: &mut Child) -> anyhow::Result<ExitCode> {
    let status = child.wait()?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) if !words.is_empty() => {
            say!("{}", String::from_utf8_lossy(words));
            Ok(ExitCode::from(code))
        }
        _ => bail!("the engine ended before it said anything ({status})"),
    }
}

/// Follows the engine until the stream runs or it has ended; `None` when it ended without a word.
async fn follow(
    id: &MigrationId,
    child: &mut Child,
    runtime: &std::path::Path,
) -> anyhow::Result<Option<ExitCode>> {
    let Some(engine) = find(id, child, runtime).await? else { return Ok(ended(id)) };
    let Ok(mut watch) = engine.watch().await else {
        // It closes its socket as it ends.
        child.wait()?;
        return Ok(ended(id));
    };
    while let Ok(Some(said)) = watch.next().await {
        match said {
            Said::Record(record) if record.outcome.is_some() => {
                return Ok(record.outcome.map(|outcome| tell(&outcome)));
            }
            Said::Record(record) if is_streaming(record.phase()) => return Ok(Some(streams(id))),
            Said::Entry(Entry::Phase(change)) if is_streaming(Some(change.phase)) => {
                return Ok(Some(streams(id)));
            }
            Said::Entry(Entry::Result(outcome)) => return Ok(Some(tell(&outcome))),
            _ => {}
        }
    }
    child.wait()?;
    Ok(ended(id))
}

async fn find(
    id: &MigrationId,
    child: &mut Child,
    runtime: &std::path::Path,
) -> anyhow::Result<Option<Engine>> {
    loop {
        if let Some(engine) = engines(runtime).await.into_iter().find(|engine| &engine.record.id == id) {
            return Ok(Some(engine));
        }
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_streaming(phase: Option<PhaseName>) -> bool {
    // What has ended without a stream, or with one, tells its outcome next.
    !matches!(
        phase,
        None | Some(PhaseName::Check | PhaseName::Destination | PhaseName::Prepare | PhaseName::Ended)
    )
}

fn streams(id: &MigrationId) -> ExitCode {
    data!("{id}");
    say!("hint: `qmigrate watch {id}` follows it, `qmigrate status {id}` tells how it ended");
    ExitCode::SUCCESS
}

/// What an engine left that has ended.
fn ended(id: &MigrationId) -> Option<ExitCode> {
    let record = latest(&state_directory().ok()?, |record| &record.id == id)?;
    record.outcome.map(|outcome| tell(&outcome))
}
