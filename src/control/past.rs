//! Records of migrations that have ended.

use std::io;
use std::path::{Path, PathBuf};

use crate::record::Record;

/// So many are kept; older ones go.
const KEPT: usize = 100;

/// A record cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("the records in {} cannot be used", path.display())]
pub struct PastError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Keeps a record below the state directory, and lets the oldest ones go.
pub fn keep(state_directory: &Path, record: &Record) -> Result<(), PastError> {
    let directory = directory(state_directory);
    let failed = |source| PastError { path: directory.clone(), source };
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let (name, bytes) =
        (format!("{}.json", record.id), serde_json::to_vec(record).map_err(|error| failed(error.into()))?);
    // Whole or not at all.
    let unfinished = directory.join(format!("{name}.new"));
    let kept =
        std::fs::write(&unfinished, bytes).and_then(|()| std::fs::rename(&unfinished, directory.join(name)));
    if let Err(error) = kept {
        // On a full disk an empty file can still be made.
        let _ = std::fs::remove_file(&unfinished);
        return Err(failed(error));
    }
    let mut files = files(&directory);
    files.sort_by_key(|(_, written)| *written);
    for (old, _) in files.iter().rev().skip(KEPT) {
        std::fs::remove_file(old).map_err(failed)?;
    }
    Ok(())
}

/// The latest record that fits. One that cannot be read, or is of another schema, is passed over.
pub fn latest(state_directory: &Path, fits: impl Fn(&Record) -> bool) -> Option<Record> {
    let mut files = files(&directory(state_directory));
    files.sort_by_key(|(_, written)| *written);
    let records =
        files.iter().rev().filter_map(|(file, _)| serde_json::from_slice(&std::fs::read(file).ok()?).ok());
    records.into_iter().find(|record| fits(record))
}

fn directory(state_directory: &Path) -> PathBuf {
    state_directory.join("records")
}

fn files(directory: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let written = |path: PathBuf| Some((path.clone(), path.metadata().ok()?.modified().ok()?));
    entries.flatten().map(|entry| entry.path()).filter(is_record).filter_map(written).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{MigrationId, Request};

    fn record(number: u64) -> Record {
        let request = Request::in_a_test(&format!("/vm{number}"));
        Record::new(MigrationId::from_number(number), request, jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn the_latest_record_that_fits_is_found_and_the_oldest_go() {
        let base = tempfile::tempdir().unwrap();
        for number in 0..KEPT as u64 + 5 {
            keep(base.path(), &record(number)).unwrap();
        }
        std::fs::write(base.path().join("records/broken.json"), "{").unwrap();
        assert_eq!(latest(base.path(), |record| record.request.source == "/vm50").unwrap(), record(50));
        assert!(latest(base.path(), |record| record.request.source == "/elsewhere").is_none());
        keep(base.path(), &record(999)).unwrap();
        assert_eq!(files(&directory(base.path())).len(), KEPT);
    }

    #[test]
    fn a_record_that_cannot_be_kept_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let directory = directory(base.path());
        let in_the_way = directory.join(format!("{}.json", record(1).id));
        std::fs::create_dir_all(&in_the_way).unwrap();
        keep(base.path(), &record(1)).unwrap_err();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        std::fs::remove_dir(&in_the_way).unwrap();
        keep(base.path(), &record(1)).unwrap();
    }
}
