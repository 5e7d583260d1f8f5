//! The sentence at the end: what became of the guest, and what to type next.

use super::driver::Conclusion;
use super::history::History;
use super::phase::Rest;
use super::side::{Contact, Side};
use crate::check::{Blocker, Code};
use crate::host::ProcError;
use crate::qmp::Leg;
use crate::qmp::words::{MigrationInfo, RunState};
use crate::record::{Blackout, End, MayRun, MigrationId, Moved, Observed, Outcome, Totals, Whereabouts};
use crate::units::show_duration;

fn outcome(end: End, guest: Whereabouts, message: impl Into<String>, hint: Option<String>) -> Outcome {
    Outcome {
        end,
        exit_code: end.exit_code(),
        guest,
        message: message.into(),
        hint,
        open: end == End::Undecided,
        budgets_enforced: true,
        blackout: None,
        totals: Totals::default(),
        moved: Vec::new(),
    }
}

/// Refused, or given up before it began: nothing was changed.
pub(super) fn refused(blockers: &[Blocker]) -> Outcome {
    if let [Blocker { code: Code::Cancelled, message, hint }] = blockers {
        let message = format!("not moved: {message}");
        return outcome(End::NotMigrated, Whereabouts::Unchanged, message, hint.clone());
    }
    let messages = blockers.iter().map(|blocker| blocker.message.as_str()).collect::<Vec<_>>();
    let mut hints = blockers.iter().filter_map(|blocker| blocker.hint.clone()).collect::<Vec<_>>();
    hints.dedup();
    let hint = (!hints.is_empty()).then(|| hints.join("\n"));
    outcome(End::Refused, Whereabouts::Unchanged, messages.join("\n"), hint)
}

/// What is left of a migration on a source that lives and could not be spoken to: `recover` sets it back.
pub(super) fn unrestored(mut outcome: Outcome, leg: Leg, id: &MigrationId) -> Outcome {
    outcome.end = match outcome.end {
        End::Refused => End::NotMigrated,
        End::Migrated => End::MigratedWithRemainder,
        end => end,
    };
    outcome.exit_code = outcome.end.exit_code();
    outcome.open = true;
    outcome.message = format!("{}; the {leg}'s migration settings could not be set back", outcome.message);
    let mut hint = format!("once the {leg}'s monitor can be reached, `qmigrate recover {id}` sets them back");
    if let Some(rest) = outcome.hint.filter(|rest| !rest.contains(&hint)) {
        hint = format!("{hint}\n{rest}");
    }
    outcome.hint = Some(hint);
    outcome
}

/// One of the two processes cannot be looked at; nothing was done.
pub(super) fn unseen(error: &ProcError, id: &MigrationId) -> Outcome {
    let message = format!("undecided: {error}, so that whether it lives is not known; nothing was done");
    let hint = format!("run `qmigrate recover {id}` as root, or as the user that began the migration");
    outcome(End::Undecided, Whereabouts::Unknown, message, Some(hint))
}

/// An engine ended before it had made anything.
pub(super) fn untouched() -> Outcome {
    let message = "the engine had ended before it changed anything; there was nothing to undo";
    outcome(End::NotMigrated, Whereabouts::Unchanged, message, None)
}

/// What an engine had begun was taken back; the guest has never left its source.
pub(super) fn undone(state: Option<&RunState>, hint: Option<&str>) -> Outcome {
    const DONE: &str = "the engine had ended before the guest's memory was sent; what it had begun is undone";
    let (guest, where_it_is) = match state {
        Some(RunState::Running) => (Whereabouts::RunningOnSource, "the guest runs on its source".to_owned()),
        Some(state) => (Whereabouts::PausedOnSource, standing_on_source(state)),
        None => (Whereabouts::Unchanged, "the guest is on its source, which does not answer".to_owned()),
    };
    outcome(End::NotMigrated, guest, format!("{DONE}; {where_it_is}"), hint.map(str::to_owned))
}

/// The same where there is no source any more.
pub(super) fn undone_without_source() -> Outcome {
    let message = "the guest is lost: its source has ended, and none of its memory had been sent";
    outcome(End::Lost, Whereabouts::Lost, message, Some("start it anew from its disks".to_owned()))
}

/// A guest that does not run, with what people call its state.
fn standing_on_source(state: &RunState) -> String {
    match state {
        RunState::GuestPanicked => "the guest is on its source and stands still: it has panicked".to_owned(),
        RunState::Suspended => "the guest is on its source and sleeps".to_owned(),
        state => format!("the guest is on its source and stands still (its state is '{state}')"),
    }
}

/// How a guest is found where it has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Arrived {
    /// It was told to run, and does, or sleeps.
    Running,
    /// It was told to run, and somebody has paused it since.
    Paused,
    /// It was told to run, and then stopped by itself, in this state.
    Stopped(RunState),
    /// It was told to run, and now nothing is heard of it.
    Unheard,
    /// It stands still, as it did before or as somebody asked.
    Standing,
    /// It stands still since it panicked, which it had done on its source.
    Panicked,
}

impl Arrived {
    /// What is known of a guest that was to do this, and is in this state.
    pub(super) fn of(rest: Rest, state: Option<&RunState>) -> Self {
        match (rest, state) {
            (Rest::Standing, Some(RunState::GuestPanicked)) => Self::Panicked,
            (Rest::Standing, _) => Self::Standing,
            (Rest::Running, Some(RunState::Running | RunState::Suspended)) => Self::Running,
            // One that was reset while it was paused is before its launch.
            (Rest::Running, Some(RunState::Paused | RunState::PreLaunch)) => Self::Paused,
            (Rest::Running, Some(state)) => Self::Stopped(state.clone()),
            (Rest::Running, None) => Self::Unheard,
        }
    }
}

/// The guest is on the destination.
pub(super) fn moved(
    how: &Arrived,
    destination: &Side,
    blackout: Blackout,
    figures: Option<&MigrationInfo>,
    moved: Vec<Moved>,
    remainder: &[String],
) -> Outcome {
    let (guest, mut message, mut hint) = found(how, destination, &blackout);
    let mut end = End::Migrated;
    if let Arrived::Stopped(_) = how {
        end = End::MigratedWithRemainder;
    }
    if !remainder.is_empty() {
        end = End::MigratedWithRemainder;
        message = format!("{message}; but {}", remainder.join("; "));
        let rest = "see to what is named, and do not start the source's guest";
        hint = Some(hint.map_or_else(|| rest.to_owned(), |hint| format!("{hint}\n{rest}")));
    }
    let mut outcome = outcome(end, guest, message, hint);
    outcome.totals.stream_ms = figures.and_then(|figures| figures.total_time_ms);
    outcome.totals.transferred_bytes =
        figures.and_then(|figures| figures.ram.as_ref()).map_or(0, |ram| ram.transferred_bytes);
    outcome.blackout = (!matches!(how, Arrived::Standing | Arrived::Panicked)).then_some(blackout);
    outcome.moved = moved;
    outcome
}

/// Where a guest is that has arrived, and what to do if it does not run.
fn found(how: &Arrived, destination: &Side, blackout: &Blackout) -> (Whereabouts, String, Option<String>) {
    let (process, monitor) = (destination.process.pid(), &destination.address);
    let run_it = || Some("`cont` on its monitor runs it".to_owned());
    let paused = |said: &str, hint| {
        (Whereabouts::PausedOnDestination, format!("the guest is in process {process}, and {said}"), hint)
    };
    match how {
        Arrived::Running => {
            let stood = blackout.stop_to_resume_ms.map(|milliseconds| {
                let duration = std::time::Duration::from_secs_f64(milliseconds.max(0.0) / 1e3);
                format!("; it stood still for {}", show_duration(duration))
            });
            let message = format!("the guest runs in process {process}{}", stood.unwrap_or_default());
            (Whereabouts::RunningOnDestination, message, None)
        }
        Arrived::Paused => paused("stands still: it ran there, and somebody has paused it since", run_it()),
        Arrived::Stopped(state) => paused(
            &format!("stands still: it ran there, and then stopped by itself (its state is '{state}')"),
            Some("once what stopped it is mended, `cont` on its monitor runs it".to_owned()),
        ),
        Arrived::Unheard => (
            Whereabouts::RunningOnDestination,
            format!("the guest was told to run in process {process}, and its monitor does not answer now"),
            Some(format!("ask it: query-status at {monitor}")),
        ),
        Arrived::Standing => paused("stands still", run_it()),
        Arrived::Panicked => paused(
            "stands still: it has panicked",
            Some(
                "it is kept as it stopped; `system_reset` and `cont` on its monitor start it anew".to_owned(),
            ),
        ),
    }
}

/// How long the guest stood still.
pub(super) fn blackout(
    conclusion: &Conclusion,
    rest: Rest,
    figures: Option<&MigrationInfo>,
    observed: Observed,
) -> Blackout {
    let times = conclusion.stopped_at_us.zip(conclusion.resumed_at_us).filter(|_| rest == Rest::Running);
    let stop_to_resume_ms = times.map(|(stopped, resumed)| difference_ms(stopped, resumed));
    Blackout {
        stop_to_resume_ms,
        clock: "both QEMUs' event timestamps, by the one clock of this host".to_owned(),
        error_ms: stamps_error_ms(conclusion, stop_to_resume_ms),
        qemu_downtime_ms: figures.and_then(|figures| figures.downtime_ms),
        observed,
    }
}

/// The stamps are in microseconds; what they miss is the way from the processors to the stamp. They are by a clock that
/// can be set: where it disagrees with the one by which the events were heard here, by more than events are late, that
/// is the error.
fn stamps_error_ms(conclusion: &Conclusion, stamped_ms: Option<f64>) -> f64 {
    const TO_THE_STAMP_MS: f64 = 0.5;
    const LATE_MS: f64 = 20.0;
    let (Some(stopped), Some(resumed)) = conclusion.heard else { return TO_THE_STAMP_MS };
    let heard_ms = resumed.saturating_duration_since(stopped).as_secs_f64() * 1e3;
    // A `STOP` that was heard late makes the time between too short: only a longer one accuses the clock.
    let beyond = stamped_ms.map_or(0.0, |stamped_ms| heard_ms - stamped_ms);
    if beyond > LATE_MS { beyond } else { TO_THE_STAMP_MS }
}

fn difference_ms(from_us: u64, to_us: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "differences of microseconds are far below 2^53")]
    let milliseconds = to_us.saturating_sub(from_us) as f64 / 1e3;
    milliseconds
}

/// The guest is on its source.
pub(super) fn back(
    conclusion: &Conclusion,
    rest: Rest,
    state: Option<&RunState>,
    last_words: Option<&str>,
) -> Outcome {
    // A cancel by another client that comes as the stream begins is told as a failure too (run on 10.0).
    let reason = conclusion.reason.as_deref().unwrap_or(
        "the migration failed, or another client cancelled it; the source's QEMU does not say why",
    );
    let hint = match state {
        // QEMU from 6.0 on moves no guest from this state, and only `cont` leaves it.
        Some(RunState::PostMigrate) => Some(
            "its run state is 'postmigrate' now; before it can be moved again it must run: `cont`, then `stop`",
        ),
        Some(RunState::Paused | RunState::PreLaunch) => Some("`cont` on its monitor runs it"),
        Some(RunState::IoError | RunState::Watchdog) => {
            Some("once what stopped it is mended, `cont` on its monitor runs it")
        }
        _ => None,
    };
    let hint = hint.map(str::to_owned);
    let said = last_words.map(|words| format!(" (the destination said: {words})")).unwrap_or_default();
    let (guest, where_it_is) = match (rest, state) {
        (Rest::Running, None | Some(RunState::Running)) => {
            (Whereabouts::RunningOnSource, "the guest runs on its source, as before".to_owned())
        }
        (Rest::Standing, Some(RunState::Running)) => {
            (Whereabouts::RunningOnSource, "the guest runs on its source".to_owned())
        }
        (_, Some(state)) => (Whereabouts::PausedOnSource, standing_on_source(state)),
        (Rest::Standing, None) => {
            (Whereabouts::PausedOnSource, "the guest is on its source and stands still".to_owned())
        }
    };
    outcome(End::NotMigrated, guest, format!("not moved: {reason}{said}; {where_it_is}"), hint)
}

/// What is left of a guest that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing but its disks.
    Disks,
    /// Its source too, stopped at the switch.
    Source,
}

/// The source ended before anything moved.
pub(super) fn gone(blockers: &[Blocker]) -> Outcome {
    let found = blockers.first().map_or(String::new(), |blocker| format!(" ({blocker})"));
    let message = format!("the guest is lost: the source's process has ended{found}");
    outcome(End::Lost, Whereabouts::Lost, message, Some("start it anew from its disks".to_owned()))
}

/// The guest is gone.
pub(super) fn lost(conclusion: &Conclusion, why: &str, left: Left) -> Outcome {
    let message = match &conclusion.shutdown {
        Some(reason) => format!("the guest's machine was shut down while it was moved ({reason}): {why}"),
        None => format!("the guest is lost: {why}"),
    };
    let hint = match left {
        Left::Disks => "start it anew from its disks",
        Left::Source => {
            "start it anew from its disks; or `cont` on its source's monitor, which runs the guest as it was at the \
             switch, on disks that have gone on since"
        }
    };
    outcome(End::Lost, Whereabouts::Lost, message, Some(hint.to_owned()))
}

/// It cannot be told.
pub(super) fn undecided(
    conclusion: &Conclusion,
    source: &Side,
    destination: &Side,
    id: &MigrationId,
) -> Outcome {
    let reason = conclusion.reason.as_deref().unwrap_or("no answer came");
    let told = match conclusion.phase.may_run() {
        MayRun::Destination if source.process.has_ended() => "the destination may have all of the guest",
        MayRun::Destination => "the destination was told to run the guest",
        _ => "the guest is the source's",
    };
    let message = format!("undecided: {told}, and {reason}. {}. {}", state_of(destination), state_of(source));
    let hint = match conclusion.phase.may_run() {
        MayRun::Destination if source.process.has_ended() => format!(
            "ask the destination: query-status at {}. If it says paused, `cont` there runs the guest",
            destination.address
        ),
        MayRun::Destination if destination.process.has_ended() => format!(
            "if what the guest may have done on the destination can be done without, `cont` at {} runs it on its source \
             again",
            source.address
        ),
        MayRun::Destination => format!(
            "ask the destination: query-status at {}. If it runs, all is well: quit the source. If it says paused, \
             `cont` there runs it. Only if its process \
             has ended for certain, `cont` at {} runs the guest on its source again (what it did since is lost)",
            destination.address, source.address
        ),
        _ => format!(
            "ask the source: query-status at {}. If it says postmigrate or paused, and the destination's process has \
             ended, `cont` there runs the guest",
            source.address
        ),
    };
    let hint =
        format!("`qmigrate recover {id}` finds out and settles it, now or once both can be reached\n{hint}");
    outcome(End::Undecided, Whereabouts::Unknown, message, Some(hint))
}

fn state_of(side: &Side) -> String {
    let (leg, pid) = (side.leg, side.process.pid());
    if side.process.has_ended() {
        return format!("The {leg} (process {pid}) has ended");
    }
    match side.contact {
        Contact::Heard => format!("The {leg} (process {pid}) lives"),
        Contact::Lost | Contact::Ended => {
            format!("The {leg} (process {pid}) lives, but its monitor cannot be reached")
        }
    }
}

/// Adds what the whole took.
pub(super) fn with_totals(mut outcome: Outcome, history: &History) -> Outcome {
    let record = history.record();
    outcome.totals.total_ms = history.now_ms();
    outcome.totals.passes = record.passes.last().map_or(0, |pass| pass.number);
    if let Some(sample) = record.samples.last() {
        outcome.totals.transferred_bytes = outcome.totals.transferred_bytes.max(sample.transferred_bytes);
    }
    outcome.budgets_enforced = record.request.budgets_enforced;
    drop(record);
    outcome
}

#[cfg(test)]
mod tests;
