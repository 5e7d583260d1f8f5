//! The guest as a writer of pages.

use std::ops::Range;

use super::dirty::DirtyPages;
use super::numbers::{Random, as_f64, whole};
use super::throttle::Throttle;
use crate::units::{Rate, Size};

const PAGE_BYTES: u64 = 4096;
/// Where the first region begins: what is below is the firmware's and the boot image's, of zeroes but for a few pages.
const FIRST_REGION_PAGE: u64 = 4096;
/// What the embedded guest has of these few: 120 in its memory, and 130 pages of firmware in blocks of their own.
const USED_BELOW: u64 = 120;
const FIRMWARE: u64 = 130;

/// In which order the pages of a region are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last, again and again. In a time t a rate of r dirties min(rt, W) of W pages.
    Sweep,
    /// At random. In a time t a rate of r dirties W (1 - exp(-rt / W)) of W pages.
    Uniform,
}

/// Memory that is written in one way.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Region {
    first_page: u64,
    pages: u64,
    order: Order,
    writes_per_ms: f64,
}

/// Work and rest in turns.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::struct_field_names, reason = "the unit is part of a name")]
struct Phases {
    on_ms: f64,
    period_ms: f64,
    /// How far into a period the migration begins.
    begun_ms: f64,
}

/// A guest: its memory, and what it writes. The regions lie one after the other; what is in none is of zeroes.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    pages: u64,
    regions: Vec<Region>,
    phases: Option<Phases>,
    tick_ms: f64,
    seed: u64,
}

impl Guest {
    /// A guest that has written nothing and writes nothing.
    pub fn idle(memory: Size) -> Self {
        Self { pages: memory.bytes() / PAGE_BYTES, regions: Vec::new(), phases: None, tick_ms: 0.0, seed: 0 }
    }

    /// It also writes a region in this order, at this rate; as much of it as there is room for. A large one that is
    /// slowly swept is a stream of cold writes; a small fast one beside a large slow one is a hot and a cold set.
    #[must_use]
    pub fn writes(mut self, order: Order, region: Size, rate: Rate) -> Self {
        let first_page = self.regions.last().map_or(FIRST_REGION_PAGE, |last| last.first_page + last.pages);
        let pages = (region.bytes() / PAGE_BYTES).min(self.pages.saturating_sub(first_page));
        let writes_per_ms = as_f64(rate.bytes_per_second()) / as_f64(PAGE_BYTES) / 1e3;
        self.regions.push(Region { first_page, pages, order, writes_per_ms });
        self
    }

    /// It works for some milliseconds and rests for some; it is so far into such a period when the migration begins.
    #[must_use]
    pub fn in_phases(mut self, on_ms: f64, off_ms: f64, begun_ms: f64) -> Self {
        self.phases = Some(Phases { on_ms, period_ms: on_ms + off_ms, begun_ms });
        self
    }

    /// Its rate is kept by a timer: of the ticks that come while a throttle holds it, it sees one when it wakes, and
    /// works for that one too.
    #[must_use]
    pub fn paced_by_ticks_of(mut self, tick_ms: f64) -> Self {
        self.tick_ms = tick_ms;
        self
    }

    /// Another run of the same guest: where writes go at random they go elsewhere.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Its memory as QEMU counts it.
    pub(super) fn total_bytes(&self) -> u64 {
        (self.pages + FIRMWARE) * PAGE_BYTES
    }

    /// QEMU's bitmap as the first pass finds it.
    pub(super) fn first_pass(&self) -> DirtyPages {
        let few = FIRST_REGION_PAGE - USED_BELOW..FIRST_REGION_PAGE;
        let used = self.regions.iter().map(Region::range).chain([few]);
        DirtyPages::all(self.pages + FIRMWARE, used)
    }
}

impl Region {
    fn range(&self) -> Range<u64> {
        self.first_page..self.first_page + self.pages
    }
}

impl Phases {
    /// How much of the time until then is work.
    fn work_until(&self, ms: f64) -> f64 {
        let ms = ms + self.begun_ms;
        let periods = (ms / self.period_ms).floor();
        periods * self.on_ms + (ms - periods * self.period_ms).min(self.on_ms)
    }
}

/// A guest at work, and what it has written since somebody last looked.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    guest: Guest,
    random: Random,
    now_ms: f64,
    /// Of each region the writes so far, and those that were seen.
    written: Vec<(f64, u64)>,
    is_paused: bool,
}

impl Writer {
    pub(super) fn new(guest: Guest) -> Self {
        let random = Random::new(guest.seed);
        let written = vec![(0.0, 0); guest.regions.len()];
        Self { guest, random, now_ms: 0.0, written, is_paused: false }
    }

    /// The guest works until then, as far as the throttle lets it.
    pub(super) fn run_until(&mut self, now_ms: f64, throttle: &mut Throttle) {
        if !self.is_paused {
            let (guest, mut working_ms) = (&self.guest, 0.0);
            let work = |from, to| {
                guest.phases.map_or(to - from, |phases| phases.work_until(to) - phases.work_until(from))
            };
            throttle.run(self.now_ms, now_ms, |from, to, slept_ms| {
                // The tick that came last while it slept is worked off first.
                working_ms += work(from - guest.tick_ms.min(slept_ms), to);
            });
            for ((written, _), region) in self.written.iter_mut().zip(&guest.regions) {
                *written += working_ms * region.writes_per_ms;
            }
        }
        self.now_ms = now_ms.max(self.now_ms);
    }

    /// The guest stands still from now on.
    pub(super) fn pause(&mut self) {
        self.is_paused = true;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Puts what was written since the last look into QEMU's bitmap; gives how many pages were not in it yet.
    pub(super) fn look(&mut self, dirty: &mut DirtyPages) -> u64 {
        let before = dirty.count();
        for ((written, seen), region) in self.written.iter_mut().zip(&self.guest.regions) {
            let (now, pages) = (whole(*written), region.pages);
            let writes = now - *seen;
            if pages > 0 && writes > 0 {
                match region.order {
                    Order::Uniform => {
                        let probability = 1.0 - (-as_f64(writes) / as_f64(pages)).exp();
                        dirty.mark_some(region.range(), probability, &mut self.random);
                    }
                    Order::Sweep if writes >= pages => dirty.mark(region.range()),
                    Order::Sweep => {
                        let (from, first) = (*seen % pages, region.first_page);
                        let end = from + writes;
                        dirty.mark(first + from..first + end.min(pages));
                        dirty.mark(first..first + end.saturating_sub(pages));
                    }
                }
            }
            *seen = now;
        }
        dirty.count() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: u64 = 1 << 20;

    fn mebibytes(number: u64) -> Size {
        Size::from_mebibytes(number).unwrap()
    }

    fn rate(mebibytes: u64) -> Rate {
        Rate::from_bytes_per_second(mebibytes * MEBIBYTE).unwrap()
    }

    /// What a guest dirties in so many milliseconds, in mebibytes.
    fn dirties(guest: Guest, ms: f64) -> f64 {
        let mut pages = DirtyPages::all(guest.pages, []);
        pages.send(super::super::dirty::Allowance {
            bytes: u64::MAX,
            ms: f64::MAX,
            whole_page_ms: 0.0,
            zero_page_ms: 0.0,
        });
        let mut writer = Writer::new(guest);
        writer.run_until(ms, &mut Throttle::default());
        as_f64(writer.look(&mut pages)) / 256.0
    }

    #[test]
    fn each_order_has_its_curve() {
        let sweep =
            |ms| dirties(Guest::idle(mebibytes(256)).writes(Order::Sweep, mebibytes(100), rate(50)), ms);
        let uniform =
            |ms| dirties(Guest::idle(mebibytes(256)).writes(Order::Uniform, mebibytes(100), rate(50)), ms);
        for (ms, swept) in [(500.0, 25.0), (2000.0, 100.0), (9000.0, 100.0)] {
            assert!((sweep(ms) - swept).abs() < 0.1, "{} in {ms}", sweep(ms));
            let expected = 100.0 * (1.0 - (-ms / 2000.0_f64).exp());
            assert!((uniform(ms) - expected).abs() < 1.5, "{} for {expected}", uniform(ms));
        }
    }

    #[test]
    fn a_guest_that_rests_dirties_nothing() {
        let guest = Guest::idle(mebibytes(256)).writes(Order::Sweep, mebibytes(100), rate(50));
        let phased = |begun_ms| guest.clone().in_phases(300.0, 700.0, begun_ms);
        assert!((dirties(phased(0.0), 1000.0) - 15.0).abs() < 0.1);
        assert!(dirties(phased(300.0), 700.0) < 0.1);
        assert!((dirties(phased(200.0), 1300.0) - 20.0).abs() < 0.1);
    }

    #[test]
    fn regions_add_up_as_far_as_there_is_memory() {
        let guest = Guest::idle(mebibytes(64));
        let guest = guest.writes(Order::Sweep, mebibytes(10), rate(1000));
        let guest = guest.writes(Order::Sweep, mebibytes(1000), rate(1000));
        assert!((dirties(guest, 1000.0) - 48.0).abs() < 0.1);
    }
}
