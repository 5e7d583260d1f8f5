//! `migrate`: moves a guest.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use qmigrate::host::runtime_directory;
use qmigrate::migrate::engine::{self, Services};
use qmigrate::migrate::history::{History, Witness};
use qmigrate::migrate::order::{Commander, Request, orders};
use qmigrate::migrate::phase::AtDestination;
use qmigrate::migrate::plan::{Destination, Incoming, Limits, LostWrites, Mode, Plan, SourceAfter};
use qmigrate::qemu::QemuName;
use qmigrate::record::{MigrationId, Observed, Record};
use qmigrate::report::{JsonLines, Progress, summary};
use qmigrate::units::{DowntimeMs, Rate, parse_duration};

/// Moves a running guest to a second QEMU on this machine, started from the first one's command line.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest: its QMP socket (PATH, unix:PATH, tcp:HOST:PORT) or its process (pid:PID).
    source: String,
    #[command(flatten)]
    limits: LimitArguments,
    /// The destination's QEMU, if it is another one.
    #[arg(long, value_name = "PATH", conflicts_with = "destination_qmp")]
    qemu: Option<PathBuf>,
    /// A destination that you have started yourself, with -incoming defer.
    #[arg(long, value_name = "QMP", conflicts_with = "incoming")]
    destination_qmp: Option<QemuName>,
    /// `defer`, or what stands behind -incoming on the destination's command line, such as tcp:0:4444.
    #[arg(long, value_name = "WHERE", default_value = "defer")]
    incoming: String,
    /// Does not end the source once the guest runs elsewhere; it stays, stopped.
    #[arg(long)]
    keep_source: bool,
    /// Stops the guest first: no pass is sent twice, and the guest stands still all the while.
    #[arg(long)]
    non_live: bool,
    /// Does not start the guest on the destination.
    #[arg(long)]
    leave_paused: bool,
    /// Moves a guest live also where QEMU is known to lose its writes (TCG before 9.0).
    #[arg(long = "unsafe")]
    accept_lost_writes: bool,
    /// One JSON object per line on standard output.
    #[arg(long)]
    json: bool,
    /// Writes the whole record to this file at the end.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

/// The limits of a migration.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LimitArguments {
    /// The longest that the guest may stand still.
    #[arg(long, value_name = "TIME", default_value = "300ms")]
    max_downtime: DowntimeMs,
    /// The longest that copying may take.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_time: Option<Duration>,
    /// The fastest that memory is sent.
    #[arg(long, value_name = "RATE")]
    max_bandwidth: Option<Rate>,
}

impl LimitArguments {
    pub(crate) fn limits(self) -> Limits {
        Limits {
            max_downtime: self.max_downtime,
            grace: None,
            max_time: self.max_time,
            max_bandwidth: self.max_bandwidth,
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let source: QemuName = match arguments.source.parse() {
        Ok(source) => source,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let id = MigrationId::new();
    let directory = runtime_directory()?.join(id.as_str());
    let destination = match arguments.destination_qmp {
        Some(name) => Destination::Started(name),
        None => Destination::Start {
            qemu: arguments.qemu,
            incoming: match arguments.incoming.as_str() {
                "defer" => Incoming::Defer,
                literal => Incoming::Literal(literal.to_owned()),
            },
        },
    };
    let plan = Plan {
        id,
        typed: arguments.source,
        source,
        destination,
        limits: arguments.limits.limits(),
        mode: if arguments.non_live { Mode::NonLive } else { Mode::Live },
        at_destination: if arguments.leave_paused {
            AtDestination::Standing
        } else {
            AtDestination::AsBefore
        },
        source_after: if arguments.keep_source { SourceAfter::Keep } else { SourceAfter::Quit },
        lost_writes: if arguments.accept_lost_writes { LostWrites::Accept } else { LostWrites::Refuse },
        directory,
    };
    let mut witnesses: Vec<Box<dyn Witness>> = vec![Box::new(Progress::new())];
    if arguments.json {
        witnesses.push(Box::new(JsonLines::new(std::io::stdout())));
    }
    let record = Record::new(plan.id.clone(), plan.request(), jiff::Timestamp::now());
    let mut history = History::new(record, witnesses);
    let (commander, mut orders) = orders();
    cancel_on_signals(commander)?;
    let outcome = engine::run(
        &plan,
        Services { history: &mut history, orders: &mut orders, observed: &mut || Observed::NotObserved },
    )
    .await;
    if let Some(file) = &arguments.report {
        let json = serde_json::to_vec_pretty(&*history.record())?;
        std::fs::write(file, json)
            .with_context(|| format!("the report {} cannot be written", file.display()))?;
    }
    for line in summary(&outcome) {
        eprintln!("{line}");
    }
    Ok(ExitCode::from(outcome.exit_code))
}

/// SIGINT and SIGTERM cancel; a closed terminal does not.
fn cancel_on_signals(commander: Commander) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let reason = tokio::select! {
                _ = interrupt.recv() => "cancelled by Ctrl-C",
                _ = terminate.recv() => "cancelled by SIGTERM",
                _ = hangup.recv() => continue,
            };
            if let Err(refusal) = commander.give(Request::Cancel(reason.to_owned())).await {
                eprintln!("not cancelled: {refusal}");
            }
        }
    });
    Ok(())
}
