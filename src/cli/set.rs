//! `set`: changes limits while a migration runs.

use std::process::ExitCode;

use clap::Args;
use qmigrate::control::Question;
use qmigrate::migrate::order::NewLimits;
use qmigrate::units::{DowntimeMs, Rate};

use super::target;

/// Changes the limits of a migration while it runs.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("limits").required(true).multiple(true))]
pub(crate) struct Arguments {
    /// The guest as `migrate` takes it, or the migration's id; may be left out where one migration runs.
    name: Option<String>,
    /// The longest that the guest may stand still.
    #[arg(long, value_name = "TIME", group = "limits", allow_hyphen_values = true)]
    max_downtime: Option<DowntimeMs>,
    /// The fastest that memory is sent.
    #[arg(long, value_name = "RATE", group = "limits", allow_hyphen_values = true)]
    max_bandwidth: Option<Rate>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let limits = NewLimits {
        max_downtime_ms: arguments.max_downtime,
        max_bandwidth_bytes_per_second: arguments.max_bandwidth,
    };
    target::order(arguments.name.as_deref(), &Question::Set(limits)).await
}
