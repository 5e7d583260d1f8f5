//! Orders of people: cancel, pause, new limits.

use super::Driver;
use crate::migrate::order::{Order, Request};
use crate::migrate::phase::{AtSource, Input, Phase, SourceEnd};
use crate::record::Choice;

impl Driver<'_> {
    /// Does what is asked, or says why not.
    pub(super) async fn order(&mut self, order: Order) {
        match order.request.clone() {
            Request::Cancel(reason) if self.phase.can_retreat() => {
                self.explain(&reason);
                self.take(Input::Retreat).await;
                order.answer(Ok("cancelled; the guest goes back to its source".to_owned()));
            }
            Request::Cancel(_) => order.answer(Err(too_late(self.phase).to_owned())),
            Request::Pause if self.is_standing() => {
                order.answer(Err("the guest stands still already, and will on the destination".to_owned()));
            }
            Request::Pause if self.is_held() => {
                order
                    .answer(Err("the guest stands still already; it will run on the destination".to_owned()));
            }
            Request::Pause if matches!(self.phase, Phase::Streaming(_)) => {
                self.record(
                    Choice::Pause,
                    "asked for: the guest stands still until it runs on the destination",
                    None,
                );
                self.take(Input::StoppedByConsent).await;
                self.stop(Some(order));
            }
            Request::Pause => order.answer(Err("the switchover has begun".to_owned())),
            Request::Limits(limits) => {
                if let Some(max_downtime) = limits.max_downtime_ms {
                    self.limits.max_downtime = max_downtime;
                }
                if let Some(rate) = limits.max_bandwidth_bytes_per_second {
                    self.limits.max_bandwidth = Some(rate);
                }
                self.policy.set_budget(self.limits.budget());
                self.shadows.set_budget(self.limits.budget());
                self.record(Choice::Budget, "asked for: new limits", None);
                self.set_limits(Some(order));
            }
        }
    }

    /// Whether the guest stands still by itself or by somebody's will.
    fn is_standing(&self) -> bool {
        matches!(self.phase, Phase::Streaming(guest) if guest.at_source == AtSource::Standing)
    }
}

/// Why a migration in this phase cannot be cancelled.
fn too_late(phase: Phase) -> &'static str {
    match phase {
        Phase::Retreating(..) | Phase::Back(_) => "the guest is on its way back already",
        Phase::Committed { .. } | Phase::Arrived(_) => {
            "too late: the destination has been told to run the guest"
        }
        Phase::Switchover { source: SourceEnd::Postcopy, .. } => {
            "too late: the guest's memory goes on by postcopy, from which there is no way back"
        }
        // The source has ended.
        _ => "too late: there is no source any more to which the guest could go back",
    }
}
