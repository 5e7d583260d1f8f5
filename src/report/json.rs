//! One JSON object per line, on standard output.

use std::io::Write;

use serde::Serialize;

use crate::migrate::history::Witness;
use crate::record::{Entry, MigrationId, Record, SCHEMA};

/// Writes each line of a history as JSON. A reader that goes away never ends a migration: what cannot be written is
/// dropped.
#[derive(Debug)]
pub struct JsonLines<W> {
    output: W,
}

/// An entry with what every line carries.
#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    id: &'a MigrationId,
    #[serde(flatten)]
    entry: &'a Entry,
}

impl<W: Write + Send> JsonLines<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        Self { output }
    }
}

impl<W: Write + Send> Witness for JsonLines<W> {
    fn told(&mut self, record: &Record, entry: &Entry) {
        if let Some(line) = line(record, entry) {
            let _ = writeln!(self.output, "{line}").and_then(|()| self.output.flush());
        }
    }
}

/// One entry as one line.
pub(crate) fn line(record: &Record, entry: &Entry) -> Option<String> {
    serde_json::to_string(&Line { schema: SCHEMA, id: &record.id, entry }).ok()
}
