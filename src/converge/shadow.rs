//! Policies that are asked beside the one in force, and change nothing.
//!
//! A shadow sees what the policy in force brings about. As long as it would only have set another limit that what is
//! left does not fit, the same would have happened under it. From the moment on at which it would have done something
//! else to the guest, nobody can know; it says so, and is silent from then on.

use std::time::Duration;

use serde::Serialize;

use super::bandwidth::as_f64;
use super::policy::{AutoConverge, Consents, Policy, Throttle, Wish};
use super::rivals::PolicyName;
use super::{Budget, Verdict};
use crate::record::{Choice, Cost, Decision, Forecast, Sample};
use crate::units::{show_bytes, show_duration};

/// From which act on the future would have been another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// What was left fits its limit: the guest would have stood still, and gone.
    Stops,
    /// It would have given up.
    GivesUp,
    /// It would have stopped the guest so that what is left can be sent.
    Pauses,
    /// QEMU's throttle would have begun.
    Throttles,
    /// What was done under the policy in force ended it, or ends the record; under this one it would have gone on.
    GoesOn,
}

/// One policy that is asked.
#[derive(Debug)]
pub struct Shadow {
    name: PolicyName,
    policy: Box<dyn Policy>,
    has_begun: bool,
    pass: Option<Sample>,
    /// How often QEMU's throttle was given reason to begin.
    triggers: u32,
    parted: Option<(f64, Why)>,
}

impl Shadow {
    /// One that has not been asked yet.
    pub fn new(name: PolicyName, budget: Budget, consents: Consents) -> Self {
        let policy = name.build(budget, consents);
        Self { name, policy, has_begun: false, pass: None, triggers: 0, parted: None }
    }

    /// How QEMU would be set.
    pub fn wish(&self) -> Wish {
        self.policy.wish()
    }

    /// When, in milliseconds since the start of the migration, and why the future would have become another one.
    pub fn parted(&self) -> Option<(f64, Why)> {
        self.parted
    }

    /// What it says to a sample. Times are milliseconds since streaming began.
    pub fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Vec<Decision> {
        if self.parted.is_some() {
            return Vec::new();
        }
        let began = (!std::mem::replace(&mut self.has_begun, true)).then(|| self.beginning());
        let verdict = self.policy.observe(sample, streaming_ms);
        let acts = verdict.as_ref().and_then(|verdict| match verdict.choice {
            Choice::Infeasible { .. } | Choice::OutOfTime => Some(Why::GivesUp),
            Choice::Pause => Some(Why::Pauses),
            Choice::Limit { .. } | Choice::Throttle { .. } | Choice::Wait | Choice::Budget => None,
        });
        self.parted = acts.map(|why| (sample.at_ms, why));
        let parts = if acts.is_none() { self.parts(sample) } else { None };
        if let Some((why, _)) = &parts {
            self.parted = Some((sample.at_ms, *why));
        }
        let said = began.into_iter().chain(verdict).chain(parts.map(|(_, verdict)| verdict));
        said.map(|verdict| self.decision(sample.at_ms, verdict)).collect()
    }

    fn decision(&self, at_ms: f64, verdict: Verdict) -> Decision {
        let Verdict { choice, reason, forecast } = verdict;
        let cost = Cost::of(choice, 0, forecast.as_ref());
        Decision { at_ms, choice, reason, forecast, cost, policy: Some(self.name.to_string()) }
    }

    fn beginning(&self) -> Verdict {
        let Wish { downtime_limit_ms, throttle } = self.policy.wish();
        let throttle = if matches!(throttle, Throttle::Automatic(_)) { " and QEMU's throttle" } else { "" };
        let reason = format!("begins with a limit of {downtime_limit_ms} ms{throttle}");
        Verdict { choice: Choice::Limit { downtime_limit_ms }, reason, forecast: None }
    }

    /// What QEMU would have done at this sample, and did not.
    fn parts(&mut self, sample: &Sample) -> Option<(Why, Verdict)> {
        let before = self.pass.filter(|pass| pass.passes == sample.passes);
        let pass_before = if before.is_none() { self.pass.replace(*sample) } else { None };
        if let Some(parts) = self.throttles(sample, pass_before) {
            return Some(parts);
        }
        let since_ms = before.map_or(0.0, |pass| sample.at_ms - pass.at_ms);
        // Of what is dirtied in the first pass nothing is known before its end.
        if sample.passes == 0 || (sample.passes == 1 && since_ms > 0.0) {
            return None;
        }
        let bytes_per_ms = as_f64(self.policy.stream_bytes_per_second()) / 1e3;
        let dirtied = as_f64(sample.dirty_bytes_per_second) / 1e3 * since_ms;
        let left = as_f64(sample.remaining_bytes) + dirtied;
        let Wish { downtime_limit_ms, .. } = self.policy.wish();
        if bytes_per_ms <= 0.0 || left > bytes_per_ms * as_f64(downtime_limit_ms) {
            return None;
        }
        let blackout_ms = left / bytes_per_ms;
        let reason = format!(
            "{} left fit its limit of {downtime_limit_ms} ms: the guest stops, for about {}",
            show_bytes(sample.remaining_bytes),
            show_duration(Duration::from_secs_f64(blackout_ms / 1e3))
        );
        let forecast =
            Forecast { blackout_ms, blackout_between_ms: None, stream_ms: None, passes: None, bytes: None };
        Some((Why::Stops, Verdict { choice: Choice::Wait, reason, forecast: Some(forecast) }))
    }

    /// QEMU begins to throttle once the guest has twice dirtied more than some share of what was sent meanwhile
    /// (`migration_trigger_throttle`, ram.c, 10.0).
    fn throttles(&mut self, sample: &Sample, pass_before: Option<Sample>) -> Option<(Why, Verdict)> {
        let Throttle::Automatic(AutoConverge { initial_percent, threshold_percent, .. }) =
            self.policy.wish().throttle
        else {
            return None;
        };
        let pass_before = pass_before?;
        if sample.throttle_percent > 0 {
            return None;
        }
        let sent = sample.transferred_bytes.saturating_sub(pass_before.transferred_bytes);
        if as_f64(sample.remaining_bytes) * 100.0 > as_f64(sent) * as_f64(threshold_percent) {
            self.triggers += 1;
        }
        if self.triggers < 2 {
            return None;
        }
        let percent = u8::try_from(initial_percent).unwrap_or(u8::MAX);
        let reason =
            format!("QEMU's throttle begins with {percent} %: the guest would write less from here on");
        Some((Why::Throttles, Verdict { choice: Choice::Throttle { percent }, reason, forecast: None }))
    }
}

/// The policies that are asked while a migration runs.
#[derive(Debug, Default)]
pub struct Shadows(Vec<Shadow>);

impl Shadows {
    /// Each of them once.
    pub fn new(names: &[PolicyName], budget: Budget, consents: Consents) -> Self {
        let is_first = |(at, name): &(usize, &PolicyName)| !names[..*at].contains(name);
        let shadow = |(_, name): (usize, &PolicyName)| Shadow::new(*name, budget, consents);
        Self(names.iter().enumerate().filter(is_first).map(shadow).collect())
    }

    /// What they say to a sample; for the record, under their names.
    pub fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Vec<Decision> {
        self.0.iter_mut().flat_map(|shadow| shadow.observe(sample, streaming_ms)).collect()
    }

    /// They get new budgets as the policy in force does.
    pub fn set_budget(&mut self, budget: Budget) {
        for shadow in &mut self.0 {
            shadow.policy.set_budget(budget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::DowntimeMs;

    const MB: u64 = 1_000_000;

    fn budget() -> Budget {
        Budget { max_downtime: DowntimeMs::new(300).unwrap(), max_time: None }
    }

    /// A sample of a link of 100 MB/s.
    fn sample(at_ms: u32, passes: u64, left_mb: u64) -> Sample {
        Sample {
            at_ms: f64::from(at_ms),
            transferred_bytes: u64::from(at_ms) * 100_000,
            remaining_bytes: left_mb * MB,
            total_bytes: 1 << 30,
            passes,
            dirty_bytes_per_second: 0,
            stream_bytes_per_second: 0,
            downtime_limit_ms: 2,
            throttle_percent: 0,
        }
    }

    /// What was said and when, and how it parted.
    type Said = (Vec<(f64, Choice)>, Option<(f64, Why)>);

    fn said(name: PolicyName, samples: &[Sample]) -> Said {
        let mut shadow = Shadow::new(name, budget(), Consents::default());
        let said: Vec<Decision> =
            samples.iter().flat_map(|sample| shadow.observe(sample, sample.at_ms)).collect();
        assert!(said.iter().all(|decision| decision.policy.as_deref() == Some(name.as_str())));
        (said.iter().map(|decision| (decision.at_ms, decision.choice)).collect(), shadow.parted())
    }

    #[test]
    fn a_shadow_says_how_it_begins_and_when_the_guest_would_have_stopped_and_nothing_more() {
        let samples = [
            sample(0, 1, 1000),
            sample(200, 1, 980),
            sample(10_000, 2, 50),
            sample(10_500, 3, 25),
            sample(10_750, 4, 10),
        ];
        let (said, parted) = said(PolicyName::Fixed, &samples);
        let begins = (0.0, Choice::Limit { downtime_limit_ms: 300 });
        // 25 MB are 250 ms; 50 MB were too much.
        assert_eq!(said, [begins, (10_500.0, Choice::Wait)]);
        assert_eq!(parted, Some((10_500.0, Why::Stops)));
    }

    #[test]
    fn what_was_dirtied_since_the_pass_began_counts_and_the_first_pass_says_nothing() {
        let busy = |sample| Sample { dirty_bytes_per_second: 100 * MB, ..sample };
        let samples = [
            sample(0, 1, 1000),
            sample(200, 1, 980),
            // Little is left of the first pass; what was dirtied in it nobody knows.
            sample(9_900, 1, 10),
            busy(sample(10_000, 2, 80)),
            // 20 MB are left of this pass, and 60 were dirtied.
            busy(sample(10_600, 2, 20)),
        ];
        assert_eq!(said(PolicyName::Fixed, &samples).1, None);
    }

    #[test]
    fn a_throttle_that_would_have_begun_is_where_the_record_tells_no_more() {
        let hot = [sample(0, 1, 1000), sample(10_000, 2, 600), sample(16_000, 3, 600), sample(22_000, 4, 20)];
        let (said_auto, parted) = said(PolicyName::AutoConverge, &hot);
        assert_eq!(said_auto.last(), Some(&(16_000.0, Choice::Throttle { percent: 20 })));
        assert_eq!(parted, Some((16_000.0, Why::Throttles)));
        // A guest that dirties less than half of what is sent is let be.
        let calm =
            [sample(0, 1, 1000), sample(10_000, 2, 400), sample(14_000, 3, 150), sample(15_500, 4, 60)];
        assert_eq!(said(PolicyName::AutoConverge, &calm).1, None);
        // And one that is throttled already goes on as it was.
        let throttled = hot.map(|sample| Sample { throttle_percent: 20, ..sample });
        assert_eq!(said(PolicyName::AutoConverge, &throttled).1, Some((22_000.0, Why::Stops)));
    }

    #[test]
    fn a_shadow_that_gives_up_or_pauses_is_silent_afterwards() {
        let samples: Vec<_> = (0..900).map(|step| sample(step * 100, 2, 500)).collect();
        let (said, parted) = said(PolicyName::Libvirt, &samples);
        assert_eq!(said.len(), 2);
        assert_eq!(parted, Some((60_000.0, Why::Pauses)));
    }

    #[test]
    fn each_policy_is_asked_once_however_often_it_is_named() {
        let names = [PolicyName::Fixed, PolicyName::Proxmox, PolicyName::Fixed];
        let mut shadows = Shadows::new(&names, budget(), Consents::default());
        assert_eq!(shadows.observe(&sample(0, 1, 1000), 0.0).len(), 2);
        assert_eq!(Shadows::default().observe(&sample(0, 1, 1000), 0.0), []);
    }
}
