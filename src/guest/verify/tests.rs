//! The guest modelled in Rust, stopped anywhere and damaged in every way.

use proptest::prelude::*;

use super::*;
use crate::guest::pattern::Pattern;
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
