//! Results as people compare them: one row per cell.

use super::figures::{Figures, table};
use super::results::{self, Ended, Line};

/// One table for each plan that has lines here, under one line that says where and when it was measured.
pub fn tables(lines: &[Line]) -> String {
    let mut plans: Vec<&str> = Vec::new();
    for line in lines {
        if !plans.contains(&line.plan.as_str()) {
            plans.push(&line.plan);
        }
    }
    let of = |plan: &&str| {
        let lines: Vec<&Line> = lines.iter().filter(|line| line.plan == **plan).collect();
        format!("{}\n{}\n", one(plan, &lines), where_and_when(&lines))
    };
    plans.iter().map(of).collect::<Vec<_>>().join("\n")
}

fn one(plan: &str, lines: &[&Line]) -> String {
    let mut rows: Vec<(&Line, Vec<&Line>)> = Vec::new();
    for line in lines {
        // A cell whose definition was changed, or that was shaped by something else, has a row of its own.
        let same = |first: &Line| first.definition == line.definition && first.link_kind == line.link_kind;
        match rows.iter_mut().find(|(first, _)| same(first)) {
            Some((_, cell)) => cell.push(line),
            None => rows.push((line, vec![line])),
        }
    }
    let columns = [
        "guest",
        "policy",
        "budget",
        "link",
        "moved",
        "total, ms",
        "blackout, ms",
        "longest freeze before, ms",
        "lost work, ms",
        "sent, MB",
        "passes",
        "over budget",
    ];
    let rows: Vec<_> = rows.iter().map(|(first, cell)| row(first, cell)).collect();
    let heading = format!("Plan '{plan}': median (smallest - largest)");
    table(&heading, &columns, 4, &rows)
}

fn row(first: &Line, cell: &[&Line]) -> Vec<String> {
    let runs: Vec<_> = cell.iter().filter_map(|line| line.figures()).collect();
    let moved: Vec<_> = runs.iter().copied().filter(|figures| figures.has_moved()).collect();
    let all = |figure: &dyn Fn(&results::Figures) -> Option<f64>| {
        runs.iter().filter_map(|figures| figure(figures)).collect::<Figures>().to_string()
    };
    let blackouts: Figures = moved.iter().filter_map(|figures| figures.blackout_ms()).collect();
    let count =
        |holds: &dyn Fn(&results::Figures) -> bool| runs.iter().filter(|figures| holds(figures)).count();
    let besides = [
        (count(&|figures| figures.censored), "censored"),
        (cell.iter().filter(|line| matches!(line.came, Ended::Failed { .. })).count(), "failed"),
        (count(&|figures| !figures.faults.is_empty()), "with a fault"),
    ];
    let besides = besides.iter().filter(|(number, _)| *number > 0);
    let ends: String = std::iter::once(format!("{} of {}", moved.len(), runs.len()))
        .chain(besides.map(|(number, word)| format!(", {number} {word}")))
        .collect();
    vec![
        first.guest.clone(),
        first.policy.clone(),
        first.budget.clone(),
        format!("{} ({})", first.link, first.link_kind),
        ends,
        all(&|figures| Some(figures.command_ms)),
        blackouts.to_string(),
        all(&|figures| Some(figures.longest_freeze_ms)),
        all(&|figures| figures.lost_work.map(|lost| lost.lost_ms)),
        all(&|figures| Some(as_f64(figures.transferred_bytes) / 1e6)),
        all(&|figures| Some(as_f64(figures.passes))),
        count(&results::Figures::broke_the_budget).to_string(),
    ]
}

/// The dates, versions and machines of these lines, each once.
fn where_and_when(lines: &[&Line]) -> String {
    let mut settings: Vec<String> = Vec::new();
    for line in lines {
        let host = &line.host;
        let text = format!(
            "{}: qmigrate {}, QEMU {} ({}), {}, {} cores, Linux {}",
            line.at.strftime("%Y-%m-%d"),
            host.qmigrate,
            host.qemu,
            host.accelerator,
            host.processor,
            host.cores,
            host.kernel
        );
        if !settings.contains(&text) {
            settings.push(text);
        }
    }
    format!("Measured on {}.", settings.join("; "))
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are 9 PB")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::results::tests::{figures, line};
    use crate::record::End;

    #[test]
    fn cells_are_rows_in_the_order_in_which_they_were_run() {
        let censored =
            results::Figures { censored: true, end: End::NotMigrated, command_ms: 60_000.0, ..figures() };
        let slower = results::Figures { command_ms: 2400.0, observed_blackout_ms: Some(310.0), ..figures() };
        let failed =
            Line { came: Ended::Failed { error: "no".to_owned() }, ..line("a", "ours", 3, figures()) };
        let lines = [
            line("a", "ours", 1, figures()),
            line("a", "fixed", 1, censored),
            line("a", "ours", 2, slower),
            failed,
        ];
        let text = tables(&lines);
        let rows: Vec<_> = text.lines().filter(|row| row.starts_with("| a")).collect();
        assert_eq!(rows.len(), 2, "{text}");
        assert!(rows[0].starts_with("| a | ours | 300ms | gigabit (tbf 1 Gbit/s) | 2 of 2, 1 failed | 2300.0 (2200.0 - 2400.0) | 205.0"), "{text}");
        assert!(rows[0].ends_with("| 1 |"), "{text}");
        assert!(rows[1].contains("| 0 of 1, 1 censored | 60000.0 (60000.0 - 60000.0) | - |"), "{text}");
        assert!(
            text.contains("Measured on 1970-01-01: qmigrate 0.1.0, QEMU 10.0.2 (tcg), a processor, 2 cores"),
            "{text}"
        );
    }
}
