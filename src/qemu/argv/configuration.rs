//! A configuration file (`-readconfig`) as the options that say the same.
//!
//! The format is read as QEMU's `sscanf` does (run on 5.2 to 11.1): a group stands in the first column, `[device "id"]`; an
//! entry is `key = "value"`, where the space before `=` must be and the one behind it need not; nothing is escaped; what
//! stands behind a value is no matter; `#` begins a comment in the first column only. A line of nothing but spaces is an
//! error. Where QEMU reads on in a way that nobody can mean (a quote or a bracket that is never closed), and where versions
//! differ (5.2 keeps both of a key given twice, later ones the last), this refuses.
//!
//! An option on the command line can do more than its group in a file. `-netdev`, `-mon` or `-audiodev` take a default
//! away, which a group leaves: a file with `[netdev]` still gets the default network card (run on all four). They say the
//! same only with `-nodefaults`. `-vnc` and `-spice` take the default display away, and what `-smbios`, `-option-rom`,
//! `-virtfs` and some others do, a group does not do at all; such groups are refused.

use super::options::{Form, form};
use super::{CommandLine, CommandOption, KeyValues};

/// Groups, the options that they are, and whether the option takes a default away.
const GROUPS: &[(&str, &str, Effect)] = &[
    ("accel", "accel", Effect::Same),
    ("action", "action", Effect::Same),
    ("add-fd", "add-fd", Effect::Same),
    ("audiodev", "audiodev", Effect::TakesDefault),
    ("boot-opts", "boot", Effect::Same),
    ("chardev", "chardev", Effect::Same),
    ("device", "device", Effect::Same),
    ("drive", "drive", Effect::Same),
    ("fsdev", "fsdev", Effect::Same),
    ("fw_cfg", "fw_cfg", Effect::Same),
    ("global", "global", Effect::Same),
    ("iscsi", "iscsi", Effect::Same),
    ("machine", "machine", Effect::Same),
    ("memory", "m", Effect::Same),
    ("mon", "mon", Effect::TakesDefault),
    ("name", "name", Effect::Same),
    ("net", "net", Effect::TakesDefault),
    ("netdev", "netdev", Effect::TakesDefault),
    ("nic", "nic", Effect::TakesDefault),
    ("numa", "numa", Effect::Same),
    ("object", "object", Effect::Same),
    ("rtc", "rtc", Effect::Same),
    ("sandbox", "sandbox", Effect::Same),
    ("smp-opts", "smp", Effect::Same),
    ("tpmdev", "tpmdev", Effect::Same),
];

/// QEMU's buffers: a longer word is cut, a longer line is read as two.
const LONGEST_WORD: usize = 63;
const LONGEST_LINE: usize = 1022;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Same,
    TakesDefault,
}

/// Whether QEMU makes devices that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    /// It does.
    Made,
    /// It was told not to, by `-nodefaults`.
    None,
}

impl CommandLine {
    /// Whether its QEMU makes devices that nobody asked for.
    pub fn defaults(&self) -> Defaults {
        if self.has("nodefaults") { Defaults::None } else { Defaults::Made }
    }
}

/// What is wrong in a configuration file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct ConfigurationError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither a group nor an entry.
    #[error("this is neither [group], [group \"id\"] nor key = \"value\"")]
    Unreadable,
    /// An entry before any group.
    #[error("this stands in no group")]
    NoGroup,
    /// A group whose effect no option has.
    #[error("no option does what the group [{0}] does")]
    Group(String),
    /// A group whose option takes a default away.
    #[error("as an option [{0}] would take a default device away; that is the same only with -nodefaults")]
    TakesDefault(String),
    /// A key that stands there already.
    #[error("'{0}' stands twice in its group, which QEMU 5.2 and later ones read differently")]
    Twice(String),
    /// Too long for QEMU.
    #[error("this is longer than QEMU reads")]
    TooLong,
}

/// The options that say what a configuration file says, in its order.
pub fn flatten(text: &str, defaults: Defaults) -> Result<Vec<CommandOption>, ConfigurationError> {
    let mut found: Vec<(&'static str, KeyValues)> = Vec::new();
    for (index, line) in text.split_terminator('\n').enumerate() {
        let fail = |(at, problem): (usize, Problem)| {
            let column = line.get(..at).map_or(0, |before| before.chars().count()) + 1;
            ConfigurationError { line: index + 1, column, problem }
        };
        if line.len() > LONGEST_LINE {
            return Err(fail((0, Problem::TooLong)));
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') {
            found.push(group(line, defaults).map_err(fail)?);
        } else {
            let (at, key, value) = entry(line).map_err(fail)?;
            let (_, values) = found.last_mut().ok_or_else(|| fail((at, Problem::NoGroup)))?;
            if values.get(key).is_some() {
                return Err(fail((at, Problem::Twice(key.to_owned()))));
            }
            values.set(key, value);
        }
    }
    // A group without an entry makes nothing, and merges with nothing.
    Ok(found
        .into_iter()
        .filter(|(_, values)| !values.0.is_empty())
        .map(|(name, values)| option(name, values))
        .collect())
}

/// The option, with the part first that its readers know without a key.
fn option(name: &str, mut values: KeyValues) -> CommandOption {
    let implied = match form(name) {
        Form::Pairs { implied } | Form::PairsOrJson { implied } => implied,
        _ => None,
    };
    let is_plain =
        |value: &str| value.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.+:".contains(letter));
    let place = values
        .0
        .iter()
        .position(|(key, value)| Some(key.as_str()) == implied && !value.is_empty() && is_plain(value));
    if let Some(index) = place {
        let (_, value) = values.0.remove(index);
        values.0.insert(0, (String::new(), value));
    }
    CommandOption::with_value(name, values.render())
}

/// `[group]` or `[group "id"]`: the option, with its id.
fn group(line: &str, defaults: Defaults) -> Result<(&'static str, KeyValues), (usize, Problem)> {
    let inner = line.trim_end().strip_prefix('[').and_then(|line| line.strip_suffix(']'));
    let inner = inner.ok_or((line.trim_end().len(), Problem::Unreadable))?;
    let (name, id) = match inner.split_once(char::is_whitespace) {
        None => (inner, None),
        Some((name, id)) => {
            let id = id.trim_start().strip_prefix('"').and_then(|id| id.strip_suffix('"'));
            let id = id.filter(|id| !id.is_empty() && !id.contains('"'));
            (name, Some(id.ok_or((name.len() + 2, Problem::Unreadable))?))
        }
    };
    if name.len() > LONGEST_WORD || id.is_some_and(|id| id.len() > LONGEST_WORD) {
        return Err((1, Problem::TooLong));
    }
    let known = GROUPS.iter().find(|(group, ..)| *group == name);
    let (_, option, effect) = known.ok_or_else(|| (1, Problem::Group(name.to_owned())))?;
    if *effect == Effect::TakesDefault && defaults == Defaults::Made {
        return Err((1, Problem::TakesDefault(name.to_owned())));
    }
    let id = id.map(|id| ("id".to_owned(), id.to_owned()));
    Ok((option, KeyValues(id.into_iter().collect())))
}

/// `key = "value"`: where the key stands, and both.
fn entry(line: &str) -> Result<(usize, &str, &str), (usize, Problem)> {
    let start = line.len() - line.trim_start().len();
    let rest = &line[start..];
    let end = rest.find(char::is_whitespace).ok_or((line.len(), Problem::Unreadable))?;
    let key = &rest[..end];
    if key.is_empty() || key.contains(['=', ',', '"', '#', '[']) {
        return Err((start, Problem::Unreadable));
    }
    if key.len() > LONGEST_WORD {
        return Err((start, Problem::TooLong));
    }
    let rest = rest[end..].trim_start();
    let at = |rest: &str| (line.len() - rest.len(), Problem::Unreadable);
    let value = rest.strip_prefix('=').ok_or_else(|| at(rest))?.trim_start();
    let inner = value.strip_prefix('"').ok_or_else(|| at(value))?;
    let (value, _) = inner.split_once('"').ok_or_else(|| at(""))?;
    Ok((start, key, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(text: &str) -> Result<Vec<String>, (usize, usize, Problem)> {
        let written =
            |option: CommandOption| format!("-{} {}", option.name, option.value.unwrap_or_default());
        match flatten(text, Defaults::None) {
            Ok(options) => Ok(options.into_iter().map(written).collect()),
            Err(error) => Err((error.line, error.column, error.problem)),
        }
    }

    #[test]
    fn groups_become_options_in_their_order() {
        let text = "# a guest\n\n[machine]\n  type = \"q35\"\n  accel =\"kvm:tcg\"\n[memory]\r\n  size = \"1G\"\r\n\
            [smp-opts]\ncpus = \"2\"   # two\n[drive \"d\"]\nfile = \"/a,b\"\nif = \"none\"\n[netdev \"n\"]\n\ttype = \"user\"\n\
            [device]\ndriver = \"isa-debugcon\"\n[device \"e\"]\n[name]\nguest = \"\"";
        assert_eq!(
            options(text).unwrap(),
            [
                "-machine q35,accel=kvm:tcg",
                "-m 1G",
                "-smp 2",
                "-drive id=d,file=/a,,b,if=none",
                "-netdev user,id=n",
                "-device isa-debugcon",
                "-device id=e",
                "-name guest=",
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, line, column, problem) in [
            ("a = \"b\"", 1, 1, Problem::NoGroup),
            ("[name]\n   \n", 2, 4, Problem::Unreadable),
            ("[name]\n  guest=\"a\"", 2, 12, Problem::Unreadable),
            ("[name]\n  guest = a", 2, 11, Problem::Unreadable),
            ("[name]\n  guest = \"a", 2, 13, Problem::Unreadable),
            ("[name]\n # c", 2, 2, Problem::Unreadable),
            ("[name]\n guest = \"a\"\n guest = \"b\"", 3, 2, Problem::Twice("guest".to_owned())),
            ("[name", 1, 6, Problem::Unreadable),
            ("[name id]", 1, 7, Problem::Unreadable),
            ("  [name]", 1, 9, Problem::Unreadable),
            ("[blockdev \"a\"]", 1, 2, Problem::Group("blockdev".to_owned())),
            ("[vnc \"a\"]", 1, 2, Problem::Group("vnc".to_owned())),
        ] {
            assert_eq!(options(text), Err((line, column, problem)), "{text}");
        }
        let long = format!("[name]\nguest = \"{}\"", "a".repeat(1030));
        assert_eq!(options(&long), Err((2, 1, Problem::TooLong)));
    }

    #[test]
    fn a_group_whose_option_takes_a_default_away_needs_nodefaults() {
        let error = flatten("[netdev \"n\"]\ntype = \"user\"", Defaults::Made).unwrap_err();
        assert_eq!(error.problem, Problem::TakesDefault("netdev".to_owned()));
    }

    proptest! {
        #[test]
        fn every_value_comes_through(
            entries in proptest::collection::vec(("[a-z.-]{1,9}", "[ -!#-~é]{0,20}"), 1..6),
        ) {
            let mut lines = vec!["[device \"x\"]".to_owned()];
            let mut known: Vec<(String, String)> = Vec::new();
            for (key, value) in entries {
                if key != "id" && !known.iter().any(|(other, _)| *other == key) {
                    lines.push(format!("  {key} = \"{value}\""));
                    known.push((key, value));
                }
            }
            let options = flatten(&lines.join("\n"), Defaults::Made).unwrap();
            for (key, value) in known {
                prop_assert_eq!(options[0].get(&key), Some(value));
            }
        }

        #[test]
        fn no_text_is_too_strange(text in "[\\[\\]\"=# a\ré\n]{0,60}") {
            let _ = flatten(&text, Defaults::Made);
        }
    }
}
