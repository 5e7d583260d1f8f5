//! What the phase machine says, done: each action becomes a command on the wire at once.

use std::time::Duration;

use qapi_qmp as words;

use super::{ANSWER, Answer, Driver, FRESH, LAST_CALL, now};
use crate::migrate::phase::{Action, Input, Seen};
use crate::qmp::{CallError, Leg};

impl Driver<'_> {
    /// Puts an action on its way; gives an input where its answer is known at once.
    pub(super) fn perform(&mut self, action: Action) -> Option<Input> {
        tracing::debug!(?action, "action");
        if matches!(action, Action::CancelSource | Action::YankSource) {
            let now_us = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(u64::MAX);
            self.cancels.send(now_us);
        }
        match action {
            Action::AskSource => self.ask_state(Leg::Source),
            Action::AskDestination => self.ask_state(Leg::Destination),
            Action::CancelSource => {
                self.send(Leg::Source, &words::migrate_cancel {}, |answer| {
                    Answer::Cancelled(answer.map(drop))
                });
            }
            Action::YankSource => self.yank(),
            Action::ContinueSource => {
                self.send(Leg::Source, &words::cont {}, |answer| {
                    Answer::Continued(Leg::Source, answer.map(drop))
                });
            }
            Action::ContinueDestination => {
                self.conts += 1;
                self.send(Leg::Destination, &words::cont {}, |answer| {
                    Answer::Continued(Leg::Destination, answer.map(drop))
                });
            }
            Action::ProveDestination => {
                if self.destination.process.has_ended() {
                    return Some(Input::Destination(Seen::Gone));
                }
                if now().saturating_duration_since(self.destination.client.last_heard()) < FRESH {
                    return Some(Input::DestinationAlive);
                }
                self.prove_destination();
            }
            Action::KillDestination => {
                if let Err(error) = self.destination.process.kill() {
                    tracing::warn!(%error, "the destination cannot be ended");
                }
                if self.destination.process.has_ended() {
                    return Some(Input::Destination(Seen::Gone));
                }
            }
        }
        None
    }

    pub(super) fn ask_state(&self, leg: Leg) {
        let changes = self.source_changes;
        self.send(leg, &words::query_status {}, move |answer| {
            Answer::State(leg, changes, answer.and_then(|value| read(leg, value)))
        });
    }

    /// Breaks the stream, out of band: in the blackout nothing else is answered. A QEMU before 6.0 knows no `yank`,
    /// and gets the cancel that it may answer later.
    fn yank(&self) {
        let command = words::yank { instances: vec![words::YankInstance::migration] };
        let (client, source) = (self.source.client.send_out_of_band(&command), self.source.client.clone());
        tokio::spawn(async move {
            if let Err(error) = client.within(ANSWER).await {
                tracing::debug!(%error, "yank");
                if error.is_command_not_found() || matches!(error, CallError::NoOutOfBand { .. }) {
                    let _ = source.call(&words::migrate_cancel {}, ANSWER).await;
                }
            }
        });
    }

    /// One round trip with what is left of the blackout as its deadline, and with 100 ms at least.
    fn prove_destination(&self) {
        let left = self.watchdog.blackout_over_at().map(|at| at.saturating_duration_since(now()));
        let deadline = left.unwrap_or(LAST_CALL).clamp(Duration::from_millis(100), LAST_CALL);
        let (reply, answers) = (self.destination.client.send(&words::query_status {}), self.answers.clone());
        tokio::spawn(async move {
            let alive = reply.within(deadline).await.is_ok();
            let _ = answers.send(Answer::Alive(alive));
        });
    }

    /// Puts a command on the wire now; its answer comes back through `answers`.
    pub(super) fn send<C: qapi::Command>(
        &self,
        leg: Leg,
        command: &C,
        as_answer: impl FnOnce(Result<serde_json::Value, CallError>) -> Answer + Send + 'static,
    ) {
        let client = match leg {
            Leg::Source => &self.source.client,
            Leg::Destination => &self.destination.client,
        };
        let (reply, answers) = (client.send(command), self.answers.clone());
        tokio::spawn(async move {
            // The driver has ended meanwhile: then nobody needs the answer.
            let _ = answers.send(as_answer(reply.within(ANSWER).await));
        });
    }
}

/// An answer as one of the words.
pub(super) fn read<V: serde::de::DeserializeOwned>(
    leg: Leg,
    value: serde_json::Value,
) -> Result<V, CallError> {
    serde_json::from_value(value).map_err(|error| CallError::Unreadable {
        leg,
        command: "a query",
        reason: error.to_string(),
    })
}
