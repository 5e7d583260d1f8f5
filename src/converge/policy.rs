//! What decides while a guest is on its way: samples in, wishes and verdicts with their reasons out.
//!
//! Ours is the [`Controller`](crate::converge::Controller); the ladders of others stand beside it, so that what is said of
//! them is measured.

use super::{Budget, Verdict};
use crate::record::Sample;

/// One way to bring a migration to its end. It knows no clock and no QEMU: the driver asks it after each sample and sends
/// what has changed of its [`Wish`].
pub trait Policy: std::fmt::Debug + Send {
    /// How QEMU should be set now; before the first sample, how it should be set as it starts.
    fn wish(&self) -> Wish;

    /// Takes in a sample; says what is to be done, if anything is. Times are milliseconds since streaming began.
    fn observe(&mut self, sample: &Sample, streaming_ms: f64) -> Option<Verdict>;

    /// Takes in how much the guest dirtied in a window that was sampled beside the stream and has just ended.
    fn observe_sampled(&mut self, at_ms: f64, length_ms: f64, dirtied_bytes: f64) {
        let _ = (at_ms, length_ms, dirtied_bytes);
    }

    /// Takes new budgets.
    fn set_budget(&mut self, budget: Budget);

    /// The rate of the stream as measured, in bytes per second; 0 while there is no measurement.
    fn stream_bytes_per_second(&self) -> u64;
}

/// How a source QEMU should be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// `downtime-limit`, in milliseconds.
    pub downtime_limit_ms: u64,
    /// How the guest is slowed down.
    pub throttle: Throttle,
}

/// How a guest is slowed down, as its user has consented to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttle {
    /// Not at all, and it never will be: `auto-converge` is off.
    Never,
    /// By so many per cent, as a policy of ours computes; 0 is not now. `auto-converge` is on with
    /// [`AutoConverge::BY_HAND`], and its maximum says how much.
    ByHand {
        /// Of the guest's time, in per cent.
        percent: u8,
    },
    /// As QEMU's own `auto-converge` climbs.
    Automatic(AutoConverge),
}

/// The parameters of `auto-converge`, in per cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoConverge {
    /// `cpu-throttle-initial`.
    pub initial_percent: u64,
    /// `cpu-throttle-increment`.
    pub increment_percent: u64,
    /// `max-cpu-throttle`. With [`AutoConverge::BY_HAND`] it is what sets, lowers and releases the throttle.
    pub maximum_percent: u64,
    /// `throttle-trigger-threshold`: of what was sent so much must have been dirtied.
    pub threshold_percent: u64,
}

impl AutoConverge {
    /// QEMU's own: 20 %, then 10 % more each time, up to 99 %.
    pub const DEFAULT: Self =
        Self { initial_percent: 20, increment_percent: 10, maximum_percent: 99, threshold_percent: 50 };
    /// On, and doing nothing until the maximum is raised: the throttle is then what the maximum says (run on 7.2, 10.0,
    /// 11.1).
    pub const BY_HAND: Self =
        Self { initial_percent: 1, increment_percent: 99, maximum_percent: 1, threshold_percent: 1 };
}

/// Whether the user has said yes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consent {
    /// Yes.
    Given,
    /// Not asked, or no.
    #[default]
    Withheld,
}

/// What a policy may do to the guest besides waiting, because its user has consented to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consents {
    /// The most that the guest may be slowed down, in per cent from 1 to 99.
    pub throttle_percent: Option<u8>,
    /// Stopping it so that what is left can be sent.
    pub pause: Consent,
    /// Running it on the destination before all of its memory is there.
    pub postcopy: Consent,
}
