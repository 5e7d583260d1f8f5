//! What was typed, and what is meant by it.

/// `migrate`.
mod migrate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Moves running QEMU guests from one process to another: no libvirt, no cluster, no agent.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Says more on standard error; twice for the whole conversation.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Migrate(migrate::Arguments),
}

/// Does what was typed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Migrate(arguments) => migrate::run(arguments).await,
    }
}
