//! What one page must hold, byte by byte.
//!
//! ```text
//!  word 0           1       2 ... 1022    1023
//!       stamp       index   body          check word
//! ```
//!
//! The stamp is the low half of the number of the page's last write (0: never written since the fill). The check word
//! mixes stamp and index and stands at the other end, so that a page of which only a part arrived shows it. The body
//! is written once, by the fill, and follows from the index: random words, or one word over and over.

use super::pattern::Content;
use super::workload::PAGE_BYTES;

/// Words in a page.
pub const WORDS: usize = PAGE_BYTES / 4;
/// The body's generator is `x = 5 x + BODY_STEP`, seeded by the mixed index: full period, two instructions a word.
pub(super) const BODY_STEP: u32 = 0x3c6e_f35f;
pub(super) const BODY_SEED: u32 = 0x5157_4755;
pub(super) const CHECK_FACTOR: u32 = 0x9e37_79b1;
pub(super) const CHECK_MASK: u32 = 0x5bd1_e995;
/// The factors of the murmur3 finaliser.
pub(super) const MIX_FIRST: u32 = 0x85eb_ca6b;
pub(super) const MIX_SECOND: u32 = 0xc2b2_ae35;

/// The generator's n-th word is `POWERS[n] * seed + SUMS[n]`: the same numbers without the chain, for speed.
const POWERS: [u32; WORDS] = generator().0;
const SUMS: [u32; WORDS] = generator().1;

const fn generator() -> ([u32; WORDS], [u32; WORDS]) {
    let (mut powers, mut sums) = ([0; WORDS], [0; WORDS]);
    let (mut power, mut sum) = (1_u32, 0_u32);
    let mut word = 0;
    while word < WORDS {
        power = power.wrapping_mul(5);
        sum = sum.wrapping_mul(5).wrapping_add(BODY_STEP);
        powers[word] = power;
        sums[word] = sum;
        word += 1;
    }
    (powers, sums)
}

/// A one-to-one mixing of 32 bits (the murmur3 finaliser), the same as in the guest.
pub(super) const fn mix(value: u32) -> u32 {
    let value = (value ^ (value >> 16)).wrapping_mul(MIX_FIRST);
    let value = (value ^ (value >> 13)).wrapping_mul(MIX_SECOND);
    value ^ (value >> 16)
}

/// The last word of a page.
pub(super) const fn check_word(index: u32, stamp: u32) -> u32 {
    index.wrapping_mul(CHECK_FACTOR).wrapping_add(stamp) ^ CHECK_MASK
}

/// Writes into `page` what the page of that index holds after the write with that stamp.
pub fn expected(page: &mut [u32; WORDS], index: u32, stamp: u32, content: Content) {
    let seed = mix(index ^ BODY_SEED);
    match content {
        Content::Compressible => page.fill(seed),
        Content::Incompressible => {
            for ((word, power), sum) in page.iter_mut().zip(&POWERS).zip(&SUMS) {
                *word = power.wrapping_mul(seed).wrapping_add(*sum);
            }
        }
    }
    page[0] = stamp;
    page[1] = index;
    page[WORDS - 1] = check_word(index, stamp);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The closed form gives what the guest's loop gives.
    #[test]
    fn the_body_is_the_generators() {
        let mut page = [0; WORDS];
        expected(&mut page, 0x4d, 5, Content::Incompressible);
        let mut word = mix(0x4d ^ BODY_SEED);
        for (place, found) in page.iter().enumerate() {
            word = word.wrapping_mul(5).wrapping_add(BODY_STEP);
            if (2..WORDS - 1).contains(&place) {
                assert_eq!(*found, word, "word {place}");
            }
        }
        assert_eq!((page[0], page[1], page[WORDS - 1]), (5, 0x4d, check_word(0x4d, 5)));
    }

    /// Published values of the murmur3 finaliser: zero stays zero, and no two values meet.
    #[test]
    fn mixing_is_one_to_one() {
        assert_eq!((mix(0), mix(1)), (0, 0x514e_28b7));
        let mut seen: Vec<u32> = (0..100_000).map(mix).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100_000);
    }
}
