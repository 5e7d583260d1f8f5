//! The vocabulary: tolerant views of what QEMU answers and tells.
//!
//! A view reads what it knows. A status or an event of a newer QEMU is kept as `Other`, a field that is missing or has
//! an unexpected shape reads as absent, unknown fields are kept where they may interest a reader. Views never decide
//! anything. Commands out are the types of [`qapi::qmp`] and, where these lack one, of [`words::commands`].

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Commands that `qapi-qmp` lacks.
pub mod commands;
/// What a QEMU says of itself: version, name, UUID, run state.
mod machine;
/// What a QEMU says of a migration.
mod migration;
/// What an event means.
mod notice;

pub use machine::{NameInfo, RunState, StatusInfo, UuidInfo, VersionInfo};
pub use migration::{MigrationInfo, MigrationStatus, RamInfo, SocketAddress};
pub use notice::Notice;

use super::wire::printable;

/// Defines an enum of QEMU's words, with `Other` for those that are not known.
macro_rules! words {
    (
        $(#[$outer:meta])*
        pub enum $name:ident { $( $(#[$inner:meta])* $variant:ident = $word:literal, )+ }
    ) => {
        $(#[$outer])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[$inner])* $variant, )+
            /// A word of a newer QEMU, as it was sent.
            Other(String),
        }

        impl $name {
            /// All words that are known, in QEMU's order.
            pub const KNOWN: &[Self] = &[$( Self::$variant, )+];

            /// QEMU's word.
            pub fn as_str(&self) -> &str {
                match self {
                    $( Self::$variant => $word, )+
                    Self::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $( $word => Self::$variant, )+
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::qmp::words::show_word(self.as_str(), formatter)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self::from(<String as serde::Deserialize>::deserialize(deserializer)?.as_str()))
            }
        }
    };
}
use words;

/// Shows a word of the peer, which may be anything if it is not known.
fn show_word(word: &str, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    formatter.pad(&printable(word))
}

/// Reads a field, or takes it as absent when it has another shape than expected: one odd number must not hide the
/// rest of an answer.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}
