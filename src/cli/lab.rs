//! `lab`: plans of many migrations, run, compared and scored.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use qmigrate::guest::Accelerator;
use qmigrate::host::runtime_directory;
use qmigrate::lab::host::{Host, load};
use qmigrate::lab::link::Shaper;
use qmigrate::lab::place::{self, Place};
use qmigrate::lab::plan::{Cell, Plan};
use qmigrate::lab::results::{self, Ended, Figures, Line, Results};
use qmigrate::lab::run::{Bench, RunError};
use qmigrate::lab::score::score;
use qmigrate::lab::table;
use qmigrate::units::show_duration;
use tokio::sync::watch;

use super::session::Signals;
use super::{Hinted, executable, in_path, refuse};

/// Runs plans of many migrations of the embedded guest, compares their results, scores their forecasts.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(RunArguments),
    /// Prints the results as tables, one row per cell.
    Table(ReadArguments),
    /// Holds the forecasts made at pass 2 against what came; exit 1 if they miss a goal.
    Score(ReadArguments),
}

#[derive(Debug, Args)]
struct ReadArguments {
    /// The results of one plan or of several.
    results: PathBuf,
}

/// Runs what of a plan does not stand in the results yet. The cells take turns, and each result is appended as soon as it is
/// there; a runner that was killed is simply started again.
#[derive(Debug, Args)]
struct RunArguments {
    /// The plan, in JSON.
    plan: PathBuf,
    /// Where the results are appended, one JSON object per line.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Keeps the whole record of each run in this directory.
    #[arg(long, value_name = "DIRECTORY")]
    records: Option<PathBuf>,
    /// Only the cells in whose name (GUEST/POLICY/BUDGET/LINK) this stands. Repeatable.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// At most so many repeats of each cell.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: Option<u32>,
    /// Who shapes the link: tbf in a network namespace (root only), QEMU's max-bandwidth, or auto for the first that works.
    #[arg(long, value_name = "WHO", default_value = "auto", hide_possible_values = true)]
    link: LinkChoice,
    /// The QEMU for both sides; the one in PATH if left out.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Who executes the guests: kvm or tcg.
    #[arg(long, value_name = "WHO", default_value = "tcg")]
    accelerator: Accelerator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LinkChoice {
    Auto,
    Tbf,
    MaxBandwidth,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run(arguments) => run_plan(arguments).await,
        Command::Table(ReadArguments { results }) => {
            show!("{}", table::tables(&results::read(&results)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Score(ReadArguments { results }) => {
            let score = score(&results::read(&results)?);
            show!("{}", score.markdown());
            Ok(if score.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

async fn run_plan(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let Some(qemu) = arguments.qemu.clone().or_else(|| in_path("qemu-system-x86_64")) else {
        return Ok(refuse(
            "there is no qemu-system-x86_64 on this machine",
            Some("apt-get install qemu-system-x86 (Debian), or name one with --qemu PATH"),
        ));
    };
    let qemu = executable(qemu);
    let mut plan = read_plan(&arguments.plan)?;
    if let Some(most) = arguments.repeats {
        plan.cells.iter_mut().for_each(|cell| cell.repeats = cell.repeats.min(most));
    }
    let mut signals = Signals::catch()?;
    let mut results = Results::open(&arguments.out)?;
    let host = Host::look(&qemu, arguments.accelerator)?;
    let runtime = runtime_directory()?;
    for path in place::clear(&runtime).await? {
        say!("{}: what a runner that was killed has left is gone now", path.display());
    }
    let bench = Bench {
        engine: std::env::current_exe()?,
        qemu,
        accelerator: arguments.accelerator,
        place: Place::create(&runtime)?,
        shaper: shaper(arguments.link)?,
        records: arguments.records,
    };
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        let reason = signals.next().await;
        say!("{reason}: the guest is given back and ended; what is done stands in the results");
        let _ = stop.send(true);
    });
    let is_wanted = |cell: &Cell| {
        arguments.only.is_empty() || arguments.only.iter().any(|text| cell.to_string().contains(text))
    };
    work_through(&plan, &bench, &mut results, &host, stopping, is_wanted).await
}

fn read_plan(path: &Path) -> anyhow::Result<Plan> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the plan {} cannot be read", path.display()))?;
    let plan = Plan::parse(&text).with_context(|| format!("the plan {} cannot be followed", path.display()));
    Ok(plan.map_err(|error| Hinted::new(&error, "benches/plans has plans to look at"))?)
}

/// The link that was asked for; where it cannot be had and need not be, QEMU's own limit, which is said loudly.
fn shaper(choice: LinkChoice) -> anyhow::Result<Shaper> {
    if choice == LinkChoice::MaxBandwidth {
        return Ok(Shaper::MaxBandwidth);
    }
    match Shaper::enter() {
        Ok(shaper) => Ok(shaper),
        Err(error) if choice == LinkChoice::Auto => {
            say!(
                "WARNING: there is no shaped link: {:#}\n\
                 WARNING: QEMU's max-bandwidth stands in for it, which does not hold in the switchover; each result says so",
                anyhow::Error::from(error)
            );
            Ok(Shaper::MaxBandwidth)
        }
        Err(error) => Err(error.into()),
    }
}

/// Does run after run. A cell that fails is not tried again by this runner.
async fn work_through(
    plan: &Plan,
    bench: &Bench,
    results: &mut Results,
    host: &Host,
    stopping: watch::Receiver<bool>,
    is_wanted: impl Fn(&Cell) -> bool,
) -> anyhow::Result<ExitCode> {
    let mut failed: Vec<String> = Vec::new();
    loop {
        let done = results.done(plan, &bench.shaper);
        let may_run = |cell: &Cell| is_wanted(cell) && !failed.contains(&cell.to_string());
        let Some((cell, repeat)) = plan.next(&done, may_run) else { break };
        let ended = bench.run(cell, repeat, plan.censor_after, stopping.clone()).await;
        let came = match ended {
            Err(RunError::Stopped) => return Ok(ExitCode::FAILURE),
            Ok(figures) => Ended::Run(Box::new(figures)),
            Err(error) => {
                failed.push(cell.to_string());
                Ended::Failed { error: format!("{:#}", anyhow::Error::from(error)) }
            }
        };
        say!("{cell} {repeat}/{}: {}", cell.repeats, in_a_line(&came));
        results.add(Line {
            schema: results::SCHEMA,
            plan: plan.name.clone(),
            guest: cell.guest.name.clone(),
            policy: cell.policy.name.clone(),
            budget: cell.budget.name.clone(),
            link: cell.link.name.clone(),
            repeat,
            definition: plan.definition(cell),
            link_kind: bench.shaper.kind(cell.link.rate),
            at: jiff::Timestamp::now(),
            host: Host { load: load(), ..host.clone() },
            came,
        })?;
    }
    for cell in &failed {
        say!("not done: {cell}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_a_line(ended: &Ended) -> String {
    let figures: &Figures = match ended {
        Ended::Run(figures) => figures,
        Ended::Failed { error } => return format!("FAILED: {error}"),
    };
    let milliseconds =
        |ms: f64| show_duration(std::time::Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default());
    let end = match figures.exit_code {
        _ if figures.censored => "censored".to_owned(),
        Some(code) => format!("exit {code}"),
        None => "killed".to_owned(),
    };
    let mut parts = vec![format!("{end} after {}", milliseconds(figures.command_ms))];
    parts.extend(figures.blackout_ms().map(|blackout_ms| format!("blackout {}", milliseconds(blackout_ms))));
    parts.extend(figures.faults.iter().map(|fault| format!("FAULT: {fault}")));
    parts.join(", ")
}
