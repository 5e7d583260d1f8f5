//! How far the stream is, and what the controller makes of it.

use super::{ANSWER, Answer, Driver, now};
use crate::converge::Verdict;
use crate::migrate::order::Order;
use crate::migrate::phase::{Input, Phase};
use crate::migrate::step::limits::{self, QemuLimits};
use crate::qmp::words::{MigrationInfo, MigrationStatus};
use crate::record::{Choice, Decision, Entry, Forecast, Pass, Sample};

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
            let verdict = self.policy.observe(&sample, now_ms - self.streaming_since_ms);
            if self.policy.wish() != self.wish {
                self.set_limits(None);
            }
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
        self.record(choice, &reason, forecast);
        match choice {
            Choice::Infeasible { .. } | Choice::OutOfTime => {
                self.explain(&reason);
                self.take(Input::Retreat).await;
            }
            Choice::Pause => {
                self.take(Input::StoppedByConsent).await;
                self.stop(None);
            }
            // What they change is in the wish.
            Choice::Limit { .. } | Choice::Throttle { .. } | Choice::Wait | Choice::Budget => {}
        }
    }

    pub(super) fn record(&mut self, choice: Choice, reason: &str, forecast: Option<Forecast>) {
        let at_ms = self.history.now_ms();
        self.history.add(Entry::Decision(Decision {
            at_ms,
            choice,
            reason: reason.to_owned(),
            forecast,
            policy: None,
        }));
    }

    /// Puts limits on the wire, in the order in which they were decided; an order is answered when QEMU has.
    pub(super) fn set_limits(&mut self, order: Option<Order>) {
        self.wish = self.policy.wish();
        let limits = QemuLimits::both(self.wish.downtime_limit_ms, self.limits.max_bandwidth);
        let taken = limits::send(&self.source.client, self.source.limits_by, limits, ANSWER);
        let answers = self.answers.clone();
        tokio::spawn(async move {
            // The driver has ended meanwhile: then nobody needs the answer.
            let _ = answers.send(Answer::Limits(taken.await, order));
        });
    }
}
