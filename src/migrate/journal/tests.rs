//! Journals: what is read back, and what is refused.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::host::ProcessIdentity;
use crate::migrate::phase::{AtDestination, AtSource, Guest};
use crate::migrate::plan::SourceAfter;
use crate::record::{LimitsBy, Party, Request};

const STREAMING: Phase =
    Phase::Streaming(Guest { at_source: AtSource::Running, at_destination: AtDestination::AsBefore });

fn begun(number: u64) -> Begun {
    Begun {
        schema: SCHEMA,
        id: MigrationId::from_number(number),
        engine_version: "0.1.0".into(),
        started_at: jiff::Timestamp::UNIX_EPOCH,
        request: Request::in_a_test("/run/vm.qmp"),
        at_destination: AtDestination::AsBefore,
        source_after: SourceAfter::Quit,
        directory: "/run/qmigrate/x".into(),
    }
}

fn source(pid: i32) -> Source {
    let party = Party {
        pid: Some(pid),
        qmp: "/run/vm.qmp".into(),
        qemu_version: "10.0.2".into(),
        name: None,
        accelerator: None,
        machine: None,
        limits_by: None,
    };
    let process = ProcessIdentity { pid, start_time_ticks: 7, boot: "one".to_owned(), user: 0 };
    Source {
        address: "/run/vm.qmp".parse().unwrap(),
        running: Running { process, executable: "/usr/bin/qemu-system-x86_64".into() },
        owner: (&crate::host::Credentials::own().unwrap()).into(),
        limits_by: LimitsBy::Parameters,
        party,
    }
}

/// A journal with three lines, of an engine that has ended.
fn left(base: &Path) -> (MigrationId, PathBuf) {
    let mut journal = Journal::begin(base, begun(1)).unwrap();
    journal.claim(source(12)).unwrap();
    journal.enter(STREAMING).unwrap();
    (MigrationId::from_number(1), journal.path.clone())
}

#[test]
fn what_was_written_is_read_back_and_goes_on() {
    let base = tempfile::tempdir().unwrap();
    let (id, path) = left(base.path());
    let (mut journal, story) = Journal::take_over(base.path(), &id).unwrap();
    assert_eq!((story.begun, story.source, story.phases), (begun(1), Some(source(12)), vec![STREAMING]));
    journal.enter(Phase::Lost).unwrap();
    drop(journal);
    let (journal, story) = Journal::take_over(base.path(), &id).unwrap();
    assert_eq!(story.phases, [STREAMING, Phase::Lost]);
    journal.close().unwrap();
    assert!(!path.exists());
    assert!(matches!(Journal::take_over(base.path(), &id), Err(JournalError::None(_))));
}

#[test]
fn a_journal_has_one_engine() {
    let base = tempfile::tempdir().unwrap();
    let journal = Journal::begin(base.path(), begun(1)).unwrap();
    assert!(list(base.path()).unwrap()[0].engine_lives);
    let second = Journal::take_over(base.path(), &MigrationId::from_number(1));
    assert!(matches!(second, Err(JournalError::EngineLives(_))), "{second:?}");
    drop(journal);
    assert!(!list(base.path()).unwrap()[0].engine_lives);
}

#[test]
fn a_guest_has_one_migration() {
    let base = tempfile::tempdir().unwrap();
    let (id, _) = left(base.path());
    let mut second = Journal::begin(base.path(), begun(2)).unwrap();
    let claimed = second.claim(source(12));
    assert!(
        matches!(&claimed, Err(JournalError::Claimed { id: open, engine_lives: false }) if *open == id),
        "{claimed:?}"
    );
    second.claim(source(13)).unwrap();
    Journal::take_over(base.path(), &id).unwrap().0.close().unwrap();
    second.claim(source(12)).unwrap();
}

#[test]
fn a_line_that_was_cut_short_permitted_nothing() {
    let base = tempfile::tempdir().unwrap();
    let (id, path) = left(base.path());
    let bytes = std::fs::read(&path).unwrap();
    let written = bytes.iter().position(|&byte| byte == 0).unwrap();
    let lines = |until: usize| bytes[..until].split(|&byte| byte == b'\n').count() - 1;
    for until in 1..written {
        std::fs::write(&path, &bytes[..until]).unwrap();
        match Journal::take_over(base.path(), &id) {
            Ok((mut journal, story)) => {
                assert_eq!(1 + story.phases.len() + usize::from(story.source.is_some()), lines(until));
                journal.enter(Phase::Lost).unwrap();
                drop(journal);
                let (_, story) = Journal::take_over(base.path(), &id).unwrap();
                assert_eq!(story.phases.last(), Some(&Phase::Lost), "what follows a torn line is whole");
            }
            Err(error) => {
                assert!(lines(until) == 0 && matches!(error, JournalError::None(_)), "{error}");
                assert!(!path.exists(), "nothing had begun");
            }
        }
    }
}

#[test]
fn a_damaged_newer_or_foreign_one_is_named_and_not_guessed_at() {
    let base = tempfile::tempdir().unwrap();
    let (id, path) = left(base.path());
    let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    let text = text.trim_end_matches('\0');
    let with = |from: &str, to: &str| {
        std::fs::write(&path, text.replace(from, to)).unwrap();
        Journal::take_over(base.path(), &id).unwrap_err()
    };
    assert!(matches!(with("streaming", "dreaming"), JournalError::Damaged { line: 3, .. }));
    assert!(matches!(with("\"schema\":1", "\"schema\":2"), JournalError::OtherSchema { schema: 2, .. }));
    assert!(matches!(with("\"pid\":12", "\"pid\":\"12\""), JournalError::Damaged { line: 2, .. }));
    assert!(list(base.path()).unwrap()[0].story.is_err());

    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(Journal::take_over(base.path(), &id), Err(JournalError::NotOurs { .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let elsewhere = base.path().join("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert!(matches!(Journal::take_over(base.path(), &id), Err(JournalError::NotOurs { .. })));
    std::fs::rename(&elsewhere, &path).unwrap();
    assert!(Journal::take_over(base.path(), &id).is_ok());
}

#[test]
fn where_nothing_can_be_written_nothing_begins() {
    let base = tempfile::tempdir().unwrap();
    let mut file = File::create(base.path().join("journal")).unwrap();
    file.write_all(b"in the way").unwrap();
    assert!(matches!(Journal::begin(base.path(), begun(1)), Err(JournalError::Io { .. })));
}
