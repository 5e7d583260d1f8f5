//! `demo`: the embedded guest, moved and proven.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qmigrate::guest::{Accelerator, Content, Pattern, Workload};
use qmigrate::host::runtime_directory;
use qmigrate::lab::demo::{self, DemoPlan, Findings, Setting};
use qmigrate::migrate::plan::Mode;
use qmigrate::record::{End, MigrationId, SCHEMA};
use qmigrate::units::{Rate, Size};

use super::consent::ConsentArguments;
use super::migrate::LimitArguments;
use super::session::{OutputArguments, Session, Signals};
use super::{Hinted, in_path, refuse};

/// Starts a small guest, moves it live to a second QEMU, and proves that no byte of its memory was lost.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How much memory the guest rewrites.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", allow_hyphen_values = true)]
    working_set: Size,
    /// How fast: a rate, or `unlimited`.
    #[arg(long, value_name = "RATE", default_value = "50MiB/s", allow_hyphen_values = true)]
    dirty_rate: DirtyRate,
    /// In which order: sweep, uniform, hot-and-cold[:WRITES/PAGES], phased[:ON/OFF].
    #[arg(long, value_name = "ORDER", default_value = "sweep")]
    pattern: Pattern,
    /// What is in the pages: incompressible or compressible.
    #[arg(long, value_name = "WHAT", default_value = "incompressible")]
    content: Content,
    /// The guest's memory; 64 MiB more than it rewrites if left out.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<Size>,
    /// Who executes the guest: kvm or tcg; KVM where it really runs it if left out.
    #[arg(long, value_name = "WHO")]
    accelerator: Option<Accelerator>,
    /// The QEMU for both sides; the one in PATH if left out.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    consents: ConsentArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// `unlimited`, or a rate.
#[derive(Debug, Clone, Copy)]
struct DirtyRate(Option<Rate>);

impl std::str::FromStr for DirtyRate {
    type Err = qmigrate::units::UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unlimited" { Ok(Self(None)) } else { text.parse().map(|rate| Self(Some(rate))) }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Some(qemu) = arguments.qemu.clone().or_else(|| in_path("qemu-system-x86_64")) else {
        return Ok(refuse(
            "there is no qemu-system-x86_64 on this machine",
            Some("apt-get install qemu-system-x86 (Debian), or name one with --qemu PATH"),
        ));
    };
    let workload = match workload(&arguments) {
        Ok(workload) => workload,
        Err(error) => {
            let hint = "--memory, --working-set, --dirty-rate and --pattern say what the guest is like; \
                        `qmigrate demo --help` tells how";
            return Ok(refuse(error, Some(hint)));
        }
    };
    let limits = match arguments.consents.on(arguments.limits.limits()) {
        Ok(limits) => limits,
        Err(refused) => return Ok(refused),
    };
    let plan = DemoPlan {
        qemu,
        accelerator: arguments.accelerator,
        workload,
        limits,
        id: MigrationId::new(),
        runtime_directory: runtime_directory()?,
    };
    let hinted = |error: demo::DemoError| Hinted::new(&error.into(), hint(&arguments));
    let mut signals = Signals::catch()?;
    let setting = demo::look(&plan).map_err(hinted)?;
    introduce(&plan, &setting);
    let report = arguments.output.open_report()?;
    let demo = tokio::select! {
        demo = demo::start(&plan, &setting) => demo.map_err(hinted)?,
        reason = signals.next() => {
            say!("{reason} before the guest was there");
            return Ok(ExitCode::from(End::NotMigrated.exit_code()));
        }
    };
    let mut session = Session::open(&demo.plan, &arguments.output, report, signals, &plan.runtime_directory)?;
    let (outcome, findings) = demo.run(&mut session.history, &mut session.orders, &mut session.journal).await;
    let code = session.close(&outcome).await;
    tell(&findings);
    if arguments.output.json {
        let mut line = serde_json::to_value(&findings)?;
        line["type"] = "demo".into();
        line["schema"] = SCHEMA.into();
        data!("{line}");
    }
    Ok(if findings.held || outcome.end != End::Migrated { code } else { ExitCode::FAILURE })
}

/// What to try where the guest does not even start.
fn hint(arguments: &Arguments) -> &'static str {
    if arguments.accelerator == Some(Accelerator::Kvm) {
        "without --accelerator the demo takes KVM where it runs the guest, and TCG elsewhere"
    } else {
        "--qemu PATH names another QEMU; --memory and --working-set say how much memory the guest takes"
    }
}

fn workload(arguments: &Arguments) -> anyhow::Result<Workload> {
    const MEBIBYTE: u64 = 1 << 20;
    let working_set = arguments.working_set;
    let memory = if let Some(memory) = arguments.memory {
        memory
    } else {
        let mebibytes = working_set.bytes().div_ceil(MEBIBYTE) + 64;
        Size::from_mebibytes(mebibytes)
            .ok_or_else(|| anyhow::anyhow!("{working_set} is more than any guest has"))?
    };
    Ok(Workload::new(memory, working_set, arguments.dirty_rate.0, arguments.pattern, arguments.content)?)
}

fn introduce(plan: &DemoPlan, setting: &Setting) {
    let workload = &plan.workload;
    let rate =
        workload.dirty_rate().map_or_else(|| "as fast as it can".to_owned(), |rate| format!("at {rate}"));
    let (major, minor) = setting.version;
    say!(
        "guest      {} of memory, rewrites {} {rate} ({}, {}); {} on QEMU {major}.{minor}",
        workload.memory(),
        workload.working_set(),
        workload.pattern(),
        workload.content(),
        setting.accelerator
    );
    if let Some(why) = &setting.why_not_kvm {
        say!("           not under KVM: {why}");
    }
    if setting.mode == Mode::NonLive {
        say!(
            "           this QEMU loses writes of a guest that TCG runs while it is moved, so it is stopped first.\n\
             hint: a live move needs KVM or QEMU 9.0: Debian 12 has it as qemu-system-x86 in bookworm-backports, \
             Debian 13 as qemu-system-x86; tests/demo gets it"
        );
    }
}

fn tell(findings: &Findings) {
    if findings.memory_verified {
        say!("memory     every byte of {} pages is as it must be", findings.pages_verified);
    }
    if findings.never_two {
        say!("hearts     never two: the destination's first beat follows the source's last");
    }
    for fault in &findings.faults {
        say!("FAULT      {fault}");
    }
}
