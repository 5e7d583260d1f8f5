//! What the guest is asked to do.

use super::pattern::{Content, Pattern, PatternError};
use super::state::WORKING_SET;
use crate::units::{Rate, Size};

/// Bytes in a page.
pub(super) const PAGE_BYTES: usize = 4096;
/// The frequency of the timer's input, in Hz.
const PIT_HZ: u64 = 1_193_182;
/// Inputs per tick: the tick comes 1000.15 times a second.
pub(super) const PIT_DIVISOR: u32 = 1193;
/// How often a guest ticks that is never kept from it, by its own clock.
pub const TICKS_PER_SECOND: f64 = 1_193_182.0 / 1193.0;
/// How many ticks' worth of writes may be owed before the rest is dropped.
const MOST_TICKS_OWED: u64 = 16;

const SMALLEST_MEMORY: u64 = 64 << 20;
const MEBIBYTE: u64 = 1 << 20;
/// What the firmware keeps at the end of the memory for its tables.
const FIRMWARE_BYTES: u64 = MEBIBYTE;
/// With this much memory or more, machine type `pc` keeps 3 GiB below the hole for devices and puts the rest above
/// 4 GiB, where a guest without paging cannot reach it (`pc_init1`; run on QEMU 10.0).
const SPLIT_FROM: u64 = 0xe000_0000;
const SPLIT_LOW: u64 = 0xc000_0000;
/// More than any memory takes.
const LARGEST_RATE: u64 = 1 << 40;

/// Why a workload was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// Too small, or not whole mebibytes.
    #[error("{memory} of memory: the test guest takes whole mebibytes, 64 MiB or more")]
    Memory {
        /// What was asked for.
        memory: Size,
    },
    /// Not whole pages.
    #[error("a working set of {} bytes is not a whole number of pages of {PAGE_BYTES} bytes", working_set.bytes())]
    NotPages {
        /// What was asked for.
        working_set: Size,
    },
    /// It does not fit beside the guest itself.
    #[error("a working set of {working_set} does not fit into {memory} of memory: it can be {largest} there{}", hole(*memory))]
    DoesNotFit {
        /// What was asked for.
        working_set: Size,
        /// The guest's memory.
        memory: Size,
        /// The largest that fits.
        largest: Size,
    },
    /// Hot and cold pages need one page each.
    #[error("a working set of {} pages cannot be divided into hot and cold ones by {pattern}", pages)]
    TooFewPages {
        /// How many there are.
        pages: u32,
        /// How they were to be divided.
        pattern: Pattern,
    },
    /// Faster than any memory.
    #[error(
        "a dirty rate of {rate} is more than the test guest can be asked for (1 TiB/s); leave it out for as fast as it can"
    )]
    Rate {
        /// What was asked for.
        rate: Rate,
    },
    /// A pattern whose numbers cannot be.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

fn hole(memory: Size) -> &'static str {
    if memory.bytes() >= SPLIT_FROM { " (the memory above 4 GiB is out of the guest's reach)" } else { "" }
}

/// What the guest is asked to do: how much memory it rewrites, in which order, how fast, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    memory: Size,
    working_set: Size,
    dirty_rate: Option<Rate>,
    pattern: Pattern,
    content: Content,
    pages: u32,
}

impl Workload {
    /// A workload that the guest can execute. Without a dirty rate it writes as fast as it can.
    pub fn new(
        memory: Size,
        working_set: Size,
        dirty_rate: Option<Rate>,
        pattern: Pattern,
        content: Content,
    ) -> Result<Self, WorkloadError> {
        if memory.bytes() < SMALLEST_MEMORY || !memory.bytes().is_multiple_of(MEBIBYTE) {
            return Err(WorkloadError::Memory { memory });
        }
        if !working_set.bytes().is_multiple_of(PAGE_BYTES as u64) {
            return Err(WorkloadError::NotPages { working_set });
        }
        let low = if memory.bytes() >= SPLIT_FROM { SPLIT_LOW } else { memory.bytes() };
        let room = low - u64::from(WORKING_SET) - FIRMWARE_BYTES;
        let pages = u32::try_from(working_set.bytes() / PAGE_BYTES as u64).unwrap_or(u32::MAX);
        if working_set.bytes() > room {
            let largest = Size::from_bytes(room).unwrap_or(memory);
            return Err(WorkloadError::DoesNotFit { working_set, memory, largest });
        }
        if let Some(rate) = dirty_rate.filter(|rate| rate.bytes_per_second() > LARGEST_RATE) {
            return Err(WorkloadError::Rate { rate });
        }
        pattern.validate()?;
        let workload = Self { memory, working_set, dirty_rate, pattern, content, pages };
        if matches!(pattern, Pattern::HotAndCold { .. }) && pages < 2 {
            return Err(WorkloadError::TooFewPages { pages, pattern });
        }
        Ok(workload)
    }

    /// The guest's memory: `-m`.
    pub fn memory(&self) -> Size {
        self.memory
    }

    /// The memory that is rewritten.
    pub fn working_set(&self) -> Size {
        self.working_set
    }

    /// How fast it is rewritten; `None` is as fast as the guest can.
    pub fn dirty_rate(&self) -> Option<Rate> {
        self.dirty_rate
    }

    /// In which order.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// What is in it.
    pub fn content(&self) -> Content {
        self.content
    }

    /// The physical address of the working set: the `val` of `pmemsave`.
    pub fn working_set_address(&self) -> u64 {
        u64::from(WORKING_SET)
    }

    /// The pages of the working set.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The pages of the first region: all of them, or the hot ones, one at least and not all.
    pub(super) fn hot_pages(&self) -> u32 {
        match self.pattern {
            Pattern::HotAndCold { hot_pages_percent: percent, .. } => (self.pages / 100 * u32::from(percent)
                + self.pages % 100 * u32::from(percent) / 100)
                .clamp(1, self.pages - 1),
            Pattern::Sweep | Pattern::Uniform | Pattern::Phased { .. } => self.pages,
        }
    }

    /// Writes per tick, as a whole number of 2^-32 writes; `None` without a limit.
    pub(super) fn writes_per_tick(&self) -> Option<u64> {
        let rate = u128::from(self.dirty_rate?.bytes_per_second());
        let per_tick = (rate * u128::from(PIT_DIVISOR)) << 32;
        let per_tick = per_tick / (u128::from(PIT_HZ) * PAGE_BYTES as u128);
        // LARGEST_RATE keeps it far below 2^64.
        Some(u64::try_from(per_tick).unwrap_or(u64::MAX).max(1))
    }

    /// The most writes that the guest may owe; what is beyond is dropped and counted.
    pub(super) fn most_owed(&self) -> u32 {
        let owed = self.writes_per_tick().unwrap_or(0).saturating_mul(MOST_TICKS_OWED) >> 32;
        u32::try_from(owed).unwrap_or(u32::MAX).max(1)
    }

    /// The writes that so many [ticks](super::GuestState::working_ticks) ask for; `None` without a limit. The guest
    /// has done these but for the ones it owes, has dropped, and the one it is just doing.
    pub fn writes_asked(&self, ticks: u32) -> Option<u64> {
        let (on, period) = self.pattern.phases();
        let rest = ticks % period;
        // Within a period the phases of the ticks are 1, 2, ... and 0 at its end; the first `on` phases work.
        let working = u64::from(ticks / period) * u64::from(on) + u64::from(rest.min(on - 1));
        let writes = (u128::from(working) * u128::from(self.writes_per_tick()?)) >> 32;
        u64::try_from(writes).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::pattern::tests::any_pattern;

    fn mebibytes(number: u64) -> Size {
        Size::from_mebibytes(number).unwrap()
    }

    fn sized(memory: Size, working_set: Size) -> Result<Workload, WorkloadError> {
        Workload::new(memory, working_set, None, Pattern::Sweep, Content::Compressible)
    }

    /// Any workload on at most so many pages.
    pub(in crate::guest) fn any_workload(most_pages: u64) -> impl Strategy<Value = Workload> {
        let content = prop_oneof![Just(Content::Compressible), Just(Content::Incompressible)];
        (2..=most_pages, proptest::option::of(1_u64..1 << 40), any_pattern(), content).prop_map(
            |(pages, rate, pattern, content)| {
                let rate = rate.and_then(Rate::from_bytes_per_second);
                let working_set = Size::from_bytes(pages * 4096).unwrap();
                Workload::new(mebibytes(64), working_set, rate, pattern, content).unwrap()
            },
        )
    }

    #[test]
    fn a_working_set_lies_between_the_guest_and_the_hole() {
        for (memory, largest) in [(64, 47), (3583, 3566), (3584, 3055), (4096, 3055), (8192, 3055)] {
            let (memory, largest) = (mebibytes(memory), mebibytes(largest));
            assert!(sized(memory, largest).is_ok(), "{memory}");
            let working_set = Size::from_bytes(largest.bytes() + 4096).unwrap();
            let refused = WorkloadError::DoesNotFit { working_set, memory, largest };
            assert_eq!(sized(memory, working_set), Err(refused));
        }
    }

    #[test]
    fn what_the_guest_cannot_do_is_refused() {
        let (memory, page) = (mebibytes(64), Size::from_bytes(4096).unwrap());
        assert!(matches!(sized(mebibytes(63), page), Err(WorkloadError::Memory { .. })));
        let odd = Size::from_bytes((64 << 20) + 1).unwrap();
        assert!(matches!(sized(odd, page), Err(WorkloadError::Memory { .. })));
        let odd = Size::from_bytes(4097).unwrap();
        assert!(matches!(sized(memory, odd), Err(WorkloadError::NotPages { .. })));
        let hot = Workload::new(memory, page, None, Pattern::HOT_AND_COLD, Content::Compressible);
        assert!(matches!(hot, Err(WorkloadError::TooFewPages { pages: 1, .. })));
        let rate = Rate::from_bytes_per_second((1 << 40) + 1);
        let fast = Workload::new(memory, page, rate, Pattern::Sweep, Content::Compressible);
        assert!(matches!(fast, Err(WorkloadError::Rate { .. })));
        let pattern = Pattern::Phased { on_ticks: 0, off_ticks: 1 };
        let never = Workload::new(memory, page, None, pattern, Content::Compressible);
        assert!(matches!(never, Err(WorkloadError::Pattern(_))));
    }

    #[test]
    fn rates_are_exact() {
        for rate in ["1MiB/s", "50MiB/s", "333kB/s", "10GiB/s", "1"] {
            let rate: Rate = rate.parse().unwrap();
            let workload =
                Workload::new(mebibytes(64), mebibytes(1), Some(rate), Pattern::Sweep, Content::Compressible)
                    .unwrap();
            // An hour of ticks, as long as the timer takes for them.
            let seconds = 3_600_000.0 * f64::from(PIT_DIVISOR) / 1_193_182.0;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let (asked, rate) =
                (workload.writes_asked(3_600_000).unwrap() as f64 * 4096.0, rate.bytes_per_second() as f64);
            assert!((asked - rate * seconds).abs() <= 4096.0 + asked / 1e3, "{asked} for {rate} B/s");
        }
    }

    proptest! {
        /// The guest adds up tick by tick.
        #[test]
        fn the_writes_asked_are_the_guests(workload in any_workload(2), ticks in 0_u32..5000) {
            let (on, period) = workload.pattern().phases();
            let (mut phase, mut asked) = (0, 0_u128);
            for _ in 0..ticks {
                phase = if phase + 1 < period { phase + 1 } else { 0 };
                if phase < on {
                    asked += u128::from(workload.writes_per_tick().unwrap_or(0));
                }
            }
            let asked = workload.dirty_rate().map(|_| u64::try_from(asked >> 32).unwrap());
            prop_assert_eq!(workload.writes_asked(ticks), asked);
        }
    }
}
