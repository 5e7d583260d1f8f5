//! How the source is set while it sends: its limits, its throttle, and what it is told of the last copy.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{ANSWER, Answer, Driver};
use crate::converge::{Throttle, Wish};
use crate::migrate::order::Order;
use crate::migrate::phase::Phase;
use crate::migrate::step::limits::{self, QemuLimits};
use crate::migrate::step::throttle;
use crate::migrate::step::tuning::{self, Tuning};
use crate::qmp::words::commands::MigrateSetParameters;

impl Driver<'_> {
    /// The same for a source that has been set up so besides its limits. Otherwise nothing but these is set, and its
    /// guest is never slowed down.
    #[must_use]
    pub fn tuned(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self.wish = self.permitted();
        self.watchdog.set_longest_blackout(self.longest_blackout());
        self
    }

    /// What of the policy's wish is carried out.
    pub(super) fn permitted(&self) -> Wish {
        let wish = self.limits.permitted(self.policy.wish());
        if self.tuning.throttle.is_usable() { wish } else { Wish { throttle: Throttle::Never, ..wish } }
    }

    /// After so long a blackout the guest goes back to its source.
    pub(super) fn longest_blackout(&self) -> Duration {
        self.limits.longest_blackout_under(self.wish.downtime_limit_ms)
    }

    /// Sends what has changed of the policy's wish.
    pub(super) fn follow_policy(&mut self) {
        if self.permitted() != self.wish || self.switchover_wish() != self.switchover_bytes_per_second {
            self.set_limits(None);
        }
    }

    /// Puts limits and what has changed besides on the wire, in the order in which they were decided; an order is
    /// answered when QEMU has.
    pub(super) fn set_limits(&mut self, order: Option<Order>) {
        let (wish, switchover) = (self.permitted(), self.switchover_wish());
        let mut parameters = throttle::change(self.wish.throttle, wish.throttle);
        if switchover != self.switchover_bytes_per_second {
            parameters.extend(tuning::switchover_bandwidth(switchover));
        }
        (self.wish, self.switchover_bytes_per_second) = (wish, switchover);
        self.put(parameters, order);
    }

    /// Sends all of it once more: what another engine has set is not known, nor what of the last words was read before a
    /// connection ended. A throttle that is in force and not wished for is released by that.
    pub(super) fn set_anew(&mut self) {
        if !matches!(self.phase, Phase::Streaming(_)) {
            return;
        }
        (self.wish, self.switchover_bytes_per_second) = (self.permitted(), self.switchover_wish());
        let mut parameters = throttle::again(self.wish.throttle);
        if self.tuning.switchover_bandwidth.is_usable() {
            parameters.extend(tuning::switchover_bandwidth(self.switchover_bytes_per_second));
        }
        self.put(parameters, None);
    }

    fn put(&mut self, parameters: Map<String, Value>, order: Option<Order>) {
        self.watchdog.set_longest_blackout(self.longest_blackout());
        let client = &self.source.client;
        let besides = (!parameters.is_empty()).then(|| client.send(&MigrateSetParameters(parameters)));
        let limits = QemuLimits::both(self.wish.downtime_limit_ms, self.limits.max_bandwidth);
        let taken = limits::send(client, self.source.limits_by, limits, ANSWER);
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let besides = match besides {
                Some(reply) => reply.within(ANSWER).await.map(drop),
                None => Ok(()),
            };
            // The driver has ended meanwhile: then nobody needs the answer.
            let _ = answers.send(Answer::Limits(besides.and(taken.await), order));
        });
    }

    fn switchover_wish(&self) -> u64 {
        if !self.tuning.switchover_bandwidth.is_usable() {
            return 0;
        }
        let (bound, stream) = (self.limits.max_bandwidth, self.policy.stream_bytes_per_second());
        tuning::switchover_bytes_per_second(bound, stream, self.switchover_bytes_per_second)
    }
}
