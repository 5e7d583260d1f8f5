//! Series from real pairs of QEMUs: the engine, and beside it QEMU driven by hand.
//!
//! The two sides of a comparison take turns (A B A B), so that what else happens on the machine happens to both; what
//! counts is their ratio. Each result is written as soon as it is there, one JSON object per line; the tables are
//! Markdown. Nothing here is a test of time. The exit code says whether every guest arrived, with every byte of its
//! memory.
//!
//! ```text
//!  cargo bench --bench live -- [--quick] [--series whole-command,...] [--runs N] [--qemu PATH] [--output FILE]
//! ```

/// The command as a user runs it, and what it costs.
mod command;
/// A guest for one run.
mod guest;
/// The same steps over QMP, by hand.
mod hand;
/// Results on their way to a file.
mod results;
/// What is measured, and against what.
mod series;
/// Tables and goals, printed.
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use qmigrate::guest::Accelerator;
use qmigrate::lab::host::{Host, Ticks, load};

use crate::results::Results;
use crate::series::{Devices, Setting};

/// Measures live migrations between real pairs of QEMUs.
#[derive(Debug, Parser)]
struct Arguments {
    /// Three runs of each, in less than two minutes.
    #[arg(long)]
    quick: bool,
    /// How many runs of each; a series of its own kind says otherwise.
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Which series; all if left out.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    series: Vec<Name>,
    /// The QEMU for both sides; if left out `QMIGRATE_QEMU` or the one in PATH.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Who executes the guest: kvm or tcg.
    #[arg(long, value_name = "WHO", default_value = "tcg")]
    accelerator: Accelerator,
    /// Where the results are appended, one JSON object per line; if left out `QMIGRATE_LIVE_RESULTS` or
    /// target/live/DATE.jsonl.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// The whole command against the same steps by hand.
    WholeCommand,
    /// The same with a guest that has ten devices.
    TenDevices,
    /// How long a guest stands still that dirties slower than the link; unix socket.
    BlackoutUnix,
    /// The same over TCP.
    BlackoutTcp,
    /// What the engine costs.
    EngineCost,
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let qemu = arguments.qemu.clone().or_else(|| named("QMIGRATE_QEMU")).or_else(in_path).context(
        "there is no qemu-system-x86_64 on this machine: install qemu-system-x86, or name one with --qemu PATH",
    )?;
    let qemu = std::path::absolute(qemu)?;
    let host = Host::look(&qemu, arguments.accelerator)?;
    // Opened before anything is measured: a path that cannot be written fails now.
    let output = arguments.output.clone().or_else(|| named("QMIGRATE_LIVE_RESULTS"));
    let mut results = Results::open(output, &host)?;
    let setting = Setting::new(qemu, arguments.accelerator)?;
    let runs = |most: usize| arguments.runs.unwrap_or(if arguments.quick { 3 } else { most });
    let wanted = |name| arguments.series.is_empty() || arguments.series.contains(&name);

    println!("{host}\n");
    let start = Ticks::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if wanted(Name::WholeCommand) {
            series::whole_command(&setting, Devices::None, runs(30), &mut results).await?;
        }
        if wanted(Name::TenDevices) {
            series::whole_command(&setting, Devices::Ten, runs(30), &mut results).await?;
        }
        if wanted(Name::BlackoutUnix) {
            series::blackout(&setting, series::Stream::Unix, runs(20), &mut results).await?;
        }
        if wanted(Name::BlackoutTcp) {
            series::blackout(&setting, series::Stream::Tcp, runs(20), &mut results).await?;
        }
        if wanted(Name::EngineCost) {
            let long = if arguments.quick { 1 } else { 3 };
            series::engine_cost(&setting, runs(30), long, &mut results).await?;
        }
        anyhow::Ok(())
    })?;
    let stolen = Ticks::now().stolen_since(start);
    println!(
        "Load average at the end: {}; {stolen:.1} % of the processors' time went to other machines.",
        load()
    );
    eprintln!("results: {}", results.path().display());
    Ok(())
}

fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join("qemu-system-x86_64")).find(|file| file.is_file())
}
