//! What is told of the end: the forecast, and by when it is to have come.

use super::view::{Limited, View, rounded_up};
use super::{Controller, Moment, RATE_ERROR, Verdict, say};
use crate::converge::bandwidth::as_f64;
use crate::converge::curve::Bound;
use crate::converge::forecast::Prospect;
use crate::record::{Choice, Forecast};

/// An end that was promised has come by so much of the time it was to take, or the promise was wrong.
const LATE: f64 = 1.5;
const LATE_MS: f64 = 500.0;

impl Controller {
    /// Says what to expect, once, and again when the link has become another.
    pub(super) fn foretell(
        &mut self,
        view: &View,
        plan: Option<Limited>,
        moment: &Moment,
    ) -> Option<Verdict> {
        let prospect = plan.as_ref().map(|plan| &plan.prospect);
        let reason = match prospect {
            prospect if self.is_another_link() => {
                say::link_changed(self.bandwidth.bytes_per_second(), prospect)
            }
            Some(prospect) if !self.told.foretold => say::going_on(moment.sample.remaining_bytes, prospect),
            _ => return None,
        };
        self.promise(plan, moment);
        Some(Verdict { choice: Choice::Wait, reason, forecast: plan.map(|plan| self.forecast(view, plan)) })
    }

    /// Remembers what was told.
    pub(super) fn promise(&mut self, plan: Option<Limited>, moment: &Moment) {
        let promised = plan.map(|plan| moment.streaming_ms + plan.prospect.stream_ms * LATE + LATE_MS);
        self.promised_ms = promised.unwrap_or(f64::INFINITY);
        self.told_limit_ms = plan.map(|plan| plan.limit_ms);
        self.told.foretold |= plan.is_some();
        self.told.steps = self.bandwidth.steps();
    }

    pub(super) fn forecast(&self, view: &View, plan: Limited) -> Forecast {
        let view = view.slowed_to(self.slowing.share());
        let Limited { limit_ms, prospect } = plan;
        let bound = |bound| view.under(limit_ms, bound).map(|prospect: Prospect| prospect.blackout_ms);
        // QEMU stops the guest at nothing that is above the limit, by its own idea of the rate; and where the end is not
        // sure, the limit may yet rise to all that the budget allows.
        let is_sure = bound(Bound::High).is_some();
        let highest_ms = if is_sure { limit_ms } else { limit_ms.max(self.largest_limit_ms()) };
        let most_ms = as_f64(highest_ms) * (1.0 + RATE_ERROR) + view.switch_ms * 1.5;
        let low_ms = bound(Bound::Low).unwrap_or(0.0).min(prospect.blackout_ms).min(view.switch_ms);
        Forecast {
            blackout_ms: prospect.blackout_ms,
            blackout_between_ms: Some((low_ms * 0.8, most_ms.max(prospect.blackout_ms))),
            stream_ms: Some(prospect.stream_ms),
            passes: Some(prospect.passes),
            bytes: Some(rounded_up(prospect.bytes)),
        }
    }
}
