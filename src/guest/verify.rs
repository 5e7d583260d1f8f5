//! The proof that no byte of the working set was lost.
//!
//! The guest is stopped, its state block and its working set are read (`pmemsave`), and each byte is compared with what
//! it must be: stamps follow from the number of writes done (see [`schedule`](super::schedule)), bodies from the index
//! of the page (see [`page`](super::page)). One page may be *in flight*: the guest stamps a page first, then its check
//! word, then counts the write, and may be stopped between these. Then that one page, and no other, may show
//! the next write, in either of the two ways that this order allows.

use super::page::{self, WORDS};
use super::schedule::{LastWrites, Schedule, halves};
use super::state::{GuestState, LostWrite, Status, WORKING_SET};
use super::workload::{Content, PAGE_BYTES, Workload};

/// How many bad pages are described; all are counted.
const DESCRIBED: usize = 8;

/// Why a memory cannot be verified at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotVerifiable {
    /// The working set has not been written once, or the guest has ended.
    #[error("the guest's memory cannot be verified while its status is {status:?}")]
    Status {
        /// What the guest is doing.
        status: Status,
    },
}

/// What was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Pages compared: all of the working set.
    pub pages: u32,
    /// Bytes compared, each with the only value allowed.
    pub bytes: u64,
    /// Pages that showed the write which the guest was just doing: none or one.
    pub in_flight_pages: u32,
    /// Writes that the guest had done.
    pub writes: u64,
}

/// A page that holds something else than it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPage {
    /// Its index in the working set.
    pub page: u32,
    /// Its physical address.
    pub address: u64,
    /// What is wrong.
    pub difference: Difference,
}

/// What is wrong with a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is a whole page, of another time: shows the write `found` (low half), not `expected` (0: none).
    Stale {
        /// The number of the write that it should show.
        expected: u64,
        /// The low half of the number that it shows.
        found: u32,
    },
    /// It is the page of another index.
    Misplaced {
        /// That index.
        found: u32,
    },
    /// Words that no write puts there.
    Words {
        /// How many.
        wrong: usize,
        /// The first: its offset in the page in bytes.
        offset: usize,
        /// What should be there.
        expected: u32,
        /// What is there.
        found: u32,
    },
}

impl std::fmt::Display for BadPage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "page {} (at {:#x}) ", self.page, self.address)?;
        match &self.difference {
            Difference::Stale { expected, found } => {
                write!(formatter, "shows write {found}, not {expected}")
            }
            Difference::Misplaced { found } => write!(formatter, "holds page {found}"),
            Difference::Words { wrong, offset, expected, found } => write!(
                formatter,
                "has {wrong} wrong words, the first at byte {offset}: {found:#010x}, not {expected:#010x}"
            ),
        }
    }
}

/// What was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// Pages hold something else than they must.
    #[error("{bad} of {pages} pages are not what the guest wrote: {}", .first.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Pages {
        /// How many, in all.
        bad: u32,
        /// Of how many.
        pages: u32,
        /// The first few.
        first: Vec<BadPage>,
    },
    /// All pages are right now, but the guest itself found some wrong when it overwrote them.
    #[error("the guest found {lost} of its own writes lost, the first on page {} (write {}, not {})", .first.page, .first.found, .first.expected)]
    LostWrites {
        /// How many.
        lost: u32,
        /// The first.
        first: LostWrite,
    },
    /// Not the whole working set was read, or more than it.
    #[error("the working set is {expected} bytes long, {found} were read")]
    Length {
        /// Its length.
        expected: u64,
        /// What was read.
        found: u64,
    },
}

/// Compares a working set, fed in order and in pieces of any length.
#[derive(Debug)]
pub struct Verifier {
    content: Content,
    pages: u32,
    writes: u64,
    last: LastWrites,
    /// The page that may show one write more, and its stamp then.
    in_flight: (u32, u32),
    lost: Option<(u32, LostWrite)>,
    next: u32,
    fed: u64,
    piece: Vec<u8>,
    in_flight_pages: u32,
    bad: u32,
    first: Vec<BadPage>,
}

impl Verifier {
    /// Expects what the guest must hold in this state of a stopped guest.
    pub fn new(workload: &Workload, state: &GuestState) -> Result<Self, NotVerifiable> {
        if !state.filled() {
            return Err(NotVerifiable::Status { status: state.status });
        }
        let schedule = Schedule::new(workload);
        let coming = state.writes.wrapping_add(1).max(1);
        Ok(Self {
            content: workload.content(),
            pages: workload.pages(),
            writes: state.writes,
            last: schedule.last_writes(state.writes),
            in_flight: (schedule.page(coming), stamp(coming)),
            lost: state.first_lost.map(|first| (state.lost, first)),
            next: 0,
            fed: 0,
            piece: Vec::new(),
            in_flight_pages: 0,
            bad: 0,
            first: Vec::new(),
        })
    }

    /// Compares the next bytes of the working set.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        self.fed = self.fed.saturating_add(bytes.len() as u64);
        if !self.piece.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(PAGE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(head);
            bytes = rest;
            if self.piece.len() < PAGE_BYTES {
                return;
            }
            let piece = std::mem::take(&mut self.piece);
            self.compare(&piece);
        }
        let whole = bytes.chunks_exact(PAGE_BYTES);
        self.piece.extend_from_slice(whole.remainder());
        for page in whole {
            self.compare(page);
        }
    }

    /// All has been fed.
    pub fn finish(self) -> Result<Proof, Corruption> {
        let bytes = u64::from(self.pages) * PAGE_BYTES as u64;
        if self.bad > 0 {
            return Err(Corruption::Pages { bad: self.bad, pages: self.pages, first: self.first });
        }
        if self.fed != bytes {
            return Err(Corruption::Length { expected: bytes, found: self.fed });
        }
        if let Some((lost, first)) = self.lost {
            return Err(Corruption::LostWrites { lost, first });
        }
        Ok(Proof { pages: self.pages, bytes, in_flight_pages: self.in_flight_pages, writes: self.writes })
    }

    fn compare(&mut self, found: &[u8]) {
        let index = self.next;
        if index >= self.pages {
            return;
        }
        self.next += 1;
        let last = self.last.of(index);
        let mut expected = [0; WORDS];
        page::expected(&mut expected, index, stamp(last), self.content);
        if differences(&expected, found) == 0 {
            return;
        }
        let (in_flight, coming) = self.in_flight;
        if index == in_flight {
            // Stamped, with the old check word or with the new one.
            for check in [expected[WORDS - 1], page::check_word(index, coming)] {
                let mut next = expected;
                (next[0], next[WORDS - 1]) = (coming, check);
                if differences(&next, found) == 0 {
                    self.in_flight_pages += 1;
                    return;
                }
            }
        }
        self.bad += 1;
        if self.first.len() < DESCRIBED {
            let address = u64::from(WORKING_SET) + u64::from(index) * PAGE_BYTES as u64;
            let difference = self.describe(&expected, found, last);
            self.first.push(BadPage { page: index, address, difference });
        }
    }

    /// Says in which way a page is wrong.
    fn describe(&self, expected: &[u32; WORDS], found: &[u8], last: u64) -> Difference {
        let mut words = found.chunks_exact(4).map(word);
        let (stamp, index) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        let mut whole = [0; WORDS];
        page::expected(&mut whole, index, stamp, self.content);
        if differences(&whole, found) == 0 {
            return if index == expected[1] {
                Difference::Stale { expected: last, found: stamp }
            } else {
                Difference::Misplaced { found: index }
            };
        }
        let first = expected.iter().zip(found.chunks_exact(4).map(word)).enumerate();
        let first = first.map(|(place, (expected, found))| (place * 4, *expected, found));
        let (offset, expected_word, found_word) =
            first.into_iter().find(|(_, expected, found)| expected != found).unwrap_or_default();
        let wrong = differences(expected, found);
        Difference::Words { wrong, offset, expected: expected_word, found: found_word }
    }
}

/// The low half of a write's number.
fn stamp(write: u64) -> u32 {
    halves(write)[0]
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

/// How many words differ. Counting all of them, without a way out, is what compilers turn into vector instructions.
fn differences(expected: &[u32; WORDS], found: &[u8]) -> usize {
    expected
        .iter()
        .zip(found.as_chunks::<4>().0)
        .filter(|(expected, found)| **expected != u32::from_le_bytes(**found))
        .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::workload::Pattern;
    use crate::guest::workload::tests::any_workload;
    use crate::units::Size;

    /// The guest's own way through its writes: running sums, as in image.s.
    struct Model {
        workload: Workload,
        memory: Vec<[u32; WORDS]>,
        writes: u64,
        share: u32,
        regions: [Region; 2],
        lost: u32,
    }

    #[derive(Default)]
    struct Region {
        first: u32,
        pages: u32,
        position: u32,
        rounds: u32,
        trail: u32,
        trail_share: u32,
    }

    /// Where in a write the guest is stopped.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Stop {
        Between,
        Stamped,
        Checked,
    }

    impl Model {
        fn new(workload: &Workload) -> Self {
            let mut memory = vec![[0; WORDS]; workload.pages() as usize];
            for (index, page) in memory.iter_mut().enumerate() {
                page::expected(page, u32::try_from(index).unwrap(), 0, workload.content());
            }
            let hot = workload.hot_pages();
            let region = |first, pages| Region { first, pages, ..Region::default() };
            let regions = [region(0, hot), region(hot, workload.pages() - hot)];
            Self { workload: workload.clone(), memory, writes: 0, share: 0, regions, lost: 0 }
        }

        /// The page of the next write, and the stamp that it must hold.
        fn pick(&mut self) -> (u32, Option<u32>) {
            let write = self.writes + 1;
            if self.workload.pattern() == Pattern::Uniform {
                return (Schedule::new(&self.workload).page(write), None);
            }
            let share = self.workload.pattern().hot_share();
            self.share += share;
            let which = usize::from(self.share < 100);
            self.share -= if which == 0 { 100 } else { 0 };
            let region = &mut self.regions[which];
            let page = region.first + region.position;
            if region.rounds > 0 {
                loop {
                    region.trail = region.trail.wrapping_add(1);
                    region.trail_share += share;
                    let hot = region.trail_share >= 100;
                    region.trail_share -= if hot { 100 } else { 0 };
                    if hot == (which == 0) {
                        break;
                    }
                }
            }
            let expected = region.trail;
            region.position += 1;
            if region.position == region.pages {
                (region.position, region.rounds) = (0, region.rounds + 1);
            }
            (page, Some(expected))
        }

        fn write(&mut self, stop: Stop) {
            if stop == Stop::Between {
                return;
            }
            let (index, expected) = self.pick();
            let coming = stamp(self.writes + 1);
            let page = &mut self.memory[index as usize];
            let old = page[0];
            let right = expected.is_none_or(|expected| old == expected);
            self.lost += u32::from(!right || page[WORDS - 1] != page::check_word(index, old));
            page[0] = coming;
            if stop == Stop::Checked {
                page[WORDS - 1] = page::check_word(index, coming);
            }
        }

        fn run(&mut self, writes: u64) {
            for _ in 0..writes {
                self.write(Stop::Checked);
                self.writes += 1;
            }
        }

        fn state(&self) -> GuestState {
            let first = LostWrite { page: 0, expected: 0, found: 0 };
            GuestState {
                status: Status::Writing,
                ticks: 0,
                started: 0,
                credited: 0,
                owed: 0,
                writes: self.writes,
                dropped: 0,
                passes: 0,
                lost: self.lost,
                first_lost: (self.lost > 0).then_some(first),
            }
        }

        fn bytes(&self) -> Vec<u8> {
            self.memory.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
        }

        fn verify(&self) -> Result<Proof, Corruption> {
            self.verify_bytes(&self.bytes())
        }

        fn verify_bytes(&self, bytes: &[u8]) -> Result<Proof, Corruption> {
            let mut verifier = Verifier::new(&self.workload, &self.state()).unwrap();
            verifier.feed(bytes);
            verifier.finish()
        }
    }

    fn the_difference(result: Result<Proof, Corruption>) -> Difference {
        match result {
            Err(Corruption::Pages { bad: 1, first, .. }) => first[0].difference.clone(),
            other => panic!("not one bad page: {other:?}"),
        }
    }

    fn swept(pages: u64) -> Model {
        let (memory, set) = (Size::from_mebibytes(64).unwrap(), Size::from_bytes(pages * 4096).unwrap());
        Model::new(&Workload::new(memory, set, None, Pattern::Sweep, Content::Incompressible).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Stopped anywhere, an intact memory passes, in pieces of any length, with at most one page in flight; and
        /// the guest's own check agrees with the schedule.
        #[test]
        fn intact_memory_passes(
            workload in any_workload(24), writes in 0_u64..600, piece in 1_usize..9000,
            stop in prop_oneof![Just(Stop::Between), Just(Stop::Stamped), Just(Stop::Checked)],
        ) {
            let mut guest = Model::new(&workload);
            guest.run(writes);
            guest.write(stop);
            prop_assert_eq!(guest.lost, 0);
            let mut verifier = Verifier::new(&workload, &guest.state()).unwrap();
            guest.bytes().chunks(piece).for_each(|piece| verifier.feed(piece));
            let proof = verifier.finish().unwrap();
            prop_assert_eq!(proof.bytes, workload.working_set().bytes());
            prop_assert_eq!(proof.in_flight_pages, u32::from(stop != Stop::Between));
        }

        /// Any single flipped bit is found, also in the page in flight, unless it makes one stop look like another.
        #[test]
        fn a_flipped_bit_is_found(
            workload in any_workload(6), writes in 0_u64..40, place in any::<prop::sample::Index>(), bit in 0_u8..8,
            stop in prop_oneof![Just(Stop::Between), Just(Stop::Stamped), Just(Stop::Checked)],
        ) {
            let mut guest = Model::new(&workload);
            guest.run(writes);
            guest.write(stop);
            let mut bytes = guest.bytes();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let legal = [Stop::Between, Stop::Stamped, Stop::Checked].into_iter().any(|stop| {
                let mut guest = Model::new(&workload);
                guest.run(writes);
                guest.write(stop);
                guest.bytes() == bytes
            });
            prop_assert_eq!(guest.verify_bytes(&bytes).is_ok(), legal, "byte {} bit {}", place, bit);
        }

        /// A page as it was at any earlier time is found, unless it was not written since.
        #[test]
        fn an_older_page_is_found(workload in any_workload(12), early in 0_u64..100, late in 0_u64..100, page in 0_usize..2) {
            let mut guest = Model::new(&workload);
            guest.run(early);
            let old = guest.memory[page];
            guest.run(late);
            let same = guest.memory[page] == old;
            guest.memory[page] = old;
            prop_assert_eq!(guest.verify().is_ok(), same);
        }
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut guest = swept(8);
        guest.run(20);
        let before = guest.memory[4];
        guest.run(1);
        guest.memory[4] = before;
        assert_eq!(the_difference(guest.verify()), Difference::Stale { expected: 21, found: 13 });
        // Overwritten since, it is the guest that has seen it.
        guest.run(8);
        assert!(matches!(guest.verify(), Err(Corruption::LostWrites { lost: 1, .. })));
    }

    #[test]
    fn only_the_next_write_may_be_in_flight() {
        let mut guest = swept(8);
        guest.run(20);
        let early = guest.memory[5];
        guest.memory[5][0] = 22;
        guest.memory[5][WORDS - 1] = page::check_word(5, 22);
        assert_eq!(the_difference(guest.verify()), Difference::Stale { expected: 14, found: 22 });
        guest.memory[5] = early;
        // The check word goes after the stamp, never before.
        guest.memory[4][WORDS - 1] = page::check_word(4, 21);
        let wrong = Difference::Words {
            wrong: 1,
            offset: 4092,
            expected: page::check_word(4, 13),
            found: page::check_word(4, 21),
        };
        assert_eq!(the_difference(guest.verify()), wrong);
    }

    #[test]
    fn swapped_pages_are_found() {
        let mut guest = swept(8);
        guest.run(20);
        guest.memory.swap(2, 6);
        let Err(Corruption::Pages { bad, pages, first }) = guest.verify() else { panic!("not found") };
        assert_eq!((bad, pages), (2, 8));
        assert_eq!(first[0].difference, Difference::Misplaced { found: 6 });
        assert_eq!(first[1].address, 0x0100_6000);
    }

    #[test]
    fn a_half_page_is_found() {
        let mut guest = swept(8);
        guest.run(20);
        guest.memory[3][WORDS / 2..].fill(0);
        assert!(matches!(the_difference(guest.verify()), Difference::Words { wrong: 512, offset: 2048, .. }));
    }

    #[test]
    fn the_working_set_must_be_whole() {
        let guest = swept(4);
        let bytes = guest.bytes();
        let short = Corruption::Length { expected: 16384, found: 16383 };
        assert_eq!(guest.verify_bytes(&bytes[..16383]), Err(short));
        let long = Corruption::Length { expected: 16384, found: 16388 };
        assert_eq!(guest.verify_bytes(&[&bytes[..], &[0; 4]].concat()), Err(long));
    }

    #[test]
    fn an_unfilled_guest_is_not_verified() {
        let guest = swept(4);
        let state = GuestState { status: Status::Filling, ..guest.state() };
        let refused = Verifier::new(&guest.workload, &state).map(drop);
        assert_eq!(refused, Err(NotVerifiable::Status { status: Status::Filling }));
    }

    /// The stamps of a long-running guest wrap; so does what is expected of them.
    #[test]
    fn stamps_wrap() {
        let mut guest = swept(8);
        guest.writes = u64::from(u32::MAX) - 2;
        for (index, page) in (0_u32..).zip(guest.memory.iter_mut()) {
            let last = Schedule::new(&guest.workload).last_writes(guest.writes).of(index);
            (page[0], page[WORDS - 1]) = (stamp(last), page::check_word(index, stamp(last)));
        }
        guest.regions[0].position = u32::try_from(guest.writes % 8).unwrap();
        (guest.regions[0].rounds, guest.regions[0].trail) = (1, stamp(guest.writes - 8));
        guest.run(6);
        assert!(guest.verify().is_ok());
    }
}
