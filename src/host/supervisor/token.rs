//! A shell script as words and what stands between them; comments, here-documents and the files that commands read and
//! write are left out.

use std::iter::Peekable;
use std::str::Chars;

/// A word, or what stands between two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    /// A word in quotes, which is no keyword.
    Quoted(String),
    /// `;` and the end of a line, `&&`, `||`, `|`.
    Break,
    /// `;;`.
    NextCase,
    Open,
    Close,
    Background,
}

impl Token {
    pub(super) fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) | Self::Quoted(word) => Some(word),
            _ => None,
        }
    }
}

/// `X=value`, `X+=value`, `X[1]=value`.
pub(super) fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let name = name.strip_suffix('+').unwrap_or(name);
    let name = name.split_once('[').filter(|_| name.ends_with(']')).map_or(name, |(name, _)| name);
    is_name(name).then_some((name, value))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_name_letter)
}

pub(super) fn is_name_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// All of a text.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut reader = Reader {
        rest: text.chars().peekable(),
        tokens: Vec::new(),
        word: String::new(),
        is_quoted: false,
        is_file: false,
        here: None,
    };
    while let Some(letter) = reader.rest.next() {
        reader.read(letter);
    }
    reader.flush();
    reader.tokens
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    tokens: Vec<Token>,
    /// The word that is being read.
    word: String,
    is_quoted: bool,
    /// It is a file that a command reads or writes.
    is_file: bool,
    /// The word that ends a here-document.
    here: Option<String>,
}

impl Reader<'_> {
    fn read(&mut self, letter: char) {
        match letter {
            '\\' => match self.rest.next() {
                Some('\n') | None => {}
                Some(letter) => self.word.push(letter),
            },
            '\'' | '"' | '`' => self.quoted(letter),
            '$' if self.rest.peek() == Some(&'(') => self.substitution(),
            '$' if self.rest.peek() == Some(&'{') => {
                self.word.push('$');
                for inner in self.rest.by_ref() {
                    self.word.push(inner);
                    if inner == '}' {
                        break;
                    }
                }
            }
            '#' if self.word.is_empty() && !self.is_quoted => {
                while self.rest.next_if(|&next| next != '\n').is_some() {}
            }
            '<' if self.rest.next_if_eq(&'<').is_some() => self.here_document(),
            // `2>&1`, `&>log`, `>&2`: no background.
            '>' | '<' => {
                if self.word.chars().all(|letter| letter.is_ascii_digit()) {
                    self.word.clear();
                }
                self.flush();
                while self.rest.next_if(|next| "&<>|".contains(*next)).is_some() {}
                self.is_file = self.rest.peek() != Some(&'(');
            }
            '&' if self.rest.peek() == Some(&'>') => self.flush(),
            '&' if self.rest.next_if_eq(&'&').is_some() => self.between(Token::Break),
            '&' => self.between(Token::Background),
            '\n' => {
                self.between(Token::Break);
                if let Some(end) = self.here.take() {
                    skip_lines_until(&mut self.rest, &end);
                }
            }
            ';' if self.rest.next_if_eq(&';').is_some() => self.between(Token::NextCase),
            ';' | '|' => self.between(Token::Break),
            '(' => self.between(Token::Open),
            ')' => self.between(Token::Close),
            letter if letter.is_whitespace() => self.flush(),
            letter => self.word.push(letter),
        }
    }

    fn between(&mut self, token: Token) {
        self.flush();
        self.is_file = false;
        self.tokens.push(token);
    }

    /// Ends the word that is being read, if there is one.
    fn flush(&mut self) {
        if !self.is_quoted && self.word.is_empty() {
            return;
        }
        let word = std::mem::take(&mut self.word);
        // A value that begins with a name of its own is an assignment also where it is quoted.
        let is_plain = !self.is_quoted || assignment(&word).is_some();
        let token = if is_plain { Token::Word(word) } else { Token::Quoted(word) };
        self.tokens.extend((!self.is_file).then_some(token));
        (self.is_quoted, self.is_file) = (false, false);
    }

    fn quoted(&mut self, quote: char) {
        // A command in backquotes is one in `$()`.
        let is_command = quote == '`';
        self.is_quoted |= !is_command;
        self.word.push_str(if is_command { "$(" } else { "" });
        while let Some(inner) = self.rest.next().filter(|&inner| inner != quote) {
            match inner {
                '\\' if quote == '"' => self.word.extend(self.rest.next().filter(|&next| next != '\n')),
                _ => self.word.push(inner),
            }
        }
        self.word.push_str(if is_command { ")" } else { "" });
    }

    fn substitution(&mut self) {
        let mut depth = 0_usize;
        self.word.push('$');
        for inner in self.rest.by_ref() {
            self.word.push(inner);
            match inner {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }

    fn here_document(&mut self) {
        self.flush();
        // `<<< word` is no more than a word.
        if self.rest.next_if_eq(&'<').is_some() {
            self.is_file = true;
            return;
        }
        while self.rest.next_if(|next| "-'\" \\".contains(*next)).is_some() {}
        let mut end = String::new();
        while let Some(next) = self.rest.next_if(|&next| is_name_letter(next)) {
            end.push(next);
        }
        self.rest.next_if(|next| "'\"".contains(*next));
        self.here = Some(end);
    }
}

fn skip_lines_until(rest: &mut impl Iterator<Item = char>, end: &str) {
    let mut line = String::new();
    for letter in rest {
        if letter != '\n' {
            line.push(letter);
        } else if line.trim() == end {
            return;
        } else {
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_comments_are_no_words() {
        for (text, words) in [
            ("a 2>&1 >/tmp/x b <y >&- c # d", vec!["a", "b", "c"]),
            ("a &>log b >> log c", vec!["a", "b", "c"]),
            ("a <<EOF b\nc\nEOF\nd", vec!["a", "b", "d"]),
            ("X=`a b` \"$(a b)\" $(a (b) c)", vec!["X=$(a b)", "$(a b)", "$(a (b) c)"]),
            ("a >\nb", vec!["a", "b"]),
            ("a <<< \"$b\" c\nd", vec!["a", "c", "d"]),
        ] {
            assert_eq!(tokens(text).iter().filter_map(Token::word).collect::<Vec<_>>(), words, "{text}");
        }
    }

    #[test]
    fn an_assignment_is_told_from_a_word() {
        for (word, found) in [
            ("X=a=b", Some(("X", "a=b"))),
            ("X+=a", Some(("X", "a"))),
            ("X[$i]=a", Some(("X", "a"))),
            ("=a", None),
            ("a.b=c", None),
            ("--x=y", None),
            ("x", None),
        ] {
            assert_eq!(assignment(word), found, "{word}");
        }
    }
}
