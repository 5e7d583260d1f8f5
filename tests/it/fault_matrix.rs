//! Each fault at each moment of a migration, against real QEMUs: never two by the guest's heart, the end that is
//! promised, the same from outside as in the record, nothing left, the source as it was, and a second migration that
//! works. It is played on its own, since it is about times: `QMIGRATE_CELLS=@` plays all cells,
//! `QMIGRATE_CELLS=Sigterm@Armed,SourceKilled` only those named so, and `QMIGRATE_FULL` all of them on each QEMU.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// One cell: a guest, a fault, an end.
mod cell;
/// Faults, made for real.
mod fault;
/// What must be true at the end.
mod judge;
/// A state directory of its own.
mod state;
/// Which end each fault has at each moment.
mod table;

use cell::{Cell, Verdict, Version};
use state::{Kind, StateDirectory};
use table::{Before, DECISIVE, Expected, Fault, Moment, expected};

use crate::lab::{Lab, run};
use crate::support;

const TEST: &str = "each_fault_at_each_moment_has_its_promised_end";

#[test]
fn each_fault_at_each_moment_has_its_promised_end() {
    let is_full = std::env::var_os("QMIGRATE_FULL").is_some();
    let only = std::env::var("QMIGRATE_CELLS").ok();
    if !is_full && only.is_none() {
        return support::skip(TEST, "it is played on its own: `tests/run` does, or `QMIGRATE_CELLS=@`");
    }
    let all = wanted(is_full, only.as_deref()).unwrap();
    let start = Instant::now();
    let verdicts = play(playable(all));
    let mut text = String::new();
    for name in ["7.2", "10.0", "11.1"] {
        let of_it: Vec<&Verdict> =
            verdicts.iter().filter(|verdict| verdict.cell.version.name == name).collect();
        draw(&mut text, name, &of_it);
    }
    text.push('\n');
    for moment in Moment::ALL {
        writeln!(text, "{}: {}", moment.hold(), moment.words()).unwrap();
    }
    for (_, fault, moment, expected) in expected(false) {
        if let Expected::Senseless(why) = expected {
            writeln!(text, "not a cell: {fault:?} at {}: {why}", moment.hold()).unwrap();
        }
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
    for (fault, moment) in DECISIVE {
        let is_it = |cell: &&(Before, Fault, Moment, Expected)| {
            (cell.0, cell.1, cell.2) == (Before::Running, fault, moment)
        };
        assert_eq!(cells.iter().filter(is_it).count(), 1, "{fault:?} at {moment:?}");
    }
}

#[test]
fn a_filter_that_names_no_cell_is_no_success() {
    let wanted = wanted(false, Some("Sigterm@Armed,Sigturm"));
    assert_eq!(wanted.unwrap_err(), "QMIGRATE_CELLS: no cell is named Sigturm");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_cannot_be_written_down_is_refused_before_it_begins() {
    let test = "a_migration_that_cannot_be_written_down_is_refused_before_it_begins";
    if let Err(why) = StateDirectory::try_out(Kind::Full) {
        return support::skip(test, &why);
    }
    let Some(mut lab) = Lab::start(test, 16, Some("4MiB/s")).await else { return };
    let state = StateDirectory::make(Kind::Full, lab.directory.path()).unwrap();
    lab.prefix = state.prefix();
    let full = state.close(Kind::Full).unwrap();
    let refused = lab.migrate(&[]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("No space left on device"), "{refused:?}");
    assert!(refused.stderr.contains("hint: a migration is written down before it begins"), "{refused:?}");
    assert!(run(lab.command(&["recover", "--list"])).stderr.contains("no migration is open"));
    assert_eq!(lab.left_behind(), [] as [PathBuf; 0]);
    drop(full);
    assert_eq!(lab.migrate(&[]).code, 0);
    lab.prove().await;
}

/// The cells to play: all of them on 10.0, the decisive ones on the others. A name that no cell has is an error.
fn wanted(is_full: bool, only: Option<&str>) -> Result<Vec<Cell>, String> {
    let mut all = Vec::new();
    for (name, non_live) in [("10.0", false), ("7.2", true), ("11.1", false)] {
        let is_whole = is_full || name == "10.0";
        let is_decisive =
            |cell: &Cell| cell.before == Before::Running && DECISIVE.contains(&(cell.fault, cell.moment));
        let cells = cells(&Version { name, qemu: PathBuf::new(), non_live }).into_iter();
        all.extend(cells.filter(|cell| is_whole || is_decisive(cell)));
    }
    let Some(only) = only else { return Ok(all) };
    let names: Vec<&str> = only.split(',').collect();
    let is_none = |name: &&&str| !all.iter().any(|cell| cell.name().contains(**name));
    if let Some(unknown) = names.iter().find(is_none) {
        return Err(format!("QMIGRATE_CELLS: no cell is named {unknown}"));
    }
    all.retain(|cell| names.iter().any(|name| cell.name().contains(name)));
    Ok(all)
}

/// Those of them that can be played here, each with its QEMU; the others are skips.
fn playable(all: Vec<Cell>) -> Vec<Cell> {
    let mut qemus: BTreeMap<&str, Option<PathBuf>> = BTreeMap::new();
    let mut states: Vec<(Kind, Result<(), String>)> = Vec::new();
    let with_qemu = |mut cell: Cell| {
        let name = cell.version.name;
        let qemu = qemus.entry(name).or_insert_with(|| support::qemu_version(TEST, name));
        cell.version.qemu = qemu.clone()?;
        Some(cell)
    };
    let can_be_played = |cell: &Cell| {
        let Some(kind) = cell.state() else { return true };
        if !states.iter().any(|(known, _)| *known == kind) {
            states.push((kind, StateDirectory::try_out(kind)));
        }
        let tried = states.iter().find(|(known, _)| *known == kind);
        let Some((_, Err(why))) = tried else { return true };
        let name = format!("{TEST}, QEMU {}, {}", cell.version.name, cell.name());
        support::skip(&name, &format!("not played here: {why}"));
        false
    };
    all.into_iter().filter_map(with_qemu).filter(can_be_played).collect()
}

fn cells(version: &Version) -> Vec<Cell> {
    let cell = |(before, fault, moment, expected)| match expected {
        Expected::Ends(ends) => Some(Cell { version: version.clone(), before, fault, moment, ends }),
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
    let mut rows: BTreeMap<(Before, Fault), BTreeMap<Moment, &Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        let Cell { before, fault, moment, .. } = verdict.cell;
        rows.entry((before, fault)).or_default().insert(moment, verdict);
    }
    write!(text, "\n{:<60}", format!("QEMU {version}")).unwrap();
    for moment in Moment::ALL {
        write!(text, " {:<23}", moment.hold()).unwrap();
    }
    for ((before, fault), row) in &rows {
        let paused = if *before == Before::Paused { "+paused" } else { "" };
        write!(text, "\n{:<26} {:<33}", format!("{fault:?}{paused}"), fault.words()).unwrap();
        for moment in Moment::ALL {
            let shown = row.get(&moment).map_or_else(|| "-".to_owned(), |verdict| shown(verdict));
            write!(text, " {shown:<23}").unwrap();
        }
    }
    text.push('\n');
    for verdict in verdicts {
        for deviation in &verdict.deviations {
            writeln!(text, "DEVIATION, QEMU {version}, {}: {deviation}", verdict.cell.name()).unwrap();
        }
    }
}

fn shown(verdict: &Verdict) -> String {
    let end = verdict.end.map_or_else(|| "?".to_owned(), |end| end.to_string());
    let mark = if verdict.deviations.is_empty() { "ok" } else { "DEVIATES" };
    format!("{mark} {end} {}", verdict.took.as_millis())
}
