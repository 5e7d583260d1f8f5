//! The end, in words.

use std::time::Duration;

use super::progress::sample_line;
use crate::qmp::words::MigrationInfo;
use crate::record::{Blackout, Observed, Outcome, Party, Record};
use crate::units::{show_bytes, show_duration};

/// The outcome as people read it: what became of the guest, its figures, what has a new name, what to type next.
pub fn summary(outcome: &Outcome) -> Vec<String> {
    let mut lines: Vec<String> = outcome.message.lines().map(str::to_owned).collect();
    if let Some(blackout) = &outcome.blackout {
        lines.extend(blackout_lines(blackout));
    }
    if outcome.totals.transferred_bytes > 0 {
        let total = show_duration(milliseconds(outcome.totals.total_ms));
        let (bytes, passes) = (show_bytes(outcome.totals.transferred_bytes), outcome.totals.passes);
        lines.push(format!("total      {total}; {bytes} sent, {passes} passes"));
    }
    if !outcome.budgets_enforced {
        lines.push("budgets    not enforced: another policy than qmigrate's decided".to_owned());
    }
    for moved in &outcome.moved {
        lines.push(format!("{:<10} {} is now {}", moved.what, moved.from, moved.to));
    }
    if let Some(hint) = &outcome.hint {
        lines.extend(hint.lines().map(|hint| format!("hint: {hint}")));
    }
    lines
}

fn blackout_lines(blackout: &Blackout) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(figure) = blackout.stop_to_resume_ms {
        let (figure, error) = (show_duration(milliseconds(figure)), blackout.error_ms);
        lines.push(format!("blackout   {figure} from STOP to RESUME (+-{error} ms, by this host's clock)"));
    }
    match &blackout.observed {
        Observed::NotObserved => lines.push("           not observed from outside".to_owned()),
        Observed::Heartbeats { gap_ms, error_ms } => lines.push(format!(
            "           {} as its heartbeats show (+-{error_ms:.1} ms)",
            show_duration(milliseconds(*gap_ms))
        )),
    }
    if let Some(downtime) = blackout.qemu_downtime_ms {
        lines.push(format!("           {downtime} ms as QEMU says"));
    }
    lines
}

/// How far a migration is, in a few lines.
pub fn status_lines(record: &Record) -> Vec<String> {
    let phase = record.phase().map_or("asked for", |phase| phase.as_str());
    let mut lines = vec![format!("{}  {}, {phase}", record.id, record.request.source)];
    if let (Some(source), Some(destination)) = (&record.source, &record.destination) {
        let pid = |party: &Party| party.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        lines.push(format!("           process {} -> process {}", pid(source), pid(destination)));
    }
    if let Some(sample) = record.samples.last() {
        lines.push(format!("           {}", sample_line(sample)));
        lines.push(format!(
            "           {} sent, {} left, downtime limit {} ms of {}",
            show_bytes(sample.transferred_bytes),
            show_bytes(sample.remaining_bytes),
            sample.downtime_limit_ms,
            record.request.max_downtime_ms
        ));
    }
    lines
}

/// What QEMU says of a migration that is not this engine's, in one line.
pub fn foreign_line(info: &MigrationInfo) -> String {
    let status = info.status.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let mut line = format!("migration '{status}', not by this engine");
    if let Some(ram) = &info.ram {
        let (sent, left) = (show_bytes(ram.transferred_bytes), show_bytes(ram.remaining_bytes));
        line = format!("{line}; {sent} sent, {left} left, pass {}", ram.dirty_sync_count);
    }
    match &info.error_desc {
        Some(error) => format!("{line}; {error}"),
        None => line,
    }
}

fn milliseconds(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds.max(0.0) / 1e3).unwrap_or_default()
}
