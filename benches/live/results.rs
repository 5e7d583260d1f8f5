//! Results on their way to a file: each is written as soon as it is there, so that a series that fails late has not
//! been for nothing.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use qmigrate::lab::host::{Host, load};
use serde::Serialize;
use serde_json::{Value, json};

/// A file of JSON lines.
#[derive(Debug)]
pub(crate) struct Results {
    file: File,
    path: PathBuf,
}

impl Results {
    pub(crate) fn open(path: Option<PathBuf>, host: &Host) -> anyhow::Result<Self> {
        let path = path.unwrap_or_else(|| usual(&host.date));
        let failed = || format!("{} cannot be written", path.display());
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(failed)?;
        let mut results = Self { file, path };
        results.write(&json!({ "type": "host", "host": host }))?;
        Ok(results)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one run, with the load of the moment.
    pub(crate) fn add(
        &mut self,
        series: &str,
        arm: &str,
        run: usize,
        figures: &impl Serialize,
    ) -> anyhow::Result<()> {
        self.write(&json!({
            "type": "run", "series": series, "arm": arm, "run": run, "load": load(), "figures": figures,
        }))
    }

    fn write(&mut self, line: &Value) -> anyhow::Result<()> {
        writeln!(self.file, "{line}").with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

fn usual(date: &str) -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    temporary.parent().unwrap_or(temporary).join("live").join(format!("{date}.jsonl"))
}
