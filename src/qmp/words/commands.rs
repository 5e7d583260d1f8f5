//! Commands that `qapi-qmp` 0.15 lacks: its schema is the one of QEMU 9.1.

use qapi::Command;
use serde::Serialize;
use serde_json::{Map, Value};

/// `migrate_set_downtime`: the longest blackout. Gone in 6.0, where `migrate-set-parameters` does it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MigrateSetDowntime {
    /// Seconds.
    #[serde(rename = "value")]
    pub seconds: f64,
}

impl Command for MigrateSetDowntime {
    type Ok = Value;

    const NAME: &'static str = "migrate_set_downtime";
    const ALLOW_OOB: bool = false;
}

/// `migrate_set_speed`: the highest bandwidth. Gone in 6.0, where `migrate-set-parameters` does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MigrateSetSpeed {
    /// Bytes per second.
    #[serde(rename = "value")]
    pub bytes_per_second: u64,
}

impl Command for MigrateSetSpeed {
    type Ok = Value;

    const NAME: &'static str = "migrate_set_speed";
    const ALLOW_OOB: bool = false;
}

/// `migrate-set-capabilities` with names as another QEMU told them: older ones have some that are gone from the schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrateSetCapabilities {
    /// The capabilities, on or off.
    pub capabilities: Vec<CapabilityState>,
}

/// A capability, on or off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CapabilityState {
    /// Its name.
    pub capability: String,
    /// Whether it is on.
    pub state: bool,
}

impl Command for MigrateSetCapabilities {
    type Ok = Value;

    const NAME: &'static str = "migrate-set-capabilities";
    const ALLOW_OOB: bool = false;
}

/// `migrate-set-parameters` with values as another QEMU told them: newer ones have words that the schema lacks.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct MigrateSetParameters(pub Map<String, Value>);

impl Command for MigrateSetParameters {
    type Ok = Value;

    const NAME: &'static str = "migrate-set-parameters";
    const ALLOW_OOB: bool = false;
}

/// `x-debug-query-block-graph`: which block node stands on which. An `x-` since 4.0, and the same from 5.2 to 11.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct QueryBlockGraph {}

impl Command for QueryBlockGraph {
    type Ok = Value;

    const NAME: &'static str = "x-debug-query-block-graph";
    const ALLOW_OOB: bool = false;
}

#[cfg(test)]
mod tests {
    use super::*;
    use qapi::Execute;

    #[test]
    fn the_old_names_go_out_as_qemu_5_2_knows_them() {
        let line = serde_json::to_string(&Execute::with_id(MigrateSetDowntime { seconds: 0.3 }, 1)).unwrap();
        assert_eq!(line, r#"{"execute":"migrate_set_downtime","arguments":{"value":0.3},"id":1}"#);
        let line =
            serde_json::to_string(&Execute::with_id(MigrateSetSpeed { bytes_per_second: 5 }, 2)).unwrap();
        assert_eq!(line, r#"{"execute":"migrate_set_speed","arguments":{"value":5},"id":2}"#);
    }
}
