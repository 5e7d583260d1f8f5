//! The name of one migration, from which all that it makes is named.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Letters that cannot be taken for one another on a screen or a telephone.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LENGTH: usize = 8;

/// Eight letters and digits, such as `k3f9x2ab`: short, since they become part of socket paths, of which Linux
/// allows 107 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationId(String);

/// The text is not the name of a migration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a migration: an id has eight letters and digits, such as k3f9x2ab")]
pub struct IdError(String);

impl MigrationId {
    /// A new one. Time and process make it differ from every other on this host; where two should still meet, the
    /// second fails to create its directory.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let process = u64::from(std::process::id());
        Self::from_number(now.as_secs().rotate_left(32) ^ u64::from(now.subsec_nanos()) ^ (process << 40))
    }

    /// The id that belongs to a number.
    pub fn from_number(number: u64) -> Self {
        // splitmix64: neighbouring numbers give ids that do not look alike.
        let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let letters = (0..LENGTH).map(|place| char::from(ALPHABET[(mixed >> (5 * place) & 31) as usize]));
        Self(letters.collect())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for MigrationId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for MigrationId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() == LENGTH && text.bytes().all(|letter| ALPHABET.contains(&letter)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError(text.chars().take(40).collect()))
        }
    }
}

impl TryFrom<String> for MigrationId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<MigrationId> for String {
    fn from(id: MigrationId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_does() {
        let id = MigrationId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "k3f9x2a", "../etc/x", "K3F9X2AB", "k3f9x2abc", "k3f9x2i."] {
            assert!(text.parse::<MigrationId>().is_err(), "{text}");
        }
    }

    #[test]
    fn neighbouring_numbers_give_different_ids() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(MigrationId::from_number).collect();
        assert_eq!(ids.len(), 10_000);
    }
}
