//! The courses: what is done with the two QEMUs, as the engine does it, and what befalls them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use qmigrate::qmp::Leg::{self, Destination, Source};
use serde_json::{Value, json};

use super::pair::Pair;

/// One course.
pub(crate) struct Course {
    pub(crate) name: &'static str,
    /// What the source's command line has besides.
    pub(crate) source: &'static [&'static str],
    /// What the destination's has.
    pub(crate) destination: &'static [&'static str],
    exists: fn([u64; 3]) -> bool,
    pub(crate) run: fn(&mut Pair) -> Result<()>,
}

impl Course {
    pub(crate) fn exists_in(&self, version: [u64; 3]) -> bool {
        (self.exists)(version)
    }

    const fn new(name: &'static str, run: fn(&mut Pair) -> Result<()>) -> Self {
        Self { name, source: &[], destination: &[], exists: |_| true, run }
    }
}

/// All of them.
pub(crate) const COURSES: &[Course] = &[
    Course::new("introspection", introspection),
    Course::new("precopy-completed", precopy_completed),
    Course::new("precopy-destination-dies", precopy_destination_dies),
    Course::new("switchover-destination-dies", switchover_destination_dies),
    Course {
        source: &["-smp", "2"],
        ..Course::new("precopy-destination-refuses-devices", precopy_destination_refuses)
    },
    Course {
        destination: &["-m", "96M"],
        ..Course::new("precopy-destination-refuses-memory", precopy_destination_refuses)
    },
    Course::new("connect-refused", connect_refused),
    Course::new("cancel", cancel),
    Course::new("cancel-in-blackout", cancel_in_blackout),
    Course::new("yank-in-blackout", yank_in_blackout),
    Course::new("postcopy-completed", postcopy_completed),
    Course::new("non-live", non_live),
    Course { exists: |version| version < [6, 0, 0], ..Course::new("limits-legacy", limits_legacy) },
];

/// How often the source is asked how far it is.
const POLL: Duration = Duration::from_millis(100);
/// A stream at this rate is still under way when the next command comes.
const SLOW: u64 = 1 << 20;
/// At this one the working set takes a third of a second.
const BRISK: u64 = 12 << 20;
/// So long is waited in a blackout before it counts as one that lasts too long.
const TOO_LONG: Duration = Duration::from_millis(2300);
/// The engine's capabilities.
const CAPABILITIES: &[&str] = &["events", "return-path", "late-block-activate"];

fn is_event(said: &Value, name: &str) -> bool {
    said["event"] == name
}

fn is_status(said: &Value, statuses: &[&str]) -> bool {
    is_event(said, "MIGRATION") && said["data"]["status"].as_str().is_some_and(|now| statuses.contains(&now))
}

fn until_status(pair: &mut Pair, leg: Leg, statuses: &[&str]) -> Result<()> {
    pair.until(leg, &statuses.join(" or "), |said| is_status(said, statuses))
}

/// What is asked of each side before anything.
fn look(pair: &mut Pair, leg: Leg) -> Result<()> {
    pair.does(leg, "qmp_capabilities", json!({"enable": ["oob"]}))?;
    for command in ["query-name", "query-kvm"] {
        pair.does(leg, command, Value::Null)?;
    }
    pair.does(leg, "qom-get", json!({"path": "/machine", "property": "type"}))?;
    for command in ["query-status", "query-migrate"] {
        pair.does(leg, command, Value::Null)?;
    }
    Ok(())
}

fn set_capabilities(pair: &mut Pair, leg: Leg, more: &[&str]) -> Result<()> {
    pair.does(leg, "query-migrate-capabilities", Value::Null)?;
    let on = |name: &&str| json!({"capability": name, "state": true});
    let wanted: Vec<_> = CAPABILITIES.iter().chain(more).map(on).collect();
    pair.does(leg, "migrate-set-capabilities", json!({ "capabilities": wanted }))?;
    Ok(())
}

fn limits(pair: &mut Pair, downtime_ms: u64, bytes_per_second: u64) -> Result<()> {
    let limits = json!({"downtime-limit": downtime_ms, "max-bandwidth": bytes_per_second});
    pair.does(Source, "migrate-set-parameters", limits)?;
    Ok(())
}

/// Looks at both, sets both up; the destination listens after that.
fn prepare(pair: &mut Pair, more: &[&str]) -> Result<()> {
    look(pair, Source)?;
    look(pair, Destination)?;
    set_capabilities(pair, Destination, more)?;
    let uri = pair.stream("stream");
    pair.does(Destination, "migrate-incoming", json!({ "uri": uri }))?;
    set_capabilities(pair, Source, more)?;
    pair.does(Source, "query-migrate-parameters", Value::Null)?;
    Ok(())
}

fn migrate(pair: &mut Pair) -> Result<()> {
    let uri = pair.stream("stream");
    pair.does(Source, "migrate", json!({ "uri": uri }))?;
    Ok(())
}

/// Starts a stream that is slow, and lets it come to the middle of its first pass.
fn stream_slowly(pair: &mut Pair) -> Result<()> {
    prepare(pair, &[])?;
    limits(pair, 2, SLOW)?;
    migrate(pair)?;
    until_status(pair, Source, &["active"])?;
    until_status(pair, Destination, &["active"])?;
    pair.listen(POLL)?;
    pair.does(Source, "query-migrate", Value::Null)?;
    Ok(())
}

/// Asks how far it is until the source has ended it, one way or another.
fn poll_until_over(pair: &mut Pair) -> Result<()> {
    let is_over = |said: &Value| is_status(said, &["completed", "failed", "cancelled"]);
    while !pair.has(Source, is_over) {
        let id = pair.say(Source, "execute", "query-migrate", Value::Null)?;
        pair.answer(Source, id)?;
        if !pair.has(Source, is_over) {
            pair.listen(POLL)?;
        }
    }
    Ok(())
}

/// Both have completed: the destination runs the guest, and the source goes.
fn hand_over(pair: &mut Pair) -> Result<()> {
    until_status(pair, Source, &["completed"])?;
    until_status(pair, Destination, &["completed"])?;
    pair.does(Destination, "cont", Value::Null)?;
    pair.until(Destination, "RESUME", |said| is_event(said, "RESUME"))?;
    pair.does(Destination, "query-status", Value::Null)?;
    end(pair)
}

/// The source says what has become of it, and quits.
fn end(pair: &mut Pair) -> Result<()> {
    // It says completed before its run state does.
    while pair.does(Source, "query-status", Value::Null)?["status"] == "finish-migrate" {
        pair.listen(Duration::from_millis(5))?;
    }
    pair.does(Source, "query-migrate", Value::Null)?;
    pair.does(Source, "quit", Value::Null)?;
    pair.until(Source, "the end", Value::is_null)
}

/// The guest is back on its source, after whatever the destination still says.
fn back(pair: &mut Pair) -> Result<()> {
    until_status(pair, Source, &["failed", "cancelled"])?;
    while pair.does(Source, "query-status", Value::Null)?["status"] != "running" {
        pair.listen(Duration::from_millis(5))?;
    }
    if pair.has(Destination, |said| is_status(said, &["active"])) {
        pair.until(Destination, "the end", Value::is_null)?;
    }
    end(pair)
}

fn introspection(pair: &mut Pair) -> Result<()> {
    for leg in [Source, Destination] {
        look(pair, leg)?;
        for command in [
            "query-version",
            "query-migrate-capabilities",
            "query-migrate-parameters",
            "query-uuid",
            "query-block",
            "query-yank",
        ] {
            pair.ask(leg, command, Value::Null)?;
        }
    }
    pair.does(Source, "query-commands", Value::Null)?;
    for (command, value) in [("migrate_set_downtime", json!(0.3)), ("migrate_set_speed", json!(1 << 30))] {
        pair.ask(Source, command, json!({ "value": value }))?;
    }
    let id = pair.say(Source, "execute", "query-qmp-schema", Value::Null)?;
    let schema = pair.answer(Source, id)?;
    let schema = reachable(schema["return"].as_array().context("a schema")?);
    pair.shorten_last(&schema, id);
    for leg in [Destination, Source] {
        pair.does(leg, "quit", Value::Null)?;
        pair.until(leg, "the end", Value::is_null)?;
    }
    Ok(())
}

/// The part of QEMU's schema that the engine's commands and events lead to; the whole is 200 KB.
fn reachable(schema: &[Value]) -> Value {
    let mut wanted: BTreeSet<&str> = [
        "migrate",
        "migrate-incoming",
        "migrate-set-capabilities",
        "migrate-set-parameters",
        "migrate_cancel",
        "query-migrate",
        "query-status",
        "yank",
        "MIGRATION",
        "MIGRATION_PASS",
        "STOP",
        "RESUME",
        "SHUTDOWN",
    ]
    .into();
    loop {
        let before = wanted.len();
        let is_wanted = |entry: &&Value| entry["name"].as_str().is_some_and(|name| wanted.contains(name));
        let entries: Vec<_> = schema.iter().filter(is_wanted).collect();
        for entry in &entries {
            let own = ["arg-type", "ret-type", "element-type"].map(|key| &entry[key]);
            let parts = ["members", "variants"].map(|key| entry[key].as_array());
            let parts = parts.into_iter().flatten().flatten().map(|part| &part["type"]);
            wanted.extend(own.into_iter().chain(parts).filter_map(Value::as_str));
        }
        if wanted.len() == before {
            return entries.into_iter().cloned().collect();
        }
    }
}

fn precopy_completed(pair: &mut Pair) -> Result<()> {
    prepare(pair, &[])?;
    limits(pair, 2, BRISK)?;
    migrate(pair)?;
    poll_until_over(pair)?;
    hand_over(pair)
}

fn limits_legacy(pair: &mut Pair) -> Result<()> {
    prepare(pair, &[])?;
    pair.does(Source, "migrate_set_downtime", json!({"value": 0.002}))?;
    pair.does(Source, "migrate_set_speed", json!({ "value": BRISK }))?;
    migrate(pair)?;
    poll_until_over(pair)?;
    hand_over(pair)
}

fn non_live(pair: &mut Pair) -> Result<()> {
    prepare(pair, &[])?;
    limits(pair, 2, BRISK)?;
    pair.does(Source, "stop", Value::Null)?;
    migrate(pair)?;
    poll_until_over(pair)?;
    hand_over(pair)
}

fn precopy_destination_dies(pair: &mut Pair) -> Result<()> {
    stream_slowly(pair)?;
    pair.signal(Destination, Signal::SIGKILL)?;
    back(pair)
}

/// What the destination was not told to expect makes it end: its sentence is on its standard error.
fn precopy_destination_refuses(pair: &mut Pair) -> Result<()> {
    prepare(pair, &[])?;
    limits(pair, 2, BRISK)?;
    migrate(pair)?;
    poll_until_over(pair)?;
    back(pair)
}

fn connect_refused(pair: &mut Pair) -> Result<()> {
    prepare(pair, &[])?;
    limits(pair, 2, BRISK)?;
    let uri = pair.stream("nobody");
    pair.ask(Source, "migrate", json!({ "uri": uri }))?;
    poll_until_over(pair)?;
    back(pair)
}

fn cancel(pair: &mut Pair) -> Result<()> {
    stream_slowly(pair)?;
    pair.does(Source, "migrate_cancel", Value::Null)?;
    back(pair)
}

/// Lets the source stop the guest while the destination takes nothing any more.
fn blackout(pair: &mut Pair) -> Result<()> {
    stream_slowly(pair)?;
    // With such a limit anything is little enough, at the source's next look 100 ms later. A socket holds about
    // 200 KB, so that it does not stand still before.
    pair.does(Source, "migrate-set-parameters", json!({"downtime-limit": 2_000_000}))?;
    pair.signal(Destination, Signal::SIGSTOP)?;
    pair.until(Source, "STOP", |said| is_event(said, "STOP"))
}

fn switchover_destination_dies(pair: &mut Pair) -> Result<()> {
    blackout(pair)?;
    pair.listen(POLL)?;
    pair.signal(Destination, Signal::SIGKILL)?;
    back(pair)
}

fn yank(pair: &mut Pair) -> Result<Value> {
    let instances = json!({"instances": [{"type": "migration"}]});
    let id = pair.say(Source, "exec-oob", "yank", instances)?;
    pair.answer(Source, id)
}

fn yank_in_blackout(pair: &mut Pair) -> Result<()> {
    blackout(pair)?;
    pair.say(Source, "execute", "query-migrate", Value::Null)?;
    pair.listen(TOO_LONG)?;
    if yank(pair)?.get("error").is_some() {
        // Before 6.0 there is none.
        cancel_and_wait(pair)?;
        pair.signal(Destination, Signal::SIGKILL)?;
    } else {
        pair.signal(Destination, Signal::SIGCONT)?;
    }
    back(pair)
}

fn cancel_in_blackout(pair: &mut Pair) -> Result<()> {
    blackout(pair)?;
    cancel_and_wait(pair)?;
    if yank(pair)?.get("error").is_some() {
        pair.signal(Destination, Signal::SIGKILL)?;
    } else {
        pair.signal(Destination, Signal::SIGCONT)?;
    }
    back(pair)
}

fn cancel_and_wait(pair: &mut Pair) -> Result<()> {
    pair.say(Source, "execute", "migrate_cancel", Value::Null)?;
    pair.listen(TOO_LONG)
}

/// The guest runs on the destination before its memory is there. What `-S` holds runs when it is told to.
fn postcopy_completed(pair: &mut Pair) -> Result<()> {
    prepare(pair, &["postcopy-ram"])?;
    limits(pair, 2, SLOW)?;
    pair.does(Source, "migrate-set-parameters", json!({ "max-postcopy-bandwidth": BRISK }))?;
    migrate(pair)?;
    until_status(pair, Source, &["active"])?;
    until_status(pair, Destination, &["active"])?;
    pair.listen(POLL)?;
    pair.does(Source, "query-migrate", Value::Null)?;
    pair.does(Source, "migrate-start-postcopy", Value::Null)?;
    until_status(pair, Source, &["postcopy-active"])?;
    until_status(pair, Destination, &["postcopy-active"])?;
    // No event says that it is loaded and held.
    while pair.does(Destination, "query-status", Value::Null)?["status"] != "paused" {
        pair.listen(Duration::from_millis(5))?;
    }
    pair.does(Destination, "cont", Value::Null)?;
    pair.until(Destination, "RESUME", |said| is_event(said, "RESUME"))?;
    poll_until_over(pair)?;
    until_status(pair, Destination, &["completed"])?;
    ensure!(pair.does(Destination, "query-status", Value::Null)?["status"] == "running", "it does not run");
    end(pair)
}
