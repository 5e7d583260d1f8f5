//! Blockers in what the source says of itself.

use super::{Blocker, Code, Findings};
use crate::qemu::Inventory;
use crate::qemu::dialect::TCG_KEEPS_WRITES_FROM;
use crate::qemu::hardware::Untracked;
use crate::qmp::words::{MigrationStatus, RunState};

/// What is intended with the source, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Copy its memory while it runs.
    Live,
    /// Copy its memory while it runs, lost writes or not.
    LiveUnsafe,
    /// Stop it first.
    NonLive,
}

/// All that is found in what this source says of itself.
pub fn findings(source: &Inventory, intent: Intent) -> Findings {
    let mut found = Findings::default();
    found.blockers.extend(state_blocker(source));
    found.blockers.extend(migration_blocker(source));
    found.blockers.extend(source.migration.blocked_reasons.iter().map(|reason| {
        Blocker::new(
            Code::Blocked,
            format!("QEMU says that this guest cannot be migrated: {reason}"),
            "remove the device or option named, or move the guest while it is shut down",
        )
    }));
    found.blockers.extend(second_guest(source));
    match (lost_writes(source), intent) {
        (Some(lost), Intent::Live) => found.block(lost),
        (Some(lost), Intent::LiveUnsafe) => found.warn(lost),
        _ => {}
    }
    if let Some(warning) = state_warning(source) {
        found.warn(warning);
    }
    found
}

/// A guest that does not run, and is well: it will not run where it goes either.
fn state_warning(source: &Inventory) -> Option<Blocker> {
    let run_it = "`cont` on its monitor runs it, here or there";
    match &source.state {
        RunState::PreLaunch => Some(Blocker::new(
            Code::NeverRan,
            "the guest was started stopped (-S) and has not run since; it will stand still on the destination too",
            run_it,
        )),
        RunState::Suspended => Some(Blocker::new(
            Code::Asleep,
            "the guest sleeps (ACPI S3), and will sleep on the destination too",
            "`system_wakeup` on its monitor wakes it",
        )),
        RunState::Watchdog | RunState::Debug => Some(Blocker::new(
            Code::Stopped,
            format!(
                "the guest is in the state '{}', and will stand still on the destination too",
                source.state
            ),
            run_it,
        )),
        _ => None,
    }
}

/// Memory of which a live move under TCG loses track.
pub fn untracked(source: &Inventory, untracked: &Untracked, intent: Intent) -> Findings {
    let mut found = Findings::default();
    // Before, no memory is tracked, which is another finding.
    if source.kvm || source.version < TCG_KEEPS_WRITES_FROM || intent == Intent::NonLive {
        return found;
    }
    let moves_safely = "--non-live moves it safely (the guest stands still meanwhile)";
    let named =
        |names: &[String]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let mut add = |blocker: Blocker| match intent {
        Intent::Live => found.block(blocker),
        Intent::LiveUnsafe | Intent::NonLive => found.warn(blocker),
    };
    let Untracked { loses, crashes } = untracked;
    if !crashes.is_empty() {
        let why = format!(
            "QEMU {} under TCG may crash in a live migration of this guest, and the guest would be lost: its memory {} is \
             longer than its first",
            source.version_text,
            named(crashes)
        );
        add(Blocker::new(Code::TcgCrashes, why, moves_safely));
    }
    if !loses.is_empty() {
        let why = format!(
            "QEMU {} under TCG loses writes of the guest to its memory {} in a live migration: it keeps track of the \
             first memory only",
            source.version_text,
            named(loses)
        );
        add(Blocker::new(Code::TcgLosesWrites, why, moves_safely));
    }
    found
}

/// COLO keeps a second guest in step. With `x-colo` on the source alone that guest runs on the destination in spite of
/// `-S`, and the source fails and runs too (run on 5.2 and 7.2); or the guest stands still on the source for good, and
/// `migrate_cancel` does not free it (run on 11.1).
fn second_guest(source: &Inventory) -> Option<Blocker> {
    source.dialect.is_on("x-colo").then(|| {
        Blocker::new(
            Code::Colo,
            "the capability x-colo is on: this guest would be kept twice, and not be moved",
            "switch it off on the source's monitor: migrate-set-capabilities, x-colo, false",
        )
    })
}

/// Why a live migration of this guest would lose what it writes. A guest that was moved all the same crashes as likely
/// as not, and its QEMU still calls it running (run on 7.2).
fn lost_writes(source: &Inventory) -> Option<Blocker> {
    (!source.kvm && source.version < TCG_KEEPS_WRITES_FROM).then(|| {
        Blocker::new(
            Code::TcgLosesWrites,
            format!(
                "this guest runs under TCG on QEMU {}, which loses writes of the guest in a live migration (mended in \
                 QEMU 9.0, commit 03bfc2188f)",
                source.version_text
            ),
            "--non-live moves it safely (the guest stands still meanwhile)",
        )
    })
}

fn state_blocker(source: &Inventory) -> Option<Blocker> {
    let nothing = "there is nothing to move; name the QEMU that runs the guest";
    match &source.state {
        RunState::InMigrate => Some(Blocker::new(
            Code::InMigrate,
            "this QEMU is itself a destination: it waits for a guest to come in",
            nothing,
        )),
        RunState::PostMigrate => Some(Blocker::new(
            Code::PostMigrate,
            "the guest has left this QEMU already, by an earlier migration",
            "name the QEMU that it went to; if that one is gone for certain, `cont` on this one's monitor runs the \
             guest here again",
        )),
        RunState::PreConfig => Some(Blocker::new(
            Code::PreConfig,
            "this QEMU has not made its machine yet (-preconfig)",
            nothing,
        )),
        RunState::GuestPanicked | RunState::InternalError | RunState::IoError | RunState::Shutdown => {
            Some(Blocker::new(
                Code::NotHealthy,
                format!(
                    "the guest is in the state '{}', and would be in the same one elsewhere",
                    source.state
                ),
                "bring it to 'running' or 'paused' first",
            ))
        }
        _ => None,
    }
}

fn migration_blocker(source: &Inventory) -> Option<Blocker> {
    let status = source.migration_status();
    let idle = status == MigrationStatus::None || status.is_terminal();
    (!idle && source.state != RunState::InMigrate).then(|| {
        Blocker::new(
            Code::AlreadyMigrating,
            format!("this guest is being migrated already (status '{status}'), and not by this engine"),
            "`qmigrate watch SOURCE` follows it, `qmigrate cancel SOURCE` ends it",
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::qemu::dialect::Dialect;

    fn source(state: RunState) -> Inventory {
        Inventory {
            version: (10, 0),
            version_text: "10.0.2".into(),
            name: None,
            kvm: false,
            machine: None,
            state,
            migration: serde_json::from_str("{}").unwrap(),
            dialect: Dialect::default(),
        }
    }

    fn codes(source: &Inventory, intent: Intent) -> Vec<&'static str> {
        findings(source, intent).blockers.into_iter().map(|blocker| blocker.code.word()).collect()
    }

    #[test]
    fn a_running_or_paused_guest_may_go() {
        for state in [RunState::Running, RunState::Paused, RunState::PreLaunch, RunState::Other("new".into())]
        {
            assert_eq!(codes(&source(state), Intent::Live), [] as [&str; 0]);
        }
    }

    #[test]
    fn all_blockers_are_named_at_once() {
        let mut source = source(RunState::PostMigrate);
        source.version = (7, 2);
        source.migration =
            serde_json::from_str(r#"{"status":"active","blocked-reasons":["a","b"]}"#).unwrap();
        assert_eq!(
            codes(&source, Intent::Live),
            ["postmigrate", "already-migrating", "blocked", "blocked", "tcg-loses-writes"]
        );
        source.kvm = true;
        assert!(!codes(&source, Intent::Live).contains(&"tcg-loses-writes"));
    }

    #[test]
    fn a_guest_that_does_not_run_is_told_so_or_refused() {
        let warnings = |state| -> Vec<String> {
            let found = findings(&source(state), Intent::Live);
            assert_eq!(found.blockers, []);
            found.warnings.into_iter().map(|warning| warning.code).collect()
        };
        assert_eq!(warnings(RunState::Running), [] as [&str; 0]);
        assert_eq!(warnings(RunState::PreLaunch), ["prelaunch"]);
        assert_eq!(warnings(RunState::Suspended), ["suspended"]);
        assert_eq!(warnings(RunState::Watchdog), ["stopped"]);
        for state in [RunState::GuestPanicked, RunState::InternalError, RunState::IoError, RunState::Shutdown]
        {
            assert_eq!(codes(&source(state), Intent::NonLive), ["not-healthy"]);
        }
    }

    #[test]
    fn a_guest_that_would_be_run_twice_is_refused() {
        let mut source = source(RunState::Running);
        for (state, codes_then) in [(true, &["colo"][..]), (false, &[])] {
            let capabilities = serde_json::json!([{"capability": "x-colo", "state": state}]);
            source.dialect = Dialect::from_answers(&Value::Null, &capabilities, Value::Null);
            assert_eq!(codes(&source, Intent::NonLive), codes_then);
        }
    }

    #[test]
    fn memory_without_a_track_is_in_the_way_of_a_live_move_under_tcg() {
        let mut source = source(RunState::Running);
        let second = Untracked { loses: vec!["b".to_owned()], crashes: Vec::new() };
        let longer = Untracked { loses: vec!["b".to_owned()], crashes: vec!["b".to_owned()] };
        let found = |source: &Inventory, memory: &Untracked, intent| {
            let Findings { blockers, warnings } = untracked(source, memory, intent);
            let blockers: Vec<Code> = blockers.into_iter().map(|blocker| blocker.code).collect();
            let warnings: Vec<String> = warnings.into_iter().map(|warning| warning.code).collect();
            (blockers, warnings)
        };
        assert_eq!(found(&source, &second, Intent::Live), (vec![Code::TcgLosesWrites], vec![]));
        assert_eq!(
            found(&source, &longer, Intent::Live),
            (vec![Code::TcgCrashes, Code::TcgLosesWrites], vec![])
        );
        assert_eq!(
            found(&source, &second, Intent::LiveUnsafe),
            (vec![], vec!["tcg-loses-writes".to_owned()])
        );
        assert_eq!(found(&source, &longer, Intent::NonLive), (vec![], vec![]));
        source.version = (7, 2);
        assert_eq!(found(&source, &longer, Intent::Live), (vec![], vec![]));
        (source.version, source.kvm) = ((10, 0), true);
        assert_eq!(found(&source, &longer, Intent::Live), (vec![], vec![]));
    }

    #[test]
    fn lost_writes_are_a_matter_of_the_intent() {
        let mut source = source(RunState::Running);
        source.version = (7, 2);
        assert_eq!(codes(&source, Intent::Live), ["tcg-loses-writes"]);
        assert_eq!(codes(&source, Intent::LiveUnsafe), [] as [&str; 0]);
        assert_eq!(codes(&source, Intent::NonLive), [] as [&str; 0]);
    }
}
