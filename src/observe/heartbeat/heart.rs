//! One heart: aggregates, the recent beats and the long gaps.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

/// The time between two beats.
pub(super) const BEAT_PERIOD: Duration = Duration::from_millis(1);
/// Gaps from here on are all kept, the shorter ones only counted.
const LONG_GAP: Duration = Duration::from_millis(20);
/// The batches kept of a heart that beats: about eight seconds.
const RECENT_BATCHES: usize = 8192;
/// The batches kept of one that has stopped: what an analysis looks at.
const FINAL_BATCHES: usize = 1024;
/// Long gaps kept; further ones are only counted.
const LONG_GAPS: usize = 4096;

/// One beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// When it was read: `CLOCK_MONOTONIC`, comparable between processes of one host.
    pub monotonic: Duration,
    /// The same on the wall clock, to compare with QEMU's events.
    pub wall: SystemTime,
    /// The low byte of the guest's tick counter.
    pub tick: u8,
    /// The round of the observer in which it was read; see the module's words on order.
    pub round: u64,
}

/// Successive beats that were read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The first of them.
    pub first: Beat,
    /// How many.
    pub beats: u32,
}

impl Batch {
    /// The last of them.
    pub fn last(&self) -> Beat {
        let [offset, ..] = self.beats.wrapping_sub(1).to_le_bytes();
        Beat { tick: self.first.tick.wrapping_add(offset), ..self.first }
    }
}

/// A time without a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last beat before it.
    pub from: Beat,
    /// The first beat after it.
    pub to: Beat,
}

impl Gap {
    /// How long it was.
    pub fn length(&self) -> Duration {
        self.to.monotonic.saturating_sub(self.from.monotonic)
    }
}

/// What one QEMU let the guest beat.
///
/// Its size is bounded: the recent beats, the long gaps up to a number, and sums over everything else.
#[derive(Debug, Clone)]
pub struct Heart {
    /// The pid of the QEMU.
    pub pid: i32,
    /// Beats in all.
    pub beats: u64,
    /// The first beat.
    pub first: Option<Beat>,
    /// The last beat.
    pub last: Option<Beat>,
    /// The longest time without a beat between the first and the last.
    pub worst_gap: Option<Gap>,
    /// Times of 20 ms and more without a beat, the first 4096 of them.
    pub long_gaps: Vec<Gap>,
    /// How many there were in all.
    pub long_gaps_seen: u64,
    /// Beats that were not the successor of the one before: none in a guest that runs once.
    pub breaks: u64,
    /// The first such place.
    pub first_break: Option<Gap>,
    /// Whether QEMU still has its end of the socket open.
    pub connected: bool,
    recent: VecDeque<Batch>,
}

impl Heart {
    /// A heart that has not beaten yet.
    pub fn new(pid: i32) -> Self {
        Self {
            pid,
            beats: 0,
            first: None,
            last: None,
            worst_gap: None,
            long_gaps: Vec::new(),
            long_gaps_seen: 0,
            breaks: 0,
            first_break: None,
            connected: true,
            recent: VecDeque::new(),
        }
    }

    /// Records what was read in one round.
    pub fn record(&mut self, round: u64, monotonic: Duration, wall: SystemTime, ticks: &[u8]) {
        let mut rest = ticks;
        while let Some((&tick, _)) = rest.split_first() {
            let run = 1 + rest.windows(2).take_while(|pair| pair[1] == pair[0].wrapping_add(1)).count();
            let first = Beat { monotonic, wall, tick, round };
            let beats = u32::try_from(run).unwrap_or(u32::MAX);
            if let Some(last) = self.last {
                self.note_gap(Gap { from: last, to: first });
            }
            let batch = Batch { first, beats };
            if self.recent.len() == RECENT_BATCHES {
                self.recent.pop_front();
            }
            self.recent.push_back(batch);
            self.first.get_or_insert(first);
            self.last = Some(batch.last());
            self.beats += u64::from(beats);
            rest = &rest[run..];
        }
    }

    fn note_gap(&mut self, gap: Gap) {
        if self.worst_gap.is_none_or(|worst| gap.length() > worst.length()) {
            self.worst_gap = Some(gap);
        }
        if gap.length() >= LONG_GAP {
            self.long_gaps_seen += 1;
            if self.long_gaps.len() < LONG_GAPS {
                self.long_gaps.push(gap);
            }
        }
        if gap.to.tick != gap.from.tick.wrapping_add(1) {
            self.breaks += 1;
            self.first_break.get_or_insert(gap);
        }
    }

    /// QEMU has closed its end.
    pub(super) fn disconnect(&mut self) {
        self.connected = false;
        let old = self.recent.len().saturating_sub(FINAL_BATCHES);
        self.recent.drain(..old);
        self.recent.shrink_to_fit();
    }

    /// The recent batches, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Batch> {
        self.recent.iter()
    }

    /// Beats per second between the first and the last one. A guest of this crate ticks 1000.15 times a second; TCG
    /// loses some of them.
    pub fn beats_per_second(&self) -> Option<f64> {
        let seconds = (self.last?.monotonic.checked_sub(self.first?.monotonic)?).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "2^53 beats take 285 000 years")]
        (seconds > 0.0).then(|| (self.beats - 1) as f64 / seconds)
    }

    /// By how much beats come later than one period after the one before: the 99th percentile of what is
    /// remembered, without the long gaps.
    pub fn jitter(&self) -> Duration {
        let mut late: Vec<Duration> = self
            .recent
            .iter()
            .zip(self.recent.iter().skip(1))
            .map(|(before, after)| after.first.monotonic.saturating_sub(before.first.monotonic))
            .filter(|interval| *interval < LONG_GAP)
            .map(|interval| interval.saturating_sub(BEAT_PERIOD))
            .collect();
        late.sort_unstable();
        late.get(late.len() * 99 / 100).copied().unwrap_or_default()
    }
}

/// How the ticks of two hearts follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// The destination's first tick is the successor of the source's last.
    Continuous,
    /// So many ticks were beaten by nobody (mod 256): the destination runs a later guest than the source was.
    Missing(u8),
    /// So many ticks were beaten by both (mod 256): the guest ran twice.
    Repeated(u8),
}

/// Beats of the source after the destination's first: both ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// How many, of those that are remembered.
    pub beats: u64,
    /// From the destination's first beat to the source's last.
    pub length: Duration,
}

/// How the guest went from one QEMU to another, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The source's last beat that was not after the destination's first.
    pub last_beat_source: Beat,
    /// The destination's first beat.
    pub first_beat_destination: Beat,
    /// The time between these two. The guest's pause is this, less up to two beat periods.
    pub gap: Duration,
    /// By how much the gap may be wrong: two beat periods, and the jitter of the beats around it. An estimate: stalls
    /// of the host are not in it.
    pub uncertainty: Duration,
    /// Both came in one round of the observer, so that the gap says nothing but that it is short.
    pub same_round: bool,
    /// Whether the ticks go on where they stopped.
    pub sequence: Sequence,
    /// What the source beat after the destination had begun.
    pub overlap: Option<Overlap>,
}

impl Handover {
    /// Never two, and nothing lost: the ticks go on without a repetition or a hole, and the source was silent before the
    /// destination's first beat.
    pub fn never_two(&self) -> bool {
        self.sequence == Sequence::Continuous && self.overlap.is_none()
    }
}

/// Why nothing can be said of a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoHandover {
    /// One of them never beat.
    #[error("no heartbeat was seen of the QEMU with pid {pid}")]
    NoBeat {
        /// Which one.
        pid: i32,
    },
    /// The source's beats before the destination's first are not remembered any more, or there were none.
    #[error(
        "no heartbeat of pid {source_pid} is remembered from before the first one of pid {destination_pid}"
    )]
    NotRemembered {
        /// The source.
        source_pid: i32,
        /// The destination.
        destination_pid: i32,
    },
}

/// How the guest went from one heart to another.
pub fn handover(source: &Heart, destination: &Heart) -> Result<Handover, NoHandover> {
    let first = destination.first.ok_or(NoHandover::NoBeat { pid: destination.pid })?;
    let source_last = source.last.ok_or(NoHandover::NoBeat { pid: source.pid })?;
    let last = source
        .recent()
        .rev()
        .find(|batch| batch.first.round <= first.round)
        .map(Batch::last)
        .ok_or(NoHandover::NotRemembered { source_pid: source.pid, destination_pid: destination.pid })?;
    let later = source.recent().rev().take_while(|batch| batch.first.round > first.round);
    let beats: u64 = later.map(|batch| u64::from(batch.beats)).sum();
    let overlap =
        (beats > 0).then(|| Overlap { beats, length: source_last.monotonic.saturating_sub(first.monotonic) });
    let ahead = first.tick.wrapping_sub(last.tick).wrapping_sub(1);
    let sequence = match ahead {
        0 => Sequence::Continuous,
        1..128 => Sequence::Missing(ahead),
        128.. => Sequence::Repeated(ahead.wrapping_neg()),
    };
    Ok(Handover {
        last_beat_source: last,
        first_beat_destination: first,
        gap: first.monotonic.saturating_sub(last.monotonic),
        uncertainty: 2 * BEAT_PERIOD + source.jitter().max(destination.jitter()),
        same_round: first.round == last.round,
        sequence,
        overlap,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A heart that beats once a round and millisecond, from that round and tick on.
    fn beating(pid: i32, from_round: u64, from_tick: u8, beats: u8) -> Heart {
        let mut heart = Heart::new(pid);
        for beat in 0..beats {
            let round = from_round + u64::from(beat);
            beat_once(&mut heart, round, &[from_tick.wrapping_add(beat)]);
        }
        heart
    }

    fn beat_once(heart: &mut Heart, round: u64, ticks: &[u8]) {
        let since = Duration::from_millis(round);
        heart.record(round, since, SystemTime::UNIX_EPOCH + since, ticks);
    }

    #[test]
    fn a_clean_handover_is_continuous() {
        let (source, destination) = (beating(1, 100, 250, 10), beating(2, 120, 4, 10));
        let handover = handover(&source, &destination).unwrap();
        assert!(handover.never_two());
        assert_eq!((handover.last_beat_source.tick, handover.first_beat_destination.tick), (3, 4));
        assert_eq!(
            (handover.gap, handover.uncertainty),
            (Duration::from_millis(11), Duration::from_millis(2))
        );
    }

    #[test]
    fn a_repeated_or_missing_tick_is_seen() {
        for (tick, sequence) in
            [(9, Sequence::Repeated(1)), (5, Sequence::Repeated(5)), (12, Sequence::Missing(2))]
        {
            let handover = handover(&beating(1, 0, 0, 10), &beating(2, 30, tick, 5)).unwrap();
            assert_eq!(handover.sequence, sequence);
            assert!(!handover.never_two());
        }
    }

    #[test]
    fn a_source_that_beats_on_is_seen() {
        let handover = handover(&beating(1, 0, 0, 20), &beating(2, 10, 11, 20)).unwrap();
        assert_eq!(handover.sequence, Sequence::Continuous);
        assert_eq!(handover.overlap, Some(Overlap { beats: 9, length: Duration::from_millis(9) }));
        assert!(!handover.never_two());
    }

    /// A late observer reads both in one round: the ticks decide, and the gap is said to be unknown.
    #[test]
    fn within_a_round_the_ticks_decide() {
        let mut source = beating(1, 0, 0, 10);
        beat_once(&mut source, 30, &[10, 11, 12]);
        let clean = handover(&source, &beating(2, 30, 13, 5)).unwrap();
        assert!(clean.never_two() && clean.same_round);
        let twice = handover(&source, &beating(2, 30, 12, 5)).unwrap();
        assert_eq!(twice.sequence, Sequence::Repeated(1));
    }

    #[test]
    fn nothing_is_said_of_what_was_not_seen() {
        let (beats, silent) = (beating(1, 0, 0, 10), Heart::new(2));
        assert_eq!(handover(&beats, &silent), Err(NoHandover::NoBeat { pid: 2 }));
        assert_eq!(handover(&silent, &beats), Err(NoHandover::NoBeat { pid: 2 }));
        let late = beating(3, 5, 0, 10);
        let unknown = NoHandover::NotRemembered { source_pid: 3, destination_pid: 1 };
        assert_eq!(handover(&late, &beats), Err(unknown));
    }

    #[test]
    fn gaps_and_breaks_are_kept() {
        let mut heart = beating(1, 0, 0, 10);
        beat_once(&mut heart, 40, &[10, 11]);
        beat_once(&mut heart, 41, &[14]);
        assert_eq!(heart.worst_gap.unwrap().length(), Duration::from_millis(31));
        assert_eq!((heart.long_gaps.len(), heart.long_gaps_seen), (1, 1));
        assert_eq!((heart.breaks, heart.first_break.unwrap().to.tick), (1, 14));
        assert_eq!(heart.beats, 13);
    }

    /// Hours of beats take no more memory than seconds.
    #[test]
    fn a_long_life_is_bounded() {
        let mut heart = Heart::new(1);
        for beat in 0..200_000_u64 {
            let [tick, ..] = beat.to_le_bytes();
            beat_once(&mut heart, beat * 25, &[tick]);
        }
        assert_eq!((heart.beats, heart.breaks, heart.long_gaps_seen), (200_000, 0, 199_999));
        assert_eq!((heart.recent.len(), heart.long_gaps.len()), (RECENT_BATCHES, LONG_GAPS));
        let rate = heart.beats_per_second().unwrap();
        assert!((rate - 40.0).abs() < 1e-6, "{rate}");
        heart.disconnect();
        assert_eq!(heart.recent.len(), FINAL_BATCHES);
    }

    proptest! {
        /// However the bytes come in pieces, what is recorded is the same.
        #[test]
        fn pieces_do_not_matter(ticks in proptest::collection::vec(any::<u8>(), 1..200), piece in 1_usize..50) {
            let (mut whole, mut pieces) = (Heart::new(1), Heart::new(1));
            beat_once(&mut whole, 1, &ticks);
            ticks.chunks(piece).for_each(|piece| beat_once(&mut pieces, 1, piece));
            prop_assert_eq!((whole.beats, whole.breaks, whole.last), (pieces.beats, pieces.breaks, pieces.last));
        }

        /// A handover is clean exactly if the next tick comes first and the source is silent by then.
        #[test]
        fn only_the_next_tick_is_clean(beats in 1_u8..100, tick: u8, pause in 0_u64..50) {
            let source = beating(1, 0, 7, beats);
            let destination = beating(2, u64::from(beats) - 1 + pause, tick, 5);
            let handover = handover(&source, &destination).unwrap();
            prop_assert_eq!(handover.never_two(), tick == 7_u8.wrapping_add(beats));
        }
    }
}
