//! What a QEMU says of a migration (`qapi/migration.json`). Versions are those of the schemas, not of their notes.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{lenient, words};

words! {
    /// Where a migration stands (`MigrationStatus`, `qapi/migration.json`). An unknown one means "still under way, and
    /// no success".
    pub enum MigrationStatus {
        /// There was none yet.
        None = "none",
        /// Connecting, or on a destination listening.
        Setup = "setup",
        /// A cancel was asked for and takes its time.
        Cancelling = "cancelling",
        /// Ended by a cancel.
        Cancelled = "cancelled",
        /// Copying while the guest runs.
        Active = "active",
        /// The guest runs on the destination and fetches pages from the source (2.5).
        PostcopyActive = "postcopy-active",
        /// The link broke in postcopy (3.0).
        PostcopyPaused = "postcopy-paused",
        /// A new link for a paused postcopy is being made (9.1).
        PostcopyRecoverSetup = "postcopy-recover-setup",
        /// A paused postcopy is coming back (3.0).
        PostcopyRecover = "postcopy-recover",
        /// Done on this side; on a source it proves nothing about the destination unless `return-path` is on.
        Completed = "completed",
        /// Ended by an error. A precopy source runs again, on QEMU 10 and before only after this was said.
        Failed = "failed",
        /// An error was met and the source is being restored (11.0).
        Failing = "failing",
        /// Keeping a second guest in step (2.8).
        Colo = "colo",
        /// The guest is stopped and waits for `migrate-continue` (2.11).
        PreSwitchover = "pre-switchover",
        /// The guest is stopped and its devices are sent (2.11; always seen since 10.0).
        Device = "device",
        /// As `device`, on the way to postcopy (10.2).
        PostcopyDevice = "postcopy-device",
        /// Waiting for the guest to let go of a device (4.2).
        WaitUnplug = "wait-unplug",
    }
}

impl MigrationStatus {
    /// Whether this migration has ended, one way or another.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// The answer to `query-migrate` (`MigrationInfo`, `qapi/migration.json`), from either side. What QEMU did not say is
/// `None`; `ram` and the times are absent in setup and after a failure.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// Where the migration stands; absent when there was none, on a destination up to 7.2 also while it listens.
    #[serde(deserialize_with = "lenient")]
    pub status: Option<MigrationStatus>,
    /// Milliseconds since the start; after the end, of the whole migration. Up to 8.x it may be 0 for a moment after
    /// completion.
    #[serde(rename = "total-time", deserialize_with = "lenient")]
    pub total_time_ms: Option<u64>,
    /// Milliseconds from the stop to the end on this side; only when completed and in postcopy. Up to 8.x it may be 0
    /// for a moment after completion.
    #[serde(rename = "downtime", deserialize_with = "lenient")]
    pub downtime_ms: Option<u64>,
    /// Milliseconds; early it is only the limit that was set.
    #[serde(rename = "expected-downtime", deserialize_with = "lenient")]
    pub expected_downtime_ms: Option<u64>,
    /// Milliseconds from the command to the first page.
    #[serde(rename = "setup-time", deserialize_with = "lenient")]
    pub setup_time_ms: Option<u64>,
    /// Guest memory.
    #[serde(deserialize_with = "lenient")]
    pub ram: Option<RamInfo>,
    /// Percent of time taken from the guest's processors; present only while they are throttled (2.7).
    #[serde(deserialize_with = "lenient")]
    pub cpu_throttle_percentage: Option<u64>,
    /// Why it failed (2.7); often absent up to 7.2. Any text, so escape it before it is printed.
    #[serde(deserialize_with = "lenient")]
    pub error_desc: Option<String>,
    /// Why this guest cannot be migrated (6.0); worth a look before the start. Any texts, so escape before printing.
    #[serde(deserialize_with = "lenient")]
    pub blocked_reasons: Vec<String>,
    /// Where a destination listens, with the port that it really got (4.0).
    #[serde(deserialize_with = "lenient")]
    pub socket_address: Vec<SocketAddress>,
    /// Everything else, as it was sent.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Guest memory in `query-migrate` (`MigrationStats`, `MigrationRAMStats` since 11.1, `qapi/migration.json`). Fields
/// that every QEMU has read as 0 when they are missing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamInfo {
    /// Bytes sent.
    #[serde(rename = "transferred", deserialize_with = "lenient")]
    pub transferred_bytes: u64,
    /// Bytes that were still to send at the last look at the dirty bitmap; 0 once completed.
    #[serde(rename = "remaining", deserialize_with = "lenient")]
    pub remaining_bytes: u64,
    /// Bytes of guest memory.
    #[serde(rename = "total", deserialize_with = "lenient")]
    pub total_bytes: u64,
    /// Pages that were all zeros.
    #[serde(rename = "duplicate", deserialize_with = "lenient")]
    pub zero_pages: u64,
    /// Pages sent whole.
    #[serde(rename = "normal", deserialize_with = "lenient")]
    pub normal_pages: u64,
    /// Bytes of the pages sent whole.
    #[serde(deserialize_with = "lenient")]
    pub normal_bytes: u64,
    /// Pages per second dirtied since the last look at the bitmap: each counts once however often it was written, so
    /// this is no write rate. 0 once completed.
    #[serde(rename = "dirty-pages-rate", deserialize_with = "lenient")]
    pub dirty_pages_per_second: u64,
    /// Megabits per second.
    #[serde(rename = "mbps", deserialize_with = "lenient")]
    pub megabits_per_second: f64,
    /// How often the dirty bitmap was looked at; not a count of passes on 11.1.
    #[serde(deserialize_with = "lenient")]
    pub dirty_sync_count: u64,
    /// Pages that the destination asked for in postcopy (2.7).
    #[serde(deserialize_with = "lenient")]
    pub postcopy_requests: Option<u64>,
    /// Bytes per page of the guest (2.10).
    #[serde(rename = "page-size", deserialize_with = "lenient")]
    pub page_size_bytes: Option<u64>,
    /// Bytes sent through multifd channels (3.0).
    #[serde(deserialize_with = "lenient")]
    pub multifd_bytes: Option<u64>,
    /// Pages sent per second (4.0).
    #[serde(deserialize_with = "lenient")]
    pub pages_per_second: Option<u64>,
    /// Bytes sent while the guest ran here (7.0).
    #[serde(deserialize_with = "lenient")]
    pub precopy_bytes: Option<u64>,
    /// Bytes sent while the guest was stopped (7.0).
    #[serde(deserialize_with = "lenient")]
    pub downtime_bytes: Option<u64>,
    /// Bytes sent while the guest ran there (7.0).
    #[serde(deserialize_with = "lenient")]
    pub postcopy_bytes: Option<u64>,
    /// Everything else, as it was sent.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Where a stream can go (`SocketAddress`, `qapi/sockets.json`).
#[derive(Debug, Clone, PartialEq)]
pub enum SocketAddress {
    /// `inet`.
    Inet {
        /// A name or an IP address.
        host: String,
        /// The port; QEMU sends it as text.
        port: u16,
    },
    /// `unix`.
    Unix {
        /// The path.
        path: String,
    },
    /// `vsock` (2.8).
    Vsock {
        /// The machine.
        cid: String,
        /// The port.
        port: String,
    },
    /// `fd` (2.12).
    Fd {
        /// The name of a descriptor that was passed, or its number.
        name: String,
    },
    /// Anything else, as it was sent.
    Other(Value),
}

impl<'de> Deserialize<'de> for SocketAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let known = match text("type").as_deref() {
            Some("inet") => text("host")
                .zip(text("port").and_then(|port| port.parse().ok()))
                .map(|(host, port)| Self::Inet { host, port }),
            Some("unix") => text("path").map(|path| Self::Unix { path }),
            Some("vsock") => text("cid").zip(text("port")).map(|(cid, port)| Self::Vsock { cid, port }),
            Some("fd") => text("str").map(|name| Self::Fd { name }),
            _ => None,
        };
        Ok(known.unwrap_or(Self::Other(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn three_statuses_are_the_end_and_an_unknown_one_is_not() {
        let terminal: Vec<_> = MigrationStatus::KNOWN
            .iter()
            .filter(|status| status.is_terminal())
            .map(MigrationStatus::as_str)
            .collect();
        assert_eq!(terminal, ["cancelled", "completed", "failed"]);
        let unknown = MigrationStatus::from("\u{1b}later");
        assert!(!unknown.is_terminal());
        assert_eq!(unknown.to_string(), r"\u{1b}later");
        for status in MigrationStatus::KNOWN {
            assert_eq!(&MigrationStatus::from(status.as_str()), status);
        }
    }

    #[test]
    fn an_empty_answer_is_a_migration_that_never_was() {
        assert_eq!(from_value::<MigrationInfo>(json!({})).unwrap(), MigrationInfo::default());
    }

    #[test]
    fn known_fields_are_read_and_unknown_ones_kept() {
        let info: MigrationInfo = from_value(json!({
            "status": "active", "total-time": 1200, "expected-downtime": 300, "setup-time": 3,
            "cpu-throttle-percentage": 20, "blocked-reasons": ["a disk"], "remaining": 5,
            "ram": {"transferred": 1, "remaining": 2, "total": 3, "duplicate": 4, "normal": 5, "normal-bytes": 6,
                "dirty-pages-rate": 7, "mbps": 8.5, "dirty-sync-count": 9, "page-size": 4096, "novel": true},
        }))
        .unwrap();
        assert_eq!(info.status, Some(MigrationStatus::Active));
        assert_eq!((info.total_time_ms, info.downtime_ms), (Some(1200), None));
        assert_eq!(info.rest, *json!({"remaining": 5}).as_object().unwrap());
        let ram = info.ram.unwrap();
        assert_eq!((ram.remaining_bytes, ram.zero_pages, ram.dirty_pages_per_second), (2, 4, 7));
        assert_eq!((ram.page_size_bytes, ram.precopy_bytes), (Some(4096), None));
        assert_eq!(ram.rest, *json!({"novel": true}).as_object().unwrap());
    }

    #[test]
    fn one_odd_field_does_not_hide_the_others() {
        let info: MigrationInfo = from_value(
            json!({"status": 5, "downtime": -3, "ram": {"mbps": null, "total": 1}, "error-desc": "x"}),
        )
        .unwrap();
        assert_eq!((info.status, info.downtime_ms), (None, None));
        assert_eq!(info.ram.unwrap().total_bytes, 1);
        assert_eq!(info.error_desc.as_deref(), Some("x"));
    }

    #[test]
    fn addresses_of_every_kind_are_read() {
        let read = |value| from_value::<SocketAddress>(value).unwrap();
        assert_eq!(
            read(json!({"type": "inet", "host": "::1", "port": "49152"})),
            SocketAddress::Inet { host: "::1".into(), port: 49152 }
        );
        assert_eq!(read(json!({"type": "unix", "path": "/s"})), SocketAddress::Unix { path: "/s".into() });
        assert_eq!(
            read(json!({"type": "vsock", "cid": "3", "port": "4"})),
            SocketAddress::Vsock { cid: "3".into(), port: "4".into() }
        );
        assert_eq!(read(json!({"type": "fd", "str": "7"})), SocketAddress::Fd { name: "7".into() });
        for odd in [json!({"type": "pigeon"}), json!({"type": "inet", "host": "h", "port": "no"}), json!(5)] {
            assert_eq!(read(odd.clone()), SocketAddress::Other(odd));
        }
    }
}
