//! Where it was measured: nothing that names the machine, everything that explains its figures.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::subject::SubjectError;
use crate::guest::Accelerator;

/// What a figure depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The day.
    pub date: String,
    /// The version of the engine.
    pub qmigrate: String,
    /// The version of both QEMUs.
    pub qemu: String,
    /// Who executes the guest.
    pub accelerator: String,
    /// The processor's model.
    pub processor: String,
    /// How many of them.
    pub cores: usize,
    /// The kernel's version.
    pub kernel: String,
    /// The load averages of 1, 5 and 15 minutes.
    pub load: String,
}

impl Host {
    /// Looks at this host and this QEMU.
    pub fn look(qemu: &Path, accelerator: Accelerator) -> Result<Self, SubjectError> {
        Ok(Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            qmigrate: env!("CARGO_PKG_VERSION").to_owned(),
            qemu: version(qemu)?,
            accelerator: accelerator.to_string(),
            processor: processor(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease"),
            load: load(),
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, qmigrate, qemu, accelerator, processor, cores, kernel, load } = self;
        write!(
            formatter,
            "Measured on {date}: qmigrate {qmigrate}, QEMU {qemu} ({accelerator}), {processor}, {cores} cores, Linux {kernel}; \
             load average at the start: {load}."
        )
    }
}

/// The load averages of 1, 5 and 15 minutes.
pub fn load() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The time of this machine's processors so far, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    all: u64,
    /// Of these, what a virtual machine was kept from by its host; the load average does not show it.
    stolen: u64,
}

impl Ticks {
    /// Those up to now.
    pub fn now() -> Self {
        let text = read("/proc/stat");
        let numbers = text.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
        // The last two are times of guests, which are in the first two already.
        let ticks: Vec<u64> = numbers.take(8).filter_map(|number| number.parse().ok()).collect();
        Self { all: ticks.iter().sum(), stolen: ticks.get(7).copied().unwrap_or(0) }
    }

    /// The share that was stolen since then, in per cent.
    #[expect(clippy::cast_precision_loss, reason = "ticks of hours")]
    pub fn stolen_since(self, start: Self) -> f64 {
        let all = self.all.saturating_sub(start.all).max(1);
        self.stolen.saturating_sub(start.stolen) as f64 / all as f64 * 100.0
    }
}

fn version(qemu: &Path) -> Result<String, SubjectError> {
    let failed = |source| SubjectError::Start { qemu: qemu.to_owned(), source };
    let output = Command::new(qemu).arg("--version").output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let word = text.split_ascii_whitespace().skip_while(|&word| word != "version").nth(1);
    word.map(str::to_owned).ok_or_else(|| failed(io::Error::other("it does not say its version")))
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
