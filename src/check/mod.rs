//! Every blocker at once: what stands in the way of a migration, each with a code, a sentence and a hint.
//!
//! The checks change nothing. There is one table of codes, [`Code`](crate::check::Code), and one file per family: what
//! the source says of itself, its process, its images and what it has of its host, ports, the host, the destination's
//! program. What a family looks at is read first, and then judged by pure functions.

/// The one table of codes.
mod code;
/// Blockers in what tells a destination from its source.
mod compare;
/// What the host has for a second QEMU.
mod host;
/// Blockers in options with which QEMU runs other programs of the host.
mod host_programs;
/// Images and devices of the host that the source holds.
mod images;
/// Ports on which the destination is to listen.
mod ports;
/// Where the source lives, and who looks after it.
mod process;
/// The QEMU that is to be the destination.
mod program;
/// Blockers in what the source says of itself.
mod source;
/// Blockers in what a destination on this host would have to be given.
mod standing;
/// Words for what could not even be looked at.
mod words;

pub use code::Code;
pub use compare::{differences, other_images};
pub use host::{Memory, Short, free_huge_pages, huge_pages, huge_pages_of, kvm, memory, userfaultfd};
pub use host_programs::host_programs;
pub use images::images;
pub use ports::{incoming_port, ports};
pub use process::{SourceEnds, process};
pub use program::{Program, older_qemu};
pub use source::{Intent, findings, untracked};
pub use standing::{locked_memory, memory_room};

use std::fmt;

use crate::record::Warning;

/// Why a migration is refused before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// What programs know it by.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Blocker {
    /// A blocker with a hint.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: Some(hint.into()) }
    }

    /// A blocker about which nothing can be said but what it is.
    pub fn bare(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }
}

impl From<Blocker> for Warning {
    fn from(blocker: Blocker) -> Self {
        Self { code: blocker.code.to_string(), message: blocker.message, hint: blocker.hint }
    }
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What stands in the way.
    pub blockers: Vec<Blocker>,
    /// What somebody should know, though it stands in nobody's way.
    pub warnings: Vec<Warning>,
}

impl Findings {
    /// Something stands in the way.
    pub fn block(&mut self, blocker: impl Into<Blocker>) {
        self.blockers.push(blocker.into());
    }

    /// Somebody should know something.
    pub fn warn(&mut self, warning: impl Into<Warning>) {
        self.warnings.push(warning.into());
    }

    /// What else was found.
    pub fn add(&mut self, others: Self) {
        self.blockers.extend(others.blockers);
        self.warnings.extend(others.warnings);
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
