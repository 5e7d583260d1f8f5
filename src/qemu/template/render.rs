//! Template to text: one option on each line, and words quoted as a shell needs them.

use std::fmt;

use super::fill::{Role, roles};
use super::{Piece, Placeholder, Template, Word};

impl fmt::Display for Template {
    /// The template as a file has it; [`parse`](super::parse) reads the same template from it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut writer = Writer { template: self, text: String::new(), told: Vec::new() };
        if let Some(directory) = &self.directory {
            writer.text.push_str("cd ");
            writer.word(directory);
            writer.text.push('\n');
        }
        for (name, value) in &self.environment {
            writer.text.push_str(name);
            writer.text.push('=');
            if !value.pieces().is_empty() {
                writer.word(value);
            }
            writer.text.push('\n');
        }
        writer.command();
        formatter.write_str(&writer.text)
    }
}

struct Writer<'a> {
    template: &'a Template,
    text: String,
    /// Placeholders whose default has been written.
    told: Vec<Placeholder>,
}

impl Writer<'_> {
    fn command(&mut self) {
        let words = &self.template.words;
        let roles = roles(words).unwrap_or_else(|_| vec![Role::Command; words.len()]);
        let program = roles.iter().rposition(|role| *role == Role::Command);
        for (index, (word, role)) in words.iter().zip(&roles).enumerate() {
            match role {
                Role::Command if Some(index) == program && index > 0 => self.text.push('\n'),
                Role::Command if index == 0 => {}
                Role::Command | Role::ValueOf(_) => self.text.push(' '),
                Role::Option | Role::Image | Role::Incoming => self.text.push_str("\n  "),
            }
            self.word(word);
        }
        self.text.push('\n');
    }

    fn word(&mut self, word: &Word) {
        let mut texts = Vec::new();
        self.all_texts(word, &mut Vec::new(), &mut texts);
        let quoted = word.pieces().is_empty() || texts.iter().any(|text| !text.chars().all(is_plain));
        if quoted {
            self.text.push('\'');
        }
        self.pieces(word, quoted, false);
        if quoted {
            self.text.push('\'');
        }
    }

    /// Every text that the word is written with, those of defaults included.
    fn all_texts<'a>(&'a self, word: &'a Word, seen: &mut Vec<Placeholder>, texts: &mut Vec<&'a str>) {
        for piece in word.pieces() {
            match piece {
                Piece::Text(text) => texts.push(text),
                Piece::Hole(hole) if !seen.contains(hole) && !self.told.contains(hole) => {
                    seen.push(*hole);
                    if let Some(default) = self.template.defaults.get(hole) {
                        self.all_texts(default, seen, texts);
                    }
                }
                Piece::Hole(_) => {}
            }
        }
    }

    fn pieces(&mut self, word: &Word, quoted: bool, in_default: bool) {
        let mut pieces = word.pieces().iter().peekable();
        while let Some(piece) = pieces.next() {
            match piece {
                Piece::Text(text) => {
                    let is_before_hole = matches!(pieces.peek(), Some(Piece::Hole(_)));
                    self.text(text, is_before_hole, quoted, in_default);
                }
                Piece::Hole(placeholder) => self.hole(*placeholder, quoted),
            }
        }
    }

    fn text(&mut self, text: &str, is_before_hole: bool, quoted: bool, in_default: bool) {
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let begins_placeholder =
                letters.peek().map_or(is_before_hole, |next| next.is_ascii_lowercase() || *next == '{');
            match letter {
                '\'' => self.text.push_str(if quoted { "'\\''" } else { "\\'" }),
                '{' if begins_placeholder => self.text.push_str("{{"),
                '}' if in_default => self.text.push_str(if quoted { "'\\}'" } else { "\\}" }),
                _ => self.text.push(letter),
            }
        }
    }

    fn hole(&mut self, placeholder: Placeholder, quoted: bool) {
        self.text.push('{');
        self.text.push_str(placeholder.word());
        if !self.told.contains(&placeholder)
            && let Some(default) = self.template.defaults.get(&placeholder)
        {
            self.told.push(placeholder);
            self.text.push('=');
            self.pieces(default, quoted, true);
        }
        self.text.push('}');
    }
}

/// Whether a character needs no quotes in a shell, nor here. Braces need none either: alone they are no pattern.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "_@%+=:,./-{}^".contains(letter)
}
