//! What an event means.

use serde_json::Value;

use super::MigrationStatus;
use crate::qmp::Event;

/// What an event means to whoever follows a guest and its migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// `MIGRATION` (`qapi/migration.json`, 2.4): told only while the capability `events` is on.
    Migration(MigrationStatus),
    /// `MIGRATION_PASS` (`qapi/migration.json`, 2.6): the source looked at its dirty bitmap. With 11.1 the first one
    /// told is 2, and the last look is not told.
    Pass(u64),
    /// `STOP` (`qapi/run-state.json`): the processors stopped.
    Stop,
    /// `RESUME` (`qapi/run-state.json`): the processors run.
    Resume,
    /// `SHUTDOWN` (`qapi/run-state.json`): the guest or the machine is going down.
    Shutdown {
        /// Whether the guest wanted it (2.10).
        guest: Option<bool>,
        /// `host-qmp-quit`, `guest-shutdown` and others (4.0).
        reason: Option<String>,
    },
    /// `RESET` (`qapi/run-state.json`): the machine starts anew.
    Reset,
    /// `GUEST_PANICKED` (`qapi/run-state.json`).
    GuestPanicked,
    /// Anything else, and anything above that lacks what it should say.
    Other,
}

impl From<&Event> for Notice {
    fn from(event: &Event) -> Self {
        let field = |key: &str| event.data.get(key);
        match event.name.as_str() {
            "MIGRATION" => match field("status").and_then(Value::as_str) {
                Some(status) => Self::Migration(status.into()),
                None => Self::Other,
            },
            "MIGRATION_PASS" => field("pass").and_then(Value::as_u64).map_or(Self::Other, Self::Pass),
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "SHUTDOWN" => Self::Shutdown {
                guest: field("guest").and_then(Value::as_bool),
                reason: field("reason").and_then(Value::as_str).map(str::to_owned),
            },
            "RESET" => Self::Reset,
            "GUEST_PANICKED" => Self::GuestPanicked,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn notice(name: &str, data: Value) -> Notice {
        Notice::from(&Event { name: name.to_owned(), data, timestamp_microseconds: None })
    }

    #[test]
    fn events_are_understood_as_far_as_they_are_known() {
        let failing = Notice::Migration(MigrationStatus::Failing);
        assert_eq!(notice("MIGRATION", json!({"status": "failing"})), failing);
        let later = Notice::Migration(MigrationStatus::Other("later".into()));
        assert_eq!(notice("MIGRATION", json!({"status": "later"})), later);
        assert_eq!(notice("MIGRATION_PASS", json!({"pass": 2})), Notice::Pass(2));
        assert_eq!(notice("STOP", Value::Null), Notice::Stop);
        assert_eq!(
            notice("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"})),
            Notice::Shutdown { guest: Some(false), reason: Some("host-qmp-quit".into()) }
        );
        for (name, data) in
            [("MIGRATION", Value::Null), ("MIGRATION_PASS", json!({"pass": -1})), ("NEW", json!(1))]
        {
            assert_eq!(notice(name, data), Notice::Other, "{name}");
        }
    }
}
