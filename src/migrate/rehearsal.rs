//! A policy that does what a test says; compiled in for tests only.
//!
//! `QMIGRATE_REHEARSAL="throttle=60@0 limit=4000@2000 pause@1000"` throttles by 60 % from the first sample on, wishes for
//! a limit of 4000 ms once that throttle has been in force for 2 s (QEMU takes its time), and stops the guest 1 s after
//! that. It asks for no consent: whatever it wishes beyond that is the driver's to hold back.

use std::collections::VecDeque;

use crate::converge::{Bandwidth, Budget, Policy, Throttle, Verdict, Wish};
use crate::record::{Choice, Sample};

/// Where the limit starts, as ours does.
const FIRST_LIMIT_MS: u64 = 2;

/// What is done, and how many milliseconds after the deed before it came into force.
#[derive(Debug, Clone)]
struct Rehearsal {
    wish: Wish,
    deeds: VecDeque<(f64, Choice)>,
    /// When the last deed was in force, in milliseconds of streaming; the beginning is from the start.
    in_force_ms: Option<f64>,
    bandwidth: Bandwidth,
}

/// The one that a test wants, if one does.
pub(super) fn wanted() -> Option<Box<dyn Policy>> {
    let text = std::env::var("QMIGRATE_REHEARSAL").ok()?;
    let deeds: VecDeque<_> = text.split_ascii_whitespace().filter_map(deed).collect();
    let throttle = Throttle::ByHand { percent: 0 };
    let wish = Wish { downtime_limit_ms: FIRST_LIMIT_MS, throttle };
    Some(Box::new(Rehearsal { wish, deeds, in_force_ms: Some(0.0), bandwidth: Bandwidth::default() }))
}

fn deed(word: &str) -> Option<(f64, Choice)> {
    let (deed, at_ms) = word.split_once('@')?;
    let choice = match deed.split_once('=') {
        Some(("throttle", percent)) => Choice::Throttle { percent: percent.parse().ok()? },
        Some(("limit", limit)) => Choice::Limit { downtime_limit_ms: limit.parse().ok()? },
        _ => (deed == "pause").then_some(Choice::Pause)?,
    };
    Some((at_ms.parse().ok()?, choice))
}

impl Rehearsal {
    fn is_in_force(&self, sample: &Sample) -> bool {
        match self.wish.throttle {
            Throttle::ByHand { percent } if percent > 0 => sample.throttle_percent == u64::from(percent),
            _ => true,
        }
    }
}

impl Policy for Rehearsal {
    fn wish(&self) -> Wish {
        self.wish
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if self.is_in_force(sample) {
            self.in_force_ms.get_or_insert(streaming_ms);
        }
        if self.deeds.front()?.0 > streaming_ms - self.in_force_ms? {
            return None;
        }
        let (_, choice) = self.deeds.pop_front()?;
        self.in_force_ms = None;
        match choice {
            Choice::Throttle { percent } => self.wish.throttle = Throttle::ByHand { percent },
            Choice::Limit { downtime_limit_ms } => self.wish.downtime_limit_ms = downtime_limit_ms,
            _ => {}
        }
        Some(Verdict { choice, reason: "a test says so".to_owned(), forecast: None })
    }

    fn set_budget(&mut self, _: Budget) {}

    fn stream_bytes_per_second(&self) -> u64 {
        self.bandwidth.bytes_per_second()
    }
}
