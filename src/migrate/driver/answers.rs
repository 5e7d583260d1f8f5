//! Answers that have come, each turned into what it says of its side.

use super::{Answer, Driver, Standstill, now, on};
use crate::migrate::phase::{Input, Phase, Retreat, Seen};
use crate::qmp::words::{MigrationInfo, MigrationStatus, RunState};
use crate::qmp::{CallError, Leg};

impl Driver<'_> {
    pub(super) async fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Asked(Ok(info)) => {
                self.watchdog.answered(now());
                self.sample(&info).await;
                self.status(Leg::Source, &info).await;
                self.never_started(&info).await;
            }
            Answer::AskedDestination(Ok(info)) => self.status(Leg::Destination, &info).await,
            Answer::State(leg, changes, Ok(status)) => {
                // A newer QEMU may have another word for it.
                let state = if status.running { RunState::Running } else { status.status };
                self.state(leg, changes, state).await;
            }
            Answer::Continued(leg, Err(error)) if !error.may_have_happened() => {
                // A source that is not finalized yet is asked again; a destination that refuses does not run.
                tracing::debug!(%leg, %error, "cont was refused");
                if leg == Leg::Destination {
                    self.explain(&error.to_string());
                    // Of a second one it says nothing that it was refused: the guest may have run since the first.
                    let is_first = self.conts < 2;
                    let refused = Input::Destination(Seen::ContinueRefused);
                    self.take(if is_first { refused } else { Input::GiveUp }).await;
                }
            }
            Answer::Dirtied(dirtied) => self.dirtied(dirtied),
            Answer::Unheard => self.unheard().await,
            Answer::Connected(leg, client) => self.connected(leg, client),
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
                if result.as_ref().is_err_and(|error| !error.may_have_happened()) {
                    // It runs on.
                    self.take(Input::Source(Seen::Resumed)).await;
                }
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
                self.watchdog.answered(now());
            }
            Answer::Started(Err(error)) => {
                tracing::debug!(%error, "not answered");
                self.is_start_unknown = true;
            }
            // What was not answered is asked again, or its connection has ended and is made anew. A limit that
            // was not taken leaves a lower one in force, which keeps the budget.
            Answer::Asked(Err(error))
            | Answer::AskedDestination(Err(error))
            | Answer::State(_, _, Err(error))
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
            let is_bounded = self.standstill == Standstill::WithinBudget && self.is_held();
            if !is_ours && !is_bounded && matches!(self.phase, Phase::Streaming(_)) {
                // A guest that stands still by itself or by somebody's will is in no blackout of ours.
                self.watchdog.runs();
            }
        }
        self.take(on(leg, Seen::State(state))).await;
    }

    async fn status(&mut self, leg: Leg, info: &MigrationInfo) {
        // A destination that waits says nothing of a status up to 7.2, and a source that has had no migration never does.
        let status = info.status.clone().unwrap_or(MigrationStatus::None);
        if status == MigrationStatus::Failed
            && let Some(reason) = &info.error_desc
        {
            self.explain(&format!("the {leg}'s QEMU says: {reason}"));
        }
        self.take(on(leg, Seen::Status(status))).await;
    }

    /// A source that knows of no migration has not read `migrate` before its connection ended, and never will: QEMU
    /// drops what it has not read of a client that has gone.
    async fn never_started(&mut self, info: &MigrationInfo) {
        let is_none = matches!(info.status, None | Some(MigrationStatus::None));
        let is_waited_for =
            matches!(self.phase, Phase::Streaming(_) | Phase::Retreating(_, Retreat::Stopping));
        if is_none && self.is_start_unknown && is_waited_for {
            self.explain("the connection to the source's monitor was lost before it had read `migrate`");
            self.take(Input::Source(Seen::Status(MigrationStatus::Failed))).await;
        }
    }
}
