//! What is measured, and against what.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use qmigrate::converge::{Consents, Controller};
use qmigrate::guest::Accelerator;
use qmigrate::lab::figures::Figures;
use qmigrate::migrate::plan::Limits;
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;

use crate::command::{self, Ended, Memory};
use crate::guest::{Guest, Load, TEN_DEVICES};
use crate::hand;
use crate::results::Results;
use crate::table;

/// A blackout of this length has waited for a delayed acknowledgement (40 ms) on top of what it does.
const DELAYED_MS: std::ops::RangeInclusive<f64> = 38.0..=60.0;

/// What all runs share.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) qemu: PathBuf,
    pub(crate) accelerator: Accelerator,
    /// The `downtime-limit` that the engine begins with.
    limit_ms: u64,
    /// Where the command keeps its records and sockets.
    home: TempDir,
}

impl Setting {
    pub(crate) fn new(qemu: PathBuf, accelerator: Accelerator) -> anyhow::Result<Self> {
        let limit_ms = Controller::new(Limits::default().budget(), Consents::default()).limit_ms();
        let home = tempfile::Builder::new().prefix("qm-home-").tempdir()?;
        Ok(Self { qemu, accelerator, limit_ms, home })
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }
}

/// How the stream travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Unix,
    Tcp,
}

/// What one migration took, whoever drove it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Moved {
    /// From the first step to the last.
    pub(crate) total_ms: f64,
    pub(crate) stop_to_resume_ms: Option<f64>,
    /// What QEMU says itself.
    pub(crate) qemu_downtime_ms: Option<u64>,
    pub(crate) stream_ms: Option<u64>,
    pub(crate) passes: Option<u64>,
    /// Whether the limit that it began with was not enough.
    pub(crate) limit_raised: bool,
}

/// Who drives.
#[derive(Debug, Clone, Copy)]
enum Arm {
    Command,
    Hand { limit_ms: u64 },
}

impl Arm {
    fn name(self) -> String {
        match self {
            Self::Command => "qmigrate".to_owned(),
            Self::Hand { limit_ms } => format!("by hand, limit {limit_ms} ms"),
        }
    }
}

/// One run: a migration, and what was seen of it from outside.
#[derive(Debug, Serialize)]
struct Run {
    #[serde(flatten)]
    moved: Moved,
    heartbeat_gap_ms: f64,
    heartbeat_error_ms: f64,
    round_trip_ms: f64,
}

async fn one(
    setting: &Setting,
    arm: Arm,
    stream: Stream,
    load: Load,
    options: &[&str],
) -> anyhow::Result<Run> {
    let guest = Guest::start(setting, load).await?;
    let round_trip_ms = hand::round_trip_ms(&guest.monitor())?;
    let moved = match arm {
        Arm::Command => {
            let monitor = guest.monitor();
            let monitor = monitor.to_str().context("a path that is no text")?;
            let arguments = [&["migrate", monitor], options].concat();
            command::run(setting, &arguments, Memory::Unwatched)?.moved()?
        }
        Arm::Hand { limit_ms } => hand::migrate(&guest, stream, limit_ms).await?,
    };
    let gap = guest.arrived()?;
    guest.verify_and_end().await?;
    Ok(Run { moved, heartbeat_gap_ms: gap.milliseconds, heartbeat_error_ms: gap.error, round_trip_ms })
}

/// The runs of each arm, in turns.
async fn in_turns(
    setting: &Setting,
    (series, runs): (&str, usize),
    (arms, stream): (&[Arm], Stream),
    load: Load,
    options: &[&str],
    results: &mut Results,
) -> anyhow::Result<Vec<Vec<Run>>> {
    let mut taken: Vec<Vec<Run>> = arms.iter().map(|_| Vec::new()).collect();
    for number in 1..=runs {
        for (arm, taken) in arms.iter().zip(&mut taken) {
            eprintln!("{series} {number}/{runs}: {}", arm.name());
            let run = one(setting, *arm, stream, load, options)
                .await
                .with_context(|| format!("{series}, run {number}, {}", arm.name()))?;
            results.add(series, &arm.name(), number, &run)?;
            taken.push(run);
        }
    }
    Ok(taken)
}

fn figures(runs: &[Run], figure: impl Fn(&Run) -> Option<f64>) -> Figures {
    runs.iter().filter_map(figure).collect()
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of one migration")]
fn qemu_downtime(run: &Run) -> Option<f64> {
    run.moved.qemu_downtime_ms.map(|milliseconds| milliseconds as f64)
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of one migration")]
fn stream_time(run: &Run) -> Option<f64> {
    run.moved.stream_ms.map(|milliseconds| milliseconds as f64)
}

/// What a small guest has besides its memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Devices {
    None,
    Ten,
}

/// The whole command, with a small guest, against the same steps by hand with the same end state.
pub(crate) async fn whole_command(
    setting: &Setting,
    devices: Devices,
    runs: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let arms = [Arm::Command, Arm::Hand { limit_ms: setting.limit_ms }];
    let (series, words, devices): (_, _, &[&str]) = match devices {
        Devices::None => ("whole-command", "", &[]),
        Devices::Ten => ("ten-devices", " and has ten devices", &TEN_DEVICES),
    };
    let load = Load { memory_mib: 64, working_set_mib: 4, rate: "1MiB/s", devices };
    let taken = in_turns(setting, (series, runs), (&arms, Stream::Unix), load, &[], results).await?;
    let [command, hand] = &taken[..] else { return Ok(()) };
    let ratios: Figures = command
        .iter()
        .zip(hand)
        .map(|(command, hand)| command.moved.total_ms / hand.moved.total_ms)
        .collect();
    let over: Figures = command
        .iter()
        .zip(hand)
        .map(|(command, hand)| command.moved.total_ms - 1.3 * hand.moved.total_ms)
        .collect();
    let total = |run: &Run| Some(run.moved.total_ms);
    let (command, hand) = (figures(command, total), figures(hand, total));
    table::print(
        &format!("Whole `migrate` command, 64 MiB guest that rewrites 4 MiB{words} ({runs} pairs, in turns)"),
        &["", "median (smallest - largest)"],
        &[
            vec!["`qmigrate migrate`, ms".to_owned(), command.to_string()],
            vec!["the same steps by hand, ms".to_owned(), hand.to_string()],
            vec!["ratio within a pair".to_owned(), ratios.to_string()],
            vec!["over 1.3 x by hand within a pair, ms".to_owned(), over.to_string()],
        ],
    );
    table::goal("Medians, 1.3 x by hand + 40 ms", 1.3 * hand.median() + 40.0, command.median(), "ms");
    Ok(())
}

/// How long a guest stands still that dirties slower than the link.
pub(crate) async fn blackout(
    setting: &Setting,
    stream: Stream,
    runs: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let arms = [
        Arm::Command,
        Arm::Hand { limit_ms: hand::DEFAULT_LIMIT_MS },
        Arm::Hand { limit_ms: setting.limit_ms },
    ];
    let (series, options, words): (_, &[&str], _) = match stream {
        Stream::Unix => ("blackout-unix", &["--json"], "unix socket"),
        Stream::Tcp => ("blackout-tcp", &["--json", "--incoming", "tcp:127.0.0.1:0"], "TCP"),
    };
    let load = Load { memory_mib: 320, working_set_mib: 256, rate: "50MiB/s", devices: &[] };
    let taken = in_turns(setting, (series, runs), (&arms, stream), load, options, results).await?;
    let observed = |run: &Run| Some(run.heartbeat_gap_ms);
    let stop_to_resume = |run: &Run| run.moved.stop_to_resume_ms;
    let mut columns = vec![
        "",
        "observed (heartbeats, less one beat)",
        "STOP to RESUME",
        "QEMU's `downtime`",
        "stream",
        "limit raised",
    ];
    let rows = arms.iter().zip(&taken).map(|(arm, taken)| {
        let mut row = vec![
            arm.name(),
            figures(taken, observed).to_string(),
            figures(taken, stop_to_resume).to_string(),
            figures(taken, qemu_downtime).to_string(),
            figures(taken, stream_time).to_string(),
            taken.iter().filter(|run| run.moved.limit_raised).count().to_string(),
        ];
        if stream == Stream::Tcp {
            row.push(figures(taken, stop_to_resume).share(DELAYED_MS));
        }
        row
    });
    if stream == Stream::Tcp {
        // With a limit of 300 ms a blackout may be as long for other reasons.
        columns.push("38-60 ms (delayed acknowledgement)");
    }
    table::print(
        &format!(
            "Blackout over {words}, 320 MiB guest that sweeps 256 MiB at 50 MiB/s ({runs} rounds, in turns): median \
             (smallest - largest), ms"
        ),
        &columns,
        &rows.collect::<Vec<_>>(),
    );
    let [command, default, same] = &taken[..] else { return Ok(()) };
    match stream {
        Stream::Unix => {
            table::goal("Median observed blackout", 10.0, figures(command, observed).median(), "ms");
        }
        Stream::Tcp => {
            let round_trip = figures(default, |run| Some(run.round_trip_ms)).median();
            for (whose, runs) in [("QEMU's own", default), ("QEMU's own at the engine's limit", same)] {
                let own = figures(runs, stop_to_resume).median();
                table::goal(
                    &format!(
                        "Median STOP to RESUME, {whose} ({own:.2}) + 5 ms + one round trip ({round_trip:.2})"
                    ),
                    own + 5.0 + round_trip,
                    figures(command, stop_to_resume).median(),
                    "ms",
                );
            }
        }
    }
    Ok(())
}

/// What one command has cost.
#[derive(Debug, Serialize)]
struct Cost {
    cpu_ms: f64,
    wall_ms: f64,
    peak_kib: Option<u64>,
}

impl From<&Ended> for Cost {
    fn from(ended: &Ended) -> Self {
        let milliseconds = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        Self { cpu_ms: milliseconds(ended.cpu), wall_ms: milliseconds(ended.wall), peak_kib: ended.peak_kib }
    }
}

/// What the engine costs: to start, and over a long migration.
pub(crate) async fn engine_cost(
    setting: &Setting,
    starts: usize,
    migrations: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut commands: [(&str, &[&str], i32, Vec<Cost>); 2] = [
        ("`--version`", &["--version"], 0, Vec::new()),
        ("refused `migrate`", &["migrate", "/no/such/socket"], 2, Vec::new()),
    ];
    for number in 1..=starts {
        for (name, arguments, exit_code, costs) in &mut commands {
            let ended = command::run(setting, arguments, Memory::Unwatched)?;
            ensure!(ended.exit_code == Some(*exit_code), "{name}: {ended:?}");
            let cost = Cost::from(&ended);
            results.add("start-up", name, number, &json!(cost))?;
            costs.push(cost);
        }
    }
    let mut long = Vec::new();
    let load = Load { memory_mib: 192, working_set_mib: 128, rate: "2MiB/s", devices: &[] };
    for number in 1..=migrations {
        eprintln!("engine-cost {number}/{migrations}: a migration of more than 10 s");
        let guest = Guest::start(setting, load).await?;
        let monitor = guest.monitor();
        let monitor = monitor.to_str().context("a path that is no text")?;
        let ended = command::run(
            setting,
            &["migrate", monitor, "--json", "--max-bandwidth", "10MiB/s"],
            Memory::Watched,
        )?;
        ended.moved()?;
        guest.arrived()?;
        guest.verify_and_end().await?;
        let cost = Cost::from(&ended);
        results.add("engine-cost", "migrate", number, &json!(cost))?;
        long.push(cost);
    }
    show_costs(&commands.map(|(name, _, _, costs)| (name, costs)), &long);
    Ok(())
}

fn show_costs(starts: &[(&str, Vec<Cost>)], long: &[Cost]) {
    let cpu = |costs: &[Cost]| costs.iter().map(|cost| cost.cpu_ms).collect::<Figures>();
    let wall = |costs: &[Cost]| costs.iter().map(|cost| cost.wall_ms).collect::<Figures>();
    let share = long.iter().map(|cost| cost.cpu_ms / cost.wall_ms * 100.0).collect::<Figures>();
    #[expect(clippy::cast_precision_loss, reason = "mebibytes of one process")]
    let peak = long.iter().filter_map(|cost| Some(cost.peak_kib? as f64 / 1024.0)).collect::<Figures>();
    let mut rows: Vec<Vec<String>> = starts
        .iter()
        .map(|(name, costs)| {
            vec![
                format!("{name} ({} times)", costs.len()),
                cpu(costs).to_string(),
                wall(costs).to_string(),
                "-".to_owned(),
                "-".to_owned(),
            ]
        })
        .collect();
    rows.push(vec![
        format!("`migrate`, stretched ({} times)", long.len()),
        cpu(long).to_string(),
        wall(long).to_string(),
        share.to_string(),
        peak.to_string(),
    ]);
    table::print(
        "Engine cost: median (smallest - largest)",
        &["", "CPU, ms", "wall, ms", "share of a core, %", "peak memory, MiB"],
        &rows,
    );
    let largest = starts.iter().map(|(_, costs)| cpu(costs).median()).fold(0.0, f64::max);
    table::goal("Start-up CPU", 30.0, largest, "ms");
    table::goal("Share of a core over a long migration", 1.0, share.median(), "%");
    table::goal("Peak memory", 32.0, peak.largest(), "MiB");
}
