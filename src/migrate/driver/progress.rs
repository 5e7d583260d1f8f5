//! How far the stream is, and what the controller makes of it.

use super::{Driver, Standstill, now};
use crate::converge::{Throttle, Verdict};
use crate::migrate::phase::{AtSource, Input, Phase};
use crate::qmp::words::{MigrationInfo, MigrationStatus};
use crate::record::{Choice, Cost, Decision, Entry, Forecast, Pass, Sample};

/// Not every answer goes into the record.
const SAMPLE_EVERY_MS: f64 = 250.0;

impl Driver<'_> {
    /// Takes in what the source says of its progress.
    pub(super) async fn sample(&mut self, info: &MigrationInfo) {
        let Some(ram) = &info.ram else { return };
        let now_ms = self.history.now_ms();
        let active = info.status == Some(MigrationStatus::Active);
        if active {
            self.watchdog.sent(ram.transferred_bytes, now());
        }
        let sample = Sample {
            at_ms: now_ms,
            transferred_bytes: ram.transferred_bytes,
            remaining_bytes: ram.remaining_bytes,
            total_bytes: ram.total_bytes,
            passes: ram.dirty_sync_count,
            dirty_bytes_per_second: ram.dirty_pages_per_second * ram.page_size_bytes.unwrap_or(4096),
            stream_bytes_per_second: self.policy.stream_bytes_per_second(),
            downtime_limit_ms: self.wish.downtime_limit_ms,
            throttle_percent: info.cpu_throttle_percentage.unwrap_or(0),
        };
        let is_pass = sample.passes > self.pass;
        if is_pass {
            self.pass = sample.passes;
            let remaining_bytes = sample.remaining_bytes;
            self.history.add(Entry::Pass(Pass { number: sample.passes, at_ms: now_ms, remaining_bytes }));
        }
        if is_pass || now_ms - self.sampled_at_ms >= SAMPLE_EVERY_MS {
            self.sampled_at_ms = now_ms;
            self.history.add(Entry::Sample(sample));
        }
        if active && matches!(self.phase, Phase::Streaming(_)) {
            self.sample_beside(&sample);
            let verdict = self.policy.observe(&sample, now_ms - self.streaming_since_ms);
            self.follow_policy();
            for decision in self.shadows.observe(&sample, now_ms - self.streaming_since_ms) {
                self.history.add(Entry::Decision(decision));
            }
            if let Some(verdict) = verdict {
                self.decide(verdict).await;
            }
        }
    }

    async fn decide(&mut self, verdict: Verdict) {
        let Verdict { choice, reason, forecast } = verdict;
        if !self.is_done(choice) {
            tracing::warn!(?choice, reason, "not consented to, or not possible here");
            return;
        }
        self.record(choice, &reason, forecast);
        match choice {
            Choice::Infeasible { .. } | Choice::OutOfTime => {
                self.explain(&reason);
                self.take(Input::Retreat).await;
            }
            Choice::Pause => {
                self.take(Input::StoppedByConsent).await;
                self.stop(None);
                if self.limits.policy.keeps_budgets() {
                    // It was found to fit the budget: the guest stands still within that, or goes on where it is.
                    self.standstill = Standstill::WithinBudget;
                    self.watchdog.stopped(now());
                }
            }
            // What they change is in the wish.
            Choice::Limit { .. } | Choice::Throttle { .. } | Choice::Wait | Choice::Budget => {}
        }
    }

    /// Whether what a policy chooses is what happens: it may choose beyond its consents, or of a guest that stands still
    /// already.
    fn is_done(&self, choice: Choice) -> bool {
        match choice {
            Choice::Throttle { .. } => self.wish.throttle != Throttle::Never,
            Choice::Pause => {
                let runs =
                    matches!(self.phase, Phase::Streaming(guest) if guest.at_source == AtSource::Running);
                runs && self.limits.may_pause()
            }
            _ => true,
        }
    }

    pub(super) fn record(&mut self, choice: Choice, reason: &str, forecast: Option<Forecast>) {
        let (at_ms, reason) = (self.history.now_ms(), reason.to_owned());
        let throttle_percent = match self.wish.throttle {
            Throttle::ByHand { percent } => percent,
            Throttle::Never | Throttle::Automatic(_) => 0,
        };
        let cost = Cost::of(choice, throttle_percent, forecast.as_ref());
        self.history.add(Entry::Decision(Decision { at_ms, choice, reason, forecast, cost, policy: None }));
    }
}
