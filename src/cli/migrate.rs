//! `migrate`: moves a guest.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use qmigrate::converge::PolicyName;
use qmigrate::host::{UnitName, runtime_directory, state_directory};
use qmigrate::migrate::engine::{self, Services};
use qmigrate::migrate::kept;
use qmigrate::migrate::phase::AtDestination;
use qmigrate::migrate::plan::{
    Destination, HostPrograms, Incoming, Limits, MadeFrom, Mode, Plan, Risks, SourceAfter,
};
use qmigrate::migrate::step::survey::survey;
use qmigrate::qemu::QemuName;
use qmigrate::qemu::dialect::{Wish, probe};
use qmigrate::qemu::rewrite::Map;
use qmigrate::qemu::template::Placeholder;
use qmigrate::record::{End, MigrationId, Observed};
use qmigrate::units::{DowntimeMs, Rate, parse_duration};

use super::consent::ConsentArguments;
use super::session::{OutputArguments, Session, Signals};
use super::{detach, executable, refuse, template, without_secrets};

#[expect(clippy::struct_excessive_bools, reason = "flags are what was typed; the plan has types")]
/// What decides whether a guest can be moved.
#[derive(Debug, Args)]
pub(crate) struct Choices {
    /// The guest: its QMP socket (PATH, unix:PATH, tcp:HOST:PORT) or its process (pid:PID).
    source: String,
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
    /// Another resource on the destination, wherever OLD is the whole value of a property: a path, an interface, an
    /// address, a host. Repeatable.
    #[arg(long = "map", value_name = "OLD=NEW", conflicts_with = "destination_qmp")]
    maps: Vec<Map>,
    /// Where the destination listens: `defer` (a private socket), tcp:HOST:PORT or unix:PATH.
    #[arg(long, value_name = "WHERE", default_value = "defer")]
    incoming: String,
    /// Does not end the source once the guest runs elsewhere; it stays, stopped.
    #[arg(long)]
    keep_source: bool,
    /// Ends the source by `systemctl stop UNIT`, for one that systemd would start anew.
    #[arg(long, value_name = "UNIT", conflicts_with = "keep_source")]
    source_unit: Option<UnitName>,
    /// Stops the guest first: no page is sent twice, and the guest stands still all the while.
    #[arg(long)]
    non_live: bool,
    /// How downtime and bandwidth are set: modern, by migrate-set-parameters; legacy, by the two commands that QEMU
    /// had for it until 5.2; auto, as the QEMU can.
    #[arg(long, value_name = "WHICH", default_value = "auto", hide_possible_values = true)]
    dialect: Dialect,
    /// Moves a guest also where it may not survive that: live where QEMU is known to lose its writes (TCG before 9.0), or
    /// to a destination with other hardware.
    #[arg(long = "unsafe")]
    accept_risks: bool,
    /// As root: moves a guest also where its destination runs other programs of this host, such as tap scripts, helpers or
    /// plugins.
    #[arg(long)]
    allow_host_programs: bool,
}

/// Moves a running guest to a second QEMU on this machine, started from the first one's command line or a template.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    consents: ConsentArguments,
    /// Asks this policy too with each sample, tells what it would have done, and does nothing of it. Repeatable.
    #[arg(long = "shadow", value_name = "POLICY")]
    shadows: Vec<PolicyName>,
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
        Limits { max_downtime, max_time, max_bandwidth, ..Limits::default() }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { choices, limits, consents, shadows, leave_paused, detach, dry_run, output, detached } =
        arguments;
    let limits = match consents.on(limits.limits()) {
        Ok(limits) => limits,
        Err(refused) => return Ok(refused),
    };
    let runtime = runtime_directory()?;
    let plan = match choices.plan(detached.unwrap_or_default(), &runtime) {
        Ok(plan) => plan,
        Err(refused) => return Ok(refused),
    };
    if detach {
        return detach::run().await;
    }
    let at_destination = if leave_paused { AtDestination::Standing } else { AtDestination::AsBefore };
    let plan = Plan { limits, shadows, at_destination, ..plan };
    if dry_run {
        return Ok(self::dry_run(&plan).await);
    }
    probe::clear(&runtime);
    kept::clear(&runtime, &state_directory()?);
    let signals = Signals::catch()?;
    let report = output.open_report()?;
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
    for warning in source.warnings.iter().chain(&rewritten.warnings) {
        say!("warning: {}", warning.message);
    }
    for moved in &rewritten.moved {
        say!("{}: {} becomes {}", moved.what, moved.from, moved.to);
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
fn made_from(arguments: &Choices) -> Result<MadeFrom, ExitCode> {
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

impl Choices {
    /// The plan that they make, with the usual limits; or what was wrong with them, which has been said.
    pub(crate) fn plan(self, id: MigrationId, runtime: &Path) -> Result<Plan, ExitCode> {
        let source = self.source.parse();
        let source = source
            .map_err(|error| refuse(error, Some("a guest is named by its QMP socket, or by pid:PID")))?;
        let incoming = incoming(&self.incoming)?;
        let made_from = made_from(&self)?;
        let destination = match self.destination_qmp {
            Some(name) => Destination::Started(name),
            None => Destination::Start { made_from, qemu: self.qemu.map(executable), incoming },
        };
        Ok(Plan {
            directory: runtime.join(id.as_str()),
            id,
            typed: self.source,
            source,
            destination,
            limits: Limits::default(),
            shadows: Vec::new(),
            mode: if self.non_live { Mode::NonLive } else { Mode::Live },
            at_destination: AtDestination::AsBefore,
            source_after: match self.source_unit {
                Some(unit) => SourceAfter::StopUnit(unit),
                None if self.keep_source => SourceAfter::Keep,
                None => SourceAfter::Quit,
            },
            maps: self.maps,
            risks: if self.accept_risks { Risks::Accept } else { Risks::Refuse },
            host_programs: if self.allow_host_programs { HostPrograms::Allow } else { HostPrograms::Refuse },
            dialect: self.dialect.into(),
        })
    }
}
