//! `list`: the QEMUs of this host.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use qmigrate::control::{Engine, engines};
use qmigrate::host::{ProcessView, command_line, processes, runtime_directory};
use qmigrate::qemu::argv::{CommandLine, KeyValues};
use qmigrate::qemu::locate::{LocateError, monitor_of};
use qmigrate::qemu::{Inventory, QemuName, locate};
use qmigrate::qmp::{Address, Deadlines, Leg};
use serde::Serialize;

/// A list does not wait long for a monitor that is taken.
const GREETING_WITHIN: Duration = Duration::from_millis(300);

/// Lists the QEMUs of this host: process, name, monitor, run state, migration.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Row {
    pid: i32,
    name: Option<String>,
    qmp: Option<String>,
    state: String,
    migration: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let engines = engines(&runtime_directory()?).await;
    let mut rows = Vec::new();
    for pid in processes() {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let of_it = |words: Vec<OsString>| {
            CommandLine::of_process(&words, program.as_deref().unwrap_or(Path::new(""))).ok()
        };
        let line = command_line(pid).ok().and_then(of_it);
        if let Some(line) = line.filter(|line| runs_it(program.as_deref(), line)) {
            rows.push(row(pid, &line, &engines).await);
        }
    }
    if arguments.json {
        for row in &rows {
            data!("{}", serde_json::to_string(row)?);
        }
    } else {
        print(&rows);
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a process is a QEMU itself, and not one that has a QEMU's command line among its own words (`timeout`,
/// `sudo`, a script, this command).
fn runs_it(program: Option<&Path>, line: &CommandLine) -> bool {
    let name = program.and_then(Path::file_name).map(OsStr::to_string_lossy);
    // A loader, `ld-linux-x86-64.so.2`, is the one program that becomes what it starts. Whose program cannot be read is
    // somebody else's.
    line.launcher.is_empty() || name.is_none_or(|name| name.starts_with("ld"))
}

async fn row(pid: i32, line: &CommandLine, engines: &[Engine]) -> Row {
    let name = line.values("name").map(KeyValues::parse).next();
    let name = name.and_then(|name| name.implied().or(name.get("guest")).map(str::to_owned));
    let mut row = Row { pid, name, qmp: None, state: "?".to_owned(), migration: String::new() };
    let address =
        match ProcessView::read(pid).map_err(LocateError::from).and_then(|view| monitor_of(&view, line)) {
            Ok(address) => address,
            Err(error) => {
                row.state = error.to_string();
                return row;
            }
        };
    row.qmp = Some(address.to_string());
    if let Some(told) = by_engine(pid, engines) {
        (row.state, row.migration) = told;
        return row;
    }
    (row.state, row.migration) = ask(address).await;
    row
}

/// What an engine of ours says of a QEMU whose monitor it holds.
fn by_engine(pid: i32, engines: &[Engine]) -> Option<(String, String)> {
    engines.iter().find_map(|engine| {
        let record = &engine.record;
        let is = |party: &Option<qmigrate::record::Party>| {
            party.as_ref().is_some_and(|party| party.pid == Some(pid))
        };
        let side = if is(&record.source) {
            "source"
        } else if is(&record.destination) {
            "destination"
        } else {
            return None;
        };
        let phase = record.phase().map_or("", |phase| phase.as_str());
        Some((format!("{side} of {}", record.id), phase.to_owned()))
    })
}

async fn ask(address: Address) -> (String, String) {
    let deadlines = Deadlines { connect: GREETING_WITHIN };
    match locate(&QemuName::Monitor(address), Leg::Source, deadlines).await {
        Ok(located) => match Inventory::take(&located.client).await {
            Ok(inventory) => (inventory.state.to_string(), inventory.migration_status().to_string()),
            Err(error) => (error.to_string(), String::new()),
        },
        Err(LocateError::Connect { holder: Some((holder, _)), .. }) => {
            (format!("monitor held by process {holder}"), String::new())
        }
        Err(_) => ("monitor not reached".to_owned(), String::new()),
    }
}

fn print(rows: &[Row]) {
    if rows.is_empty() {
        say!("no QEMU runs on this host, as far as this user can see");
        return;
    }
    show!("{:>8}  {:<16}  {:<22}  {:<10}  QMP", "PID", "NAME", "STATE", "MIGRATION");
    for row in rows {
        let (name, qmp) = (row.name.as_deref().unwrap_or("-"), row.qmp.as_deref().unwrap_or("-"));
        show!("{:>8}  {name:<16}  {:<22}  {:<10}  {qmp}", row.pid, row.state, row.migration);
    }
}
