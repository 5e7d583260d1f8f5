//! QEMU's migration thread (`migration_thread`, `ram_save_iterate`, `migration_bitmap_sync` of 10.0).

use super::dirty::{Allowance, DirtyPages};
use super::guest::{Guest, Writer};
use super::link::Link;
use super::numbers::whole;
use super::qemu::{Costs, Qemu};
use super::throttle::Throttle;
use super::{Command, Outcome, as_f64};
use crate::record::Sample;
use crate::units::Rate;

/// A window, after which bandwidth and threshold are worked out anew (`BUFFER_DELAY`).
const WINDOW_MS: f64 = 100.0;
/// The share of `max-bandwidth` that may be sent in a window (`XFER_LIMIT_RATIO`).
const WINDOWS_PER_SECOND: u64 = 10;
/// After so long the sender looks up, though its window has bytes left (`MAX_WAIT`).
const ITERATION_MS: f64 = 50.0;
/// Dirty rate and throttle are worked out at a look that comes so long after the last time.
const PERIOD_MS: f64 = 1000.0;
const PAGE_BYTES: u64 = 4096;

/// What the migration thread is at.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Doing {
    /// At the head of its loop.
    Deciding,
    /// Sending, until then at most.
    Sending { until_ms: f64 },
    /// The window's bytes are sent; it sleeps to the window's end.
    Sleeping { until_ms: f64 },
}

/// A window of 100 ms.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    from_ms: f64,
    from_bytes: u64,
}

/// What has happened since dirty rate and throttle were last worked out.
#[derive(Debug, Clone, Copy, Default)]
struct Period {
    from_ms: f64,
    from_bytes: u64,
    dirtied_pages: u64,
    /// How often too much was dirtied, since the throttle was last moved.
    high: u64,
}

/// A migration within the source.
#[derive(Debug, Clone)]
pub(super) struct Migration {
    qemu: Qemu,
    link: Link,
    writer: Writer,
    dirty: DirtyPages,
    throttle: Throttle,
    total_bytes: u64,
    now_ms: f64,
    doing: Doing,
    window: Window,
    period: Period,
    threshold_bytes: f64,
    transferred_bytes: u64,
    passes: u64,
    dirty_pages_per_second: u64,
    /// When the timer fires that looks though no pass has ended, and the passes when it last did.
    timer: (f64, u64),
    /// Time that was spent on a page that is not sent yet.
    begun_ms: f64,
    stopped_at_ms: Option<f64>,
    outcome: Option<Outcome>,
}

impl Migration {
    pub(super) fn new(guest: Guest, link: Link, qemu: Qemu) -> Self {
        let timer = qemu.auto_converge.and(qemu.look_anew_every_ms).unwrap_or(f64::INFINITY);
        let mut migration = Self {
            link,
            dirty: guest.first_pass(),
            total_bytes: guest.total_bytes(),
            writer: Writer::new(guest),
            throttle: Throttle::default(),
            now_ms: 0.0,
            doing: Doing::Deciding,
            window: Window::default(),
            period: Period::default(),
            threshold_bytes: 0.0,
            transferred_bytes: 0,
            passes: 1,
            dirty_pages_per_second: 0,
            timer: (timer, 0),
            begun_ms: 0.0,
            stopped_at_ms: None,
            outcome: None,
            qemu,
        };
        migration.pass_time(migration.costs().setup_ms);
        migration.period.from_ms = migration.now_ms;
        migration
    }

    pub(super) fn now_ms(&self) -> f64 {
        self.now_ms
    }

    pub(super) fn passes(&self) -> u64 {
        self.passes
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    fn costs(&self) -> Costs {
        self.qemu.costs
    }

    /// What `query-migrate` says now.
    pub(super) fn sample(&self) -> Sample {
        Sample {
            at_ms: self.now_ms,
            transferred_bytes: self.transferred_bytes,
            remaining_bytes: self.dirty.count() * PAGE_BYTES,
            total_bytes: self.total_bytes,
            passes: self.passes,
            dirty_bytes_per_second: self.dirty_pages_per_second * PAGE_BYTES,
            stream_bytes_per_second: 0,
            downtime_limit_ms: self.qemu.downtime_limit_ms,
            throttle_percent: self.throttle.percent(),
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            // Taken into account when the window ends.
            Command::DowntimeLimit { ms } => self.qemu.downtime_limit_ms = ms,
            Command::SwitchoverBandwidth(rate) => self.qemu.switchover_bandwidth = rate,
            Command::MaxBandwidth(rate) => self.qemu.max_bandwidth = rate,
            // Taken into account when the throttle is next moved.
            Command::MaxThrottle { percent } => {
                if let Some(auto_converge) = &mut self.qemu.auto_converge {
                    auto_converge.maximum_percent = percent.clamp(1, 99);
                }
            }
            Command::Stop => self.stop(),
            Command::Cancel => self.end(None),
        }
    }

    /// The guest stands still from now on, if it has not before.
    fn stop(&mut self) {
        if !self.writer.is_paused() {
            self.writer.run_until(self.now_ms, &mut self.throttle);
            self.writer.pause();
            self.stopped_at_ms = Some(self.now_ms);
        }
    }

    fn end(&mut self, blackout_ms: Option<f64>) {
        self.writer.run_until(self.now_ms, &mut self.throttle);
        self.outcome.get_or_insert(Outcome {
            total_ms: self.now_ms,
            blackout_ms,
            transferred_bytes: self.transferred_bytes,
            passes: self.passes,
            throttled_ms: self.throttle.slept_ms,
            worst_freeze_ms: self.throttle.longest_ms.max(blackout_ms.unwrap_or(0.0)),
        });
    }

    fn pass_time(&mut self, ms: f64) {
        self.now_ms += ms;
        self.link.put(0, self.now_ms);
    }

    /// Does the next thing, up to a moment that is still to come.
    pub(super) fn act(&mut self, until_ms: f64) {
        let (timer_at_ms, passes) = self.timer;
        if self.now_ms >= timer_at_ms {
            // The first pass copies all memory anyhow.
            if self.passes > 1 && self.passes == passes {
                self.look();
            }
            let every_ms = self.qemu.look_anew_every_ms.unwrap_or(f64::INFINITY);
            self.timer = (timer_at_ms + every_ms, self.passes);
        }
        let until_ms = until_ms.min(self.timer.0);
        match self.doing {
            Doing::Deciding => self.decide(),
            Doing::Sending { until_ms: iteration_ends_ms } => self.send(until_ms, iteration_ends_ms),
            Doing::Sleeping { until_ms: wake_at_ms } => {
                if wake_at_ms <= until_ms {
                    self.doing = Doing::Deciding;
                    self.count_window(wake_at_ms);
                }
                self.pass_time(wake_at_ms.min(until_ms) - self.now_ms);
            }
        }
    }

    /// `migration_iteration_run`: when what is left as far as is known is below the threshold, it looks anew, and
    /// switches if it still is.
    fn decide(&mut self) {
        if self.is_below_threshold() {
            self.look();
        }
        if self.dirty.count() == 0 || self.is_below_threshold() {
            self.switch();
        } else {
            self.doing = Doing::Sending { until_ms: self.now_ms + ITERATION_MS };
        }
    }

    fn is_below_threshold(&self) -> bool {
        as_f64(self.dirty.count() * PAGE_BYTES) < self.threshold_bytes
    }

    /// `ram_save_iterate`: pages, until the window's bytes are sent, none are left, or it has taken long enough.
    fn send(&mut self, until_ms: f64, iteration_ends_ms: f64) {
        let (rate, changes_at_ms) = self.link.takes(self.costs().send_bytes_per_ms);
        let slice_ends_ms = until_ms.min(iteration_ends_ms).min(changes_at_ms);
        let slice_ms = (slice_ends_ms - self.now_ms).max(0.0) + self.begun_ms;
        let sent = self.dirty.send(Allowance {
            bytes: self.window_bytes_left(),
            ms: slice_ms,
            whole_page_ms: 4104.0 / rate,
            zero_page_ms: self.costs().zero_page_ms.max(9.0 / rate),
        });
        self.transferred_bytes += sent.bytes;
        let is_done = self.dirty.count() == 0 || self.window_bytes_left() == 0;
        let spent_ms = if is_done { sent.ms } else { slice_ms };
        let now_ms = (self.now_ms + spent_ms - self.begun_ms).max(self.now_ms);
        self.begun_ms = spent_ms - sent.ms;
        self.link.put(sent.bytes, now_ms);
        self.now_ms = now_ms;
        if is_done || now_ms >= iteration_ends_ms {
            self.look_up();
        }
    }

    fn window_bytes_left(&self) -> u64 {
        let allowed =
            self.qemu.max_bandwidth.map_or(u64::MAX, |rate| rate.bytes_per_second() / WINDOWS_PER_SECOND);
        allowed.saturating_sub(self.transferred_bytes - self.window.from_bytes)
    }

    /// `migration_rate_limit`: the window may have ended; one whose bytes are sent is slept to its end.
    fn look_up(&mut self) {
        self.count_window(self.now_ms);
        self.doing = if self.window_bytes_left() > 0 {
            Doing::Deciding
        } else {
            Doing::Sleeping { until_ms: self.window.from_ms + WINDOW_MS + self.costs().oversleep_ms }
        };
    }

    /// `migration_update_counters`: the bandwidth is that of this window alone.
    fn count_window(&mut self, now_ms: f64) {
        let elapsed_ms = now_ms - self.window.from_ms;
        if elapsed_ms < WINDOW_MS {
            return;
        }
        let measured = as_f64(self.transferred_bytes - self.window.from_bytes) / elapsed_ms;
        let per_ms = |rate: Rate| as_f64(rate.bytes_per_second()) / 1e3;
        let bytes_per_ms = self.qemu.switchover_bandwidth.map_or(measured, per_ms);
        self.threshold_bytes = bytes_per_ms * as_f64(self.qemu.downtime_limit_ms);
        self.window = Window { from_ms: now_ms, from_bytes: self.transferred_bytes };
    }

    /// `migration_bitmap_sync`: what the guest has written since the last look is dirty.
    fn look(&mut self) {
        self.pass_time(self.costs().look_ms);
        self.writer.run_until(self.now_ms, &mut self.throttle);
        self.passes += 1;
        self.period.dirtied_pages += self.writer.look(&mut self.dirty);
        let elapsed_ms = self.now_ms - self.period.from_ms;
        if elapsed_ms <= PERIOD_MS {
            return;
        }
        self.move_throttle();
        self.dirty_pages_per_second = whole(as_f64(self.period.dirtied_pages) * 1e3 / elapsed_ms);
        let high = self.period.high;
        self.period =
            Period { from_ms: self.now_ms, from_bytes: self.transferred_bytes, dirtied_pages: 0, high };
    }

    /// `migration_trigger_throttle`: more, when twice so much was dirtied of what was sent.
    fn move_throttle(&mut self) {
        let Some(auto_converge) = self.qemu.auto_converge else { return };
        let sent = self.transferred_bytes - self.period.from_bytes;
        if self.period.dirtied_pages * PAGE_BYTES <= sent * auto_converge.threshold_percent / 100 {
            return;
        }
        self.period.high += 1;
        if self.period.high >= 2 {
            self.period.high = 0;
            self.throttle.set(auto_converge.after(self.throttle.percent()), self.now_ms);
        }
    }

    /// `migration_completion`: the guest stops, and the rest goes over as fast as the link can.
    fn switch(&mut self) {
        if !self.writer.is_paused() {
            self.pass_time(self.costs().stop_ms);
            self.stop();
        }
        let stopped_at_ms = self.stopped_at_ms.unwrap_or(self.now_ms);
        self.throttle.set(0, self.now_ms);
        self.look();
        let sent = self.dirty.send(Allowance {
            bytes: u64::MAX,
            ms: f64::INFINITY,
            whole_page_ms: 4104.0 / self.costs().send_bytes_per_ms,
            zero_page_ms: self.costs().zero_page_ms,
        });
        self.transferred_bytes += sent.bytes;
        let copy_ms = sent.ms.max(self.link.drained_in_ms(sent.bytes));
        self.now_ms += copy_ms + self.costs().switch_ms;
        self.end(Some(self.now_ms - stopped_at_ms));
    }
}
