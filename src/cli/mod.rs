//! What was typed, and what is meant by it.

/// A line for people, on standard error. Unlike `eprintln!` it survives a terminal or a reader that has gone away.
macro_rules! say {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{}\n", format_args!($($words)*)).as_bytes());
    }};
}

/// A line of data, on standard output. Unlike `println!` it survives a reader that has gone away.
macro_rules! data {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{}\n", format_args!($($words)*)).as_bytes());
    }};
}

/// `cancel`: the guest goes back to its source.
mod cancel;
/// `demo`: the embedded guest, moved and proven.
mod demo;
/// Lets the engine run on without its terminal.
mod detach;
/// `list`: the QEMUs of this host.
mod list;
/// `migrate`: moves a guest.
mod migrate;
/// `pause`: stops the guest so that what is left can be sent.
mod pause;
/// One migration as the command runs it: history, orders, signals, control socket, report.
mod session;
/// `set`: changes limits while a migration runs.
mod set;
/// `status`: how far a migration is, once.
mod status;
/// Finds whoever moves the guest that was named: an engine, or QEMU alone.
mod target;
/// `watch`: follows a migration to its end.
mod watch;

use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand};
use qmigrate::host::DirectoryError;
use qmigrate::units::UnitError;

/// Moves running QEMU guests from one process to another: no libvirt, no cluster, no agent.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Says more on standard error; twice for every event and decision.
    #[arg(short, long, action = clap::ArgAction::Count, global = true, display_order = 100)]
    pub(crate) verbose: u8,
}

const EXIT_CODES: &str = "Exit codes: 0 migrated and running; 1 not migrated, the guest is on its source as before; \
2 refused, nothing was changed; 3 undecided; 4 the guest is lost; 5 migrated, but something after it needs you.";

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Migrate(migrate::Arguments),
    List(list::Arguments),
    Status(status::Arguments),
    Watch(watch::Arguments),
    Set(set::Arguments),
    #[command(visible_alias = "suspend")]
    Pause(pause::Arguments),
    #[command(visible_alias = "abort")]
    Cancel(cancel::Arguments),
}

/// Does what was typed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Migrate(arguments) => migrate::run(arguments).await,
        Command::List(arguments) => list::run(arguments).await,
        Command::Status(arguments) => status::run(arguments).await,
        Command::Watch(arguments) => watch::run(arguments).await,
        Command::Set(arguments) => set::run(arguments).await,
        Command::Pause(arguments) => pause::run(arguments).await,
        Command::Cancel(arguments) => cancel::run(arguments).await,
    }
}

/// Says why the words typed cannot be read, or what was asked for about them (`--help`).
pub(crate) fn unreadable(error: &clap::Error) -> ExitCode {
    let unit = std::error::Error::source(error).and_then(|source| source.downcast_ref::<UnitError>());
    if let (ErrorKind::ValueValidation, Some(unit), Some(flag)) =
        (error.kind(), unit, error.get(ContextKind::InvalidArg))
    {
        return refuse(format!("{flag}: {unit}"), Some(&unit.hint()));
    }
    // Nobody may be reading any more.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// An error with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Hinted {
    message: String,
    hint: String,
}

impl Hinted {
    pub(crate) fn new(error: &anyhow::Error, hint: impl Into<String>) -> Self {
        Self { message: format!("{error:#}"), hint: hint.into() }
    }
}

/// Says why nothing could be done; exit 2.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    let hinted = error.downcast_ref::<Hinted>().map(|hinted| hinted.hint.as_str());
    let directory = error.chain().any(<dyn std::error::Error>::is::<DirectoryError>);
    let hint = directory.then_some(
        "qmigrate keeps its sockets in /run/qmigrate or XDG_RUNTIME_DIR, and its records in /var/lib/qmigrate or \
         XDG_STATE_HOME",
    );
    refuse(format!("{error:#}"), hinted.or(hint))
}

/// Says why something was not done; exit 2.
pub(crate) fn refuse(message: impl std::fmt::Display, hint: Option<&str>) -> ExitCode {
    say!("error: {message}");
    for hint in hint.into_iter().flat_map(str::lines) {
        say!("hint: {hint}");
    }
    ExitCode::from(2)
}
