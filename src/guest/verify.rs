//! The proof that no byte of the working set was lost.
//!
//! The guest is stopped, its state block and its working set are read (`pmemsave`), and each byte is compared with what
//! it must be: stamps follow from the number of writes done (see [`schedule`](crate::guest::schedule)), bodies from the index
//! of the page (see [`page`](crate::guest::page)). One page may be *in flight*: the guest stamps a page first, then its check
//! word, then counts the write, and may be stopped between these. Then that one page, and no other, may show
//! the next write, in either of the two ways that this order allows.

use super::page::{self, WORDS};
use super::pattern::Content;
use super::schedule::{LastWrites, Schedule, halves};
use super::state::{GuestState, LostWrite, Status, WORKING_SET};
use super::workload::{PAGE_BYTES, Workload};

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
        let coming = state.writes.wrapping_add(1);
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

/// The guest modelled in Rust, stopped anywhere and damaged in every way.
#[cfg(test)]
mod tests;
