//! QEMU's migration loop without QEMU: passes, blackout and cost of a migration, in a millisecond or a few.
//!
//! It says what a [`Sample`](crate::record::Sample) would have said and takes what a policy may say, so that a controller
//! can be played against thousands of guests and links, and against moments that a real one meets once a year. The
//! same guest, link, QEMU, seed and commands give the same run. There is no clock and no I/O in it.
//!
//! ```text
//!  guest   writes pages; which, nobody knows until a look                          stops          runs there
//!          ────────────────────────────────────────────────────────────────────────────│               │────
//!  thread  setup ██▁▁▁▁▁▁ ██▁▁▁▁▁▁ ██▁▁▁▁▁▁ █◊█▁▁▁▁▁ ██▁▁▁▁▁▁ █◊█▁▁▁▁▁ ... ██▁▁▁▁▁▁ █◊──│◊██████│ switch │
//!               │        │        │         │                  │                    │
//!  pass    1: all memory, 100 ms windows    2                  3                    what is left fits the limit
//!
//!  █ pages are sent: max-bandwidth / 10 in a window, all that the link takes without one, and in the blackout
//!  ▁ the window's bytes are sent. At its end: threshold = what it has sent per millisecond x downtime-limit
//!  ◊ a look: what was written since the last one is dirty. It comes when what is left falls below the threshold; if
//!    what is left after it is above, a pass begins; if not, the switch
//! ```
//!
//! # What is modelled, and from where
//!
//! * *The loop* is QEMU 10.0's: `migration_iteration_run` (estimate below the threshold, then a look at the bitmap, then the
//!   decision), `migration_update_counters` (the bandwidth of the last window alone, no smoothing; a new limit counts from
//!   the window's end), `migration_rate_limit` (a window's bytes go out at once, then it sleeps), `ram_save_iterate` (50 ms at
//!   most). In the first 100 ms there is no threshold, and nothing is looked at.
//! * *Pages* are a bitmap, page by page. A page written again before it is sent counts once, one written after it was sent
//!   is dirty at the next look; the sender goes round and does not begin anew with a pass. All this is exact for a sweep;
//!   where writes go at random, each page of the region is dirty with the probability 1 - exp(-writes / pages).
//! * *Zero pages* take nine bytes in the first pass, and some time.
//! * *The link* has a rate that may step, and room for bytes that QEMU counts as sent and that have not arrived.
//! * *The throttle* (`migration_trigger_throttle`, `mig_throttle_guest_down`, `cpu_throttle_thread`) is moved at a look, when
//!   a second has passed since it last could be and twice too much was dirtied; it runs the guest for 10 ms and lets it
//!   sleep 10 ms x p / (1 - p). The timer of 9.2 that looks every 5 s belongs to it. The rate of dirty pages is worked out
//!   at the same moments.
//! * *The switch* costs a stop, a look, the copy without `max-bandwidth`, what the link still holds, and a fixed rest.
//!
//! # How well it matches
//!
//! `recorded/` holds real migrations of the embedded guest (QEMU 10.0, TCG, two cores that others used too; `cargo run
//! --example record-passes` makes them). Tests hold the simulator against each of them:
//!
//! | what | within | median |
//! |---|---|---|
//! | what a look finds, at the recorded moments | 10 % or 1 MiB; under a throttle 15 % or 2 MiB | 0.6 % |
//! | when a pass begins | 10 % or a window of 100 ms (50 ms where a link bounds the stream) | 0.2 % |
//! | what is left as it begins | 10 % or what two windows dirty (2 MiB where a link bounds the stream) | 1.4 % |
//! | the end | 5 % or a window | 0.3 % |
//! | bytes sent | 5 % | 0.2 % |
//! | blackout, by what is copied in it | 20 % or 5 ms | 1.1 ms |
//! | when the throttle moves | 10 % or 100 ms | 0.2 % |
//!
//! Needed for that were the windows (a pass that ends in this window or in the next is off by one), pages in the
//! sender's order, pages of zeroes, the room in the link (21 to 33 ms of each blackout over TCP), the one tick that a
//! throttled guest works off when it wakes (at 90 % it writes a tenth more than the throttle leaves it), and the share
//! of its ticks that a guest under TCG sees on a busy host, which each recording tells. Not needed was a slower guest
//! while its writes are tracked: a page's first write after a look costs too little to be seen in windows of 100 ms.
//!
//! What does not match: a copy that no link bounds runs at 1.6 to 4.6 GB/s in these, as the host happens to have time, and is
//! 1.5 GB/s here. And the last windows of a guest that converges are luck, with QEMU as here: it switches when
//! a look happens to find little, and may do so some windows sooner or later.
//!
//! # What is left out
//!
//! Postcopy, multifd, compression and dirty-limit; a link that breaks; devices with much state; and commands that come
//! late because QEMU's main loop is busy.

/// Which pages are dirty, and in which order they are sent.
mod dirty;
/// The guest as a writer of pages.
mod guest;
/// What lies between the two QEMUs.
mod link;
/// QEMU's migration thread: looks, windows, the decision to switch, the throttle.
mod migration;
/// Numbers from one kind to another, and random ones.
mod numbers;
/// What one QEMU was told before it started, and what its work costs.
mod qemu;
/// A policy that is played against a simulator.
mod run;
/// Windows that are sampled beside the stream.
mod sampling;
/// QEMU's throttle: all processors alike run 10 ms, then sleep.
mod throttle;
/// What must hold for any guest, link and budget.
#[cfg(test)]
mod promises;
/// What the controller is held to, beside others, in figures.
#[cfg(test)]
mod goals;
/// The simulator against recorded migrations.
#[cfg(test)]
mod recorded;

pub use guest::{Guest, Order};
pub use link::Link;
pub use qemu::{AutoConverge, Costs, Qemu};
pub use run::{Run, run, run_for, run_sampled};

use crate::record::Sample;
use crate::units::Rate;
use migration::Migration;
use numbers::as_f64;

/// The driver asks this often how far it is.
const ASK_EVERY_MS: f64 = 100.0;
/// An answer that was asked for at a `MIGRATION_PASS` shows what was left so long after it. It comes a millisecond later;
/// meanwhile the sender is held up by the question.
const ANSWER_AFTER_MS: f64 = 0.2;

/// What can be told to the QEMU while it migrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Set `downtime-limit`.
    DowntimeLimit {
        /// In milliseconds.
        ms: u64,
    },
    /// Set `max-bandwidth`; none is no bound.
    MaxBandwidth(Option<Rate>),
    /// Set `avail-switchover-bandwidth`; none is what QEMU measures.
    SwitchoverBandwidth(Option<Rate>),
    /// Set `max-cpu-throttle`.
    MaxThrottle {
        /// In per cent.
        percent: u64,
    },
    /// Stop the guest: it dirties nothing more, and its blackout has begun.
    Stop,
    /// Give up; the guest runs on at its source.
    Cancel,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An answer to `query-migrate`, as the driver makes a sample of it; it lacks the rate that only the driver's
    /// controller knows. The first that shows a pass comes with the pass.
    Sample(Sample),
    /// It has ended, and nothing more will happen.
    Ended(Outcome),
}

/// How it ended, and what it cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// When: the guest runs on the destination, or the migration was cancelled. In milliseconds since `migrate`.
    pub total_ms: f64,
    /// How long the guest stood still on its way; none when it was cancelled.
    pub blackout_ms: Option<f64>,
    /// Sent, in bytes.
    pub transferred_bytes: u64,
    /// Looks at the guest's memory, the first and the last included (`dirty-sync-count`).
    pub passes: u64,
    /// What the throttle took from the guest.
    pub throttled_ms: f64,
    /// The longest that the guest stood still at a time, for the switch or for the throttle.
    pub worst_freeze_ms: f64,
}

/// One migration, as far as it has come.
#[derive(Debug, Clone)]
pub struct Simulator {
    migration: Migration,
    ask_at_ms: f64,
    answer_at_ms: Option<f64>,
    passes_answered: u64,
}

impl Simulator {
    /// A migration that begins now.
    pub fn new(guest: Guest, link: Link, qemu: Qemu) -> Self {
        let migration = Migration::new(guest, link, qemu);
        Self { migration, ask_at_ms: 0.0, answer_at_ms: None, passes_answered: 0 }
    }

    /// Goes on until the driver has an answer, or all has ended.
    pub fn step(&mut self) -> Event {
        loop {
            if let Some(outcome) = self.migration.outcome() {
                return Event::Ended(outcome);
            }
            let passes = self.migration.passes();
            if passes > self.passes_answered && self.answer_at_ms.is_none() {
                self.answer_at_ms = Some(self.migration.now_ms() + ANSWER_AFTER_MS);
            }
            let until_ms = self.answer_at_ms.map_or(self.ask_at_ms, |at_ms| at_ms.min(self.ask_at_ms));
            if self.migration.now_ms() < until_ms {
                self.migration.act(until_ms);
                continue;
            }
            if self.migration.now_ms() >= self.ask_at_ms {
                self.ask_at_ms = self.migration.now_ms() + ASK_EVERY_MS;
            }
            self.answer_at_ms = None;
            self.passes_answered = passes;
            return Event::Sample(self.migration.sample());
        }
    }

    /// Tells the QEMU something; it takes effect as soon as it does in QEMU.
    pub fn command(&mut self, command: Command) {
        self.migration.command(command);
    }

    /// Milliseconds since `migrate`.
    pub fn now_ms(&self) -> f64 {
        self.migration.now_ms()
    }
}
