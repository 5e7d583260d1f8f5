//! The limit that starts low and rises only within the budget.

use std::time::Duration;

use super::bandwidth::{Bandwidth, as_f64};
use super::curve::{Bound, DirtyCurve};
use super::forecast::{Course, Prospect};
use super::passes::Passes;
use super::policy::{Consents, Policy, Throttle, Wish};
use crate::record::{Choice, Forecast, Sample};
use crate::units::{DowntimeMs, show_bytes, show_duration};

/// Where the limit starts: below it the cost of the switch itself outweighs what is copied in it.
const FIRST_LIMIT_MS: u64 = 2;
/// What the switch costs besides the copy: device state, the destination's load, and `cont` (5 ms is the median of
/// 50 migrations, measured on 5.2, 7.2, 10.0 and 11.1).
const SWITCH_COST_MS: u64 = 5;
/// A pass that is not smaller than this share of the smallest before it has brought nothing.
const NEW_LOW: f64 = 0.98;
/// So many passes without a new low, and waiting will not help.
const STALLED_PASSES: u32 = 3;
/// Infeasible is not declared earlier than this where no time budget was given: guests have quiet moments.
const PATIENCE: Duration = Duration::from_secs(30);
/// Room above what a pass has left, for what is dirtied while it is sent.
const MARGIN: f64 = 1.1;

/// No forecast reaches further than an hour.
const LONGEST_MS: f64 = 3.6e6;

/// What the user allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The longest blackout.
    pub max_downtime: DowntimeMs,
    /// The longest that streaming may take.
    pub max_time: Option<Duration>,
}

impl Budget {
    /// The largest limit that QEMU is ever given: the budget less the cost of the switch.
    pub fn largest_limit_ms(self) -> u64 {
        let budget = self.max_downtime.milliseconds();
        budget.saturating_sub(SWITCH_COST_MS).max(budget / 2).max(1)
    }
}

/// What is to be done now, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What.
    pub choice: Choice,
    /// Why, in one line.
    pub reason: String,
    /// What is expected of it.
    pub forecast: Option<Forecast>,
}

/// Watches the passes of one migration and says when the limit must rise, or that no limit will do.
#[derive(Debug, Clone)]
pub struct Controller {
    budget: Budget,
    consents: Consents,
    limit_ms: u64,
    bandwidth: Bandwidth,
    passes: Passes,
    pass: u64,
    smallest_pass_bytes: Option<u64>,
    stalled_passes: u32,
    given_up: bool,
    /// Whether it has been said what to expect.
    has_foretold: bool,
}

impl Controller {
    /// A controller for a migration that has not started, and what its user has consented to.
    pub fn new(budget: Budget, consents: Consents) -> Self {
        Self {
            budget,
            consents,
            limit_ms: FIRST_LIMIT_MS.min(budget.largest_limit_ms()),
            bandwidth: Bandwidth::default(),
            passes: Passes::default(),
            pass: 0,
            smallest_pass_bytes: None,
            stalled_passes: 0,
            given_up: false,
            has_foretold: false,
        }
    }

    /// The `downtime-limit` that should be in force, in milliseconds.
    pub fn limit_ms(&self) -> u64 {
        self.limit_ms
    }

    fn judge_pass(&mut self, remaining_bytes: u64, streaming_ms: f64) -> Option<Verdict> {
        let is_low = self
            .smallest_pass_bytes
            .is_none_or(|smallest| as_f64(remaining_bytes) < as_f64(smallest) * NEW_LOW);
        if is_low {
            self.smallest_pass_bytes = Some(remaining_bytes);
            self.stalled_passes = 0;
            return self.foretell(remaining_bytes);
        }
        self.stalled_passes += 1;
        let largest_ms = self.budget.largest_limit_ms();
        if self.limit_ms < largest_ms {
            return Some(self.raise(remaining_bytes, largest_ms));
        }
        let patient = self.budget.max_time.is_none() && streaming_ms < PATIENCE.as_secs_f64() * 1e3;
        if self.stalled_passes < STALLED_PASSES || patient || self.budget.max_time.is_some() {
            return None;
        }
        self.given_up = true;
        Some(self.infeasible())
    }

    fn raise(&mut self, remaining_bytes: u64, largest_ms: u64) -> Verdict {
        let needed_ms = self.bandwidth.bytes_per_ms().map(|rate| as_f64(remaining_bytes) * MARGIN / rate);
        // At least twice as much: a few steps, and not one for each pass, where the need is small or not known.
        let raised_ms = self.limit_ms * 2;
        self.limit_ms =
            needed_ms.map_or(raised_ms, |needed| rounded_up(needed).max(raised_ms)).min(largest_ms);
        let reason = format!(
            "passes no longer get smaller ({} left): the limit rises within the budget of {}",
            show_bytes(remaining_bytes),
            self.budget.max_downtime
        );
        let forecast = self.forecast(remaining_bytes).or_else(|| {
            let blackout_ms = needed_ms? + as_f64(SWITCH_COST_MS);
            Some(Forecast {
                blackout_ms,
                blackout_between_ms: None,
                stream_ms: None,
                passes: None,
                bytes: None,
            })
        });
        Verdict { choice: Choice::Limit { downtime_limit_ms: self.limit_ms }, reason, forecast }
    }

    /// Says once, as the first pass that tells something has begun, what to expect.
    fn foretell(&mut self, remaining_bytes: u64) -> Option<Verdict> {
        if self.has_foretold {
            return None;
        }
        let forecast = self.forecast(remaining_bytes)?;
        self.has_foretold = true;
        let blackout = show_duration(Duration::from_secs_f64(forecast.blackout_ms / 1e3));
        let stream = forecast.stream_ms.map_or_else(String::new, |stream_ms| {
            format!(" in {}", show_duration(Duration::from_secs_f64(stream_ms / 1e3)))
        });
        let reason = format!(
            "the guest dirtied {} while the pass before was sent: it is expected to stand still{stream}, for {blackout}",
            show_bytes(remaining_bytes),
        );
        Some(Verdict { choice: Choice::Wait, reason, forecast: Some(forecast) })
    }

    /// What comes of the limit in force, or of the smallest one with which there is an end.
    fn forecast(&self, remaining_bytes: u64) -> Option<Forecast> {
        let (curve, bytes_per_ms) = (self.passes.curve()?, self.bandwidth.bytes_per_ms()?);
        let outlook = |bound| self.outlook(&curve, bytes_per_ms, remaining_bytes, bound);
        let likely = outlook(Bound::Fitted)?;
        let blackout = |bound| outlook(bound).map(|prospect| prospect.blackout_ms);
        Some(Forecast {
            blackout_ms: likely.blackout_ms,
            blackout_between_ms: blackout(Bound::Low).zip(blackout(Bound::High)),
            stream_ms: Some(likely.stream_ms),
            passes: Some(likely.passes),
            bytes: Some(rounded_up(likely.bytes)),
        })
    }

    fn outlook(
        &self,
        curve: &DirtyCurve,
        bytes_per_ms: f64,
        remaining_bytes: u64,
        bound: Bound,
    ) -> Option<Prospect> {
        let course = Course {
            curve,
            bound,
            bytes_per_ms,
            left_bytes: as_f64(remaining_bytes),
            into_pass_ms: 0.0,
            switch_ms: as_f64(SWITCH_COST_MS),
        };
        let in_force = course.under(as_f64(self.limit_ms));
        in_force.or_else(|| course.smallest_limit_within(LONGEST_MS).map(|found| found.prospect))
    }

    fn infeasible(&self) -> Verdict {
        let smallest_bytes = self.smallest_pass_bytes.unwrap_or(0);
        let copy_ms =
            self.bandwidth.bytes_per_ms().map_or(0.0, |rate| as_f64(smallest_bytes) * MARGIN / rate);
        let smallest_downtime_ms = rounded_up(copy_ms) + SWITCH_COST_MS;
        let reason = format!(
            "the guest dirties {} while a pass is sent and {STALLED_PASSES} passes brought no new low: a downtime of about \
             {smallest_downtime_ms} ms would do, the budget is {}",
            show_bytes(smallest_bytes),
            self.budget.max_downtime
        );
        let smallest_time_ms = None;
        Verdict {
            choice: Choice::Infeasible { smallest_downtime_ms, smallest_time_ms },
            reason,
            forecast: None,
        }
    }
}

impl Policy for Controller {
    fn wish(&self) -> Wish {
        let throttle = match self.consents.throttle_percent {
            Some(_) => Throttle::ByHand { percent: 0 },
            None => Throttle::Never,
        };
        Wish { downtime_limit_ms: self.limit_ms, throttle }
    }

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }

    /// Takes new budgets; the limit falls at once where it is now too high.
    fn set_budget(&mut self, budget: Budget) {
        self.budget = budget;
        self.limit_ms = self.limit_ms.min(budget.largest_limit_ms());
        self.stalled_passes = 0;
        self.given_up = false;
    }

    /// Takes in a sample; says what is to be done, if anything is. Times are milliseconds since streaming began.
    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        self.passes.observe(sample);
        if self.given_up {
            return None;
        }
        if let Some(max_time) = self.budget.max_time
            && streaming_ms > max_time.as_secs_f64() * 1e3
        {
            self.given_up = true;
            let reason = format!("the time budget of {} is spent", humantime::format_duration(max_time));
            return Some(Verdict { choice: Choice::OutOfTime, reason, forecast: None });
        }
        if sample.passes <= self.pass {
            return None;
        }
        let first = self.pass == 0;
        self.pass = sample.passes;
        // The first pass sends all of memory; it says nothing of what the guest dirties.
        if first && sample.passes <= 1 { None } else { self.judge_pass(sample.remaining_bytes, streaming_ms) }
    }

    /// Takes in how much the guest dirtied in a window that was sampled beside the stream and has just ended.
    fn observe_sampled(&mut self, at_ms: f64, length_ms: f64, dirtied_bytes: f64) {
        self.passes.sampled(at_ms, length_ms, dirtied_bytes);
    }
}

fn rounded_up(milliseconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
    let whole = milliseconds.ceil() as u64;
    whole
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(max_downtime_ms: u64) -> Budget {
        Budget { max_downtime: DowntimeMs::new(max_downtime_ms).unwrap(), max_time: None }
    }

    /// A sample at the start of a pass, on a link of 100 MB/s.
    fn pass(number: u64, remaining_bytes: u64, at_ms: f64) -> Sample {
        Sample {
            at_ms,
            transferred_bytes: rounded_up(at_ms * 1e5),
            remaining_bytes,
            total_bytes: 1 << 30,
            passes: number,
            dirty_bytes_per_second: 0,
            stream_bytes_per_second: 0,
            downtime_limit_ms: 0,
            throttle_percent: 0,
        }
    }

    #[test]
    fn a_guest_that_converges_is_left_alone_with_a_tight_limit() {
        let mut controller = Controller::new(budget(300), Consents::default());
        assert_eq!(controller.limit_ms(), 2);
        for (number, remaining) in (1..8).map(|number| (number, 1_u64 << (30 - 3 * number))) {
            let at_ms = as_f64(number) * 1000.0;
            let verdict = controller.observe(&pass(number, remaining, at_ms), at_ms);
            assert!(verdict.is_none_or(|verdict| verdict.choice == Choice::Wait));
        }
        assert_eq!(controller.limit_ms(), 2);
    }

    #[test]
    fn what_to_expect_is_said_once_as_the_second_pass_begins() {
        let mut controller = Controller::new(budget(300), Consents::default());
        let mut told = Vec::new();
        for number in 1..8 {
            let at_ms = as_f64(number) * 1000.0;
            told.extend(controller.observe(&pass(number, 1 << (30 - 3 * number), at_ms), at_ms));
        }
        let [Verdict { choice: Choice::Wait, forecast: Some(forecast), .. }] = &told[..] else {
            panic!("{told:?}")
        };
        // 16 MiB left, at 100 MB/s and half a second of the guest.
        assert!((5.0..10.0).contains(&forecast.blackout_ms), "{forecast:?}");
        assert!((100.0..300.0).contains(&forecast.stream_ms.unwrap()), "{forecast:?}");
        let (low, high) = forecast.blackout_between_ms.unwrap();
        assert!(low <= forecast.blackout_ms && forecast.blackout_ms <= high, "{forecast:?}");
    }

    #[test]
    fn the_limit_rises_to_what_a_plateau_needs_and_not_to_the_whole_budget() {
        let mut controller = Controller::new(budget(300), Consents::default());
        for number in 1..3 {
            let verdict = controller.observe(&pass(number, 1_000_000, as_f64(number) * 200.0), 0.0);
            assert!(verdict.is_none_or(|verdict| verdict.choice == Choice::Wait));
        }
        let verdict = controller.observe(&pass(3, 1_000_000, 600.0), 0.0).unwrap();
        assert_eq!(verdict.choice, Choice::Limit { downtime_limit_ms: 11 });
    }

    #[test]
    fn infeasible_is_said_after_three_passes_without_a_new_low_but_not_before_half_a_minute() {
        let mut controller = Controller::new(budget(300), Consents::default());
        let mut said = None;
        for number in 1..100 {
            let at_ms = as_f64(number) * 1000.0;
            if let Some(verdict) = controller.observe(&pass(number, 100_000_000, at_ms), at_ms)
                && let Choice::Infeasible { smallest_downtime_ms, .. } = verdict.choice
            {
                said = Some((number, smallest_downtime_ms));
                break;
            }
        }
        let (number, smallest_downtime_ms) = said.unwrap();
        assert!((30..33).contains(&number), "{number}");
        assert!((1000..1200).contains(&smallest_downtime_ms), "{smallest_downtime_ms}");
    }

    #[test]
    fn the_time_budget_ends_it_once() {
        let mut budget = budget(300);
        budget.max_time = Some(Duration::from_secs(1));
        let mut controller = Controller::new(budget, Consents::default());
        assert_eq!(controller.observe(&pass(1, 1, 999.0), 999.0), None);
        assert_eq!(controller.observe(&pass(1, 1, 1001.0), 1001.0).unwrap().choice, Choice::OutOfTime);
        assert_eq!(controller.observe(&pass(1, 1, 1002.0), 1002.0), None);
    }

    proptest! {
        #[test]
        fn no_sequence_of_passes_sends_a_limit_above_the_budget(
            max_downtime_ms in 1_u64..2_000_000,
            passes in proptest::collection::vec((0_u64..1 << 40, 0.0..1e4), 1..60),
        ) {
            let mut controller = Controller::new(budget(max_downtime_ms), Consents::default());
            prop_assert!(controller.limit_ms() <= max_downtime_ms);
            let mut at_ms = 0.0;
            for (number, (remaining, elapsed_ms)) in (1..).zip(passes) {
                at_ms += elapsed_ms;
                let before = controller.limit_ms();
                if let Some(Verdict { choice: Choice::Limit { downtime_limit_ms }, .. }) =
                    controller.observe(&pass(number, remaining, at_ms), at_ms)
                {
                    prop_assert!(downtime_limit_ms > before && downtime_limit_ms <= max_downtime_ms);
                    prop_assert_eq!(downtime_limit_ms, controller.limit_ms());
                }
            }
        }
    }
}
