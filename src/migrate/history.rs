//! The record of a running migration, and those who watch it grow.
//!
//! Those who watch write to pipes and terminals, and a reader that stops reading (a pager, Ctrl-S) would stop whoever
//! writes. So they live on a thread of their own: the engine only puts lines into a queue, and never waits for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use tokio::time::Instant;

use crate::record::{Entry, PhaseChange, PhaseName, Record, Warning};

/// At the end those who watch are given this long to write what is left; one whose reader has stopped never will.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// Somebody who is told each line of a migration's history as it is written.
pub trait Witness: Send {
    /// A line was added; the record holds it already.
    fn told(&mut self, record: &Record, entry: &Entry);
}

/// A record that others may read while it grows.
pub type SharedRecord = Arc<Mutex<Record>>;

/// The record, its clock, and its witnesses.
#[derive(Debug)]
pub struct History {
    record: SharedRecord,
    started: Instant,
    lines: Option<mpsc::Sender<Entry>>,
    told: mpsc::Receiver<()>,
}

impl History {
    /// The history of a migration that starts now.
    pub fn new(record: Record, witnesses: Vec<Box<dyn Witness>>) -> Self {
        let (lines, queue) = mpsc::channel();
        let (all_told, told) = mpsc::channel();
        let own = record.clone();
        let spawned = std::thread::Builder::new().name("witnesses".to_owned()).spawn(move || {
            tell(own, witnesses, &queue);
            // Nobody waits for it any more: then it does not matter.
            let _ = all_told.send(());
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for those who watch");
        }
        Self { record: Arc::new(Mutex::new(record)), started: Instant::now(), lines: Some(lines), told }
    }

    /// The record, for those who read it while it grows.
    pub fn shared(&self) -> SharedRecord {
        Arc::clone(&self.record)
    }

    /// The record.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }

    /// Adds a line.
    pub fn add(&mut self, entry: Entry) {
        if let Some(lines) = &self.lines {
            // The thread is gone only if it could not be started, or a witness has panicked.
            let _ = lines.send(entry.clone());
        }
        self.record().apply(entry);
    }

    /// Adds that a phase has begun, unless it is the one already.
    pub fn enter(&mut self, phase: PhaseName) {
        if self.record().phase() != Some(phase) {
            let at_ms = self.now_ms();
            self.add(Entry::Phase(PhaseChange { phase, at_ms }));
        }
    }

    /// Adds something that the user should know.
    pub fn warn(&mut self, code: &str, message: impl Into<String>, hint: Option<&str>) {
        let (code, message, hint) = (code.to_owned(), message.into(), hint.map(str::to_owned));
        self.add(Entry::Warning(Warning { code, message, hint }));
    }

    /// Waits until those who watch have been told all of it, but not for one that does not listen any more.
    pub fn finish(&mut self) {
        self.lines = None;
        let _ = self.told.recv_timeout(LAST_WORDS_WITHIN);
    }
}

fn tell(mut record: Record, mut witnesses: Vec<Box<dyn Witness>>, lines: &mpsc::Receiver<Entry>) {
    for entry in lines {
        record.apply(entry.clone());
        for witness in &mut witnesses {
            witness.told(&record, &entry);
        }
    }
}

/// A record is plain data: a reader that panicked has not broken it.
pub fn lock(record: &SharedRecord) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{MigrationId, Request};

    /// A witness whose reader has stopped reading.
    struct Stuck;

    impl Witness for Stuck {
        fn told(&mut self, _: &Record, _: &Entry) {
            std::thread::park();
        }
    }

    /// One that keeps what it is told.
    struct Keeper(mpsc::Sender<(Option<PhaseName>, Entry)>);

    impl Witness for Keeper {
        fn told(&mut self, record: &Record, entry: &Entry) {
            self.0.send((record.phase(), entry.clone())).unwrap();
        }
    }

    fn history(witness: impl Witness + 'static) -> History {
        let request = Request::in_a_test("/vm");
        let record = Record::new(MigrationId::from_number(1), request, jiff::Timestamp::UNIX_EPOCH);
        History::new(record, vec![Box::new(witness)])
    }

    #[test]
    fn a_witness_that_is_stuck_holds_nobody_up() {
        let mut history = history(Stuck);
        for _ in 0..10_000 {
            history.warn("code", "text", None);
        }
        assert_eq!(history.record().warnings.len(), 10_000);
    }

    #[test]
    fn a_witness_is_told_each_line_with_the_record_that_holds_it() {
        let (kept, told) = mpsc::channel();
        let mut history = history(Keeper(kept));
        history.enter(PhaseName::Check);
        history.enter(PhaseName::Check);
        history.enter(PhaseName::Stream);
        history.finish();
        let phases: Vec<_> = told.iter().map(|(phase, _)| phase).collect();
        assert_eq!(phases, [Some(PhaseName::Check), Some(PhaseName::Stream)]);
    }
}
