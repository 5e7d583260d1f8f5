//! What was typed, and what is meant by it.

/// Lines for people, on standard error.
macro_rules! say {
    ($($words:tt)*) => { $crate::cli::put(&mut std::io::stderr(), &format!($($words)*)) };
}

/// Lines for people who asked for them, on standard output.
macro_rules! show {
    ($($words:tt)*) => { $crate::cli::put(&mut std::io::stdout(), &format!($($words)*)) };
}

/// A line for programs, on standard output, as it is.
macro_rules! data {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{}\n", format_args!($($words)*)).as_bytes());
    }};
}

/// `cancel`: the guest goes back to its source.
mod cancel;
/// `check`: all that stands in the way of moving a guest.
mod check;
/// What a user allows to be done to the guest.
mod consent;
/// `demo`: the embedded guest, moved and proven.
mod demo;
/// Lets the engine run on without its terminal.
mod detach;
/// `estimate`: what moving a guest would take.
mod estimate;
/// `features`: what QEMUs can do, side by side.
mod features;
/// `lab`: plans of many migrations, run, compared and scored.
mod lab;
/// `list`: the QEMUs of this host.
mod list;
/// `migrate`: moves a guest.
mod migrate;
/// `pause`: stops the guest so that what is left can be sent.
mod pause;
/// `recover`: finishes or undoes what a crash has left.
mod recover;
/// `replay`: what other policies would have made of a recorded migration.
mod replay;
/// One migration as the command runs it: history, orders, signals, control socket, report.
mod session;
/// `set`: changes limits while a migration runs.
mod set;
/// `start`: starts a guest from a template.
mod start;
/// `status`: how far a migration is, once.
mod status;
/// Finds whoever moves the guest that was named: an engine, or QEMU alone.
mod target;
/// `template`: the command line of a guest as a file.
mod template;
/// `watch`: follows a migration to its end.
mod watch;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand};
use qmigrate::host::DirectoryError;
use qmigrate::qemu::argv::{CommandLine, HIDDEN};
use qmigrate::qmp::wire::printable;
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
    Check(check::Arguments),
    Estimate(estimate::Arguments),
    List(list::Arguments),
    Features(features::Arguments),
    Status(status::Arguments),
    Watch(watch::Arguments),
    Set(set::Arguments),
    #[command(visible_alias = "suspend")]
    Pause(pause::Arguments),
    #[command(visible_alias = "abort")]
    Cancel(cancel::Arguments),
    Recover(recover::Arguments),
    Replay(replay::Arguments),
    Template(template::Arguments),
    Start(start::Arguments),
    Lab(lab::Arguments),
}

/// Writes lines. Unlike `println!` it survives a terminal or a reader that has gone away; and what a QEMU, a guest or
/// another process has said cannot speak to the terminal: control characters are escaped.
pub(crate) fn put(output: &mut impl Write, text: &str) {
    for line in text.lines() {
        let _ = output.write_all(format!("{}\n", printable(line)).as_bytes());
    }
}

/// Does what was typed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Demo(arguments) => Box::pin(demo::run(arguments)).await,
        Command::Migrate(arguments) => Box::pin(migrate::run(arguments)).await,
        Command::Check(arguments) => Box::pin(check::run(arguments)).await,
        Command::Estimate(arguments) => Box::pin(estimate::run(arguments)).await,
        Command::List(arguments) => list::run(arguments).await,
        Command::Features(arguments) => features::run(arguments).await,
        Command::Status(arguments) => status::run(arguments).await,
        Command::Watch(arguments) => watch::run(arguments).await,
        Command::Set(arguments) => set::run(arguments).await,
        Command::Pause(arguments) => pause::run(arguments).await,
        Command::Cancel(arguments) => cancel::run(arguments).await,
        Command::Recover(arguments) => Box::pin(recover::run(arguments)).await,
        Command::Replay(arguments) => replay::run(arguments).await,
        Command::Template(arguments) => template::run(arguments).await,
        Command::Start(arguments) => start::run(arguments).await,
        Command::Lab(arguments) => Box::pin(lab::run(arguments)).await,
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

/// The executable of this name in PATH.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join(name)).find(|file| is_executable(file))
}

/// An executable as it was typed, found from anywhere: it is started in a directory of its own. As in a shell, a bare
/// name is one in PATH.
pub(crate) fn executable(typed: PathBuf) -> PathBuf {
    let bare = typed.to_str().filter(|name| !name.contains('/'));
    bare.and_then(in_path).or_else(|| std::path::absolute(&typed).ok()).unwrap_or(typed)
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
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

/// A command line as it is printed: without its secrets, and with a word about each option that had one.
pub(crate) fn without_secrets(line: &CommandLine) -> CommandLine {
    for option in line.options_with_secrets() {
        let option = if option.is_empty() { "the disk image".to_owned() } else { format!("-{option}") };
        say!("warning: {option} holds a secret, which is not printed: {HIDDEN} stands in its place");
    }
    line.shown()
}

/// Says why something was not done; exit 2.
pub(crate) fn refuse(message: impl std::fmt::Display, hint: Option<&str>) -> ExitCode {
    say!("error: {message}");
    for hint in hint.into_iter().flat_map(str::lines) {
        say!("hint: {hint}");
    }
    ExitCode::from(2)
}
