//! `pause`: stops the guest now, so that what is left can be sent; it runs on the destination.

use std::process::ExitCode;

use clap::Args;
use qmigrate::control::Question;

use super::target;

/// Stops the guest now, so that what is left can be sent; it runs on the destination.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest as `migrate` takes it, or the migration's id; may be left out where one migration runs.
    name: Option<String>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    target::order(arguments.name.as_deref(), &Question::Pause).await
}
