//! A template with values becomes a command.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Fault, Parsed, Piece, Placeholder, Position, Template, Values, Word, Wrong};
use crate::qemu::argv::{CommandLine, option_name, program_position, takes_value};

/// A command that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    /// The command line. `-daemonize` is not on it: who starts it detaches it.
    pub line: CommandLine,
    /// Where it starts.
    pub working_directory: PathBuf,
    /// What is added to the environment.
    pub environment: Vec<(String, String)>,
}

/// What a word of a command is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// A loader's, or QEMU itself.
    Command,
    /// An option.
    Option,
    /// The value of an option.
    ValueOf(String),
    /// A disk image.
    Image,
    /// Where `-incoming` goes.
    Incoming,
}

/// Words that are no command of a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoleError {
    /// No QEMU is among them.
    NotQemu,
    /// The option at this index has no value.
    WithoutValue(usize),
}

/// What each word is.
pub(super) fn roles(words: &[Word]) -> Result<Vec<Role>, RoleError> {
    let outlines: Vec<String> = words.iter().map(Word::outline).collect();
    let texts: Vec<&str> = outlines.iter().map(String::as_str).collect();
    let program = program_position(&texts).ok_or(RoleError::NotQemu)?;
    let mut roles = vec![Role::Command; program + 1];
    while let Some(&text) = texts.get(roles.len()) {
        let index = roles.len();
        if words[index].is_incoming() {
            roles.push(Role::Incoming);
            continue;
        }
        let Some(name) = option_name(text) else {
            roles.push(Role::Image);
            continue;
        };
        roles.push(Role::Option);
        if takes_value(name) {
            words
                .get(index + 1)
                .filter(|value| !value.is_incoming())
                .ok_or(RoleError::WithoutValue(index))?;
            roles.push(Role::ValueOf(name.to_owned()));
        }
    }
    Ok(roles)
}

/// Options whose value has no comma syntax: paths, texts for the guest, and forms of their own.
const WITHOUT_COMMAS: &[&str] = &[
    "D",
    "L",
    "append",
    "bios",
    "cdrom",
    "chroot",
    "d",
    "dtb",
    "dump-vmstate",
    "fda",
    "fdb",
    "gdb",
    "global",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "incoming",
    "initrd",
    "kernel",
    "loadvm",
    "mem-path",
    "mtdblock",
    "pflash",
    "pidfile",
    "prom-env",
    "readconfig",
    "runas",
    "sd",
    "set",
    "singlestep",
    "uuid",
];

/// Character devices in a short form whose rest is a path, commas and all (`qemu_chr_parse_compat`).
const WITH_A_BARE_PATH: [&str; 3] = ["file:", "pipe:", "/"];

/// How a value is written within a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    AsItIs,
    CommasDoubled,
    Json,
}

impl Writing {
    fn within(word: &Word, role: &Role) -> Self {
        let start = word.start();
        let device = start.strip_prefix("mon:").unwrap_or(start);
        match role {
            _ if word.pieces().len() == 1 => Self::AsItIs,
            _ if start.starts_with('{') => Self::Json,
            Role::ValueOf(option) if WITHOUT_COMMAS.contains(&option.as_str()) => Self::AsItIs,
            Role::ValueOf(_) if WITH_A_BARE_PATH.iter().any(|form| device.starts_with(form)) => Self::AsItIs,
            Role::ValueOf(_) => Self::CommasDoubled,
            Role::Command | Role::Option | Role::Image | Role::Incoming => Self::AsItIs,
        }
    }

    fn write(self, value: &str) -> Cow<'_, str> {
        match self {
            Self::AsItIs => Cow::Borrowed(value),
            Self::CommasDoubled => Cow::Owned(value.replace(',', ",,")),
            Self::Json => {
                let quoted = serde_json::Value::from(value).to_string();
                Cow::Owned(quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned())
            }
        }
    }
}

/// Puts the values in. `directory` is what `{dir}` is where nobody says it, and what a relative directory counts from.
pub(super) fn fill(parsed: &Parsed, values: &Values, directory: &Path) -> Result<Filled, Fault> {
    let Template { directory: start, environment, words, .. } = &parsed.template;
    let filling = Filling { parsed, values, directory };
    let start = match start {
        Some(word) => filling.word(word, Writing::AsItIs)?,
        None => filling.value(Placeholder::Dir)?,
    };
    let environment = environment
        .iter()
        .map(|(name, word)| Ok((name.clone(), filling.word(word, Writing::AsItIs)?)))
        .collect::<Result<_, Fault>>()?;
    Ok(Filled { line: filling.command(words)?, working_directory: directory.join(start), environment })
}

struct Filling<'a> {
    parsed: &'a Parsed,
    values: &'a Values,
    directory: &'a Path,
}

impl Filling<'_> {
    fn command(&self, words: &[Word]) -> Result<CommandLine, Fault> {
        let not_qemu = Fault { at: Position::START, wrong: Wrong::NotQemu };
        let roles = roles(words).map_err(|_| not_qemu.clone())?;
        let mut command: Vec<OsString> = Vec::new();
        for (word, role) in words.iter().zip(&roles) {
            if *role == Role::Incoming {
                command.extend(self.incoming()?);
            } else {
                command.push(self.word(word, Writing::within(word, role))?.into());
            }
        }
        if !roles.contains(&Role::Incoming) {
            command.extend(self.incoming()?);
        }
        // What a value has made of a word can be no QEMU's, too.
        let mut line = CommandLine::parse(&command).map_err(|_| not_qemu)?;
        line.options.retain(|option| option.name != "daemonize");
        Ok(line)
    }

    /// `-S -incoming ...` for a destination, nothing for a guest of its own.
    fn incoming(&self) -> Result<Vec<OsString>, Fault> {
        let given = self.values.get(Placeholder::Incoming).is_some()
            || self.parsed.template.defaults.contains_key(&Placeholder::Incoming);
        if !given {
            return Ok(Vec::new());
        }
        Ok(vec!["-S".into(), "-incoming".into(), self.value(Placeholder::Incoming)?.into()])
    }

    fn word(&self, word: &Word, writing: Writing) -> Result<String, Fault> {
        let mut text = String::new();
        for piece in word.pieces() {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Hole(placeholder) => text.push_str(&writing.write(&self.value(*placeholder)?)),
            }
        }
        Ok(text)
    }

    /// The value of a placeholder: the one given, or its default. Defaults come to an end, as `parse` has seen to.
    fn value(&self, placeholder: Placeholder) -> Result<String, Fault> {
        if let Some(value) = self.values.get(placeholder) {
            return Ok(value.to_owned());
        }
        if let Some(default) = self.parsed.template.defaults.get(&placeholder) {
            return self.word(default, Writing::AsItIs);
        }
        match self.directory.to_str() {
            Some(directory) if placeholder == Placeholder::Dir => Ok(directory.to_owned()),
            _ => {
                let at = self.parsed.places.get(&placeholder).copied().unwrap_or(Position::START);
                Err(Fault { at, wrong: Wrong::MissingValue(placeholder) })
            }
        }
    }
}
