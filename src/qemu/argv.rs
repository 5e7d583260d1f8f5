//! A QEMU command line as options in order, read from /proc and rendered back.
//!
//! Three things stand on it: an optional loader before QEMU (`ld.so --library-path ... qemu ...`), QEMU itself, and its
//! options. QEMU takes `-name` and `--name` alike, and a word that is no option is a disk image, commas and all.
//!
//! What a process shows is what was last executed. A wrapper that executes QEMU (`numactl`, `taskset`, `nice`, `setarch`,
//! `env`, `prlimit`, `systemd-run --scope`, a script with `exec`) is not to be seen any more. What stays before QEMU is
//! what runs it within its own process: the loader, or an emulator of another architecture that the kernel put there
//! (`binfmt_misc`). One that waits for its child (`sudo`, `timeout`, `strace`) has QEMU's words on its own command line too,
//! and is no QEMU; only the program that a process runs tells it apart.
//!
//! Nothing is lost: `CommandLine::render` gives the very words back. An option's value is changed by
//! `CommandOption::properties`, in whichever form it is written, and what is not changed keeps every byte.

use std::ffi::OsString;
use std::path::Path;

/// A configuration file as the options that say the same.
pub mod configuration;
/// What a command line says of its guest.
mod facts;
/// A JSON object, changed in place.
mod json;
/// Values of the form `first,key=value,flag`.
mod key_values;
/// The options of QEMU: which take a value, how it is written, and what a repeated one means.
pub mod options;
/// The properties of an option, read and changed in one way.
mod properties;
/// A command line that is safe to show.
mod secrets;

pub use json::{JsonObject, Scalar};
pub use key_values::KeyValues;
pub use properties::{NoSuchPlace, Properties};
pub use secrets::HIDDEN;

pub(super) use options::takes_value;

/// One option, with its value where it takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOption {
    /// Its name without dashes; empty for a word that is no option (a disk image).
    pub name: String,
    /// Its value.
    pub value: Option<String>,
    dashes: Dashes,
}

/// How the name was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dashes {
    One,
    Two,
}

impl CommandOption {
    /// An option that stands alone.
    pub fn flag(name: &str) -> Self {
        Self { name: name.to_owned(), value: None, dashes: Dashes::One }
    }

    /// An option with a value.
    pub fn with_value(name: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), value: Some(value.into()), dashes: Dashes::One }
    }

    /// The same with another value.
    #[must_use]
    pub fn having(self, value: impl Into<String>) -> Self {
        Self { value: Some(value.into()), ..self }
    }
}

/// The command line of a QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// What stands before QEMU: a loader with its options, or nothing.
    pub launcher: Vec<String>,
    /// QEMU itself, as it was called.
    pub program: String,
    /// Its options, in order.
    pub options: Vec<CommandOption>,
}

/// The words are not the command line of a QEMU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// There is nothing that looks like a QEMU in it.
    #[error("'{0}' is not the command line of a QEMU system emulator")]
    NotQemu(String),
    /// A word that is no text.
    #[error("the command line has a word that is not UTF-8: {0}")]
    NotText(String),
    /// The last option has no value.
    #[error("the option -{0} stands last and has no value")]
    WithoutValue(String),
}

impl CommandLine {
    /// Reads the arguments of a process, its own name first.
    pub fn parse(arguments: &[OsString]) -> Result<Self, CommandLineError> {
        let words = texts(arguments)?;
        let start = program_position(&words).ok_or_else(|| {
            CommandLineError::NotQemu(words.iter().take(3).copied().collect::<Vec<_>>().join(" "))
        })?;
        Self::of_words(&words, start)
    }

    /// Reads the arguments of a process that runs this file. A process can be called as it likes (`exec -a NAME`), and one
    /// that runs a QEMU is one by whatever name.
    pub fn of_process(arguments: &[OsString], executable: &Path) -> Result<Self, CommandLineError> {
        if arguments.is_empty() || !is_qemu_name(&executable.to_string_lossy()) {
            return Self::parse(arguments);
        }
        Self::of_words(&texts(arguments)?, 0)
    }

    fn of_words(words: &[&str], start: usize) -> Result<Self, CommandLineError> {
        let (launcher, rest) = words.split_at(start);
        let mut rest = rest.iter();
        let program = rest.next().copied().unwrap_or_default().to_owned();
        let mut options = Vec::new();
        while let Some(word) = rest.next() {
            let Some(name) = option_name(word) else {
                options.push(CommandOption::with_value("", *word));
                continue;
            };
            let mut option = CommandOption::flag(name);
            if word.starts_with("--") {
                option.dashes = Dashes::Two;
            }
            if takes_value(name) {
                let value = rest.next().ok_or_else(|| CommandLineError::WithoutValue(name.to_owned()))?;
                option.value = Some((*value).to_owned());
            }
            options.push(option);
        }
        Ok(Self { launcher: launcher.iter().map(|&word| word.to_owned()).collect(), program, options })
    }

    /// The words again, as they were.
    pub fn render(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = self.launcher.iter().map(OsString::from).collect();
        words.push(OsString::from(&self.program));
        for option in &self.options {
            if !option.name.is_empty() {
                let dashes = if option.dashes == Dashes::Two { "--" } else { "-" };
                words.push(OsString::from(format!("{dashes}{}", option.name)));
            }
            words.extend(option.value.as_ref().map(OsString::from));
        }
        words
    }

    /// The values of an option, in order.
    pub fn values<'line>(&'line self, name: &'line str) -> impl Iterator<Item = &'line str> {
        self.options
            .iter()
            .filter(move |option| option.name == name)
            .filter_map(|option| option.value.as_deref())
    }

    /// Whether an option stands on it.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|option| option.name == name)
    }
}

fn texts(arguments: &[OsString]) -> Result<Vec<&str>, CommandLineError> {
    let text = |word: &'_ OsString| CommandLineError::NotText(word.to_string_lossy().into_owned());
    arguments.iter().map(|word| word.to_str().ok_or_else(|| text(word))).collect()
}

/// Whether this is the name of a QEMU system emulator.
///
/// `qemu-kvm` is what Red Hat's packages call it, `kvm` what Proxmox's do, `kvm-spice` what Ubuntu's did; Nix puts a
/// script in the place of a program and calls the program `.qemu-kvm-wrapped`.
pub fn is_qemu_name(path: &str) -> bool {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let bare = name.strip_prefix('.').and_then(|name| name.strip_suffix("-wrapped")).unwrap_or(name);
    bare.contains("qemu-system-") || matches!(bare, "qemu-kvm" | "kvm" | "kvm-spice")
}

/// Where QEMU stands: first, or behind a loader and its options.
pub(super) fn program_position(words: &[&str]) -> Option<usize> {
    let first = words.first()?;
    if is_qemu_name(first) {
        return Some(0);
    }
    // Behind a loader QEMU comes before any option of QEMU's own, so that the first name of one is it; a value such
    // as `-D /var/log/qemu-system-x86_64.log` cannot come earlier.
    words.iter().position(|word| is_qemu_name(word) && !word.starts_with('-'))
}

pub(super) fn option_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
#[path = "argv/corpus_tests.rs"]
mod corpus_tests;

#[cfg(test)]
#[path = "argv/tests.rs"]
mod tests;
