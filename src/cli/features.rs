//! `features`: what QEMUs can do, side by side.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use qmigrate::check::{Blocker, Code};
use qmigrate::host::runtime_directory;
use qmigrate::qemu::dialect::features::Features;
use qmigrate::qemu::dialect::probe::Probe;
use qmigrate::qemu::{QemuName, locate};
use qmigrate::qmp::{Deadlines, Leg};

/// The table as text, as Markdown, and as JSON.
mod table;

use super::session::Signals;
use super::{in_path, refuse};
use table::Column;

/// A monitor that is free greets at once.
const GREETING_WITHIN: Duration = Duration::from_secs(2);
const USUAL: &str = "qemu-system-x86_64";

/// Shows what QEMUs can do, as each says itself: commands, capabilities, parameters, statuses.
///
/// A QEMU that is an executable is started without a machine, asked, and ended. One that runs already is asked through
/// its monitor, which takes about 30 ms of its time, and its parameters are shown as they are set now.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Executables (a path, or a name in PATH) and running QEMUs (PATH, unix:PATH, tcp:HOST:PORT, pid:PID);
    /// qemu-system-x86_64 in PATH if left out.
    #[arg(value_name = "QEMU")]
    qemus: Vec<String>,
    /// Only the rows in which they differ.
    #[arg(long, conflicts_with = "json")]
    differences: bool,
    /// A Markdown table.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// One JSON object per QEMU and line.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    // What has been started ends when its future is dropped.
    let columns = tokio::select! {
        columns = ask_all(&arguments.qemus) => columns?,
        reason = signals.next() => return Ok(refuse(reason, None)),
    };
    let columns = match columns {
        Ok(columns) => columns,
        Err(blocker) => return Ok(refuse(&blocker, blocker.hint.as_deref())),
    };
    if arguments.json {
        for column in &columns {
            data!("{}", table::json(column));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let lines = if arguments.markdown {
        table::markdown(&columns, arguments.differences)
    } else {
        table::text(&columns, arguments.differences)
    };
    show!("{}", lines.join("\n"));
    Ok(ExitCode::SUCCESS)
}

async fn ask_all(qemus: &[String]) -> anyhow::Result<Result<Vec<Column>, Blocker>> {
    let runtime = runtime_directory()?;
    let usual = [USUAL.to_owned()];
    let qemus = if qemus.is_empty() { &usual } else { qemus };
    let mut columns = Vec::new();
    for typed in qemus {
        match ask(typed, &runtime).await {
            Ok(features) => columns.push(Column { typed: typed.clone(), features }),
            Err(blocker) => return Ok(Err(blocker)),
        }
    }
    Ok(Ok(columns))
}

async fn ask(typed: &str, runtime: &Path) -> Result<Features, Blocker> {
    match named(typed)? {
        Named::Running(name) => {
            let located = locate(&name, Leg::Source, Deadlines { connect: GREETING_WITHIN }).await?;
            Ok(Features::ask(&located.client).await?)
        }
        Named::Executable(qemu) => {
            let probe = Probe::start(&qemu, runtime).await?;
            let features = Features::ask(probe.client()).await;
            probe.end().await;
            Ok(features?)
        }
    }
}

/// What an argument names.
enum Named {
    /// One to be asked.
    Running(QemuName),
    /// One to be started.
    Executable(PathBuf),
}

fn named(typed: &str) -> Result<Named, Blocker> {
    let path = Path::new(typed);
    let is_prefixed = ["unix:", "tcp:", "pid:", "ssh:"].iter().any(|prefix| typed.starts_with(prefix));
    if is_prefixed || path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket()) {
        let name = typed.parse().map(Named::Running);
        return name.map_err(|error| Blocker::new(Code::Name, format!("{error}"), WHAT_IS_TAKEN));
    }
    // As in a shell, a bare name is one in PATH.
    let found = in_path(typed).filter(|_| !typed.contains('/'));
    let found = found.or_else(|| path.exists().then(|| path.to_owned()));
    found.map(Named::Executable).ok_or_else(|| not_there(typed))
}

const WHAT_IS_TAKEN: &str =
    "a QEMU is an executable, a QMP socket or pid:PID; `qmigrate list` shows those that run";

fn not_there(typed: &str) -> Blocker {
    if typed == USUAL {
        return Blocker::new(
            Code::NoBinary,
            "there is no qemu-system-x86_64 on this machine",
            "apt-get install qemu-system-x86 (Debian), or name one: qmigrate features PATH",
        );
    }
    let place = if typed.contains('/') { "there is no such file" } else { "no such file, and none in PATH" };
    Blocker::new(Code::NoBinary, format!("{typed}: {place}"), WHAT_IS_TAKEN)
}
