//! Numbers from one kind to another, and random ones.

pub(super) use crate::converge::bandwidth::as_f64;

/// The whole part of a number that is not negative.
pub(super) fn whole(number: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
    let whole = number as u64;
    whole
}

/// Numbers that look random and are the same for the same seed (`SplitMix64`).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 64 bits, each set with this probability: its binary digits, the last one first, each halve the distance to none
    /// or to all. Sixteen digits will do.
    pub(super) fn bits(&mut self, probability: f64) -> u64 {
        let digits = whole((probability.clamp(0.0, 1.0) * 65536.0).round());
        if digits >= 65536 {
            return u64::MAX;
        }
        if digits == 0 {
            return 0;
        }
        let mut bits = 0;
        for digit in digits.trailing_zeros()..16 {
            bits = if digits >> digit & 1 == 1 { bits | self.next() } else { bits & self.next() };
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_bits_are_set_as_was_asked() {
        let mut random = Random::new(1);
        for probability in [0.0, 1e-4, 0.03, 0.25, 0.5, 0.9, 0.999, 1.0] {
            let set: u32 = (0..10_000).map(|_| random.bits(probability).count_ones()).sum();
            let share = f64::from(set) / 640_000.0;
            assert!((share - probability).abs() < 0.003, "{share} for {probability}");
        }
    }
}
