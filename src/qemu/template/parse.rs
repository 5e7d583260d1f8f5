//! Text to template.

use std::collections::BTreeMap;

use super::fill::{RoleError, roles};
use super::{Fault, Piece, Placeholder, Position, Template, Word, Wrong};

/// A template with the places where its placeholders stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The template.
    pub template: Template,
    /// The first place of each placeholder.
    pub places: BTreeMap<Placeholder, Position>,
}

/// Reads a template, and makes sure of all that can be known of it without values.
pub fn parse(text: &str) -> Result<Parsed, Fault> {
    if let Some((before, _)) = text.split_once('\0') {
        return Err(Fault { at: Position::end_of(before), wrong: Wrong::Nul });
    }
    let mut reader = Reader::new(text);
    let mut words = Vec::new();
    while let Some(at) = reader.next_word() {
        let word = reader.word()?;
        if !word.is_incoming() && word.pieces().contains(&Piece::Hole(Placeholder::Incoming)) {
            return Err(Fault { at, wrong: Wrong::IncomingWithinWord });
        }
        words.push((at, word));
    }
    let Reader { defaults, places, .. } = reader;
    check_cycles(&defaults)?;
    let defaults = defaults.into_iter().map(|(placeholder, (_, word))| (placeholder, word)).collect();
    Ok(Parsed { template: arrange(words, defaults)?, places })
}

/// Tells directory, environment and command apart.
fn arrange(words: Vec<(Position, Word)>, defaults: BTreeMap<Placeholder, Word>) -> Result<Template, Fault> {
    let fault = |at, wrong| Err(Fault { at, wrong });
    let Some(&(start, _)) = words.first() else { return fault(Position::START, Wrong::Empty) };
    let mut template = Template { defaults, ..Template::default() };
    let mut words = words.into_iter().peekable();
    if words.next_if(|(_, word)| *word == Word::from("cd")).is_some() {
        match words.next() {
            None => return fault(start, Wrong::NoDirectory),
            Some((at, word)) if word.is_incoming() => return fault(at, Wrong::IncomingWithinWord),
            Some((_, word)) => template.directory = Some(word),
        }
    }
    let mut last = start;
    while let Some((at, word)) = words.peek() {
        last = *at;
        let Some(variable) = assignment(word) else { break };
        template.environment.push(variable);
        words.next();
    }
    let (places, words): (Vec<_>, Vec<_>) = words.unzip();
    template.words = words;
    match roles(&template.words) {
        Ok(_) => Ok(template),
        Err(RoleError::NotQemu) => fault(places.first().copied().unwrap_or(last), Wrong::NotQemu),
        Err(RoleError::WithoutValue(index)) => {
            let option = template.words.get(index).map(Word::outline).unwrap_or_default();
            fault(places.get(index).copied().unwrap_or(last), Wrong::WithoutValue(option))
        }
    }
}

/// `NAME=word`.
fn assignment(word: &Word) -> Option<(String, Word)> {
    let (name, text) = word.start().split_once('=')?;
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    let mut value = Word::from(text);
    for piece in &word.pieces()[1..] {
        match piece {
            Piece::Text(text) => value.push_text(text),
            Piece::Hole(placeholder) => value.push_hole(*placeholder),
        }
    }
    is_name.then(|| (name.to_owned(), value))
}

type Defaults = BTreeMap<Placeholder, (Position, Word)>;

/// Follows each default to its end, which must come.
fn check_cycles(defaults: &Defaults) -> Result<(), Fault> {
    fn leads_to(from: &Word, target: Placeholder, defaults: &Defaults, seen: &mut Vec<Placeholder>) -> bool {
        from.pieces().iter().any(|piece| match piece {
            Piece::Hole(hole) if *hole == target => true,
            Piece::Hole(hole) if !seen.contains(hole) => {
                seen.push(*hole);
                defaults.get(hole).is_some_and(|(_, word)| leads_to(word, target, defaults, seen))
            }
            _ => false,
        })
    }
    for (&placeholder, (at, word)) in defaults {
        if leads_to(word, placeholder, defaults, &mut Vec::new()) {
            return Err(Fault { at: *at, wrong: Wrong::Cycle(placeholder) });
        }
    }
    Ok(())
}

/// Which quotes the reader is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    None,
    Single,
    Double,
}

/// A placeholder whose default is being read.
#[derive(Debug, Clone, Copy)]
struct Open {
    placeholder: Placeholder,
    at: Position,
    /// The quotes in which it stands, and in which its `}` does.
    quotes: Quotes,
}

struct Reader {
    letters: Vec<char>,
    next: usize,
    at: Position,
    quotes: Quotes,
    /// Where the last quotes were opened.
    quoted_at: Position,
    /// From the outside in.
    open: Vec<Open>,
    defaults: Defaults,
    places: BTreeMap<Placeholder, Position>,
}

impl Reader {
    fn new(text: &str) -> Self {
        Self {
            letters: text.chars().collect(),
            next: 0,
            at: Position::START,
            quotes: Quotes::None,
            quoted_at: Position::START,
            open: Vec::new(),
            defaults: BTreeMap::new(),
            places: BTreeMap::new(),
        }
    }

    fn peek(&self) -> Option<char> {
        self.letters.get(self.next).copied()
    }

    fn peek_second(&self) -> Option<char> {
        self.letters.get(self.next + 1).copied()
    }

    fn take(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.next += 1;
        self.at = self.at.after(letter);
        Some(letter)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(letter) = self.peek().filter(|&letter| wanted(letter)) {
            taken.push(letter);
            self.take();
        }
        taken
    }

    /// Passes what separates words; gives the place of the next one.
    fn next_word(&mut self) -> Option<Position> {
        loop {
            match self.peek()? {
                '#' => drop(self.take_while(|letter| letter != '\n')),
                '\\' if self.peek_second() == Some('\n') => {
                    self.take();
                    self.take();
                }
                _ if self.is_between_words() => drop(self.take()),
                _ => return Some(self.at),
            }
        }
    }

    /// Whether words are separated here. A carriage return counts where it ends a line with the other half.
    fn is_between_words(&self) -> bool {
        match self.peek() {
            Some('\r') => self.peek_second() == Some('\n'),
            other => matches!(other, Some(' ' | '\t' | '\n')),
        }
    }

    /// Reads to the end of a word, or to the end of the innermost default that is being read.
    fn word(&mut self) -> Result<Word, Fault> {
        let mut word = Word::default();
        let open = self.open.last().copied();
        loop {
            let Some(letter) = self.peek() else { return self.end(word) };
            if letter == '{' {
                self.brace(&mut word)?;
                continue;
            }
            if letter == '}' && open.is_some_and(|open| open.quotes == self.quotes) {
                return Ok(word);
            }
            match (self.quotes, letter) {
                (Quotes::None, _) if self.is_between_words() => return self.end(word),
                (Quotes::None, '\'') => self.open_quotes(Quotes::Single),
                (Quotes::None, '"') => self.open_quotes(Quotes::Double),
                (Quotes::Single, '\'') | (Quotes::Double, '"') => self.quotes = Quotes::None,
                (Quotes::None | Quotes::Double, '\\') => {
                    self.backslash(&mut word);
                    continue;
                }
                _ => word.push_text(letter.encode_utf8(&mut [0; 4])),
            }
            self.take();
        }
    }

    /// A word is at its end: are its quotes and placeholders?
    fn end(&self, word: Word) -> Result<Word, Fault> {
        let opened = self.open.last().filter(|open| open.quotes == self.quotes);
        match (opened, self.quotes) {
            (Some(open), _) => Err(Fault { at: open.at, wrong: Wrong::UnclosedPlaceholder }),
            (None, Quotes::Single) => Err(Fault { at: self.quoted_at, wrong: Wrong::UnclosedQuote('\'') }),
            (None, Quotes::Double) => Err(Fault { at: self.quoted_at, wrong: Wrong::UnclosedQuote('"') }),
            (None, Quotes::None) => match self.open.last() {
                // The default has closed quotes that stood before the placeholder.
                Some(open) => Err(Fault { at: open.at, wrong: Wrong::UnclosedPlaceholder }),
                None => Ok(word),
            },
        }
    }

    fn open_quotes(&mut self, quotes: Quotes) {
        (self.quotes, self.quoted_at) = (quotes, self.at);
    }

    /// A backslash and what it makes literal; in double quotes that is little, as in a shell.
    fn backslash(&mut self, word: &mut Word) {
        self.take();
        let in_quotes = self.quotes != Quotes::None;
        match self.peek() {
            Some('\n') => drop(self.take()),
            Some(letter) if !in_quotes || matches!(letter, '$' | '`' | '"' | '\\') => {
                word.push_text(letter.encode_utf8(&mut [0; 4]));
                self.take();
            }
            _ => word.push_text("\\"),
        }
    }

    /// A `{`: a placeholder before a small letter, one `{` for two, and itself otherwise.
    fn brace(&mut self, word: &mut Word) -> Result<(), Fault> {
        match self.peek_second() {
            Some(letter) if letter.is_ascii_lowercase() => {
                let placeholder = self.placeholder()?;
                word.push_hole(placeholder);
            }
            second => {
                self.take();
                if second == Some('{') {
                    self.take();
                }
                word.push_text("{");
            }
        }
        Ok(())
    }

    fn placeholder(&mut self) -> Result<Placeholder, Fault> {
        let at = self.at;
        self.take();
        let name = self.take_while(|letter| letter.is_ascii_lowercase() || letter == '-');
        if !matches!(self.peek(), Some('=' | '}')) {
            return Err(Fault { at, wrong: Wrong::UnclosedPlaceholder });
        }
        let placeholder: Placeholder =
            name.parse().map_err(|unknown| Fault { at, wrong: Wrong::UnknownPlaceholder(unknown) })?;
        self.places.entry(placeholder).or_insert(at);
        if self.open.iter().any(|open| open.placeholder == placeholder) {
            return Err(Fault { at, wrong: Wrong::Cycle(placeholder) });
        }
        if self.take() == Some('=') {
            self.open.push(Open { placeholder, at, quotes: self.quotes });
            let default = self.word()?;
            self.open.pop();
            self.take();
            self.keep(placeholder, at, default)?;
        }
        Ok(placeholder)
    }

    fn keep(&mut self, placeholder: Placeholder, at: Position, default: Word) -> Result<(), Fault> {
        if default.pieces().contains(&Piece::Hole(Placeholder::Incoming)) {
            return Err(Fault { at, wrong: Wrong::IncomingWithinWord });
        }
        match self.defaults.get(&placeholder) {
            Some((first, other)) if *other != default => {
                Err(Fault { at, wrong: Wrong::TwoDefaults { placeholder, first: *first } })
            }
            Some(_) => Ok(()),
            None => {
                self.defaults.insert(placeholder, (at, default));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Result<Vec<Word>, Fault> {
        let mut reader = Reader::new(text);
        let mut words = Vec::new();
        while reader.next_word().is_some() {
            words.push(reader.word()?);
        }
        Ok(words)
    }

    #[test]
    fn braces_are_placeholders_before_a_small_letter_only() {
        for (text, outline) in [
            ("{}", "{}"),
            ("{\"a\":1}", "{a:1}"),
            ("'{\"a\":{\"b\":{}}}'", "{\"a\":{\"b\":{}}}"),
            ("{{qmp}", "{qmp}"),
            ("\\{qmp}", "{qmp}"),
            ("'{'qmp}", "{qmp}"),
            ("{ {A} {9}", "{{A}{9}"),
            ("a}b", "a}b"),
            ("{", "{"),
            ("{{", "{"),
        ] {
            let words = words(text).unwrap();
            assert_eq!(words.iter().map(Word::outline).collect::<String>(), outline, "{text}");
            assert!(
                words.iter().all(|word| !word.pieces().contains(&Piece::Hole(Placeholder::Qmp))),
                "{text}"
            );
        }
        for text in ["{qmp}", "'{qmp}'", "\"{qmp}\"", "{{{qmp}", "a{qmp}}"] {
            let words = words(text).unwrap();
            assert!(words[0].pieces().contains(&Piece::Hole(Placeholder::Qmp)), "{text}");
        }
    }

    #[test]
    fn a_default_ends_at_the_brace_that_no_quotes_of_its_own_hide() {
        for (text, default) in [
            ("{name=web}", "web"),
            ("{name=}", ""),
            ("{name='a b'}", "a b"),
            ("{name='}'}", "}"),
            ("{name=a\\}b}", "a}b"),
            ("'{name=a b}'", "a b"),
            ("'{name=a'\\}' b}'", "a} b"),
            ("\"{name=a 'b'}\"", "a 'b'"),
            ("{name={}", "{"),
            ("{name=a=b,c}", "a=b,c"),
        ] {
            let mut reader = Reader::new(text);
            reader.next_word().unwrap();
            assert_eq!(reader.word().unwrap(), Word::hole(Placeholder::Name), "{text}");
            assert_eq!(reader.defaults[&Placeholder::Name].1, Word::from(default), "{text}");
            assert_eq!(reader.next_word(), None, "{text}");
        }
    }

    #[test]
    fn ends_of_lines_are_blanks_and_those_of_other_systems_too() {
        let texts = |text| words(text).unwrap().iter().map(Word::outline).collect::<Vec<_>>();
        assert_eq!(texts("a\nb\r\n\tc # d\ne\\\nf g\\\n h#i"), ["a", "b", "c", "ef", "g", "h#i"]);
        assert_eq!(texts("a\rb 'c\r\nd'"), ["a\rb", "c\r\nd"]);
        assert_eq!(texts("# all\n  # of it"), [] as [&str; 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn words_without_placeholders_are_a_shells(text in "[a-c}=, \t\n'\"\\\\#$`~*ö]{0,24}") {
            let own = words(&text).map(|words| words.iter().map(Word::outline).collect::<Vec<_>>());
            prop_assert_eq!(own.ok(), shell_words::split(&text).ok());
        }

        #[test]
        fn no_text_is_too_much(text in "[a-z{}=\\- \n'\"\\\\\\PC]{0,60}") {
            let _ = parse(&text);
        }
    }
}
