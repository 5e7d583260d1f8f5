//! The record of a running migration, and those who watch it grow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::record::{Entry, PhaseChange, PhaseName, Record, Warning};

/// Somebody who is told each line of a migration's history as it is written.
pub trait Witness: Send {
    /// A line was added; the record holds it already.
    fn told(&mut self, record: &Record, entry: &Entry);
}

/// A record that others may read while it grows.
pub type SharedRecord = Arc<Mutex<Record>>;

/// The record, its clock, and its witnesses.
pub struct History {
    record: SharedRecord,
    started: Instant,
    witnesses: Vec<Box<dyn Witness>>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("History").field("record", &self.record).finish_non_exhaustive()
    }
}

impl History {
    /// The history of a migration that starts now.
    pub fn new(record: Record, witnesses: Vec<Box<dyn Witness>>) -> Self {
        Self { record: Arc::new(Mutex::new(record)), started: Instant::now(), witnesses }
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
        let mut record = lock(&self.record);
        let told = entry.clone();
        record.apply(entry);
        for witness in &mut self.witnesses {
            witness.told(&record, &told);
        }
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
}

/// A record is plain data: a reader that panicked has not broken it.
pub fn lock(record: &SharedRecord) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
