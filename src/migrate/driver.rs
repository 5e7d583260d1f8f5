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
/// Answers that have come.
mod answers;
/// Whose cancel it was.
mod cancels;
/// A connection that has ended.
mod contact;
/// Orders of people: cancel, pause, new limits.
mod people;
/// How the source is set while it sends.
mod settings;
/// What the guest dirties, sampled beside the stream.
mod windows;
/// How far the stream is, and what the controller makes of it.
mod progress;

use act::read;
use cancels::Cancels;
use qapi_qmp as words;
use tokio::sync::mpsc;
use tokio::time::{Instant as TokioInstant, sleep_until};
use windows::Sampling;

use super::history::History;
use super::journal::Ledger;
use super::order::{Order, Orders};
use super::phase::{Action, AtSource, Input, Phase, Rest, Retreat, Seen, SourceEnd};
use super::plan::{Limits, Mode};
use super::side::{Contact, LAST_BREATH, Side, Word};
use super::step::tuning::Tuning;
use super::watchdog::Watchdog;
use crate::check::chain;
use crate::converge::{Policy, Shadows, Throttle, Wish};
use crate::qemu::dirty_rate::Dirtied;
use crate::qmp::words::{MigrationInfo, Notice, RunState, StatusInfo};
use crate::qmp::{CallError, Client, Heard, Leg};

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
    /// Whether it may have gone wrong on the destination's side, so that what that had to say is of interest: a source
    /// often fails first, and does not know why (run on 10.0). A destination whose stream was cancelled complains too.
    pub fn may_blame_destination(&self) -> bool {
        let Some(reason) = &self.reason else { return true };
        reason.contains("destination") || reason.starts_with("the source's QEMU says")
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
    /// The destination's connection has ended, and its process has not.
    Unheard,
    Connected(Leg, Client),
    Started(Result<(), CallError>),
    /// Its effect is seen by the status.
    Cancelled(Result<(), CallError>),
    Stopped(Result<(), CallError>, Option<Order>),
    Limits(Result<(), CallError>, Option<Order>),
    Dirtied(Dirtied),
}

/// For how long a guest that the engine has stopped may stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standstill {
    /// A person has asked for it.
    AsLongAsItTakes,
    /// A policy has found that what is left fits the budget, and is held to that from the stop on.
    WithinBudget,
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
    policy: Box<dyn Policy>,
    shadows: Shadows,
    /// How the source is set, as far as has been sent.
    wish: Wish,
    /// What of the source is set besides its limits.
    tuning: Tuning,
    /// How fast the source has been told that the last copy will be; 0 for nothing.
    switchover_bytes_per_second: u64,
    sampling: Sampling,
    standstill: Standstill,
    ledger: &'a mut dyn Ledger,
    is_ledger_lost: bool,
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
    /// When a side that cannot be reached is given up.
    reach_by: Option<Instant>,
    /// How often the source's guest has stopped or started: an answer that was asked for before the last time says
    /// nothing of now.
    source_changes: u64,
    /// Whether `migrate` was sent, and its connection ended before it was answered: it may never have been read.
    is_start_unknown: bool,
    cancels: Cancels,
    /// How often `cont` was sent to the destination, or may have been.
    conts: u32,
    /// Whether the guest has just panicked on its source: the `STOP` that follows is for that.
    has_panicked: bool,
}

impl<'a> Driver<'a> {
    /// A driver for two sides that are prepared. The phase has been written down.
    pub fn new(
        (source, destination): (Side, Side),
        phase: Phase,
        limits: Limits,
        policy: Box<dyn Policy>,
        history: &'a mut History,
        orders: &'a mut Orders,
        ledger: &'a mut dyn Ledger,
    ) -> Self {
        let (answers, answered) = mpsc::unbounded_channel();
        let streaming_since_ms = history.now_ms();
        Self {
            source,
            destination,
            phase,
            orders,
            limits,
            wish: Wish { throttle: Throttle::Never, ..limits.permitted(policy.wish()) },
            policy,
            tuning: Tuning::default(),
            switchover_bytes_per_second: 0,
            sampling: Sampling::default(),
            standstill: Standstill::AsLongAsItTakes,
            shadows: Shadows::default(),
            ledger,
            is_ledger_lost: false,
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
            ask_at: now(),
            step_overdue_at: None,
            give_up_at: None,
            reach_by: None,
            source_changes: 0,
            is_start_unknown: false,
            cancels: Cancels::default(),
            conts: 0,
            has_panicked: false,
        }
    }

    /// Asks these too, and obeys none of them.
    #[must_use]
    pub fn beside(mut self, shadows: Shadows) -> Self {
        self.shadows = shadows;
        self
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
        self.drive().await
    }

    /// Goes on where another engine has ended. Nothing is done again but what can be done twice without harm.
    pub async fn resume(mut self) -> (Conclusion, Side, Side) {
        // `migrate` may not have been sent, or not been read.
        self.is_start_unknown = true;
        self.set_anew();
        let phase = self.phase;
        self.conts = u32::from(matches!(phase, Phase::Committed { .. }));
        self.enter(phase).await;
        if let Some(input) = phase.pending().and_then(|action| self.perform(action)) {
            self.take(input).await;
        }
        self.drive().await
    }

    /// Ends before `migrate` was sent: the guest is where it was.
    pub fn give_up(mut self, reason: &str) -> (Conclusion, Side, Side) {
        self.explain(reason);
        let stands = matches!(self.phase, Phase::Streaming(guest) if guest.at_source == AtSource::Standing);
        self.conclusion.phase = Phase::Back(if stands { Rest::Standing } else { Rest::Running });
        (self.conclusion, self.source, self.destination)
    }

    async fn drive(mut self) -> (Conclusion, Side, Side) {
        while !self.phase.is_final() {
            self.step().await;
        }
        self.conclusion.phase = self.phase;
        self.take_last_connection();
        if matches!(self.phase, Phase::Arrived(_) | Phase::Back(_)) {
            // What is left to do there needs both.
            self.source.heal().await;
            self.destination.heal().await;
        }
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
            // A cancel that was given before both had completed counts, though it is taken in after that.
            order = self.orders.next() => self.order(order).await,
            word = self.source.next() => self.word(Leg::Source, word).await,
            word = self.destination.next() => self.word(Leg::Destination, word).await,
            Some(answer) = self.answered.recv() => self.answer(answer).await,
            () = sleep_until(wake_at) => self.times(now()).await,
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
            Word::Silence => self.deaf(leg),
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
        if leg == Leg::Destination {
            self.hear_of_cont().await;
        }
        self.side(leg).contact = Contact::Ended;
        self.explain(&format!("the {leg}'s process has ended"));
        self.take(on(leg, Seen::Gone)).await;
    }

    /// What became of a `cont` to a destination that has ended: one that was certainly not sent leaves a way back.
    async fn hear_of_cont(&mut self) {
        while matches!(self.phase, Phase::Committed { .. }) {
            match tokio::time::timeout(LAST_BREATH, self.answered.recv()).await {
                Ok(Some(answer)) => self.answer(answer).await,
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// The next moment at which something is due.
    fn wake_at(&self) -> Instant {
        let is_bounded = self.phase.can_retreat() && !self.waits_for_source();
        let blackout_over = is_bounded.then(|| self.watchdog.blackout_over_at()).flatten();
        [Some(self.ask_at), self.step_overdue_at, self.give_up_at, self.reach_by, blackout_over]
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
        if self.reach_by.is_some_and(|at| now >= at) {
            self.give_up_reaching().await;
        }
        if over && self.phase.can_retreat() && !self.waits_for_source() {
            let bound = crate::units::show_duration(self.longest_blackout());
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
                // A QEMU that is told to quit cancels first (run on 11.1).
                if leg == Leg::Source
                    && self.cancels.are_somebodys(&status, at_us)
                    && self.conclusion.shutdown.is_none()
                {
                    // The destination may have ended of it before the source told of it.
                    self.conclusion.reason = None;
                    self.explain("another client cancelled the migration");
                }
                Seen::Status(status)
            }
            // The run state may be another one by the time that it could be asked for.
            Notice::Stop if leg == Leg::Source && std::mem::take(&mut self.has_panicked) => {
                self.source_changes += 1;
                Seen::State(RunState::GuestPanicked)
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
                        self.has_panicked = false;
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
            // Its `STOP` is next (run on 7.2, 10.0 and 11.1), if QEMU was told to stop a guest for that.
            Notice::GuestPanicked if leg == Leg::Source => {
                self.has_panicked = heard.event.data["action"] == "pause";
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
            self.ask(now());
        }
    }

    /// Asks the phase machine, and performs what it says. The machine is asked again at once where an action is
    /// answered at once.
    async fn take(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let (phase, action) = self.phase.next(&input);
            if phase != self.phase
                && let Err(said) = self.write_down(phase)
                && action == Some(Action::ContinueDestination)
                && self.phase.can_retreat()
            {
                // What is not written down is not done, as long as there is a way back.
                self.explain(&said);
                next = Some(Input::Retreat);
                continue;
            }
            if phase != self.phase {
                tracing::debug!(from = ?self.phase, to = ?phase, ?input, "phase");
                self.enter(phase).await;
            }
            if let Some(action) = action {
                next = self.perform(action);
            }
        }
    }

    /// Writes a phase down before what it permits is done; gives why not, and tells it once.
    fn write_down(&mut self, phase: Phase) -> Result<(), String> {
        let Err(error) = self.ledger.enter(phase) else { return Ok(()) };
        let said = format!("{}, without which a crash of the engine could not be mended", chain(&error));
        if !self.is_ledger_lost {
            self.is_ledger_lost = true;
            self.history.warn("journal", &said, None);
        }
        Err(said)
    }

    async fn enter(&mut self, phase: Phase) {
        if matches!((self.phase, phase), (Phase::Committed { .. }, Phase::Retreating(..))) {
            // QEMU has refused `cont`, after whatever time: the way back gets its own.
            self.give_up_at = None;
        }
        self.phase = phase;
        if !matches!(phase, Phase::Streaming(_)) {
            self.sampling.stop();
        }
        self.history.enter(phase.name());
        #[cfg(feature = "hold-points")]
        super::hold::at(phase).await;
        let now = now();
        if matches!(phase, Phase::Switchover { .. }) {
            self.watchdog.stopped(now);
        }
        let is_one_sided = matches!(
            phase,
            Phase::Armed { source_gone: true, .. }
                | Phase::Switchover { source: SourceEnd::Gone | SourceEnd::LongGone, .. }
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

/// The clock that tokio's tests can stop, as the client's is.
fn now() -> Instant {
    TokioInstant::now().into_std()
}

fn on(leg: Leg, seen: Seen) -> Input {
    match leg {
        Leg::Source => Input::Source(seen),
        Leg::Destination => Input::Destination(seen),
    }
}
