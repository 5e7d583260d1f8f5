//! Each fault at each moment of a migration, against real QEMUs: never two by the guest's heart, the end that is
//! promised, the same from outside as in the record, nothing left, the source as it was, and a second migration that
//! works. `QMIGRATE_CELLS=Sigterm@Armed,SourceKilled` plays only the cells named so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// One cell: a guest, a fault, an end.
mod cell;
/// Faults, made for real.
mod fault;
/// What must be true at the end.
mod judge;
/// Which end each fault has at each moment.
mod table;

use cell::{Cell, Verdict, Version};
use table::{DECISIVE, Expected, Fault, Moment, NOT_YET, expected};

use crate::support;

const TEST: &str = "each_fault_at_each_moment_has_its_promised_end";

#[test]
fn each_fault_at_each_moment_has_its_promised_end() {
    let is_full = std::env::var_os("QMIGRATE_FULL").is_some();
    let only = std::env::var("QMIGRATE_CELLS").ok();
    if !is_full && only.is_none() {
        return support::skip(TEST, "148 cells on a busy machine: `tests/run --full` plays them and more");
    }
    let is_wanted = |cell: &Cell| {
        let name = format!("{:?}@{:?}", cell.fault, cell.moment);
        only.as_ref().is_none_or(|only| only.split(',').any(|only| name.contains(only)))
    };
    let mut all = Vec::new();
    for (name, non_live) in [("10.0", false), ("7.2", true), ("11.1", false)] {
        let Some(qemu) = support::qemu_version(TEST, name) else { continue };
        let version = Version { name, qemu, non_live };
        let is_whole = is_full || name == "10.0";
        let cells = cells(&version).into_iter();
        let cells = cells.filter(|cell| is_whole || DECISIVE.contains(&(cell.fault, cell.moment)));
        all.extend(cells.filter(&is_wanted));
    }
    let start = Instant::now();
    let verdicts = play(all);
    let mut text = String::new();
    for name in ["7.2", "10.0", "11.1"] {
        let of_it: Vec<&Verdict> =
            verdicts.iter().filter(|verdict| verdict.cell.version.name == name).collect();
        draw(&mut text, name, &of_it);
    }
    for (fault, moment, expected) in expected(false) {
        if let Expected::Senseless(why) = expected {
            writeln!(text, "not a cell: {fault:?} at {}: {why}", moment.hold()).unwrap();
        }
    }
    for (fault, why) in NOT_YET {
        writeln!(text, "not a cell yet: {fault}: {why}").unwrap();
    }
    let deviating = verdicts.iter().filter(|verdict| !verdict.deviations.is_empty()).count();
    let seconds = start.elapsed().as_secs();
    writeln!(text, "\n{} cells, {deviating} deviate, {seconds} s", verdicts.len()).unwrap();
    // Straight to the stream: what a test that passes prints is kept by the test harness.
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    assert_eq!(deviating, 0, "see the table");
}

#[test]
fn the_matrix_has_at_least_a_hundred_cells_and_the_decisive_ones_are_among_them() {
    let cells: Vec<_> =
        expected(false).filter(|(.., expected)| matches!(expected, Expected::Ends(_))).collect();
    assert!(cells.len() >= 100, "{}", cells.len());
    for decisive in DECISIVE {
        assert!(cells.iter().any(|(fault, moment, _)| (*fault, *moment) == decisive), "{decisive:?}");
    }
}

fn cells(version: &Version) -> Vec<Cell> {
    let cell = |(fault, moment, expected)| match expected {
        Expected::Ends(ends) => Some(Cell { version: version.clone(), fault, moment, ends }),
        Expected::Senseless(_) => None,
    };
    expected(version.non_live).filter_map(cell).collect()
}

/// Plays cells, some at the same time: more than there are processors, since a cell mostly waits.
fn play(cells: Vec<Cell>) -> Vec<Verdict> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let at_once = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    let queue = Mutex::new(cells.into_iter());
    let verdicts = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(cell) = next else { return };
                    let verdict = cell.run(NUMBER.fetch_add(1, Ordering::Relaxed));
                    verdicts.lock().unwrap().push(verdict);
                }
            });
        }
    });
    verdicts.into_inner().unwrap()
}

/// Draws what was seen, row by row: the end, the milliseconds, and below what was wrong.
fn draw(text: &mut String, version: &str, verdicts: &[&Verdict]) {
    if verdicts.is_empty() {
        return;
    }
    let mut rows: BTreeMap<Fault, BTreeMap<Moment, &Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        rows.entry(verdict.cell.fault).or_default().insert(verdict.cell.moment, verdict);
    }
    write!(text, "\n{:<22}", format!("QEMU {version}")).unwrap();
    for moment in Moment::ALL {
        write!(text, " {:<18}", moment.hold()).unwrap();
    }
    for (fault, row) in &rows {
        write!(text, "\n{:<22}", format!("{fault:?}")).unwrap();
        for moment in Moment::ALL {
            let shown = row.get(&moment).map_or_else(|| "-".to_owned(), |verdict| shown(verdict));
            write!(text, " {shown:<18}").unwrap();
        }
    }
    text.push('\n');
    for verdict in verdicts {
        let Cell { fault, moment, .. } = verdict.cell;
        for deviation in &verdict.deviations {
            writeln!(text, "DEVIATION, QEMU {version}, {fault:?} at {}: {deviation}", moment.hold()).unwrap();
        }
    }
}

fn shown(verdict: &Verdict) -> String {
    let end = verdict.end.map_or_else(|| "?".to_owned(), |end| end.to_string());
    let mark = if verdict.deviations.is_empty() { "ok" } else { "DEVIATES" };
    format!("{mark} {end} {}", verdict.took.as_millis())
}
