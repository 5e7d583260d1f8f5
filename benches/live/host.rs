//! Where it was measured: nothing that names the machine, everything that explains its figures.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use qmigrate::guest::Accelerator;
use serde::Serialize;

/// What a figure depends on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Host {
    pub(crate) date: String,
    qmigrate: &'static str,
    qemu: String,
    accelerator: String,
    processor: String,
    cores: usize,
    kernel: String,
    load: String,
}

impl Host {
    pub(crate) fn look(qemu: &Path, accelerator: Accelerator) -> anyhow::Result<Self> {
        Ok(Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            qmigrate: env!("CARGO_PKG_VERSION"),
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
pub(crate) fn load() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn version(qemu: &Path) -> anyhow::Result<String> {
    let output = Command::new(qemu)
        .arg("--version")
        .output()
        .with_context(|| format!("{} cannot be started", qemu.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let word = text.split_ascii_whitespace().skip_while(|&word| word != "version").nth(1);
    Ok(word.with_context(|| format!("{} is no QEMU", qemu.display()))?.to_owned())
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
