//! `--map OLD=NEW`: another resource on the destination than on the source.

use std::str::FromStr;

use super::RewriteError;
use crate::qemu::argv::CommandOption;

/// What stands before a path or an interface in a value that is not taken apart.
const PREFIXES: [&str; 7] = ["", "unix:", "file:", "pipe:", "mon:file:", "mon:pipe:", "tcp:"];

/// One resource in the place of another, wherever it is the whole value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    old: String,
    new: String,
}

/// A text is no map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is no `OLD=NEW` in it.
    #[error("'{0}' is not OLD=NEW")]
    NotAPair(String),
    /// A number stands for too many things, and an open descriptor is no other QEMU's.
    #[error(
        "'{0}' is a number: a path, an interface, an address or a host can be mapped, an open descriptor cannot"
    )]
    Number(String),
}

impl Map {
    /// Whether what it replaces is somewhere in a text.
    pub fn occurs_in(&self, text: &str) -> bool {
        text.contains(&self.old)
    }

    /// Whether it gives something in the place of this value.
    pub fn replaces(&self, value: &str) -> bool {
        self.old == value
    }
}

impl FromStr for Map {
    type Err = MapError;

    fn from_str(text: &str) -> Result<Self, MapError> {
        match text.split_once('=') {
            Some((old, new)) if !old.is_empty() && !new.is_empty() => {
                if old.bytes().all(|letter| letter.is_ascii_digit()) {
                    return Err(MapError::Number(old.to_owned()));
                }
                Ok(Self { old: old.to_owned(), new: new.to_owned() })
            }
            _ => Err(MapError::NotAPair(text.to_owned())),
        }
    }
}

/// The maps of a migration, and which of them have changed something.
#[derive(Debug)]
pub(super) struct Maps<'a> {
    maps: &'a [Map],
    used: Vec<bool>,
}

impl<'a> Maps<'a> {
    pub(super) fn new(maps: &'a [Map]) -> Self {
        Self { maps, used: vec![false; maps.len()] }
    }

    /// Puts what is meant for the destination in the place of what the source has.
    pub(super) fn apply(&mut self, option: &mut CommandOption) {
        if self.maps.is_empty() {
            return;
        }
        match option.properties() {
            Some(mut properties) => {
                properties.replace_each(|_, value| self.mapped(value));
                option.set_properties(&properties);
            }
            None => {
                if let Some(new) = option.value.as_deref().and_then(|value| self.mapped(value)) {
                    option.value = Some(new);
                }
            }
        }
    }

    fn mapped(&mut self, value: &str) -> Option<String> {
        PREFIXES.iter().find_map(|prefix| {
            let rest = value.strip_prefix(prefix)?;
            let index = self.maps.iter().position(|map| map.old == rest)?;
            *self.used.get_mut(index)? = true;
            Some(format!("{prefix}{}", self.maps.get(index)?.new))
        })
    }

    /// Whether a value is there because somebody has mapped another one to it: it is the destination's own.
    pub(super) fn has_given(&self, value: &str) -> bool {
        self.maps.iter().any(|map| map.new == value)
    }

    /// Those that have changed nothing.
    pub(super) fn unused(&self) -> impl Iterator<Item = RewriteError> {
        let unused = self.maps.iter().zip(&self.used).filter(|(_, used)| !**used);
        unused.map(|(map, _)| RewriteError::MapUnused(format!("{}={}", map.old, map.new)))
    }
}
