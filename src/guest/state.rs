//! The state block that the guest keeps in its memory, and the memory map.
//!
//! ```text
//!  physical address
//!  0x0010_0000  image: multiboot header, parameters, code
//!  0x0011_0000  state block (one page)
//!  0x0011_1000  interrupt gates (2 KiB)
//!  0x0012_0000  top of the stack, which grows down
//!  0x0100_0000  working set, page 0; upwards without a hole
//!
//!  state block                                        bytes
//!  0x00  magic "QMSTATE1", written last                 8
//!  0x08  version                                        4
//!  0x0c  status: 1 filling, 2 writing, 3 refused, 4 fault  4
//!  0x10  ticks: timer interrupts since the start        4
//!  0x14  started: the tick at which the writer began    4
//!  0x18  credited: ticks whose writes have been asked for  4
//!  0x1c  owed: writes asked for and not done yet        4
//!  0x20  writes: done                                   8
//!  0x28  dropped: asked for, and given up               8
//!  0x30  passes over the swept (or hot) pages           4
//!  0x34  lost: pages that did not hold what they should when they were overwritten  4
//!  0x38  lost page, 0x3c expected stamp, 0x40 found stamp: the first of these  12
//!  0x80  private to the writer
//! ```
//!
//! The constants below are the only source: the assembler gets them from here. All numbers are little-endian.

use super::workload::PAGE_BYTES;

/// Where the image is loaded, and starts.
pub(super) const LOAD: u32 = 0x0010_0000;
/// Where the state block is.
pub(super) const STATE: u32 = 0x0011_0000;
/// Where the interrupt gates are.
pub(super) const INTERRUPTS: u32 = 0x0011_1000;
/// Where the stack begins.
pub(super) const STACK_TOP: u32 = 0x0012_0000;
/// Where the working set begins.
pub(super) const WORKING_SET: u32 = 0x0100_0000;

pub(super) const MAGIC: [u8; 8] = *b"QMSTATE1";
pub(super) const VERSION_NUMBER: u32 = 1;

pub(super) const VERSION: usize = 0x08;
pub(super) const STATUS: usize = 0x0c;
pub(super) const TICKS: usize = 0x10;
pub(super) const STARTED: usize = 0x14;
pub(super) const CREDITED: usize = 0x18;
pub(super) const OWED: usize = 0x1c;
pub(super) const WRITES: usize = 0x20;
pub(super) const DROPPED: usize = 0x28;
pub(super) const PASSES: usize = 0x30;
pub(super) const LOST: usize = 0x34;
pub(super) const LOST_PAGE: usize = 0x38;
pub(super) const LOST_EXPECTED: usize = 0x3c;
pub(super) const LOST_FOUND: usize = 0x40;
pub(super) const PRIVATE: usize = 0x80;

pub(super) const STATUS_FILLING: u32 = 1;
pub(super) const STATUS_WRITING: u32 = 2;
pub(super) const STATUS_REFUSED: u32 = 3;
pub(super) const STATUS_FAULT: u32 = 4;

// The parts of the memory map follow each other without overlap, and a processor advances the counter in one go.
const _: () = assert!(LOAD < STATE && STATE + 4096 <= INTERRUPTS && INTERRUPTS + 2048 < STACK_TOP);
const _: () = assert!(STACK_TOP < WORKING_SET && LOST_FOUND + 4 <= PRIVATE && PRIVATE + 128 <= PAGE_BYTES);
const _: () = assert!(WRITES.is_multiple_of(8));

/// How far the guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It writes the working set for the first time; nothing can be verified yet.
    Filling,
    /// The working set is complete, and rewritten as asked.
    Writing,
    /// The working set does not lie in its memory; it has halted.
    Refused,
    /// The processor raised an exception, which the guest never causes by itself; it has halted.
    Fault,
}

/// A page that the guest itself found to hold something else than it had written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LostWrite {
    /// The page's index in the working set.
    pub page: u32,
    /// The low half of the number of the write that it should have shown.
    pub expected: u32,
    /// What it showed.
    pub found: u32,
}

/// The state block as it was at one moment; read it from a stopped guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestState {
    /// How far the guest has come.
    pub status: Status,
    /// Timer interrupts since its start. Wraps after 49 days.
    pub ticks: u32,
    /// The tick at which the working set was filled and the writer began.
    pub started: u32,
    /// The last tick whose writes have been asked for; at most a few behind `ticks`.
    pub credited: u32,
    /// Writes asked for and not done yet. Means nothing without a limit.
    pub owed: u32,
    /// Writes done.
    pub writes: u64,
    /// Writes asked for and given up, because too many were owed: what the guest was kept from doing.
    pub dropped: u64,
    /// Full passes over the pages that are swept (all, or the hot ones). None for uniform writes.
    pub passes: u32,
    /// Pages that did not hold what they should when they were overwritten. Anything but none is a lost write.
    pub lost: u32,
    /// The first of them.
    pub first_lost: Option<LostWrite>,
}

/// Why a state block was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Not enough bytes.
    #[error("a state block is {} bytes long, not {found}", GuestState::LENGTH)]
    Short {
        /// How many there were.
        found: usize,
    },
    /// The guest has not started yet, or this is another guest.
    #[error("no test guest has written its state there")]
    NoMagic,
    /// An image of another qmigrate.
    #[error(
        "the guest's state has version {found}, not {VERSION_NUMBER}: it was started by another qmigrate"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// A status that no guest writes.
    #[error("the guest's status is {found}, which means nothing")]
    Status {
        /// What was found.
        found: u32,
    },
}

impl GuestState {
    /// Where it lies in the guest's physical memory: the `val` of `pmemsave`.
    pub const ADDRESS: u64 = STATE as u64;
    /// How many bytes to read there: the `size` of `pmemsave`.
    pub const LENGTH: usize = PAGE_BYTES;

    /// Reads a state block.
    pub fn read(block: &[u8]) -> Result<Self, StateError> {
        if block.len() < PRIVATE {
            return Err(StateError::Short { found: block.len() });
        }
        let word = |offset: usize| match block.get(offset..offset + 4) {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        };
        let long = |offset: usize| u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;
        if block[..MAGIC.len()] != MAGIC {
            return Err(StateError::NoMagic);
        }
        if word(VERSION) != VERSION_NUMBER {
            return Err(StateError::Version { found: word(VERSION) });
        }
        let status = match word(STATUS) {
            STATUS_FILLING => Status::Filling,
            STATUS_WRITING => Status::Writing,
            STATUS_REFUSED => Status::Refused,
            STATUS_FAULT => Status::Fault,
            found => return Err(StateError::Status { found }),
        };
        let lost = word(LOST);
        let first =
            LostWrite { page: word(LOST_PAGE), expected: word(LOST_EXPECTED), found: word(LOST_FOUND) };
        Ok(Self {
            status,
            ticks: word(TICKS),
            started: word(STARTED),
            credited: word(CREDITED),
            owed: word(OWED),
            writes: long(WRITES),
            dropped: long(DROPPED),
            passes: word(PASSES),
            lost,
            first_lost: (lost > 0).then_some(first),
        })
    }

    /// Whether the working set has been filled, so that it can be verified.
    pub fn filled(&self) -> bool {
        self.status == Status::Writing
    }

    /// The ticks for which writes have been asked.
    pub fn working_ticks(&self) -> u32 {
        self.credited.wrapping_sub(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Vec<u8> {
        let mut block = vec![0; GuestState::LENGTH];
        block[..8].copy_from_slice(&MAGIC);
        block[VERSION] = 1;
        block[STATUS] = 2;
        block[TICKS..TICKS + 2].copy_from_slice(&[0x34, 0x12]);
        block[WRITES + 4] = 1;
        block
    }

    #[test]
    fn a_state_block_is_read() {
        let state = GuestState::read(&block()).unwrap();
        assert_eq!((state.ticks, state.writes, state.first_lost), (0x1234, 1 << 32, None));
        assert!(state.filled());
    }

    #[test]
    fn what_is_no_state_block_is_refused() {
        assert_eq!(GuestState::read(&[0; 8]), Err(StateError::Short { found: 8 }));
        assert_eq!(GuestState::read(&[0; GuestState::LENGTH]), Err(StateError::NoMagic));
        let mut other = block();
        other[VERSION] = 9;
        assert_eq!(GuestState::read(&other), Err(StateError::Version { found: 9 }));
        let mut other = block();
        other[STATUS] = 7;
        assert_eq!(GuestState::read(&other), Err(StateError::Status { found: 7 }));
    }
}
