//! A QEMU command line as options in order, read from /proc and rendered back.
//!
//! Three things stand on it: an optional loader or wrapper before QEMU (`ld.so --library-path ... qemu ...`), QEMU
//! itself, and its options. QEMU takes `-name` and `--name` alike, and a word that is no option is a disk image.

use std::ffi::OsString;
use std::path::Path;

/// Options that stand alone (`qemu-options.hx`, 5.2 to 11.1); every other one takes the next word as its value.
const WITHOUT_VALUE: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "ctrl-grab",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-kvm",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "old-param",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "sdl",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// One option, with its value where it takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOption {
    /// Its name without dashes; empty for a word that is no option (a disk image).
    pub name: String,
    /// Its value.
    pub value: Option<String>,
}

impl CommandOption {
    /// An option that stands alone.
    pub fn flag(name: &str) -> Self {
        Self { name: name.to_owned(), value: None }
    }

    /// An option with a value.
    pub fn with_value(name: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), value: Some(value.into()) }
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
        let words = arguments
            .iter()
            .map(|word| {
                word.to_str().ok_or_else(|| CommandLineError::NotText(word.to_string_lossy().into_owned()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let start = program_position(&words).ok_or_else(|| {
            CommandLineError::NotQemu(words.iter().take(3).copied().collect::<Vec<_>>().join(" "))
        })?;
        let (launcher, rest) = words.split_at(start);
        let mut rest = rest.iter();
        let program = rest.next().copied().unwrap_or_default().to_owned();
        let mut options = Vec::new();
        while let Some(word) = rest.next() {
            options.push(match option_name(word) {
                None => CommandOption::with_value("", *word),
                Some(name) if !takes_value(name) => CommandOption::flag(name),
                Some(name) => {
                    let value = rest.next().ok_or_else(|| CommandLineError::WithoutValue(name.to_owned()))?;
                    CommandOption::with_value(name, *value)
                }
            });
        }
        Ok(Self { launcher: launcher.iter().map(|&word| word.to_owned()).collect(), program, options })
    }

    /// The words again, as QEMU would read them.
    pub fn render(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = self.launcher.iter().map(OsString::from).collect();
        words.push(OsString::from(&self.program));
        for option in &self.options {
            if !option.name.is_empty() {
                words.push(OsString::from(format!("-{}", option.name)));
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

/// Whether this is the name of a QEMU system emulator.
pub fn is_qemu_name(path: &str) -> bool {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // `qemu-kvm` is what Red Hat's packages call it; `kvm` is an old wrapper of Debian's.
    name.contains("qemu-system-") || name == "qemu-kvm" || name == "kvm"
}

/// Whether an option takes the next word as its value.
pub(super) fn takes_value(name: &str) -> bool {
    !WITHOUT_VALUE.contains(&name)
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

/// A value of the form `first,key=value,flag`, with `,,` for a comma, as most of QEMU's options have it.
///
/// A part without `=` keeps an empty key; QEMU reads the first such part as the option's implied key, and a later one
/// as a flag that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValues(pub Vec<(String, String)>);

impl KeyValues {
    /// Reads it. Every text can be read.
    pub fn parse(text: &str) -> Self {
        let mut parts = vec![String::new()];
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            if letter != ',' {
                if let Some(part) = parts.last_mut() {
                    part.push(letter);
                }
            } else if letters.next_if_eq(&',').is_some() {
                if let Some(part) = parts.last_mut() {
                    part.push(',');
                }
            } else {
                parts.push(String::new());
            }
        }
        let pair = |part: String| match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => (key.to_owned(), value.to_owned()),
            _ => (String::new(), part),
        };
        Self(parts.into_iter().map(pair).collect())
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first part, when it has no key.
    pub fn implied(&self) -> Option<&str> {
        self.0.first().filter(|(name, _)| name.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on, in the new spelling (`server=on`) or in the old (`server`).
    pub fn is_on(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| matches!(value, "on" | "yes" | "true" | "y"))
            || self.0.iter().skip(1).any(|(name, value)| name.is_empty() && value == key)
    }

    /// Sets a key, in its place if it stands there already.
    pub fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().rev().find(|(name, _)| name == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((key.to_owned(), value.to_owned())),
        }
    }

    /// The text again.
    pub fn render(&self) -> String {
        let part = |(key, value): &(String, String)| {
            let text = if key.is_empty() { value.clone() } else { format!("{key}={value}") };
            text.replace(',', ",,")
        };
        self.0.iter().map(part).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        shell_words::split(text).unwrap().into_iter().map(OsString::from).collect()
    }

    #[test]
    fn options_with_and_without_a_value_and_disk_images_are_told_apart() {
        let line = CommandLine::parse(&words("qemu-system-x86_64 -S --name a,b=c -nographic disk.img -m 1G"))
            .unwrap();
        assert_eq!(line.program, "qemu-system-x86_64");
        assert_eq!(
            line.options,
            [
                CommandOption::flag("S"),
                CommandOption::with_value("name", "a,b=c"),
                CommandOption::flag("nographic"),
                CommandOption::with_value("", "disk.img"),
                CommandOption::with_value("m", "1G"),
            ]
        );
        assert_eq!(line.values("m").collect::<Vec<_>>(), ["1G"]);
    }

    #[test]
    fn a_loader_before_qemu_is_kept_apart() {
        let text = "/q/ld-linux-x86-64.so.2 --library-path /q/lib /q/bin/qemu-system-x86_64 -S";
        let line = CommandLine::parse(&words(text)).unwrap();
        assert_eq!(line.launcher, ["/q/ld-linux-x86-64.so.2", "--library-path", "/q/lib"]);
        assert_eq!(line.program, "/q/bin/qemu-system-x86_64");
        assert_eq!(line.render(), words(text));
    }

    #[test]
    fn what_is_no_qemu_is_refused() {
        assert!(matches!(CommandLine::parse(&words("sleep 1000")), Err(CommandLineError::NotQemu(_))));
        assert!(matches!(CommandLine::parse(&[]), Err(CommandLineError::NotQemu(_))));
        assert!(matches!(
            CommandLine::parse(&words("qemu-system-x86_64 -m")),
            Err(CommandLineError::WithoutValue(_))
        ));
    }

    #[test]
    fn commas_switches_and_implied_keys_are_read_as_qemu_does() {
        let mut value = KeyValues::parse("socket,id=a,path=/tmp/x,,y,server,wait=off");
        assert_eq!(value.implied(), Some("socket"));
        assert_eq!(value.get("path"), Some("/tmp/x,y"));
        assert!(value.is_on("server") && !value.is_on("wait"));
        value.set("path", "/z,1");
        assert_eq!(value.render(), "socket,id=a,path=/z,,1,server,wait=off");
    }

    proptest! {
        #[test]
        fn key_values_render_to_what_was_parsed(text in "[a-z=,/. ]{0,60}") {
            let parsed = KeyValues::parse(&text);
            prop_assert_eq!(KeyValues::parse(&parsed.render()), parsed);
        }

        #[test]
        fn a_command_line_renders_to_what_was_parsed(
            values in proptest::collection::vec(("(name|m|smp|device|drive|chardev)", "[!-~]{1,30}"), 0..20),
        ) {
            let mut all = words("qemu-system-x86_64");
            for (name, value) in values {
                all.push(format!("-{name}").into());
                all.push(value.into());
            }
            prop_assert_eq!(CommandLine::parse(&all).unwrap().render(), all);
        }
    }
}
