//! `start`: starts a guest from a template.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use qmigrate::qemu::template::{Filled, StartError, start};

use super::session::Signals;
use super::template::{read, refuse_template};
use super::{executable, refuse, without_secrets};

/// Starts a guest from a template, and returns once it is there; it needs no terminal.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The template, as `qmigrate template` writes it.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The value of a placeholder, such as qmp=/run/vm.qmp.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Another QEMU than the template's.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Prints the command as a shell reads it, and starts nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (file, values) = match read(&arguments.file, &arguments.set) {
        Ok(read) => read,
        Err(refused) => return Ok(refused),
    };
    let mut filled = match file.fill(&values) {
        Ok(filled) => filled,
        Err(error) => return Ok(refuse_template(&error)),
    };
    if let Some(qemu) = arguments.qemu {
        filled.line.launcher.clear();
        filled.line.program = executable(qemu).display().to_string();
    }
    if arguments.dry_run {
        data!("{}", shell_line(&filled));
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::catch()?;
    match start(&filled, async { _ = signals.next().await }).await {
        Ok(started) => {
            let name = started.inventory.name.as_deref().unwrap_or("-");
            show!("guest      {name}, {}", started.inventory.state);
            show!("process    {}", started.process.pid());
            show!("qmp        {}", started.address);
            show!("log        {}", started.log.display());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Ok(say_why_not(error)),
    }
}

fn say_why_not(error: StartError) -> ExitCode {
    let is_refusal = error.is_refusal();
    let hint = match &error {
        StartError::NoMonitor => Some("add -qmp unix:{qmp=PATH},server=on,wait=off to the template"),
        StartError::Taken { .. } => Some(
            "`qmigrate list` shows the QEMUs of this host; a second guest gets names of its own by --set: qmp=PATH, \
             serial=PATH, pidfile=PATH",
        ),
        StartError::NotASocket(_) => Some("name another path, or remove that file"),
        StartError::NoDirectory(_) => {
            Some("--set dir=DIRECTORY names another, where the template says {dir}")
        }
        StartError::Launch { .. } => Some("is it there and executable? --qemu PATH names another QEMU"),
        StartError::Address(_) => Some("--set qmp=PATH names another, where the template says {qmp}"),
        StartError::Log { .. } => Some(
            "it stands beside the QMP socket, in a directory that must be there and be writable; --set qmp=PATH names \
             another place",
        ),
        StartError::Died { .. } => {
            Some("nothing of it is left; `qmigrate start --dry-run` prints its command line")
        }
        StartError::Unreachable(_) => Some(
            "a socket with server=on waits for somebody to connect unless it has wait=off; a program that is a script \
             has to `exec` QEMU",
        ),
        StartError::User(_) | StartError::Cancelled | StartError::Silent(_) => None,
    };
    let refused = refuse(format!("{:#}", anyhow::Error::new(error)), hint);
    if is_refusal { refused } else { ExitCode::from(1) }
}

/// The command as a shell reads it.
fn shell_line(filled: &Filled) -> String {
    let quoted = |text: &str| shell_words::quote(text).into_owned();
    let start = format!("cd {} &&", quoted(&filled.working_directory.to_string_lossy()));
    let variables = filled.environment.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
    let words = without_secrets(&filled.line).render();
    let words = words.iter().map(|word| quoted(&word.to_string_lossy()));
    [start].into_iter().chain(variables).chain(words).collect::<Vec<_>>().join(" ")
}
