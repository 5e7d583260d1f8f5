//! `cancel`: ends a migration; the guest goes back to its source.

use std::process::ExitCode;

use clap::Args;
use qmigrate::control::Question;

use super::target;

/// Ends a migration; the guest goes back to its source.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest as `migrate` takes it, or the migration's id; may be left out where one migration runs.
    name: Option<String>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    target::order(arguments.name.as_deref(), &Question::Cancel).await
}
