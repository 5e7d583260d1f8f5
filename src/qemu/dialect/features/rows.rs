//! The rows of the table, and what is known beside them.

use super::{Look, Row, Unit};

const fn row(group: &'static str, name: &'static str, look: Look) -> Row {
    Row { group, name, look }
}

const fn word(name: &'static str, command: &'static str, argument: &'static str, word: &'static str) -> Row {
    row("choices", name, Look::Word(command, argument, word))
}

pub(super) const SET: &str = "migrate-set-parameters";
pub(super) const COMPRESSION: &str = "multifd-compression";

/// The table, group by group; first what the rest amounts to.
pub const ROWS: &[Row] = &[
    row("in short", "downtime and speed are set by", Look::LimitsBy),
    row("in short", "live under TCG keeps all writes", Look::KeepsWrites),
    row("commands", "migrate_set_downtime", Look::Command),
    row("commands", "migrate_set_speed", Look::Command),
    row("commands", SET, Look::Command),
    row("commands", "migrate channels", Look::Argument("migrate", "channels")),
    row("commands", "migrate-incoming exit-on-error", Look::Argument("migrate-incoming", "exit-on-error")),
    row("commands", "migrate-pause", Look::Command),
    row("commands", "migrate-recover", Look::Command),
    row("commands", "yank", Look::Command),
    row("commands", "announce-self", Look::Command),
    row("commands", "blockdev-set-active", Look::Command),
    row("commands", "calc-dirty-rate", Look::Command),
    row("commands", "set-vcpu-dirty-limit", Look::Command),
    row("out of band", "migrate-pause", Look::OutOfBand),
    row("out of band", "migrate-recover", Look::OutOfBand),
    row("out of band", "yank", Look::OutOfBand),
    row("capabilities", "auto-converge", Look::Capability),
    row("capabilities", "background-snapshot", Look::Capability),
    row("capabilities", "block", Look::Capability),
    row("capabilities", "compress", Look::Capability),
    row("capabilities", "dirty-bitmaps", Look::Capability),
    row("capabilities", "dirty-limit", Look::Capability),
    row("capabilities", "events", Look::Capability),
    row("capabilities", "late-block-activate", Look::Capability),
    row("capabilities", "mapped-ram", Look::Capability),
    row("capabilities", "multifd", Look::Capability),
    row("capabilities", "pause-before-switchover", Look::Capability),
    row("capabilities", "postcopy-preempt", Look::Capability),
    row("capabilities", "postcopy-ram", Look::Capability),
    row("capabilities", "return-path", Look::Capability),
    row("capabilities", "switchover-ack", Look::Capability),
    row("capabilities", "validate-uuid", Look::Capability),
    row("capabilities", "x-ignore-shared", Look::Capability),
    row("capabilities", "xbzrle", Look::Capability),
    row("capabilities", "zero-copy-send", Look::Capability),
    row("parameters", "avail-switchover-bandwidth", Look::Parameter),
    row("parameters", "block-bitmap-mapping", Look::Argument(SET, "block-bitmap-mapping")),
    row("parameters", "cpu-throttle-initial", Look::Setting(Unit::Percent)),
    row("parameters", "direct-io", Look::Parameter),
    row("parameters", "downtime-limit", Look::Setting(Unit::Milliseconds)),
    row("parameters", "max-bandwidth", Look::Setting(Unit::BytesPerSecond)),
    row("parameters", "max-cpu-throttle", Look::Setting(Unit::Percent)),
    row("parameters", "max-postcopy-bandwidth", Look::Setting(Unit::BytesPerSecond)),
    row("parameters", "mode", Look::Setting(Unit::Bare)),
    row("parameters", "multifd-channels", Look::Setting(Unit::Bare)),
    row("parameters", COMPRESSION, Look::Setting(Unit::Bare)),
    row("parameters", "throttle-trigger-threshold", Look::Setting(Unit::Percent)),
    row("parameters", "tls-authz", Look::Parameter),
    row("parameters", "tls-creds", Look::Parameter),
    row("parameters", "vcpu-dirty-limit", Look::Parameter),
    row("parameters", "zero-page-detection", Look::Setting(Unit::Bare)),
    word("calc-dirty-rate mode dirty-bitmap", "calc-dirty-rate", "mode", "dirty-bitmap"),
    word("calc-dirty-rate mode dirty-ring", "calc-dirty-rate", "mode", "dirty-ring"),
    word("mode cpr-exec", SET, "mode", "cpr-exec"),
    word("mode cpr-reboot", SET, "mode", "cpr-reboot"),
    word("mode cpr-transfer", SET, "mode", "cpr-transfer"),
    word("multifd-compression qatzip", SET, COMPRESSION, "qatzip"),
    word("multifd-compression qpl", SET, COMPRESSION, "qpl"),
    word("multifd-compression uadk", SET, COMPRESSION, "uadk"),
    word("multifd-compression zlib", SET, COMPRESSION, "zlib"),
    word("multifd-compression zstd", SET, COMPRESSION, "zstd"),
    row("statuses", "device", Look::Status),
    row("statuses", "failing", Look::Status),
    row("statuses", "postcopy-device", Look::Status),
    row("statuses", "postcopy-paused", Look::Status),
    row("statuses", "postcopy-recover-setup", Look::Status),
    row("statuses", "pre-switchover", Look::Status),
    row("statuses", "wait-unplug", Look::Status),
    row("events", "MIGRATION", Look::Event),
    row("events", "MIGRATION_PASS", Look::Event),
    row("events", "UNPLUG_PRIMARY", Look::Event),
    row("events", "VFIO_MIGRATION", Look::Event),
    row("answers of query-migrate", "blocked-reasons", Look::Answer),
    row("answers of query-migrate", "error-desc", Look::Answer),
    row("answers of query-migrate", "remaining", Look::Answer),
    row("answers of query-migrate", "socket-address", Look::Answer),
    row("machine types", "pc-i440fx", Look::Machines),
    row("machine types", "pc-q35", Look::Machines),
    row("machine types", "virt", Look::Machines),
];

/// Capabilities that are known and in no row.
pub(super) const OTHER_CAPABILITIES: [&str; 5] =
    ["postcopy-blocktime", "rdma-pin-all", "release-ram", "x-colo", "zero-blocks"];
/// Parameters that are known and in no row.
pub(super) const OTHER_PARAMETERS: [&str; 22] = [
    "announce-initial",
    "announce-max",
    "announce-rounds",
    "announce-step",
    "block-incremental",
    "compress-level",
    "compress-threads",
    "compress-wait-thread",
    "cpr-exec-command",
    "cpu-throttle-increment",
    "cpu-throttle-tailslow",
    "decompress-threads",
    "multifd-qatzip-level",
    "multifd-zlib-level",
    "multifd-zstd-level",
    "tls-hostname",
    "x-checkpoint-delay",
    "x-cpu-throttle-increment",
    "x-cpu-throttle-initial",
    "x-rdma-chunk-size",
    "x-vcpu-dirty-limit-period",
    "xbzrle-cache-size",
];
/// Commands with `migrat` in their name that are known and in no row.
pub(super) const OTHER_COMMANDS: [&str; 13] = [
    "client_migrate_info",
    "migrate",
    "migrate-continue",
    "migrate-incoming",
    "migrate-set-cache-size",
    "migrate-set-capabilities",
    "migrate-start-postcopy",
    "migrate_cancel",
    "query-migrate",
    "query-migrate-cache-size",
    "query-migrate-capabilities",
    "query-migrate-parameters",
    "query-migrationthreads",
];
