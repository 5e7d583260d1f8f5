//! The only writer of a migration's state: selects what happens, asks the phase machine, performs what it says.
//!
//! ```text
//!   source's events ─┐
//!   destination's ───┤                 Input                     Action
//!   answers ─────────┼──► select! ───────────► Phase::next ───────────────► perform ──► QMP, pidfd
//!   orders, times ───┤                                                         │
//!   ends of process ─┘◄────────────────────── answers ◄────────────────────────┘
//! ```
//!
//! A command is put on the wire as its action is performed; only its answer is waited for elsewhere, so that nothing
//! stands between two completions and `cont`.

use std::time::{Duration, Instant};

/// What the phase machine says, done.
mod act;
/// Orders of people: cancel, pause, new limits.
mod people;
/// How far the stream is, and what the controller makes of it.
mod progress;

use act::read;
use qapi_qmp as words;
use tokio::sync::mpsc;
use tokio::time::{Instant as TokioInstant, sleep_until};

use super::history::History;
use super::order::{Order, Orders};
use super::phase::{AtSource, Input, Phase, Retreat, Seen, SourceEnd};
use super::plan::{Limits, Mode};
use super::side::{Contact, Side, Word};
use super::watchdog::Watchdog;
use crate::converge::Controller;
use crate::qmp::words::{MigrationInfo, MigrationStatus, Notice, RunState, StatusInfo};
use crate::qmp::{CallError, Heard, Leg};

/// How often the source is asked how far it is. QEMU's own figures change every 100 ms.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A destination heard of within this is alive: its `completed` comes about 0.2 ms before the source's
/// (measured on four versions), and a round trip to make sure would be time in which the guest stands still.
const FRESH: Duration = Duration::from_millis(10);
/// A retreat step that should take a few milliseconds is tried again after this.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// `migrate_cancel` has so long before `yank` follows, and a `cont` before the
/// destination is asked.
const LAST_CALL: Duration = Duration::from_secs(1);
/// A retreat or a hand-over that has not come to its end by then never will.
const GIVE_UP: Duration = Duration::from_secs(30);
/// A process that closes its monitor as it ends is gone within this.
const LAST_BREATH: Duration = Duration::from_millis(200);
/// Answers are awaited for as long as a retreat is tried: silence in the blackout is not death.
const ANSWER: Duration = Duration::from_secs(60);

/// What the driver has learned by the time nothing more happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Conclusion {
    /// Where it stands; final.
    pub phase: Phase,
    /// Why the guest went back, or did not arrive.
    pub reason: Option<String>,
    /// The source's last `STOP` before the switch, in microseconds since 1970 by its host's clock.
    pub stopped_at_us: Option<u64>,
    /// The destination's `RESUME`, likewise.
    pub resumed_at_us: Option<u64>,
    /// When these two were heard here, by a clock that nobody sets.
    pub heard: (Option<Instant>, Option<Instant>),
    /// Why the guest, or a person, ended its machine meanwhile (`SHUTDOWN`).
    pub shutdown: Option<String>,
}

impl Conclusion {
    /// Whether it went wrong on the destination's side, so that what that had to say is of interest. A destination
    /// whose stream was cancelled complains too.
    pub fn blames_destination(&self) -> bool {
        self.reason.as_ref().is_some_and(|reason| reason.contains("destination"))
    }
}

/// An answer that has come.
#[derive(Debug)]
enum Answer {
    Asked(Result<MigrationInfo, CallError>),
    AskedDestination(Result<MigrationInfo, CallError>),
    /// With the number of changes that had been heard of when it was asked.
    State(Leg, u64, Result<StatusInfo, CallError>),
    Continued(Leg, Result<(), CallError>),
    Alive(bool),
    Started(Result<(), CallError>),
    /// Its effect is seen by the status.
    Cancelled(Result<(), CallError>),
    Stopped(Result<(), CallError>, Option<Order>),
    Limits(Result<(), CallError>, Option<Order>),
}

/// Drives one migration from `migrate` to its end.
#[derive(Debug)]
pub struct Driver<'a> {
    source: Side,
    destination: Side,
    phase: Phase,
    history: &'a mut History,
    orders: &'a mut Orders,
    limits: Limits,
    controller: Controller,
    watchdog: Watchdog,
    answers: mpsc::UnboundedSender<Answer>,
    answered: mpsc::UnboundedReceiver<Answer>,
    conclusion: Conclusion,
    streaming_since_ms: f64,
    pass: u64,
    sampled_at_ms: f64,
    ask_at: Instant,
    step_overdue_at: Option<Instant>,
    give_up_at: Option<Instant>,
    /// How often the source's guest has stopped or started: an answer that was asked for before the last time says
    /// nothing of now.
    source_changes: u64,
    /// Whether a cancel, or what amounts to one, came from here.
    has_cancelled: bool,
}

impl<'a> Driver<'a> {
    /// A driver for two sides that are prepared.
    pub fn new(
        (source, destination): (Side, Side),
        phase: Phase,
        limits: Limits,
        controller: Controller,
        history: &'a mut History,
        orders: &'a mut Orders,
    ) -> Self {
        let (answers, answered) = mpsc::unbounded_channel();
        let streaming_since_ms = history.now_ms();
        Self {
            source,
            destination,
            phase,
            orders,
            limits,
            controller,
            watchdog: Watchdog::new(limits.longest_blackout()),
            answers,
            answered,
            conclusion: Conclusion {
                phase,
                reason: None,
                stopped_at_us: None,
                resumed_at_us: None,
                heard: (None, None),
                shutdown: None,
            },
            streaming_since_ms,
            history,
            pass: 0,
            sampled_at_ms: f64::MIN,
            ask_at: Instant::now(),
            step_overdue_at: None,
            give_up_at: None,
            source_changes: 0,
            has_cancelled: false,
        }
    }

    /// Starts the stream and drives it until nothing more happens. A guest that is not to be moved live is stopped
    /// first, on the same connection: QEMU keeps the order.
    pub async fn run(mut self, uri: &str, mode: Mode) -> (Conclusion, Side, Side) {
        let runs = matches!(self.phase, Phase::Streaming(guest) if guest.at_source == AtSource::Running);
        if mode == Mode::NonLive && runs {
            self.take(Input::StoppedByConsent).await;
            self.stop(None);
        }
        let command =
            words::migrate { uri: Some(uri.to_owned()), channels: None, detach: None, resume: None };
        self.send(Leg::Source, &command, |answer| Answer::Started(answer.map(drop)));
        // What happened between the last look at the guest and the first event heard here.
        self.ask_state(Leg::Source);
        self.enter(self.phase).await;
        while !self.phase.is_final() {
            self.step().await;
        }
        self.conclusion.phase = self.phase;
        (self.conclusion, self.source, self.destination)
    }

    /// Stops the guest, with consent.
    fn stop(&self, order: Option<Order>) {
        self.send(Leg::Source, &words::stop {}, |answer| Answer::Stopped(answer.map(drop), order));
    }

    /// Waits for one thing to happen, and takes it in.
    async fn step(&mut self) {
        let wake_at = TokioInstant::from_std(self.wake_at());
        tokio::select! {
            biased;
            word = self.source.next() => self.word(Leg::Source, word).await,
            word = self.destination.next() => self.word(Leg::Destination, word).await,
            Some(answer) = self.answered.recv() => self.answer(answer).await,
            order = self.orders.next() => self.order(order).await,
            () = sleep_until(wake_at) => self.times(Instant::now()).await,
        }
    }

    fn side(&mut self, leg: Leg) -> &mut Side {
        match leg {
            Leg::Source => &mut self.source,
            Leg::Destination => &mut self.destination,
        }
    }

    async fn word(&mut self, leg: Leg, word: Word) {
        match word {
            Word::Heard(heard) => self.heard(leg, &heard).await,
            Word::Silence => self.deaf(leg).await,
            Word::End => self.ended(leg).await,
        }
    }

    /// A process has ended. What it said before comes first: its last events may still be on their way here.
    async fn ended(&mut self, leg: Leg) {
        while self.side(leg).contact == Contact::Heard {
            match tokio::time::timeout(LAST_BREATH, self.side(leg).events.next()).await {
                Ok(Ok(heard)) => self.heard(leg, &heard).await,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.side(leg).contact = Contact::Ended;
        self.explain(&format!("the {leg}'s process has ended"));
        self.take(on(leg, Seen::Gone)).await;
    }

    /// The next moment at which something is due.
    fn wake_at(&self) -> Instant {
        let blackout_over = self.phase.can_retreat().then(|| self.watchdog.blackout_over_at()).flatten();
        [Some(self.ask_at), self.step_overdue_at, self.give_up_at, blackout_over]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.ask_at)
    }

    async fn times(&mut self, now: Instant) {
        if now >= self.ask_at {
            self.ask(now);
        }
        if self.give_up_at.is_some_and(|at| now >= at) {
            self.explain("it was tried for as long as makes sense");
            self.take(Input::GiveUp).await;
        } else if self.step_overdue_at.is_some_and(|at| now >= at) {
            self.step_overdue_at = Some(now + self.patience());
            self.take(Input::Overdue).await;
        }
        let over = self.watchdog.blackout_over_at().is_some_and(|at| now >= at);
        if over && self.phase.can_retreat() {
            let bound = crate::units::show_duration(self.limits.longest_blackout());
            self.explain(&format!(
                "the switchover took longer than the budget and its grace together ({bound})"
            ));
            self.take(Input::BlackoutOver).await;
        }
        if matches!(self.phase, Phase::Streaming(_)) && self.watchdog.link_is_dead(now) {
            self.explain("the stream stood still: nothing was taken by the destination for 3 s");
            self.take(Input::Retreat).await;
        }
    }

    /// Asks the source how far it is, and in the switchover the destination too: events tell it sooner, but an answer
    /// cannot be missed.
    fn ask(&mut self, now: Instant) {
        self.ask_at = now + ASK_EVERY;
        if !self.watchdog.is_open() && self.source.contact == Contact::Heard {
            self.watchdog.asked(now);
            let as_info = |answer: Result<serde_json::Value, CallError>| {
                answer.and_then(|value| read(Leg::Source, value))
            };
            self.send(Leg::Source, &words::query_migrate {}, move |answer| Answer::Asked(as_info(answer)));
        }
        if matches!(self.phase, Phase::Switchover { .. }) && self.destination.contact == Contact::Heard {
            let as_info = |answer: Result<serde_json::Value, CallError>| {
                answer.and_then(|value| read(Leg::Destination, value))
            };
            self.send(Leg::Destination, &words::query_migrate {}, move |answer| {
                Answer::AskedDestination(as_info(answer))
            });
        }
    }

    async fn heard(&mut self, leg: Leg, heard: &Heard) {
        let at_us = heard.event.timestamp_microseconds;
        tracing::debug!(%leg, event = heard.event.name, data = %heard.event.data, "event");
        let seen = match Notice::from(&heard.event) {
            Notice::Migration(status) => {
                let is_cancelled = matches!(status, MigrationStatus::Cancelling | MigrationStatus::Cancelled);
                if leg == Leg::Source && is_cancelled && !self.has_cancelled {
                    self.explain("another client cancelled the migration");
                }
                Seen::Status(status)
            }
            Notice::Stop => {
                if leg == Leg::Source {
                    self.source_changes += 1;
                    self.conclusion.stopped_at_us = at_us;
                    self.conclusion.heard.0 = Some(heard.at);
                    if !self.is_held() {
                        self.watchdog.stopped(heard.at);
                    }
                }
                Seen::Stopped
            }
            Notice::Resume => {
                match leg {
                    Leg::Source => {
                        self.source_changes += 1;
                        self.watchdog.runs();
                    }
                    Leg::Destination => {
                        self.conclusion.resumed_at_us = at_us;
                        self.conclusion.heard.1 = Some(heard.at);
                    }
                }
                Seen::Resumed
            }
            Notice::Shutdown { reason, .. } if leg == Leg::Source => {
                self.conclusion.shutdown = Some(reason.unwrap_or_else(|| "shutdown".to_owned()));
                return;
            }
            Notice::Pass(_) if leg == Leg::Source => return self.ask_now(),
            _ => return,
        };
        self.take(on(leg, seen)).await;
    }

    /// A pass has begun: its size is the one thing that only an answer tells.
    fn ask_now(&mut self) {
        if !self.watchdog.is_open() {
            self.ask(Instant::now());
        }
    }

    /// A connection has ended. A process that is on its way out closes its monitor first; one that lives is
    /// connected to anew. A destination that cannot be reached gets no `cont`, as long as there is a way back.
    async fn deaf(&mut self, leg: Leg) {
        // A destination that cannot be reached gets no `cont` as long as there is a way back; where there is none it
        // is the guest's only chance.
        let is_needed = leg == Leg::Source
            || matches!(self.phase, Phase::Committed { .. })
            || self.source.contact == Contact::Ended;
        let side = self.side(leg);
        if side.process.ended_within(LAST_BREATH).await {
            return self.ended(leg).await;
        }
        if is_needed && side.reconnect().await {
            tracing::info!(%leg, "connected anew");
            if leg == Leg::Source {
                self.source_changes += 1;
                self.watchdog.answered();
            }
            return self.ask_state(leg);
        }
        // One with a lot of memory takes a while to end after it has closed its monitor.
        if leg == Leg::Source && self.side(leg).process.ended_within(LAST_CALL).await {
            return self.ended(leg).await;
        }
        self.side(leg).contact = Contact::Lost;
        self.explain(&format!("the connection to the {leg}'s monitor was lost"));
        match leg {
            Leg::Destination => self.take(Input::Retreat).await,
            // Past the point of no return the source has no say.
            Leg::Source if matches!(self.phase, Phase::Committed { .. }) => {}
            Leg::Source => self.take(Input::GiveUp).await,
        }
    }

    async fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Asked(Ok(info)) => {
                self.watchdog.answered();
                self.sample(&info).await;
                self.status(Leg::Source, &info).await;
            }
            Answer::AskedDestination(Ok(info)) => self.status(Leg::Destination, &info).await,
            Answer::State(leg, changes, Ok(status)) => self.state(leg, changes, status.status).await,
            Answer::Continued(leg, Err(error)) if !error.may_have_happened() => {
                // A source that is not finalized yet is asked again; a destination that refuses does not run.
                tracing::debug!(%leg, %error, "cont was refused");
                if leg == Leg::Destination {
                    self.explain(&error.to_string());
                    self.take(Input::Destination(Seen::ContinueRefused)).await;
                }
            }
            Answer::Alive(true) => self.take(Input::DestinationAlive).await,
            Answer::Alive(false) => {
                self.explain("the destination gave no sign of life after both had completed");
                self.take(Input::DestinationSilent).await;
            }
            Answer::Started(Err(error)) if !error.may_have_happened() => {
                self.explain(&error.to_string());
                self.take(Input::Source(Seen::Status(MigrationStatus::Failed))).await;
            }
            Answer::Stopped(Err(error), None) if !error.may_have_happened() => {
                self.explain(&error.to_string());
                self.take(Input::Retreat).await;
            }
            Answer::Stopped(result, Some(order)) => {
                let said = "the guest stands still; it will run on the destination";
                order.answer(result.map(|()| said.to_owned()).map_err(|error| error.to_string()));
            }
            Answer::Limits(result, Some(order)) => {
                let said = "the limits are in force";
                order.answer(result.map(|()| said.to_owned()).map_err(|error| error.to_string()));
            }
            Answer::Asked(Err(
                CallError::Refused { .. } | CallError::Unreadable { .. } | CallError::Late { .. },
            )) => {
                self.watchdog.answered();
            }
            // What was not answered is asked again, or its connection has ended and `deaf` deals with it. A limit that
            // was not taken leaves a lower one in force, which keeps the budget.
            Answer::Asked(Err(error))
            | Answer::AskedDestination(Err(error))
            | Answer::State(_, _, Err(error))
            | Answer::Started(Err(error))
            | Answer::Cancelled(Err(error))
            | Answer::Stopped(Err(error), None)
            | Answer::Limits(Err(error), None)
            | Answer::Continued(_, Err(error)) => tracing::debug!(%error, "not answered"),
            Answer::Started(Ok(()))
            | Answer::Cancelled(Ok(()))
            | Answer::Stopped(Ok(()), None)
            | Answer::Limits(Ok(()), None)
            | Answer::Continued(_, Ok(())) => {}
        }
    }

    /// Takes in a run state. An answer about a source that has stopped or started since it was asked is old.
    async fn state(&mut self, leg: Leg, changes: u64, state: RunState) {
        if leg == Leg::Source {
            if changes != self.source_changes {
                return self.ask_state(leg);
            }
            let is_ours = matches!(state, RunState::FinishMigrate | RunState::PostMigrate);
            if !is_ours && matches!(self.phase, Phase::Streaming(_)) {
                // A guest that stands still by itself or by somebody's will is in no blackout of ours.
                self.watchdog.runs();
            }
        }
        self.take(on(leg, Seen::State(state))).await;
    }

    async fn status(&mut self, leg: Leg, info: &MigrationInfo) {
        let Some(status) = info.status.clone() else { return };
        if status == MigrationStatus::Failed
            && let Some(reason) = &info.error_desc
        {
            self.explain(&format!("the {leg}'s QEMU says: {reason}"));
        }
        self.take(on(leg, Seen::Status(status))).await;
    }

    /// Asks the phase machine, and performs what it says. The machine is asked again at once where an action is
    /// answered at once.
    async fn take(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let (phase, action) = self.phase.next(&input);
            if phase != self.phase {
                tracing::debug!(from = ?self.phase, to = ?phase, ?input, "phase");
                self.enter(phase).await;
            }
            if let Some(action) = action {
                next = self.perform(action);
            }
        }
    }

    async fn enter(&mut self, phase: Phase) {
        if matches!((self.phase, phase), (Phase::Committed { .. }, Phase::Retreating(..))) {
            // QEMU has refused `cont`, after whatever time: the way back gets its own.
            self.give_up_at = None;
        }
        self.phase = phase;
        self.history.enter(phase.name());
        #[cfg(feature = "hold-points")]
        super::hold::at(phase).await;
        let now = Instant::now();
        if matches!(phase, Phase::Switchover { .. }) {
            self.watchdog.stopped(now);
        }
        let is_one_sided = matches!(
            phase,
            Phase::Armed { source_gone: true, .. } | Phase::Switchover { source: SourceEnd::Gone, .. }
        );
        let is_bounded = matches!(phase, Phase::Retreating(..) | Phase::Committed { .. }) || is_one_sided;
        self.step_overdue_at = is_bounded.then(|| now + self.patience());
        if is_bounded {
            self.give_up_at.get_or_insert(now + GIVE_UP);
        }
    }

    /// How long the present step may take before it is tried again.
    fn patience(&self) -> Duration {
        match self.phase {
            Phase::Retreating(_, Retreat::Settling | Retreat::Reviving) => TRY_AGAIN,
            _ => LAST_CALL,
        }
    }

    /// Whether the engine itself has stopped the guest, with consent.
    fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Streaming(guest) if guest.at_source == AtSource::Held)
    }

    /// Keeps the first reason: what follows is its consequence.
    fn explain(&mut self, reason: &str) {
        if self.conclusion.reason.is_none() {
            tracing::info!(reason);
            self.conclusion.reason = Some(reason.to_owned());
        }
    }
}

fn on(leg: Leg, seen: Seen) -> Input {
    match leg {
        Leg::Source => Input::Source(seen),
        Leg::Destination => Input::Destination(seen),
    }
}
