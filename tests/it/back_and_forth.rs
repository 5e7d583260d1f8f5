//! A guest moved again and again, on one QEMU or in turn between several, with a proof after each move.

use std::path::{Path, PathBuf};

use qmigrate::host::{command_line, listening_process};

use crate::lab::{Ended, command, lives, run};

/// So many moves in a row, unless `QMIGRATE_MOVES` says otherwise.
const MOVES: usize = 10;

/// A move that the command has done; whether the guest is well is for the proof to say.
#[derive(Debug)]
pub(crate) struct Move {
    /// Counted from 1.
    pub(crate) number: usize,
    /// The QEMU that the guest left. It has ended.
    pub(crate) source: i32,
    /// The QEMU that has the guest now.
    pub(crate) destination: i32,
    /// What the command said.
    pub(crate) ended: Ended,
}

impl Move {
    /// How long the guest stood still, from STOP to RESUME.
    pub(crate) fn blackout_ms(&self) -> f64 {
        self.ended.result()["blackout"]["stop_to_resume_ms"].as_f64().unwrap()
    }
}

/// How a guest is moved over and over.
#[derive(Debug)]
pub(crate) struct BackAndForth<'a> {
    monitor: &'a Path,
    qemus: Vec<PathBuf>,
    arguments: &'a [&'a str],
    moves: usize,
}

impl<'a> BackAndForth<'a> {
    /// Of the guest behind this QMP socket, which keeps its name; on the QEMU that it has.
    pub(crate) fn of(monitor: &'a Path) -> Self {
        let moves = std::env::var("QMIGRATE_MOVES").map_or(MOVES, |moves| moves.parse().unwrap());
        Self { monitor, qemus: Vec::new(), arguments: &[], moves }
    }

    /// In turn to each of these QEMUs; the guest runs on the first of them now.
    pub(crate) fn between(self, qemus: &[&Path]) -> Self {
        Self { qemus: qemus.iter().map(|qemu| qemu.canonicalize().unwrap()).collect(), ..self }
    }

    /// With these arguments of `migrate`.
    pub(crate) fn with(self, arguments: &'a [&'a str]) -> Self {
        Self { arguments, ..self }
    }

    /// So many times, whatever is asked of others.
    pub(crate) fn times(self, moves: usize) -> Self {
        Self { moves, ..self }
    }

    /// Moves it. Each move must end with exit code 0, with the source gone and the guest on the QEMU meant.
    pub(crate) async fn run(self, mut proof: impl AsyncFnMut(&Move)) {
        let mut source = listening_process(self.monitor).unwrap();
        for number in 1..=self.moves {
            let mut arguments = vec!["migrate", self.monitor.to_str().unwrap(), "--json"];
            arguments.extend(self.arguments);
            let qemu = self.qemus.get(number % self.qemus.len().max(1));
            arguments.extend(qemu.into_iter().flat_map(|qemu| ["--qemu", qemu.to_str().unwrap()]));
            let ended = run(command(&arguments));
            assert_eq!(ended.code, 0, "move {number}: {ended:?}");
            let destination = listening_process(self.monitor).unwrap();
            assert!(destination != source && !lives(source), "the source of move {number} has gone");
            assert!(qemu.is_none_or(|qemu| runs(destination, qemu)), "move {number} was not to that QEMU");
            let done = Move { number, source, destination, ended };
            eprintln!("move {number}: blackout {:.1} ms", done.blackout_ms());
            proof(&done).await;
            source = destination;
        }
    }
}

/// Whether a process runs a QEMU, or what a wrapper has started from its own directory.
fn runs(pid: i32, qemu: &Path) -> bool {
    let tree = qemu.parent().unwrap();
    command_line(pid).unwrap().iter().any(|word| Path::new(word).starts_with(tree))
}
