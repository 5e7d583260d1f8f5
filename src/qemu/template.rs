//! The command line of a guest as a file: a person reads it and keeps it in git, and it starts the guest and every
//! destination of it.
//!
//! ```text
//! # qmigrate template, from "web" (process 1234, QEMU 10.0.2)
//! cd {dir=/srv/vm}
//! QEMU_MODULE_DIR=/opt/q/modules
//! /usr/bin/qemu-system-x86_64
//!   -name guest={name=web}
//!   -machine pc-i440fx-10.0,accel=tcg
//!   -qmp unix:{qmp=/run/vm.qmp},server=on,wait=off
//!   {incoming}
//! ```
//!
//! # The grammar
//!
//! ```text
//! template    = [ "cd" word ] { NAME "=" word } word { word }
//! word        = { character | "'" ... "'" | '"' ... '"' | "\" character | placeholder }
//! placeholder = "{" name [ "=" default ] "}"
//! ```
//!
//! Words and quotes are a shell's: blanks and ends of lines separate words, `#` at the start of a word begins a comment,
//! a backslash before the end of a line joins two lines. There are no variables, patterns or substitutions: the words
//! go to `execve`, never to a shell, and `$` is a `$`.
//!
//! `cd` says where relative paths count from; without it that is `{dir}`. `NAME=word` adds to the environment. The other
//! words are the command: a loader or none, QEMU, its options.
//!
//! A placeholder ([`Placeholder`](crate::qemu::template::Placeholder)) is one in quotes too. A `{` that no small letter
//! follows is a `{`, so that JSON can be written as it is; before a small letter a `{` is written `{{` (or `\{`). A
//! default is a piece of a word and may have placeholders of its own; the first `}` outside of quotes opened in the
//! default ends it, and `\}` is a `}`. A default is written once in a file, at any of the places.
//!
//! # Values
//!
//! A value that was typed counts before one that the source shows, that before the default in the file. `{dir}` is the
//! file's own directory where nothing else says it. A value that is a whole word is put in as it is; within an option
//! whose value has QEMU's comma syntax its commas are doubled; within a JSON word it is escaped as JSON. `{incoming}`
//! is a word of its own: nothing where a guest is started, `-S -incoming ...` where a destination is. A template
//! without it is as good, since the place of these options means nothing. `-daemonize` is left out: whoever starts a
//! QEMU from a template detaches it.

/// A template made from a QEMU that runs.
mod derive;
/// What is wrong in a template, and where.
mod fault;
/// A template with values becomes a command.
mod fill;
/// Text to template.
mod parse;
/// Template to text.
mod render;
/// Starts a guest from a template.
mod start;

pub use derive::{Derived, Origin, derive};
pub use fault::{Fault, Position, Wrong};
pub use fill::Filled;
pub use parse::{Parsed, parse};
pub use start::{StartError, Started, start};

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The largest template: a command line that Linux takes has 2 MiB at most, and what a person reads far less.
const LARGEST_BYTES: u64 = 1 << 20;

/// What differs from one start of a guest to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placeholder {
    /// Where relative paths count from.
    Dir,
    /// Where a destination listens; a word of its own.
    Incoming,
    /// The guest's name.
    Name,
    /// The path of the pidfile.
    Pidfile,
    /// The path of the QMP socket.
    Qmp,
    /// The path of the first serial port's socket or file.
    Serial,
    /// The value of the first `-vnc`.
    Vnc,
}

impl Placeholder {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Dir, Self::Incoming, Self::Name, Self::Pidfile, Self::Qmp, Self::Serial, Self::Vnc];

    /// The word in the braces.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Incoming => "incoming",
            Self::Name => "name",
            Self::Pidfile => "pidfile",
            Self::Qmp => "qmp",
            Self::Serial => "serial",
            Self::Vnc => "vnc",
        }
    }

    /// What a person writes for a value of it.
    pub const fn example(self) -> &'static str {
        match self {
            Self::Dir => "DIRECTORY",
            Self::Incoming => "defer",
            Self::Name => "NAME",
            Self::Pidfile | Self::Qmp | Self::Serial => "PATH",
            Self::Vnc => ":1",
        }
    }

    /// All of them as people write them.
    pub fn list() -> String {
        Self::ALL.map(|placeholder| placeholder.to_string()).join(" ")
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{{{}}}", self.word())
    }
}

/// A word is no placeholder's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no placeholder {{{}}}{}", word, nearest_words(word))]
pub struct UnknownPlaceholder {
    /// The word.
    pub word: String,
}

/// The placeholder that may have been meant.
fn nearest_words(word: &str) -> String {
    let distance = |placeholder: &Placeholder| strsim::osa_distance(placeholder.word(), word);
    let nearest = Placeholder::ALL.into_iter().min_by_key(distance).filter(|nearest| distance(nearest) <= 2);
    nearest.map_or_else(String::new, |nearest| format!("; is {nearest} meant?"))
}

impl FromStr for Placeholder {
    type Err = UnknownPlaceholder;

    fn from_str(word: &str) -> Result<Self, UnknownPlaceholder> {
        let found = Self::ALL.into_iter().find(|placeholder| placeholder.word() == word);
        found.ok_or_else(|| UnknownPlaceholder { word: word.to_owned() })
    }
}

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text, as it is.
    Text(String),
    /// A place for a value.
    Hole(Placeholder),
}

/// One word: texts and places for values. No text is empty, and no two texts stand side by side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Word(Vec<Piece>);

impl Word {
    /// A place for a value, alone.
    pub fn hole(placeholder: Placeholder) -> Self {
        Self(vec![Piece::Hole(placeholder)])
    }

    /// Its pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Adds text at its end.
    pub fn push_text(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.0.push(Piece::Text(text.to_owned())),
        }
    }

    /// Adds a place for a value at its end.
    pub fn push_hole(&mut self, placeholder: Placeholder) {
        self.0.push(Piece::Hole(placeholder));
    }

    /// Its text without the values.
    fn outline(&self) -> String {
        let texts = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Hole(_) => "",
        });
        texts.collect()
    }

    /// The text that it starts with.
    fn start(&self) -> &str {
        match self.0.first() {
            Some(Piece::Text(text)) => text,
            _ => "",
        }
    }

    fn is_incoming(&self) -> bool {
        self.0 == [Piece::Hole(Placeholder::Incoming)]
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        let mut word = Self::default();
        word.push_text(text);
        word
    }
}

/// A command line with places for values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Where relative paths count from; `{dir}` if it is not said.
    pub directory: Option<Word>,
    /// What is added to the environment.
    pub environment: Vec<(String, Word)>,
    /// The command: a loader or none, QEMU, its options.
    pub words: Vec<Word>,
    /// What placeholders are where nobody says it.
    pub defaults: BTreeMap<Placeholder, Word>,
}

/// Values for placeholders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<Placeholder, String>);

impl Values {
    /// Gives one a value, in the place of any that it had.
    pub fn set(&mut self, placeholder: Placeholder, value: impl Into<String>) {
        self.0.insert(placeholder, value.into());
    }

    /// The value of one.
    pub fn get(&self, placeholder: Placeholder) -> Option<&str> {
        self.0.get(&placeholder).map(String::as_str)
    }

    /// Those that have a value.
    pub fn placeholders(&self) -> impl Iterator<Item = Placeholder> {
        self.0.keys().copied()
    }

    /// The same files for one who starts in another directory: paths that counted from this one are whole.
    #[must_use]
    pub fn from_directory(&self, directory: &Path) -> Self {
        let whole = |(placeholder, value): (&Placeholder, &String)| {
            let is_path =
                matches!(placeholder, Placeholder::Qmp | Placeholder::Pidfile | Placeholder::Serial);
            let path = directory.join(value);
            let value = path.to_str().filter(|_| is_path).unwrap_or(value);
            (*placeholder, value.to_owned())
        };
        Self(self.0.iter().map(whole).collect())
    }

    /// These, and the others' where there is none.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        let mut all = others.0.clone();
        all.extend(self.0.clone());
        Self(all)
    }
}

/// A template as it was read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateFile {
    path: PathBuf,
    text: String,
    parsed: Parsed,
}

/// A template cannot be had from a file, or not be filled.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file cannot be read.
    #[error("the template {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe or a device.
    #[error("the template {} is not a plain file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// Far too large for what it is.
    #[error("the template {} is larger than {} KiB", path.display(), LARGEST_BYTES >> 10)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Something in it is wrong.
    #[error("{}:{fault}", path.display())]
    Fault {
        /// The file.
        path: PathBuf,
        /// What, and where.
        fault: Fault,
        /// The line that it is in, and another with a caret below the place; none where there is nothing to see.
        excerpt: Option<String>,
    },
}

impl TemplateError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } | Self::NotAFile { .. } | Self::TooLarge { .. } => {
                "`qmigrate template SOURCE > FILE` writes a template from a running guest".to_owned()
            }
            Self::Fault { fault, .. } => fault.wrong.hint(),
        }
    }
}

impl TemplateFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, TemplateError> {
        let failed = |source| TemplateError::Read { path: path.to_owned(), source };
        // A pipe without a writer would not even open.
        let open = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let file = open.map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(TemplateError::NotAFile { path: path.to_owned() });
        }
        let mut bytes = Vec::new();
        file.take(LARGEST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST_BYTES) {
            return Err(TemplateError::TooLarge { path: path.to_owned() });
        }
        Self::from_bytes(path, bytes)
    }

    fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, TemplateError> {
        let text = String::from_utf8(bytes).map_err(|error| {
            let bytes = error.as_bytes();
            let valid = String::from_utf8_lossy(&bytes[..error.utf8_error().valid_up_to()]);
            let fault = Fault { at: Position::end_of(&valid), wrong: Wrong::NotUtf8 };
            at_fault(path, &String::from_utf8_lossy(bytes), fault)
        })?;
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        let parsed = parse(&text).map_err(|fault| at_fault(path, &text, fault))?;
        Ok(Self { path: path.to_owned(), text, parsed })
    }

    /// The template in it.
    pub fn template(&self) -> &Template {
        &self.parsed.template
    }

    /// Whether a value for this placeholder would go anywhere.
    pub fn has_place_for(&self, placeholder: Placeholder) -> bool {
        match placeholder {
            // Both count where nothing is written, too.
            Placeholder::Dir | Placeholder::Incoming => true,
            _ => self.parsed.places.contains_key(&placeholder),
        }
    }

    /// The command that it is with these values. Relative directories count from where the file is.
    pub fn fill(&self, values: &Values) -> Result<Filled, TemplateError> {
        let failed = |source| TemplateError::Read { path: self.path.clone(), source };
        let path = std::path::absolute(&self.path).map_err(failed)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        fill::fill(&self.parsed, values, directory).map_err(|fault| at_fault(&self.path, &self.text, fault))
    }
}

fn at_fault(path: &Path, text: &str, fault: Fault) -> TemplateError {
    let excerpt = fault.at.excerpt(text);
    TemplateError::Fault { path: path.to_owned(), fault, excerpt }
}

#[cfg(test)]
mod tests;
