//! `migrate`: moves a guest.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use qmigrate::host::runtime_directory;
use qmigrate::migrate::engine::{self, Services};
use qmigrate::migrate::phase::AtDestination;
use qmigrate::migrate::plan::{Destination, Incoming, Limits, MadeFrom, Mode, Plan, Risks, SourceAfter};
use qmigrate::migrate::step::survey::survey;
use qmigrate::qemu::QemuName;
use qmigrate::qemu::dialect::{Wish, probe};
use qmigrate::qemu::template::Placeholder;
use qmigrate::record::{End, MigrationId, Observed};
use qmigrate::units::{DowntimeMs, Rate, parse_duration};

use super::session::{OutputArguments, Session, Signals};
use super::{detach, executable, refuse, template, without_secrets};

#[expect(clippy::struct_excessive_bools, reason = "flags are what was typed; the plan has types")]
/// Moves a running guest to a second QEMU on this machine, started from the first one's command line or a template.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest: its QMP socket (PATH, unix:PATH, tcp:HOST:PORT) or its process (pid:PID).
    source: String,
    #[command(flatten)]
    limits: LimitArguments,
    /// Starts the destination from this template and not from the source's command line.
    #[arg(long, value_name = "FILE", conflicts_with = "destination_qmp")]
    template: Option<PathBuf>,
    /// The value of a placeholder of the template, such as qmp=/run/vm.qmp.
    #[arg(long, value_name = "NAME=VALUE", requires = "template")]
    set: Vec<String>,
    /// The destination's QEMU, if it is another one.
    #[arg(long, value_name = "PATH", conflicts_with = "destination_qmp")]
    qemu: Option<PathBuf>,
    /// A destination that you have started yourself, with -incoming defer: its QMP socket, or pid:PID.
    #[arg(long, value_name = "QMP", conflicts_with = "incoming")]
    destination_qmp: Option<QemuName>,
    /// Where the destination listens: `defer` (a private socket), tcp:HOST:PORT or unix:PATH.
    #[arg(long, value_name = "WHERE", default_value = "defer")]
    incoming: String,
    /// Does not end the source once the guest runs elsewhere; it stays, stopped.
    #[arg(long)]
    keep_source: bool,
    /// Stops the guest first: no page is sent twice, and the guest stands still all the while.
    #[arg(long)]
    non_live: bool,
    /// Does not start the guest on the destination.
    #[arg(long)]
    leave_paused: bool,
    /// Returns once the stream runs; `qmigrate watch` follows it from any shell.
    #[arg(long, conflicts_with = "json")]
    detach: bool,
    /// Prints the destination's command line, after all checks, and the QMP that repeats what was plugged in since the
    /// guest was started; changes nothing.
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    /// How downtime and bandwidth are set: modern, by migrate-set-parameters; legacy, by the two commands that QEMU
    /// had for it until 5.2; auto, as the QEMU can.
    #[arg(long, value_name = "WHICH", default_value = "auto", hide_possible_values = true)]
    dialect: Dialect,
    /// Moves a guest also where it may not survive that: live where QEMU is known to lose its writes (TCG before 9.0), or
    /// to a destination with other hardware.
    #[arg(long = "unsafe")]
    accept_risks: bool,
    #[command(flatten)]
    output: OutputArguments,
    /// The engine that --detach starts: the migration's name.
    #[arg(long, hide = true)]
    detached: Option<MigrationId>,
}

/// The words in which a QEMU is told its limits.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dialect {
    Auto,
    Legacy,
    Modern,
}

impl From<Dialect> for Wish {
    fn from(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Auto => Self::Auto,
            Dialect::Legacy => Self::Legacy,
            Dialect::Modern => Self::Modern,
        }
    }
}

/// The limits of a migration.
#[expect(clippy::struct_field_names, reason = "the flags are called so")]
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LimitArguments {
    /// The longest that the guest may stand still.
    #[arg(long, value_name = "TIME", default_value = "300ms", allow_hyphen_values = true)]
    max_downtime: DowntimeMs,
    /// The longest that copying may take.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    max_time: Option<Duration>,
    /// The fastest that memory is sent.
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    max_bandwidth: Option<Rate>,
}

impl LimitArguments {
    pub(crate) fn limits(self) -> Limits {
        let Self { max_downtime, max_time, max_bandwidth } = self;
        Limits { max_downtime, grace: None, max_time, max_bandwidth }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let source = match arguments.source.parse() {
        Ok(source) => source,
        Err(error) => return Ok(refuse(error, Some("a guest is named by its QMP socket, or by pid:PID"))),
    };
    let incoming = match incoming(&arguments.incoming) {
        Ok(incoming) => incoming,
        Err(refused) => return Ok(refused),
    };
    let made_from = match made_from(&arguments) {
        Ok(made_from) => made_from,
        Err(refused) => return Ok(refused),
    };
    if arguments.detach {
        return detach::run().await;
    }
    let runtime = runtime_directory()?;
    let output = arguments.output.clone();
    if arguments.dry_run {
        let plan = plan(arguments, source, made_from, incoming, &runtime);
        return Ok(dry_run(&plan).await);
    }
    probe::clear(&runtime);
    let signals = Signals::catch()?;
    let report = output.open_report()?;
    let plan = plan(arguments, source, made_from, incoming, &runtime);
    let mut session = Session::open(&plan, &output, report, signals, &runtime)?;
    let services = Services {
        history: &mut session.history,
        orders: &mut session.orders,
        journal: &mut session.journal,
        observed: &mut || Observed::NotObserved,
    };
    let outcome = engine::run(&plan, services).await;
    Ok(session.close(&outcome).await)
}

/// Looks at everything and prints the destination's command line, so that a shell would read it back, and below it the
/// lines of QMP that it is told while it waits.
async fn dry_run(plan: &Plan) -> ExitCode {
    let source = match survey(plan).await {
        Ok(source) => source,
        Err(blockers) => {
            for blocker in &blockers {
                refuse(blocker, blocker.hint.as_deref());
            }
            return ExitCode::from(End::Refused.exit_code());
        }
    };
    let Some(rewritten) = &source.rewritten else {
        say!("nothing stands in the way; the destination is there already");
        return ExitCode::SUCCESS;
    };
    for warning in &rewritten.warnings {
        say!("warning: {}", warning.message);
    }
    let words = without_secrets(&rewritten.line).render();
    let words = words.iter().map(|word| word.to_string_lossy());
    data!("{}", shell_words::join(words));
    for repetition in &source.repetitions {
        data!("{}", repetition.line());
    }
    ExitCode::SUCCESS
}

/// Where the destination listens: where a source on this machine can be told to send to.
fn incoming(text: &str) -> Result<Incoming, ExitCode> {
    let place = text.split_once(',').map_or(text, |(place, _)| place);
    let is_place = match place.split_once(':') {
        Some(("tcp", place)) => place.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()),
        Some(("unix", path)) => !path.is_empty(),
        _ => false,
    };
    match text {
        "defer" => Ok(Incoming::Defer),
        _ if is_place => Ok(Incoming::Literal(text.to_owned())),
        _ => Err(refuse(
            format!("--incoming {text}: a source on this machine cannot be told to send there"),
            Some("--incoming takes defer, tcp:HOST:PORT (PORT 0: any that is free) or unix:PATH"),
        )),
    }
}

/// What the destination's command line is made from.
fn made_from(arguments: &Arguments) -> Result<MadeFrom, ExitCode> {
    let Some(path) = &arguments.template else { return Ok(MadeFrom::Source) };
    let (file, values) = template::read(path, &arguments.set)?;
    if values.get(Placeholder::Incoming).is_some() {
        return Err(refuse(
            format!("--set {}: a migration chooses this itself", Placeholder::Incoming.word()),
            Some("--incoming WHERE says where the destination listens"),
        ));
    }
    Ok(MadeFrom::Template(Box::new(file), values))
}

fn plan(
    arguments: Arguments,
    source: QemuName,
    made_from: MadeFrom,
    incoming: Incoming,
    runtime: &std::path::Path,
) -> Plan {
    let id = arguments.detached.unwrap_or_default();
    let directory = runtime.join(id.as_str());
    let destination = match arguments.destination_qmp {
        Some(name) => Destination::Started(name),
        None => Destination::Start { made_from, qemu: arguments.qemu.map(executable), incoming },
    };
    Plan {
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
        risks: if arguments.accept_risks { Risks::Accept } else { Risks::Refuse },
        dialect: arguments.dialect.into(),
        directory,
    }
}
