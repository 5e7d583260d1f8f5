//! `template`: the command line of a guest as a file.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use qmigrate::check::{Blocker, Code};
use qmigrate::host::runtime_directory;
use qmigrate::migrate::step::waiting::GREETING_WITHIN;
use qmigrate::qemu::template::{Derived, Origin, Placeholder, TemplateError, TemplateFile, Values, derive};
use qmigrate::qemu::{Inventory, QemuName, locate};
use qmigrate::qmp::wire::printable;
use qmigrate::qmp::{Deadlines, Leg};

use super::refuse;

/// Prints the command line of a running guest as a template: a file that `start` and `migrate --template` take.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The guest: its QMP socket (PATH, unix:PATH, tcp:HOST:PORT) or its process (pid:PID).
    source: String,
    /// Writes the template to this file, which must not be there yet, and not to standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let source: QemuName = match arguments.source.parse() {
        Ok(source) => source,
        Err(error) => return Ok(refuse(error, Some("a guest is named by its QMP socket, or by pid:PID"))),
    };
    let (comment, derived) = match template_of(&source).await {
        Ok(made) => made,
        Err(blocker) => return Ok(refuse(&blocker, blocker.hint.as_deref())),
    };
    let mode = if derived.secrets.is_empty() { 0o666 } else { 0o600 };
    let code = put(arguments.output.as_deref(), mode, &format!("{comment}\n{}", derived.template))?;
    if code == ExitCode::SUCCESS {
        warn(&derived);
    }
    Ok(code)
}

/// The template of a QEMU, and a comment that says which one it is of.
async fn template_of(source: &QemuName) -> Result<(String, Derived), Blocker> {
    let located = locate(source, Leg::Source, Deadlines { connect: GREETING_WITHIN }).await?;
    let inventory = Inventory::take(&located.client).await?;
    let Some((view, line)) = located.process else {
        return Err(Blocker::new(
            Code::NoProcess,
            format!("the process behind {} cannot be told from its address", located.address),
            "name the process: qmigrate template pid:PID",
        ));
    };
    let runtime = runtime_directory()?;
    let origin =
        Origin { view: &view, line: &line, machine: inventory.machine.as_deref(), runtime: &runtime };
    let name = inventory.name.map_or_else(String::new, |name| format!("\"{}\" ", printable(&name)));
    let (pid, version) = (view.pid, inventory.version_text);
    let comment = format!("# qmigrate template, from {name}(process {pid}, QEMU {version})");
    Ok((comment, derive(origin)))
}

fn warn(derived: &Derived) {
    for option in &derived.secrets {
        say!(
            "warning: the template holds a secret, in its option {option}: keep it where nobody else reads it"
        );
    }
    if !derived.directory_is_known {
        say!(
            "warning: the guest was started with -daemonize, and where its relative paths count from is not known"
        );
        say!("hint: write it into the template, cd {{dir=DIRECTORY}}; without that it is the template's own");
    }
}

/// Puts the text where it is wanted; a file is made with this mode. One that is there already stays as it is.
fn put(output: Option<&Path>, mode: u32, text: &str) -> anyhow::Result<ExitCode> {
    let Some(path) = output else {
        match io::stdout().write_all(text.as_bytes()) {
            // Nobody reads any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.context("the template cannot be written")?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Ok(refuse(
                format!("{} is there already", path.display()),
                Some("name another file, or remove that one"),
            ));
        }
        Err(error) => {
            return Ok(refuse(
                format!("{} cannot be written: {error}", path.display()),
                Some("--output takes a file in a directory that this user may write to"),
            ));
        }
    };
    if let Err(error) = file.write_all(text.as_bytes()) {
        let _ = std::fs::remove_file(path);
        return Err(anyhow::Error::new(error).context(format!("{} cannot be written", path.display())));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a template, and the values that were typed for it.
pub(crate) fn read(path: &Path, set: &[String]) -> Result<(TemplateFile, Values), ExitCode> {
    let file = TemplateFile::read(path).map_err(|error| refuse_template(&error))?;
    let mut values = Values::default();
    for typed in set {
        let Some((word, value)) = typed.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err(refuse(
                format!("--set {typed}: there is no value"),
                Some("--set takes NAME=VALUE, such as --set qmp=/run/vm.qmp"),
            ));
        };
        let placeholder: Placeholder = word.parse().map_err(|unknown| {
            refuse(format!("--set {typed}: {unknown}"), Some(&format!("there are {}", Placeholder::list())))
        })?;
        if !file.has_place_for(placeholder) {
            return Err(refuse(
                format!("--set {typed}: there is no {placeholder} in {}", path.display()),
                Some(&format!("write {placeholder} into the template where the value goes")),
            ));
        }
        values.set(placeholder, value);
    }
    Ok((file, values))
}

/// Says what is wrong in a template, with the line that it is in.
pub(crate) fn refuse_template(error: &TemplateError) -> ExitCode {
    let message = match error {
        TemplateError::Fault { excerpt: Some(excerpt), .. } => format!("{error}\n{excerpt}"),
        TemplateError::Read { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    refuse(message, Some(&error.hint()))
}
