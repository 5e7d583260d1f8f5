//! The boot image: assembly, the parameters patched into it, and the file descriptor QEMU loads it from.
//!
//! The image is a raw multiboot kernel of a few KiB: QEMU's `-kernel` loads it to 1 MiB and jumps to it in protected
//! mode, without a disk, and reads the file only once, at the start (5.2 to 11.1). A destination needs no `-kernel`.
//!
//! ```text
//!  image
//!  0x00  multiboot header            32 bytes
//!  0x20  magic "QMPARAM1"             8
//!  0x28  pages                        4    0x2c  address of page 0             4
//!  0x30  hot pages                    4    0x34  their share of writes, in %   4
//!  0x38  uniform: 0 or 1              4    0x3c  compressible: 0 or 1          4
//!  0x40  unlimited: 0 or 1            4    0x44  writes per tick, whole        4
//!  0x48  ... and in 2^-32 of a write  4    0x4c  the most writes owed          4
//!  0x50  ticks of work per period     4    0x54  ticks per period              4
//!  0x58  port of the heartbeat        4    0x5c  divisor of the timer          4
//!  0x60  code
//! ```

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::pattern::{Content, Pattern};
use super::workload::{PIT_DIVISOR, Workload};
use super::{page, schedule, state};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the test guest is x86 code that rustc assembles for its target: build qmigrate for x86_64");

/// The port that the guest writes its heartbeat to: the one of `isa-debugcon`.
pub const HEARTBEAT_PORT: u16 = 0xe9;

const MAGIC: u64 = u64::from_le_bytes(*b"QMPARAM1");
const PARAMETERS: usize = 0x20;
const PARAMETERS_LENGTH: usize = 0x40;

const PAGES: usize = 0x08;
const BASE: usize = 0x0c;
const HOT_PAGES: usize = 0x10;
const HOT_SHARE: usize = 0x14;
const UNIFORM: usize = 0x18;
const COMPRESSIBLE: usize = 0x1c;
const UNLIMITED: usize = 0x20;
const RATE_WHOLE: usize = 0x24;
const RATE_FRACTION: usize = 0x28;
const MOST_OWED: usize = 0x2c;
const ON_TICKS: usize = 0x30;
const PERIOD_TICKS: usize = 0x34;
const PORT: usize = 0x38;
const DIVISOR: usize = 0x3c;

const STATE_MAGIC: u64 = u64::from_le_bytes(state::MAGIC);

core::arch::global_asm!(
    include_str!("image.s"),
    load = const state::LOAD,
    state = const state::STATE,
    interrupts = const state::INTERRUPTS,
    stack_top = const state::STACK_TOP,
    parameters = const PARAMETERS,
    parameters_magic = const MAGIC,
    parameters_length = const PARAMETERS_LENGTH,
    pages = const PAGES,
    base = const BASE,
    hot_pages = const HOT_PAGES,
    hot_share = const HOT_SHARE,
    uniform = const UNIFORM,
    compressible = const COMPRESSIBLE,
    unlimited = const UNLIMITED,
    rate_whole = const RATE_WHOLE,
    rate_fraction = const RATE_FRACTION,
    most_owed = const MOST_OWED,
    on_ticks = const ON_TICKS,
    period_ticks = const PERIOD_TICKS,
    port = const PORT,
    pit_divisor = const DIVISOR,
    state_magic_low = const STATE_MAGIC & 0xffff_ffff,
    state_magic_high = const STATE_MAGIC >> 32,
    version_number = const state::VERSION_NUMBER,
    version = const state::VERSION,
    status = const state::STATUS,
    ticks = const state::TICKS,
    started = const state::STARTED,
    credited = const state::CREDITED,
    owed = const state::OWED,
    writes = const state::WRITES,
    dropped = const state::DROPPED,
    passes = const state::PASSES,
    lost = const state::LOST,
    lost_page = const state::LOST_PAGE,
    lost_expected = const state::LOST_EXPECTED,
    lost_found = const state::LOST_FOUND,
    private = const state::PRIVATE,
    status_filling = const state::STATUS_FILLING,
    status_writing = const state::STATUS_WRITING,
    status_refused = const state::STATUS_REFUSED,
    status_fault = const state::STATUS_FAULT,
    body_step = const page::BODY_STEP,
    body_seed = const page::BODY_SEED,
    check_factor = const page::CHECK_FACTOR,
    check_mask = const page::CHECK_MASK,
    mix_first = const page::MIX_FIRST,
    mix_second = const page::MIX_SECOND,
    high_factor = const schedule::HIGH_FACTOR,
    options(att_syntax)
);

unsafe extern "C" {
    #[link_name = "qmigrate_guest_start"]
    static START: u8;
    #[link_name = "qmigrate_guest_end"]
    static END: u8;
}

/// Why there is no image to boot from.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No memory file, or it could not be written.
    #[error("cannot put the test guest's image into a memory file")]
    MemoryFile(#[source] io::Error),
}

/// The image as it was assembled, with no parameters in it.
fn assembled() -> &'static [u8] {
    let (start, end) = (&raw const START, &raw const END);
    let length = (end as usize) - (start as usize);
    // SAFETY: both symbols stand in one read-only section of this binary, with nothing but the image between them
    // (image.s); the bytes are only read.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// The boot image of a guest with this workload.
pub fn image(workload: &Workload) -> Vec<u8> {
    let mut image = assembled().to_vec();
    let mut patch = |offset: usize, value: u32| {
        let place = PARAMETERS + offset;
        image[place..place + 4].copy_from_slice(&value.to_le_bytes());
    };
    let per_tick = workload.writes_per_tick();
    let [rate_fraction, rate_whole] = schedule::halves(per_tick.unwrap_or(0));
    let (on_ticks, period_ticks) = workload.pattern().phases();
    patch(PAGES, workload.pages());
    patch(BASE, state::WORKING_SET);
    patch(HOT_PAGES, workload.hot_pages());
    patch(HOT_SHARE, workload.pattern().hot_share());
    patch(UNIFORM, u32::from(workload.pattern() == Pattern::Uniform));
    patch(COMPRESSIBLE, u32::from(workload.content() == Content::Compressible));
    patch(UNLIMITED, u32::from(per_tick.is_none()));
    patch(RATE_FRACTION, rate_fraction);
    patch(RATE_WHOLE, rate_whole);
    patch(MOST_OWED, workload.most_owed());
    patch(ON_TICKS, on_ticks);
    patch(PERIOD_TICKS, period_ticks);
    patch(PORT, u32::from(HEARTBEAT_PORT));
    patch(DIVISOR, PIT_DIVISOR);
    image
}

/// The image in a memory file: nothing on any disk, gone with its last user.
#[derive(Debug)]
pub struct MemoryFile {
    descriptor: OwnedFd,
}

impl MemoryFile {
    /// The path by which another process of this user reads it, as long as this process lives: what `-kernel` gets.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.descriptor.as_raw_fd()).into()
    }
}

/// The boot image of a guest with this workload, in a memory file.
pub fn memfd(workload: &Workload) -> Result<MemoryFile, ImageError> {
    let descriptor = memfd_create(c"qmigrate-guest", MFdFlags::MFD_CLOEXEC)
        .map_err(|error| ImageError::MemoryFile(error.into()))?;
    let mut file = std::fs::File::from(descriptor);
    file.write_all(&image(workload)).map_err(ImageError::MemoryFile)?;
    Ok(MemoryFile { descriptor: file.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Rate, Size};

    fn workload() -> Workload {
        let (memory, set) = (Size::from_mebibytes(64).unwrap(), Size::from_mebibytes(1).unwrap());
        let rate = Rate::from_bytes_per_second(6 << 20);
        Workload::new(memory, set, rate, Pattern::HOT_AND_COLD, Content::Compressible).unwrap()
    }

    fn word(image: &[u8], place: usize) -> u32 {
        u32::from_le_bytes(image[place..place + 4].try_into().unwrap())
    }

    /// QEMU takes it for a multiboot kernel without an ELF header, and its parts are where Rust believes them to be.
    #[test]
    fn the_image_is_a_multiboot_kernel() {
        let image = image(&workload());
        assert!((1024..8192).contains(&image.len()), "{} bytes", image.len());
        let header: Vec<u32> = (0..8).map(|index| word(&image, 4 * index)).collect();
        assert_eq!(header[0].wrapping_add(header[1]).wrapping_add(header[2]), 0, "checksum");
        assert_eq!((header[0], header[1]), (0x1bad_b002, 0x0001_0000));
        assert_eq!((header[3], header[4]), (state::LOAD, state::LOAD));
        let entry = (header[7] - state::LOAD) as usize;
        assert_eq!(image[entry], 0xfa, "cli is the first instruction");
        let end = state::LOAD as usize + image.len();
        assert!(end <= state::STATE as usize, "the image runs into the state block");
        assert_eq!(image[PARAMETERS..PARAMETERS + 8], MAGIC.to_le_bytes());
    }

    #[test]
    fn the_parameters_are_in_the_image() {
        let image = image(&workload());
        let parameter = |offset| word(&image, PARAMETERS + offset);
        assert_eq!((parameter(PAGES), parameter(HOT_PAGES), parameter(HOT_SHARE)), (256, 25, 90));
        assert_eq!((parameter(COMPRESSIBLE), parameter(UNIFORM), parameter(UNLIMITED)), (1, 0, 0));
        // 1536 writes a second, 1000.15 ticks.
        assert_eq!((parameter(RATE_WHOLE), parameter(MOST_OWED)), (1, 24));
        assert_eq!((parameter(PORT), parameter(DIVISOR)), (0xe9, 1193));
    }

    #[test]
    fn the_memory_file_can_be_read_by_its_path() {
        let file = memfd(&workload()).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), image(&workload()));
    }
}
