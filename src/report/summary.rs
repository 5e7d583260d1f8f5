//! The end, in words.

use std::time::Duration;

use crate::check::Blocker;
use crate::record::{Blackout, Observed, Outcome};
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

/// Blockers on standard error, each with its hint.
pub fn print_blockers(blockers: &[Blocker]) {
    for blocker in blockers {
        eprintln!("error: {}", blocker.message);
        if let Some(hint) = &blocker.hint {
            eprintln!("hint: {hint}");
        }
    }
}

fn milliseconds(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds.max(0.0) / 1e3).unwrap_or_default()
}
