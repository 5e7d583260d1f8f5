//! One migration: two QEMUs, driven by the moments of a course, followed by events and by questions.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qapi_qmp as words;
use qmigrate::guest::{Accelerator, Content, Workload};
use qmigrate::lab::subject::{Board, Subject, qemu_version};
use qmigrate::qmp::words::commands::{CapabilityState, MigrateSetCapabilities, MigrateSetParameters};
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus, Notice};
use qmigrate::qmp::{Address, Client, Deadlines, Events, Leg};
use qmigrate::units::Size;
use serde_json::{Value, json};

use crate::courses::{Course, Link, Say};

/// Longer than any course takes.
const PATIENCE: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(30);
/// As often as QEMU's own figures change.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// So long the guest is watched before, for its own pace.
const PACE: Duration = Duration::from_secs(1);

/// What was seen so far.
#[derive(Debug)]
struct Seen {
    started: Instant,
    started_us: u64,
    said: Vec<Value>,
    passes: Vec<Value>,
    /// Each change of the throttle.
    throttle: Vec<Value>,
    throttle_percent: u64,
    stopped_us: Option<u64>,
    has_completed: bool,
}

/// A run in which the guest has seen fewer of its ticks than this share says more about the host than about QEMU.
const QUIET: f64 = 0.96;
/// So often a quiet run is looked for; then the quietest counts.
const ATTEMPTS: u32 = 6;

/// Runs a course until its host has left it alone; gives the file.
pub(crate) async fn run(qemu: &Path, course: &Course) -> Result<String> {
    let mut quietest: Option<(f64, Value)> = None;
    for attempt in 1..=ATTEMPTS {
        let (quiet, recorded) = attempt_one(qemu, course).await?;
        eprintln!("{} {attempt}: {:.1} % of the ticks", course.name, quiet * 100.0);
        if quietest.as_ref().is_none_or(|(before, _)| *before < quiet) {
            quietest = Some((quiet, recorded));
        }
        if quiet >= QUIET {
            break;
        }
    }
    let (_, recorded) = quietest.context("no run")?;
    Ok(text(&recorded))
}

/// A file as people read it: one line for each part, and for each pass.
fn text(recorded: &Value) -> String {
    let parts =
        ["qemu", "guest", "link", "auto_converge", "said", "passes", "throttle", "outcome"].map(|name| {
            let value = &recorded[name];
            let value = match value.as_array() {
                Some(lines) if !lines.is_empty() => {
                    let lines: Vec<_> = lines.iter().map(|line| format!("    {line}")).collect();
                    format!("[\n{}\n  ]", lines.join(",\n"))
                }
                _ => value.to_string(),
            };
            format!("  \"{name}\": {value}")
        });
    format!("{{\n{}\n}}", parts.join(",\n"))
}

/// Runs a course; gives what was seen, and which share of its ticks the guest has seen where nothing took them on purpose.
async fn attempt_one(qemu: &Path, course: &Course) -> Result<(f64, Value)> {
    let directory = tempfile::Builder::new().prefix("qm-passes-").tempdir()?;
    let workload = workload(course)?;
    let subject = Subject::start(qemu, Board::newest(Accelerator::Tcg), workload, directory.path()).await?;
    let source = subject.connect().await?;
    let (pace, quiet_before) = pace(&subject, &source).await?;

    let (mut twin, destination) = start_twin(qemu, &subject, directory.path()).await?;
    let uri = prepare(&source, &destination, directory.path(), course).await?;
    // A tick is a millisecond, and what follows takes less than one.
    let (ticks, at) = (subject.state(&source).await?, Instant::now());
    let seen = follow(&source, &destination, course, &uri).await?;
    let ticks_at_end = subject.state(&source).await?;
    let seen_since_ms = seen.started.duration_since(at).as_secs_f64() * 1e3;
    let mut recorded = finish(qemu, course, (&source, &destination), pace, seen).await?;
    recorded["guest"]["ticks_at_start"] = ticks.working_ticks().into();
    let stopped_ms = recorded["outcome"]["stopped_at_ms"].as_f64().context("it was not stopped")?;
    let kept = f64::from(ticks_at_end.ticks - ticks.ticks) / (stopped_ms + seen_since_ms);
    recorded["guest"]["ticks_kept"] = json!((kept * 1e4).round() / 1e4);
    let quiet = if course.auto_converge.is_some() { quiet_before } else { kept.min(quiet_before) };
    let _ = destination.call(&words::quit {}, ANSWER).await;
    twin.wait().await?;
    Ok((quiet, recorded))
}

/// Starts the destination.
async fn start_twin(
    qemu: &Path,
    subject: &Subject,
    directory: &Path,
) -> Result<(tokio::process::Child, Client)> {
    let mut machine = subject.machine.clone();
    machine.qmp = directory.join("qmp-2");
    machine.second_qmp = None;
    let log = std::fs::File::create(directory.join("destination.log"))?;
    let mut twin = tokio::process::Command::new(qemu)
        .args(machine.arguments())
        .args(["-S", "-incoming", "defer"])
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let address = Address::unix(&machine.qmp)?;
    loop {
        match Client::connect(&address, Leg::Destination, Deadlines::default()).await {
            Ok(client) => return Ok((twin, client)),
            Err(error) if twin.try_wait()?.is_some() => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

fn workload(course: &Course) -> Result<Workload> {
    let mebibytes = |number| Size::from_mebibytes(number).context("no size");
    let rate = course.rate.map(str::parse).transpose()?;
    let (memory, working_set) = (mebibytes(course.memory_mib)?, mebibytes(course.working_set_mib)?);
    Ok(Workload::new(memory, working_set, rate, course.pattern, Content::Incompressible)?)
}

/// Writes per second while nobody looks at the guest's memory, and the share of the ticks that the guest has seen.
async fn pace(subject: &Subject, source: &Client) -> Result<(f64, f64)> {
    let (before, at) = (subject.state(source).await?, Instant::now());
    tokio::time::sleep(PACE).await;
    let after = subject.state(source).await?;
    #[expect(clippy::cast_precision_loss, reason = "writes of a second")]
    let writes = (after.writes - before.writes) as f64;
    let seconds = at.elapsed().as_secs_f64();
    Ok((writes / seconds, f64::from(after.ticks - before.ticks) / seconds / 1e3))
}

async fn parameters(client: &Client, value: Value) -> Result<()> {
    let Value::Object(map) = value else { bail!("no parameters: {value}") };
    client.call(&MigrateSetParameters(map), ANSWER).await?;
    Ok(())
}

async fn prepare(source: &Client, destination: &Client, directory: &Path, course: &Course) -> Result<String> {
    let mut names = vec!["events", "return-path", "late-block-activate"];
    names.extend(course.auto_converge.map(|_| "auto-converge"));
    for client in [source, destination] {
        let on = |&name: &&str| CapabilityState { capability: name.to_owned(), state: true };
        let capabilities = names.iter().map(on).collect();
        client.call(&MigrateSetCapabilities { capabilities }, ANSWER).await?;
    }
    let uri = match course.link {
        Link::Capped { .. } => format!("unix:{}", directory.join("stream").display()),
        Link::Shaped { .. } => "tcp:127.0.0.1:0".to_owned(),
    };
    let incoming = words::migrate_incoming { uri: Some(uri.clone()), channels: None, exit_on_error: None };
    destination.call(&incoming, ANSWER).await?;
    let bandwidth = match course.link {
        Link::Capped { mebibytes } => mebibytes << 20,
        Link::Shaped { .. } => 0,
    };
    parameters(source, json!({ "max-bandwidth": bandwidth })).await?;
    if let Some([initial, increment, maximum, threshold]) = course.auto_converge {
        let throttle = json!({"cpu-throttle-initial": initial, "cpu-throttle-increment": increment,
            "max-cpu-throttle": maximum, "throttle-trigger-threshold": threshold});
        parameters(source, throttle).await?;
    }
    for (_, say) in course.says.iter().filter(|(at, _)| *at == 0) {
        parameters(source, say.parameters()).await?;
    }
    if matches!(course.link, Link::Capped { .. }) {
        return Ok(uri);
    }
    let told: Value = destination.call(&words::query_migrate {}, ANSWER).await?;
    let port = told["socket-address"][0]["port"].as_str().context("it listens nowhere")?;
    Ok(format!("tcp:127.0.0.1:{port}"))
}

async fn follow(source: &Client, destination: &Client, course: &Course, uri: &str) -> Result<Seen> {
    let mut events = source.events();
    let started_us = u64::try_from(jiff::Timestamp::now().as_microsecond())?;
    let mut seen = Seen {
        started: Instant::now(),
        started_us,
        said: Vec::new(),
        passes: Vec::new(),
        throttle: Vec::new(),
        throttle_percent: 0,
        stopped_us: None,
        has_completed: false,
    };
    let command = words::migrate { uri: Some(uri.to_owned()), channels: None, detach: None, resume: None };
    let mut arrived = destination.events();
    source.call(&command, ANSWER).await?;
    for (_, say) in course.says.iter().filter(|(at, _)| *at == 0) {
        seen.said.push(json!({"at_ms": 0, "say": say.parameters()}));
    }
    let mut says: Vec<(u64, Say)> = course.says.iter().copied().filter(|(at, _)| *at > 0).collect();
    says.sort_by_key(|(at, _)| *at);
    let mut says = says.into_iter().peekable();
    let mut ask_at = seen.started;
    while !seen.has_completed {
        ensure!(seen.started.elapsed() < PATIENCE, "it does not end: {:?}", seen.passes.last());
        let say_at = says.peek().map(|(at, _)| seen.started + Duration::from_millis(*at));
        let wake_at = say_at.map_or(ask_at, |at| at.min(ask_at));
        tokio::select! {
            heard = events.next() => {
                let event = heard?.event;
                let at_us = event.timestamp_microseconds.unwrap_or(0);
                match Notice::from(&event) {
                    Notice::Pass(number) => ask(source, &mut seen, Some((number, at_us))).await?,
                    Notice::Stop => seen.stopped_us = Some(at_us),
                    Notice::Migration(MigrationStatus::Failed | MigrationStatus::Cancelled) => bail!("it failed"),
                    Notice::Migration(MigrationStatus::Completed) => seen.has_completed = true,
                    _ => {}
                }
            }
            () = tokio::time::sleep_until(wake_at.into()) => {
                if let Some((_, say)) = says.next_if(|(at, _)| seen.started.elapsed().as_millis() >= u128::from(*at)) {
                    seen.said.push(json!({"at_ms": rounded(seen.now_ms()), "say": say.parameters()}));
                    match say {
                        Say::Stop => drop(source.call(&words::stop {}, ANSWER).await?),
                        _ => parameters(source, say.parameters()).await?,
                    }
                } else {
                    ask(source, &mut seen, None).await?;
                    ask_at = Instant::now() + ASK_EVERY;
                }
            }
        }
    }
    wait_for_completion(&mut arrived).await?;
    Ok(seen)
}

async fn wait_for_completion(arrived: &mut Events) -> Result<()> {
    loop {
        let heard = tokio::time::timeout(PATIENCE, arrived.next()).await??;
        if Notice::from(&heard.event) == Notice::Migration(MigrationStatus::Completed) {
            return Ok(());
        }
    }
}

/// Asks how far it is, for its own sake or because a pass has begun.
async fn ask(source: &Client, seen: &mut Seen, pass: Option<(u64, u64)>) -> Result<()> {
    let info: MigrationInfo = source.call_as(&words::query_migrate {}, ANSWER).await?;
    let at_ms = seen.now_ms();
    let (Some(ram), Some(MigrationStatus::Active)) = (&info.ram, &info.status) else { return Ok(()) };
    let percent = info.cpu_throttle_percentage.unwrap_or(0);
    if percent != seen.throttle_percent {
        seen.throttle_percent = percent;
        seen.throttle.push(json!({"at_ms": rounded(at_ms), "percent": percent}));
    }
    // A pass that another has followed before the answer came cannot be told from it.
    if let Some((number, event_us)) = pass.filter(|(number, _)| ram.dirty_sync_count == *number) {
        seen.passes.push(json!({
            "number": number,
            "began_at_ms": rounded(seen.since_start_ms(event_us)),
            "remaining_bytes": ram.remaining_bytes,
            "transferred_bytes": ram.transferred_bytes,
        }));
    }
    Ok(())
}

impl Seen {
    fn now_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds of one migration")]
    fn since_start_ms(&self, at_us: u64) -> f64 {
        at_us.saturating_sub(self.started_us) as f64 / 1e3
    }
}

/// Hundredths of a millisecond will do.
fn rounded(milliseconds: f64) -> Value {
    json!((milliseconds * 100.0).round() / 100.0)
}

async fn finish(
    qemu: &Path,
    course: &Course,
    (source, destination): (&Client, &Client),
    pace: f64,
    seen: Seen,
) -> Result<Value> {
    let info: MigrationInfo = source.call_as(&words::query_migrate {}, ANSWER).await?;
    let mut resumed = destination.events();
    destination.call(&words::cont {}, ANSWER).await?;
    let resumed_us = loop {
        let heard = tokio::time::timeout(ANSWER, resumed.next()).await??;
        if Notice::from(&heard.event) == Notice::Resume {
            break heard.event.timestamp_microseconds.unwrap_or(0);
        }
    };
    let ram = info.ram.context("no figures at the end")?;
    let (major, minor) = qemu_version(qemu)?;
    let (shaped, capped) = match course.link {
        Link::Capped { mebibytes } => (None, Some(mebibytes << 20)),
        Link::Shaped { bytes } => (Some(bytes), None),
    };
    let rate = course.rate.map(str::parse::<qmigrate::units::Rate>).transpose()?;
    Ok(json!({
        "qemu": format!("{major}.{minor}"),
        "guest": {
            "memory_bytes": course.memory_mib << 20,
            "working_set_bytes": course.working_set_mib << 20,
            "write_bytes_per_second": rate,
            "pattern": course.pattern.to_string(),
            "writes_per_second_before": pace.round(),
        },
        "link": { "shaped_bytes_per_second": shaped, "max_bandwidth_bytes_per_second": capped },
        "auto_converge": course.auto_converge.map(|[initial, increment, maximum, threshold]| json!({
            "initial_percent": initial, "increment_percent": increment, "maximum_percent": maximum,
            "threshold_percent": threshold,
        })),
        "said": seen.said,
        "passes": seen.passes,
        "throttle": seen.throttle,
        "outcome": {
            "stopped_at_ms": seen.stopped_us.map(|at| rounded(seen.since_start_ms(at))),
            "resumed_at_ms": rounded(seen.since_start_ms(resumed_us)),
            "qemu_downtime_ms": info.downtime_ms,
            "total_ms": info.total_time_ms,
            "transferred_bytes": ram.transferred_bytes,
            "downtime_bytes": ram.downtime_bytes,
            "total_bytes": ram.total_bytes,
            "normal_pages": ram.normal_pages,
            "zero_pages": ram.zero_pages,
            "passes": ram.dirty_sync_count,
        },
    }))
}
