//! Every blocker at once: what stands in the way of a migration, each with a code, a sentence and a hint.
//!
//! The checks are pure: they look at what has been read of both sides and change nothing.

/// Blockers in what tells a destination from its source.
mod compare;
/// Blockers in options with which QEMU runs other programs of the host.
mod host_programs;
/// Blockers in what the source says of itself.
mod source;
/// Blockers in what a destination on this host would have to be given.
mod standing;
/// Words for what could not even be looked at.
mod words;

pub use compare::differences;
pub use host_programs::host_programs;
pub use source::{Intent, blockers, lost_writes};
pub use standing::{locked_memory, memory_room};

use std::fmt;

/// Why a migration is refused before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// A stable word for programs.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Blocker {
    /// A blocker with a hint.
    pub fn new(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: Some(hint.into()) }
    }

    /// A blocker about which nothing can be said but what it is.
    pub fn bare(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// An error and all that is behind it, as one sentence.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
