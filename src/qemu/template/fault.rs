//! What is wrong in a template, and where.

use std::fmt;

use unicode_width::UnicodeWidthStr;

use super::{Placeholder, UnknownPlaceholder};
use crate::qmp::wire::printable;

/// So many columns of a line stand before the place that is meant; those further left are left out.
const COLUMNS_BEFORE: usize = 50;
/// So many columns of a line are shown: with their margin they fit on a terminal of 80.
const COLUMNS_SHOWN: usize = 74;

/// A place in a text, as editors count: both from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Position {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1 };

    /// The place behind the last character of a text.
    pub fn end_of(text: &str) -> Self {
        text.chars().fold(Self::START, Self::after)
    }

    /// The next place.
    pub(super) fn after(self, character: char) -> Self {
        if character == '\n' {
            Self { line: self.line + 1, column: 1 }
        } else {
            Self { column: self.column + 1, ..self }
        }
    }

    /// The line of this place, and below it a caret under the place. Tabs are blanks, wide characters take the columns
    /// that they take, and what could speak to a terminal is escaped.
    pub(super) fn excerpt(self, text: &str) -> Option<String> {
        let line = text.split('\n').nth(self.line - 1)?.trim_end();
        if line.is_empty() {
            return None;
        }
        let shown = |character: char| match character {
            '\t' => " ".to_owned(),
            _ => printable(&character.to_string()),
        };
        let width = |parts: &[String]| parts.iter().map(|part| part.width()).sum::<usize>();
        let mut left_out = (self.column - 1).saturating_sub(COLUMNS_BEFORE);
        let mut before: Vec<String> = line.chars().take(self.column - 1).skip(left_out).map(shown).collect();
        while width(&before) > COLUMNS_BEFORE {
            before.remove(0);
            left_out += 1;
        }
        if left_out > 0 {
            before.insert(0, "…".to_owned());
        }
        let caret = width(&before);
        let mut excerpt = before.concat();
        for part in line.chars().skip(self.column - 1).map(shown) {
            if excerpt.width() + part.width() > COLUMNS_SHOWN {
                excerpt.push('…');
                break;
            }
            excerpt.push_str(&part);
        }
        Some(format!("    {excerpt}\n    {}^", " ".repeat(caret)))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.line, self.column)
    }
}

/// Something in a template is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {wrong}")]
pub struct Fault {
    /// Where.
    pub at: Position,
    /// What.
    pub wrong: Wrong,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// A quote without its other end.
    #[error("this {0} is not closed")]
    UnclosedQuote(char),
    /// A placeholder without its `}`.
    #[error("this placeholder is not closed by a }}")]
    UnclosedPlaceholder,
    /// A placeholder that there is none of.
    #[error(transparent)]
    UnknownPlaceholder(#[from] UnknownPlaceholder),
    /// No words.
    #[error("there are no words in this template")]
    Empty,
    /// `cd` and nothing else.
    #[error("this cd names no directory")]
    NoDirectory,
    /// Words, but no QEMU among them.
    #[error("none of these words is a QEMU system emulator")]
    NotQemu,
    /// An option that wants a value and has none.
    #[error("the option {0} has no value")]
    WithoutValue(String),
    /// A placeholder with two defaults.
    #[error("{placeholder} has another default already, in line {}, column {}", first.line, first.column)]
    TwoDefaults {
        /// Which.
        placeholder: Placeholder,
        /// Where the other one is.
        first: Position,
    },
    /// A placeholder in its own default.
    #[error("the default of {0} leads back to itself")]
    Cycle(Placeholder),
    /// A placeholder that nothing is known for.
    #[error("{0} has no value")]
    MissingValue(Placeholder),
    /// `{incoming}` within a word.
    #[error("{} is a word of its own, and no part of another", Placeholder::Incoming)]
    IncomingWithinWord,
    /// A character that no argument can have.
    #[error("here is a NUL character")]
    Nul,
    /// Bytes that are no text.
    #[error("here are bytes that are not UTF-8")]
    NotUtf8,
}

impl Wrong {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::UnclosedQuote(quote) => {
                format!("close it in the same word, or write \\{quote} for the character itself")
            }
            Self::UnclosedPlaceholder => {
                "a blank in a default stands in quotes, {dir='/my vms'}; a { that begins no \
                                          placeholder is written {{"
                    .to_owned()
            }
            Self::UnknownPlaceholder(_) => {
                format!("there are {}; a {{ that begins no placeholder is written {{{{", Placeholder::list())
            }
            Self::Empty => "`qmigrate template SOURCE > FILE` writes one from a running guest".to_owned(),
            Self::NoDirectory => "the directory stands behind it: cd {dir=/srv/vm}".to_owned(),
            Self::NotQemu => {
                "the command begins with the path of a QEMU, such as qemu-system-x86_64".to_owned()
            }
            Self::WithoutValue(option) => format!("write its value behind it: {option} VALUE"),
            Self::TwoDefaults { placeholder, .. } => {
                format!("a default is written once; write {placeholder} in the other places")
            }
            Self::Cycle(placeholder) => {
                format!("give {placeholder} a default that has no placeholder in it")
            }
            Self::MissingValue(placeholder) => {
                let (word, example) = (placeholder.word(), placeholder.example());
                format!("type --set {word}={example}, or write a default: {{{word}={example}}}")
            }
            Self::IncomingWithinWord => {
                "it stands for -S -incoming ... where a destination is started, and for nothing otherwise"
                    .to_owned()
            }
            Self::Nul | Self::NotUtf8 => "a template is plain text in UTF-8".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(line: &str, column: usize) -> (String, usize) {
        let excerpt = Position { line: 2, column }.excerpt(&format!("first\n{line}\nthird")).unwrap();
        let (shown, caret) = excerpt.split_once('\n').unwrap();
        assert!(shown.width() <= 79, "{excerpt}");
        (shown[4..].to_owned(), caret.width() - 5)
    }

    #[test]
    fn a_caret_stands_below_the_place_whatever_stands_before_it() {
        assert_eq!(excerpt("ab {x}", 4), ("ab {x}".to_owned(), 3));
        assert_eq!(excerpt("\tb {x}", 4), (" b {x}".to_owned(), 3));
        assert_eq!(excerpt("漢字 {x}", 4), ("漢字 {x}".to_owned(), 5));
        assert_eq!(excerpt("\u{1b}[ {x}", 4), ("\\u{1b}[ {x}".to_owned(), 8));
        assert_eq!(excerpt("ab\r", 3), ("ab".to_owned(), 2));
        assert_eq!(Position::START.excerpt("\n"), None);
    }

    #[test]
    fn a_long_line_is_shown_around_the_place() {
        for letter in ["a", "漢"] {
            let many = letter.repeat(200_000);
            let (shown, caret) = excerpt(&format!("{many}{{x}}{many}"), 200_001);
            assert!(shown.starts_with('…') && shown.ends_with('…'), "{shown}");
            let before = shown.split_once('{').unwrap().0;
            assert_eq!(before.width(), caret);
        }
    }

    #[test]
    fn the_end_of_a_text_is_counted_in_lines_and_characters() {
        assert_eq!(Position::end_of("a\nöß"), Position { line: 2, column: 3 });
    }
}
