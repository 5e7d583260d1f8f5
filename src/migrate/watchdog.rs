//! When a blackout or a silent stream has lasted too long; times go in, and a verdict comes out.
//!
//! The source's monitor is silent for the whole blackout (5141 of 5153 ms were measured on 10.0), so its
//! `STOP` may come late, or not at all. What is certain is the last moment at which it answered: a question that has
//! been open for longer than a blackout may last is itself the proof that it has lasted too long.

use std::time::{Duration, Instant};

/// A link that carries nothing for so long, with something left to send, is dead; QEMU itself would wait for TCP,
/// which takes minutes.
const DEAD_LINK: Duration = Duration::from_secs(3);

/// A source that runs its guest answers within a few milliseconds.
const SILENCE: Duration = Duration::from_secs(1);

/// Watches the times of one migration.
#[derive(Debug, Clone)]
pub struct Watchdog {
    longest_blackout: Duration,
    stopped_at: Option<Instant>,
    asked_at: Option<Instant>,
    moved: Option<(u64, Instant)>,
}

impl Watchdog {
    /// A watchdog for blackouts up to `longest_blackout`.
    pub fn new(longest_blackout: Duration) -> Self {
        Self { longest_blackout, stopped_at: None, asked_at: None, moved: None }
    }

    /// Takes a new bound.
    pub fn set_longest_blackout(&mut self, longest_blackout: Duration) {
        self.longest_blackout = longest_blackout;
    }

    /// The source was asked for its status.
    pub fn asked(&mut self, now: Instant) {
        self.asked_at.get_or_insert(now);
    }

    /// It answered. After a silence the stream is watched anew: a source that does not answer holds its big lock, as for
    /// a look at its bitmap, and with it its own stream too; such a time on a busy machine is no dead link (run on 10.0
    /// under TCG, with ten busy threads on two cores: over 3 s).
    pub fn answered(&mut self, now: Instant) {
        if self.has_been_silent(now) {
            self.moved = None;
        }
        self.asked_at = None;
    }

    /// The source cannot be heard: whether its stream moves is not known.
    pub fn lost_sight(&mut self) {
        self.moved = None;
    }

    /// Whether a question is open.
    pub fn is_open(&self) -> bool {
        self.asked_at.is_some()
    }

    /// The guest stopped, at this moment at the latest; with a question open it may have been since that was asked.
    pub fn stopped(&mut self, now: Instant) {
        let at = self.asked_at.map_or(now, |asked| asked.min(now));
        self.stopped_at.get_or_insert(at);
    }

    /// The guest runs.
    pub fn runs(&mut self) {
        self.stopped_at = None;
    }

    /// When the blackout will have lasted too long, as far as is known now.
    pub fn blackout_over_at(&self) -> Option<Instant> {
        let since = [self.stopped_at, self.asked_at].into_iter().flatten().min()?;
        Some(since + self.longest_blackout)
    }

    /// So much has been sent by now, and it is not all: the migration is active. What is left may be in buffers
    /// already, so that QEMU says 0 bytes remain, and still never reach a destination that has stopped.
    pub fn sent(&mut self, transferred_bytes: u64, now: Instant) {
        if self.moved.is_none_or(|(before, _)| before != transferred_bytes) {
            self.moved = Some((transferred_bytes, now));
        }
    }

    /// Whether nothing has been sent for as long as a dead link would send nothing. In a blackout the figures are old, and
    /// its bound counts: up to 7.2 no status tells that it has begun, but the monitor is silent.
    pub fn link_is_dead(&self, now: Instant) -> bool {
        let may_be_blackout = self.stopped_at.is_some() || self.has_been_silent(now);
        !may_be_blackout && self.moved.is_some_and(|(_, since)| now.duration_since(since) > DEAD_LINK)
    }

    fn has_been_silent(&self, now: Instant) -> bool {
        self.asked_at.is_some_and(|asked| now.duration_since(asked) > SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(2300);

    #[test]
    fn an_open_question_is_a_blackout_though_no_stop_was_heard() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(BOUND);
        assert_eq!(watchdog.blackout_over_at(), None);
        watchdog.asked(start);
        watchdog.asked(start + BOUND);
        assert_eq!(watchdog.blackout_over_at(), Some(start + BOUND));
        watchdog.answered(start + BOUND);
        assert_eq!(watchdog.blackout_over_at(), None);
    }

    #[test]
    fn a_stop_that_was_heard_late_counts_from_the_question_before_it() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(BOUND);
        watchdog.asked(start);
        watchdog.stopped(start + Duration::from_secs(1));
        watchdog.answered(start + Duration::from_secs(1));
        assert_eq!(watchdog.blackout_over_at(), Some(start + BOUND));
        watchdog.runs();
        assert_eq!(watchdog.blackout_over_at(), None);
    }

    #[test]
    fn a_link_is_dead_when_nothing_moves() {
        let start = Instant::now();
        let late = start + DEAD_LINK + Duration::from_millis(1);
        let mut watchdog = Watchdog::new(BOUND);
        watchdog.sent(100, start);
        watchdog.sent(100, late);
        assert!(watchdog.link_is_dead(late));
        watchdog.sent(101, late);
        assert!(!watchdog.link_is_dead(late));
    }

    #[test]
    fn a_source_that_was_silent_for_long_has_its_link_watched_anew() {
        let start = Instant::now();
        let late = start + DEAD_LINK + Duration::from_millis(1);
        let mut watchdog = Watchdog::new(BOUND);
        watchdog.sent(100, start);
        watchdog.asked(start + Duration::from_millis(50));
        assert!(!watchdog.link_is_dead(late), "it may be a blackout");
        watchdog.answered(late);
        watchdog.sent(100, late);
        assert!(!watchdog.link_is_dead(late + DEAD_LINK));
        assert!(watchdog.link_is_dead(late + DEAD_LINK + Duration::from_millis(1)));
    }

    #[test]
    fn answers_that_come_soon_hide_no_dead_link() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(BOUND);
        for step in 0..31 {
            let now = start + Duration::from_millis(step * 100);
            watchdog.asked(now);
            watchdog.answered(now + Duration::from_millis(90));
            watchdog.sent(100, now);
        }
        assert!(watchdog.link_is_dead(start + DEAD_LINK + Duration::from_millis(1)));
    }
}
