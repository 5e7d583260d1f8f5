//! What a QEMU says of itself: version, name, UUID, run state.

use std::fmt;

use serde::Deserialize;

use super::{lenient, words};
use crate::qmp::wire::printable;

words! {
    /// What the guest's processors do (`RunState`, `qapi/run-state.json`).
    ///
    /// On a source it is `finish-migrate` from the switchover until the end and `postmigrate` after a completed
    /// migration; on a destination `inmigrate` until its state is loaded.
    pub enum RunState {
        /// Stopped by a debugger.
        Debug = "debug",
        /// Waiting for a migration to come in, or loading one.
        InMigrate = "inmigrate",
        /// An internal error that is not the guest's.
        InternalError = "internal-error",
        /// The last I/O operation failed and the device is told to stop on errors.
        IoError = "io-error",
        /// Stopped, by a person or because it was started so.
        Paused = "paused",
        /// Stopped since a migration away from here completed.
        PostMigrate = "postmigrate",
        /// Started with `-S` and never run.
        PreLaunch = "prelaunch",
        /// Stopped for the last part of a migration away from here.
        FinishMigrate = "finish-migrate",
        /// Loading a snapshot.
        RestoreVm = "restore-vm",
        /// Running.
        Running = "running",
        /// Saving a snapshot.
        SaveVm = "save-vm",
        /// Shut down, with `-no-shutdown`.
        Shutdown = "shutdown",
        /// In ACPI S3.
        Suspended = "suspended",
        /// Stopped by the watchdog.
        Watchdog = "watchdog",
        /// Stopped since the guest panicked.
        GuestPanicked = "guest-panicked",
        /// Stopped for a checkpoint of COLO (2.8).
        Colo = "colo",
        /// Before the machine is made (3.0, gone after 5.2).
        PreConfig = "preconfig",
    }
}

/// The answer to `query-status` (`StatusInfo`, `qapi/run-state.json`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// Whether the processors run.
    pub running: bool,
    /// What they do.
    pub status: RunState,
}

/// The answer to `query-name` (`NameInfo`, `qapi/machine.json`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NameInfo {
    /// The guest's name, if it was given one.
    #[serde(default, deserialize_with = "lenient")]
    pub name: Option<String>,
}

/// The answer to `query-uuid` (`UuidInfo`, `qapi/machine.json`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UuidInfo {
    /// The guest's UUID; all zeros if it was given none.
    #[serde(rename = "UUID")]
    pub uuid: String,
}

/// The version in a greeting and in the answer to `query-version` (`VersionInfo`, `qapi/control.json`). Ordered by age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(from = "VersionAnswer")]
pub struct VersionInfo {
    /// 10 in 10.0.2.
    pub major: u32,
    /// 0 in 10.0.2.
    pub minor: u32,
    /// 2 in 10.0.2; 50 and more are development versions of the next minor one.
    pub micro: u32,
    /// The packager's own version, empty if there is none; any text, so escape it before it is printed.
    pub package: String,
}

impl fmt::Display for VersionInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.micro)?;
        if self.package.is_empty() { Ok(()) } else { write!(formatter, " ({})", printable(&self.package)) }
    }
}

#[derive(Deserialize)]
struct VersionAnswer {
    qemu: VersionTriple,
    #[serde(default, deserialize_with = "lenient")]
    package: String,
}

#[derive(Deserialize)]
struct VersionTriple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl From<VersionAnswer> for VersionInfo {
    fn from(answer: VersionAnswer) -> Self {
        let VersionTriple { major, minor, micro } = answer.qemu;
        Self { major, minor, micro, package: answer.package.trim().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn a_run_state_of_a_newer_qemu_is_kept() {
        let status: StatusInfo =
            from_value(json!({"status": "hibernating", "running": false, "singlestep": false})).unwrap();
        assert_eq!(status.status, RunState::Other("hibernating".into()));
        assert_eq!(serde_json::to_value(&status.status).unwrap(), json!("hibernating"));
    }

    #[test]
    fn every_known_word_is_read_back() {
        for state in RunState::KNOWN {
            assert_eq!(&RunState::from(state.as_str()), state);
        }
        assert_eq!(RunState::KNOWN.len(), 17);
    }

    #[test]
    fn versions_are_ordered_by_age_and_shown_with_their_package() {
        let version = |major, minor| -> VersionInfo {
            from_value(json!({"qemu": {"major": major, "minor": minor, "micro": 2}, "package": "D\u{1b}1"}))
                .unwrap()
        };
        assert!(version(9, 2) < version(10, 0) && version(10, 0) < version(10, 1));
        assert_eq!(version(10, 0).to_string(), r"10.0.2 (D\u{1b}1)");
    }

    #[test]
    fn a_guest_may_have_no_name() {
        assert_eq!(from_value::<NameInfo>(json!({})).unwrap().name, None);
        assert_eq!(from_value::<NameInfo>(json!({"name": "vm"})).unwrap().name.as_deref(), Some("vm"));
        assert_eq!(from_value::<UuidInfo>(json!({"UUID": "0-0"})).unwrap().uuid, "0-0");
    }
}
