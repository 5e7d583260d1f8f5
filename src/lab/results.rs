//! The results of a plan: one JSON object per line, appended as soon as a run has ended, so that a runner that is killed
//! loses one run at most.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::foretold::{Came, Foretold};
use super::host::Host;
use super::link::Shaper;
use super::plan::{Cell, Done, Plan};
use super::work::LostWork;
use crate::record::{Decision, End};

/// The version of a line of results. It grows when a name changes its meaning or goes away, not when one is added.
pub const SCHEMA: u32 = 1;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// The plan's name.
    pub plan: String,
    /// The guest's name in it.
    pub guest: String,
    /// The policy's.
    pub policy: String,
    /// The budgets'.
    pub budget: String,
    /// The link's.
    pub link: String,
    /// Which repeat, from 1.
    pub repeat: u32,
    /// The [`Plan::definition`] of the cell.
    pub definition: String,
    /// Who shaped the link, and to what, such as `tbf 1 Gbit/s`.
    pub link_kind: String,
    /// When the run ended.
    pub at: jiff::Timestamp,
    /// Where it was done.
    pub host: Host,
    /// What came of it.
    #[serde(flatten)]
    pub came: Ended,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Ended {
    /// The engine has ended, one way or another.
    Run(Box<Figures>),
    /// There are no figures, and the run is to be done again.
    Failed {
        /// Why.
        error: String,
    },
}

/// The figures of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The exit code of the command; none if it was killed.
    pub exit_code: Option<i32>,
    /// How the engine says that it ended.
    pub end: End,
    /// The same in words.
    pub message: String,
    /// Whether it was ended because it took too long.
    pub censored: bool,
    /// The whole command, from its start to its end, in milliseconds.
    pub command_ms: f64,
    /// From `migrate` to the end of the stream as QEMU says, in milliseconds.
    pub stream_ms: Option<u64>,
    /// Sent, in bytes.
    pub transferred_bytes: u64,
    /// Passes over memory.
    pub passes: u64,
    /// The budget for the blackout, in milliseconds.
    pub max_downtime_ms: u64,
    /// The budget for the time, in milliseconds.
    pub max_time_ms: Option<u64>,
    /// The blackout as the guest's heartbeats show it, less one beat, in milliseconds.
    pub observed_blackout_ms: Option<f64>,
    /// That figure may be wrong by so much either way, in milliseconds.
    pub observed_error_ms: Option<f64>,
    /// From the source's `STOP` to the destination's `RESUME`, in milliseconds.
    pub stop_to_resume_ms: Option<f64>,
    /// What QEMU says itself, in milliseconds.
    pub qemu_downtime_ms: Option<u64>,
    /// The longest time of 20 ms and more without a heartbeat on the source between the start of the command and the
    /// switchover, in milliseconds; 0 if there was none.
    pub longest_freeze_ms: f64,
    /// The work that the guest lost.
    pub lost_work: Option<LostWork>,
    /// Whether every byte of the guest's working set is what it must be.
    pub memory_verified: bool,
    /// Whether the heartbeats prove that at no moment two guests ran; true of one that stayed.
    pub never_two: bool,
    /// What did not hold, in words.
    pub faults: Vec<String>,
    /// The first forecast that was made once pass 2 had begun.
    pub foretold: Option<Foretold>,
    /// What it is held against.
    pub came: Option<Came>,
    /// All decisions, with their forecasts.
    pub decisions: Vec<Decision>,
    /// When the link was changed, in milliseconds since the start of the command.
    pub link_steps_ms: Vec<f64>,
}

impl Line {
    /// The cell's name.
    pub fn cell(&self) -> String {
        format!("{}/{}/{}/{}", self.guest, self.policy, self.budget, self.link)
    }

    /// Its figures, if it has any.
    pub fn figures(&self) -> Option<&Figures> {
        match &self.came {
            Ended::Run(figures) => Some(figures),
            Ended::Failed { .. } => None,
        }
    }

    fn is_of(&self, plan: &Plan, cell: &Cell, shaper: &Shaper) -> bool {
        self.definition == plan.definition(cell) && self.link_kind == shaper.kind(cell.link.rate)
    }
}

impl Figures {
    /// The blackout as it was seen from outside, or else from STOP to RESUME, in milliseconds.
    pub fn blackout_ms(&self) -> Option<f64> {
        self.observed_blackout_ms.or(self.stop_to_resume_ms)
    }

    /// Whether the guest runs on its destination.
    pub fn has_moved(&self) -> bool {
        matches!(self.end, End::Migrated | End::MigratedWithRemainder)
    }

    /// Whether the guest certainly stood still for longer than its budget, in a blackout or before it.
    pub fn broke_the_budget(&self) -> bool {
        let error_ms = self.observed_error_ms.unwrap_or(0.0);
        #[expect(clippy::cast_precision_loss, reason = "at most 2000 s")]
        let budget_ms = self.max_downtime_ms as f64;
        let blackout_ms = self.blackout_ms().map_or(0.0, |blackout| blackout - error_ms);
        blackout_ms > budget_ms || self.longest_freeze_ms > budget_ms
    }
}

/// Results cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file cannot be used.
    #[error("the results {} cannot be used", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another runner writes there.
    #[error("another runner writes its results to {}", path.display())]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// A line, and not the last one, is no result.
    #[error("line {line} of {} is no result", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A file of results that is added to, by one runner at a time.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    file: Flock<File>,
    lines: Vec<Line>,
}

impl Results {
    /// Opens or makes the file. A last line that was cut by a crash is dropped.
    pub fn open(path: &Path) -> Result<Self, ResultsError> {
        let failed = |source| ResultsError::Io { path: path.to_owned(), source };
        let options = OpenOptions::new().create(true).read(true).append(true).open(path);
        let mut file = Flock::lock(options.map_err(failed)?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| ResultsError::Busy { path: path.to_owned() })?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let (lines, whole_bytes) = parse(path, &text)?;
        if whole_bytes < text.len() {
            file.set_len(whole_bytes as u64).map_err(failed)?;
            file.seek(SeekFrom::End(0)).map_err(failed)?;
        }
        Ok(Self { path: path.to_owned(), file, lines })
    }

    /// The lines so far.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// What of a plan stands in the file, under this link.
    pub fn done(&self, plan: &Plan, shaper: &Shaper) -> Vec<Done> {
        let of_plan = |line: &&Line| plan.cells.iter().any(|cell| line.is_of(plan, cell, shaper));
        let done = |line: &Line| {
            let censored = line.figures()?.censored;
            Some(Done { definition: line.definition.clone(), repeat: line.repeat, censored })
        };
        self.lines.iter().filter(of_plan).filter_map(done).collect()
    }

    /// Adds a line; once this returns it survives a crash of the host.
    pub fn add(&mut self, line: Line) -> Result<(), ResultsError> {
        let failed = |source| ResultsError::Io { path: self.path.clone(), source };
        let text = serde_json::to_string(&line).map_err(|error| failed(error.into()))?;
        self.file.write_all(format!("{text}\n").as_bytes()).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        self.lines.push(line);
        Ok(())
    }
}

/// Reads results that somebody may be writing; a last line that is not whole is left out.
pub fn read(path: &Path) -> Result<Vec<Line>, ResultsError> {
    let text = std::fs::read(path).map_err(|source| ResultsError::Io { path: path.to_owned(), source })?;
    Ok(parse(path, &text)?.0)
}

/// The lines, and how many bytes of whole lines there are. A whole line ends with a line feed and can be read.
fn parse(path: &Path, text: &[u8]) -> Result<(Vec<Line>, usize), ResultsError> {
    let (mut lines, mut whole_bytes) = (Vec::new(), 0);
    for (at, piece) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let is_last = whole_bytes + piece.len() == text.len();
        match serde_json::from_slice(piece) {
            Ok(line) if piece.ends_with(b"\n") => lines.push(line),
            // After a crash of the host a file may have a length and no content there.
            Ok(_) | Err(_) if is_last => break,
            Err(source) => return Err(ResultsError::Line { path: path.to_owned(), line: at + 1, source }),
            // Only the last piece can lack its line feed.
            Ok(_) => break,
        }
        whole_bytes += piece.len();
    }
    Ok((lines, whole_bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run that went well: 100 ms of blackout after 2 s, 200 MB, foretold exactly.
    pub(in crate::lab) fn figures() -> Figures {
        Figures {
            exit_code: Some(0),
            end: End::Migrated,
            message: "migrated".to_owned(),
            censored: false,
            command_ms: 2200.0,
            stream_ms: Some(2100),
            transferred_bytes: 200_000_000,
            passes: 4,
            max_downtime_ms: 300,
            max_time_ms: None,
            observed_blackout_ms: Some(100.0),
            observed_error_ms: Some(2.0),
            stop_to_resume_ms: Some(99.0),
            qemu_downtime_ms: Some(95),
            longest_freeze_ms: 0.0,
            lost_work: Some(LostWork { share: 0.1, lost_ms: 220.0, of_ms: 2200.0, share_before: None }),
            memory_verified: true,
            never_two: true,
            faults: Vec::new(),
            foretold: Some(Foretold {
                pass: 2,
                at_ms: 500.0,
                blackout_ms: 100.0,
                blackout_between_ms: None,
                total_ms: Some(2000.0),
                total_bytes: Some(200_000_000),
            }),
            came: Some(Came { total_ms: 2000.0, total_bytes: 200_000_000 }),
            decisions: Vec::new(),
            link_steps_ms: Vec::new(),
        }
    }

    pub(in crate::lab) fn line(guest: &str, policy: &str, repeat: u32, figures: Figures) -> Line {
        let host = Host {
            date: "1970-01-01".to_owned(),
            qmigrate: "0.1.0".to_owned(),
            qemu: "10.0.2".to_owned(),
            accelerator: "tcg".to_owned(),
            processor: "a processor".to_owned(),
            cores: 2,
            kernel: "6.1".to_owned(),
            load: "0.1 0.1 0.1".to_owned(),
        };
        Line {
            schema: SCHEMA,
            plan: "p".to_owned(),
            guest: guest.to_owned(),
            policy: policy.to_owned(),
            budget: "300ms".to_owned(),
            link: "gigabit".to_owned(),
            repeat,
            definition: format!("{guest} {policy}"),
            link_kind: "tbf 1 Gbit/s".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
            host,
            came: Ended::Run(Box::new(figures)),
        }
    }

    fn three_lines(path: &Path) -> Vec<Line> {
        let lines: Vec<_> = (1..=3).map(|repeat| line("a", "ours", repeat, figures())).collect();
        let mut results = Results::open(path).unwrap();
        for line in &lines {
            results.add(line.clone()).unwrap();
        }
        lines
    }

    #[test]
    fn what_was_added_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.jsonl");
        let lines = three_lines(&path);
        assert_eq!(read(&path).unwrap(), lines);
        assert_eq!(Results::open(&path).unwrap().lines(), lines);
    }

    #[test]
    fn a_last_line_that_was_cut_anywhere_is_dropped_and_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.jsonl");
        let lines = three_lines(&path);
        let whole = std::fs::read(&path).unwrap();
        let third = whole.len() - serde_json::to_string(&lines[2]).unwrap().len() - 1;
        for cut in [third + 1, third + 40, whole.len() - 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(&path).unwrap(), lines[..2], "{cut}");
            let mut results = Results::open(&path).unwrap();
            assert_eq!(results.lines(), &lines[..2], "{cut}");
            results.add(lines[2].clone()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{cut}");
        }
        std::fs::write(&path, [&whole[..third], &[0; 100]].concat()).unwrap();
        assert_eq!(Results::open(&path).unwrap().lines(), &lines[..2]);
    }

    #[test]
    fn a_line_in_the_middle_that_is_no_result_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.jsonl");
        three_lines(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines[1] = "{}";
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        assert!(matches!(Results::open(&path), Err(ResultsError::Line { line: 2, .. })));
    }

    #[test]
    fn one_runner_writes_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.jsonl");
        let first = Results::open(&path).unwrap();
        assert!(matches!(Results::open(&path), Err(ResultsError::Busy { .. })));
        drop(first);
        assert!(Results::open(&path).is_ok());
    }

    #[test]
    fn a_failed_run_is_to_be_done_again_and_one_over_another_link_is_another() {
        let plan = Plan::parse(include_str!("../../benches/plans/goals.json")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut results = Results::open(&directory.path().join("results.jsonl")).unwrap();
        let definition = plan.definition(&plan.cells[0]);
        let of_plan =
            |repeat| Line { definition: definition.clone(), ..line("a", "ours", repeat, figures()) };
        results.add(of_plan(1)).unwrap();
        results.add(Line { came: Ended::Failed { error: "no".to_owned() }, ..of_plan(2) }).unwrap();
        results.add(Line { link_kind: "max-bandwidth 1 Gbit/s".to_owned(), ..of_plan(3) }).unwrap();
        results.add(line("another", "ours", 4, figures())).unwrap();
        let repeats =
            |shaper| results.done(&plan, &shaper).iter().map(|done| done.repeat).collect::<Vec<_>>();
        assert_eq!((repeats(Shaper::Tbf), repeats(Shaper::MaxBandwidth)), (vec![1], vec![3]));
    }

    #[test]
    fn a_budget_is_broken_by_a_blackout_or_a_freeze_that_certainly_is_longer() {
        let broken = |blackout_ms, freeze_ms| {
            Figures { observed_blackout_ms: Some(blackout_ms), longest_freeze_ms: freeze_ms, ..figures() }
                .broke_the_budget()
        };
        assert!(!broken(301.0, 0.0) && broken(303.0, 0.0) && broken(10.0, 301.0) && !broken(10.0, 300.0));
    }
}
