//! Finds whoever moves the guest that was named, an engine or QEMU alone, and gives orders to either.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use qapi_qmp as words;
use qmigrate::check::{Blocker, Code};
use qmigrate::control::{Engine, EngineError, Question, engines, latest};
use qmigrate::host::{runtime_directory, state_directory};
use qmigrate::migrate::step::limits::{self, QemuLimits};
use qmigrate::qemu::dialect::{Dialect, Wish};
use qmigrate::qemu::{Inventory, Located, QemuName, locate};
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus, RunState, StatusInfo};
use qmigrate::qmp::{Client, Deadlines, Leg};
use qmigrate::record::Record;
use qmigrate::units::{DowntimeMs, Rate};

use super::refuse;

/// A monitor that is free greets at once.
const GREETING_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Whoever can tell of a guest's migration, or be told.
pub(crate) enum Target {
    /// An engine of ours moves it.
    Engine(Box<Engine>),
    /// QEMU moves it, by somebody else's order; its monitor is free.
    Foreign(Client, Box<Inventory>),
    /// It is not being moved; the last time that it was.
    Past(Box<Record>),
}

/// Finds it. Without a name there must be one engine, and one only.
pub(crate) async fn find(name: Option<&str>) -> anyhow::Result<Result<Target, Blocker>> {
    let mut engines = engines(&runtime_directory()?).await;
    let Some(name) = name else {
        engines.retain(|engine| engine.record.outcome.is_none());
        return match engines.len() {
            1 => Ok(Ok(Target::Engine(Box::new(engines.remove(0))))),
            0 => Ok(Err(Blocker::new(
                Code::NoEngine,
                "no migration runs on this host",
                "name the guest or the migration: qmigrate status SOURCE",
            ))),
            _ => {
                let ids = engines.iter().map(|engine| engine.record.id.to_string()).collect::<Vec<_>>();
                bail!("several migrations run; name one of {}", ids.join(", "))
            }
        };
    };
    // An engine whose migration has ended is on its way out; another may have begun the guest's next one.
    let is_at_work = |engine: &Engine| engine.record.outcome.is_none();
    let own = engines.iter().position(|engine| engine.moves(name) && is_at_work(engine));
    if let Some(at) = own.or_else(|| engines.iter().position(|engine| engine.moves(name))) {
        return Ok(Ok(Target::Engine(Box::new(engines.remove(at)))));
    }
    let past = || past(name);
    let qemu: QemuName = match name.parse() {
        Ok(qemu) => qemu,
        Err(error) => {
            return Ok(past()
                .map(|record| Target::Past(Box::new(record)))
                .ok_or_else(|| Blocker::bare(Code::Name, error.to_string())));
        }
    };
    let located = locate(&qemu, Leg::Source, Deadlines { connect: GREETING_WITHIN }).await;
    match located {
        Ok(Located { client, .. }) => {
            let inventory = Inventory::take(&client).await?;
            match past() {
                Some(record) if !is_moving(&inventory.migration) => Ok(Ok(Target::Past(Box::new(record)))),
                _ => Ok(Ok(Target::Foreign(client, Box::new(inventory)))),
            }
        }
        Err(error) => Ok(past().map(|record| Target::Past(Box::new(record))).ok_or_else(|| error.into())),
    }
}

/// The record of the last migration that goes by this name.
pub(crate) fn past(name: &str) -> Option<Record> {
    state_directory().ok().and_then(|state| latest(&state, |record| is_of(record, name)))
}

/// Whether a record is of this migration, or of this guest.
fn is_of(record: &Record, name: &str) -> bool {
    let monitor = name.strip_prefix("unix:").unwrap_or(name);
    let monitor =
        std::path::absolute(monitor).map_or_else(|_| name.to_owned(), |path| path.display().to_string());
    let fits = |qmp: &str| qmp == name || qmp == monitor;
    record.id.as_str() == name
        || record.request.source == name
        || record.source.as_ref().is_some_and(|source| fits(&source.qmp))
}

/// Gives an order to whoever moves the guest, and says what became of it.
pub(crate) async fn order(name: Option<&str>, question: &Question) -> anyhow::Result<ExitCode> {
    let done = match find(name).await? {
        Ok(Target::Engine(engine)) if engine.record.outcome.is_some() => return Ok(refuse_idle()),
        Ok(Target::Engine(engine)) => match engine.order(question).await {
            Ok(done) => done,
            Err(EngineError::Refused(refused)) => return Ok(refuse(refused, None)),
            // It has ended meanwhile.
            Err(_) if past(engine.record.id.as_str()).is_some() => return Ok(refuse_idle()),
            Err(error) => return Err(error.into()),
        },
        Ok(Target::Foreign(client, qemu)) if is_moving(&qemu.migration) => {
            drive(&client, &qemu.dialect, question).await?.to_owned()
        }
        Ok(Target::Foreign(..) | Target::Past(_)) => {
            return Ok(refuse_idle());
        }
        Err(blocker) => return Ok(refuse(&blocker, blocker.hint.as_deref())),
    };
    say!("{done}");
    Ok(ExitCode::SUCCESS)
}

fn refuse_idle() -> ExitCode {
    refuse(
        "this guest is not being moved",
        Some("`qmigrate status SOURCE` tells how its last migration ended, `qmigrate list` shows all guests"),
    )
}

fn is_moving(info: &MigrationInfo) -> bool {
    info.status.as_ref().is_some_and(|status| !status.is_terminal() && *status != MigrationStatus::None)
}

/// Drives a migration that no engine of ours has started.
async fn drive(client: &Client, dialect: &Dialect, question: &Question) -> anyhow::Result<&'static str> {
    Ok(match question {
        Question::Cancel => {
            client.call(&words::migrate_cancel {}, ANSWER_WITHIN).await?;
            let status: StatusInfo = client.call_as(&words::query_status {}, ANSWER_WITHIN).await?;
            if status.status == RunState::Running {
                "QEMU cancels the migration; the guest runs on its source"
            } else {
                "QEMU cancels the migration; the guest is on its source and does not run (`cont` on its monitor runs it)"
            }
        }
        Question::Pause => {
            client.call(&words::stop {}, ANSWER_WITHIN).await?;
            "the guest stands still; whoever started the migration has to run it on the destination (`cont`)"
        }
        Question::Set(limits) => {
            let limits = QemuLimits {
                downtime_ms: limits.max_downtime_ms.map(DowntimeMs::milliseconds),
                bytes_per_second: limits.max_bandwidth_bytes_per_second.map(Rate::bytes_per_second),
            };
            limits::send(client, dialect.limits_by(Wish::Auto)?, limits, ANSWER_WITHIN).await?;
            "the limits are in force"
        }
        Question::Status | Question::Watch => "nothing was changed",
    })
}
