//! A policy that does what a test says; compiled in for tests only.
//!
//! `QMIGRATE_REHEARSAL="throttle=60@0 limit=4000@2000 pause@3000"` throttles by 60 % from the first sample on, wishes for
//! a limit of 4000 ms after 2 s of streaming, and stops the guest after 3 s. It asks for no consent: whatever it wishes
//! beyond that is the driver's to hold back.

use std::collections::VecDeque;

use crate::converge::{Bandwidth, Budget, Policy, Throttle, Verdict, Wish};
use crate::record::{Choice, Sample};

/// Where the limit starts, as ours does.
const FIRST_LIMIT_MS: u64 = 2;

/// What is done, and after how many milliseconds of streaming.
#[derive(Debug, Clone)]
struct Rehearsal {
    wish: Wish,
    deeds: VecDeque<(f64, Choice)>,
    bandwidth: Bandwidth,
}

/// The one that a test wants, if one does.
pub(super) fn wanted() -> Option<Box<dyn Policy>> {
    let text = std::env::var("QMIGRATE_REHEARSAL").ok()?;
    let deeds: VecDeque<_> = text.split_ascii_whitespace().filter_map(deed).collect();
    let throttle = Throttle::ByHand { percent: 0 };
    let wish = Wish { downtime_limit_ms: FIRST_LIMIT_MS, throttle };
    Some(Box::new(Rehearsal { wish, deeds, bandwidth: Bandwidth::default() }))
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

impl Policy for Rehearsal {
    fn wish(&self) -> Wish {
        self.wish
    }

    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict> {
        self.bandwidth.observe(sample.at_ms, sample.transferred_bytes);
        if self.deeds.front()?.0 > streaming_ms {
            return None;
        }
        let (_, choice) = self.deeds.pop_front()?;
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
