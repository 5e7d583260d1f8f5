//! Whether a shell script starts a program again once that has ended: a loop with the program in it.
//!
//! This reads as much of a shell's grammar as tells a command from an argument, and a loop around it from one beside
//! it. What it cannot follow (a program in a variable that another program fills) counts as no loop.

use std::collections::BTreeSet;

/// Commands that run the command behind them.
const PREFIXES: [&str; 20] = [
    "chpst",
    "chrt",
    "command",
    "doas",
    "env",
    "eval",
    "exec",
    "ionice",
    "nice",
    "nohup",
    "numactl",
    "prlimit",
    "setsid",
    "setuidgid",
    "stdbuf",
    "su",
    "sudo",
    "taskset",
    "time",
    "timeout",
];
/// Words behind which another command begins.
const INTRODUCTIONS: [&str; 8] = ["do", "then", "else", "elif", "if", "!", "{", "in"];

/// Whether the script has a loop in which it runs the program that `is_it` knows by its word. `arguments` are those that
/// the script was given.
pub(super) fn runs_in_a_loop(text: &str, arguments: &[String], is_it: &dyn Fn(&str) -> bool) -> bool {
    let script = Script::read(text);
    let mut names = script.variables_of(is_it);
    let is_meant = |names: &BTreeSet<String>, command: &Command| {
        let is_named = |word: &String| is_it(word) || names.contains(plain(word));
        match command.words.split_first() {
            Some((first, rest)) if PREFIXES.contains(&first.as_str()) => rest.iter().any(is_named),
            Some((first, _)) => is_named(first),
            None => false,
        }
    };
    // `respawn qemu-system-x86_64 ...`, where the script or a function of it runs what it is given.
    let functions: BTreeSet<&String> =
        script.commands.iter().filter_map(|command| command.within.as_ref()).collect();
    let is_given = |command: &Command| {
        let (called, given) = (command.words.first(), command.words.iter().skip(1));
        called.is_some_and(|called| functions.contains(called)) && given.into_iter().any(|word| is_it(word))
    };
    if arguments.iter().any(|argument| is_it(argument)) || script.commands.iter().any(is_given) {
        names.extend(["@", "*", "1"].map(str::to_owned));
    }
    // A function that runs it, or runs one that does, stands for it.
    loop {
        let found = script.commands.iter().filter(|command| is_meant(&names, command));
        let new: Vec<String> =
            found.filter_map(|command| command.within.clone()).filter(|name| !names.contains(name)).collect();
        if new.is_empty() {
            break;
        }
        names.extend(new);
    }
    script.commands.iter().any(|command| command.is_repeated() && is_meant(&names, command))
}

/// A word without what marks it as a variable: `$X`, `${X}`, `${X[@]}`.
fn plain(word: &str) -> &str {
    let Some(name) = word.strip_prefix('$') else { return word };
    let name = name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name);
    name.strip_suffix("[@]").or_else(|| name.strip_suffix("[*]")).unwrap_or(name)
}

/// One simple command, and where it stands.
#[derive(Debug, Default)]
struct Command {
    words: Vec<String>,
    /// The function in whose body it is.
    within: Option<String>,
    /// In a loop that ends when it likes: `while`, `until`.
    in_endless_loop: bool,
    /// In a loop over a list: `for`, `select`.
    in_list_loop: bool,
    is_in_background: bool,
}

impl Command {
    /// A loop over a list that starts a program for each, and waits for none, starts none again.
    fn is_repeated(&self) -> bool {
        self.in_endless_loop || (self.in_list_loop && !self.is_in_background)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// A word in quotes, which is no keyword.
    Quoted(String),
    /// `;` and the end of a line, `&&`, `||`, `|`, parentheses.
    Break,
    Open,
    Close,
    Background,
}

#[derive(Debug, Default)]
struct Script {
    commands: Vec<Command>,
    /// Variables with their values.
    assigned: Vec<(String, String)>,
}

impl Script {
    fn read(text: &str) -> Self {
        let tokens = tokens(text);
        let mut reader = Reader {
            script: Self::default(),
            current: Command::default(),
            loops: Vec::new(),
            braces: Vec::new(),
            function: None,
        };
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                Token::Word(name) if tokens.get(at) == Some(&Token::Open) && name.ends_with('=') => {
                    // An array: its first word is the program.
                    if let Some(Token::Word(first) | Token::Quoted(first)) = tokens.get(at + 1) {
                        reader.script.assigned.push((name.trim_end_matches('=').to_owned(), first.clone()));
                    }
                    let length = tokens.iter().skip(at).position(|token| *token == Token::Close);
                    at += length.map_or(tokens.len(), |length| length + 1);
                }
                Token::Word(name)
                    if reader.current.words.is_empty()
                        && tokens.get(at..at + 2) == Some(&[Token::Open, Token::Close]) =>
                {
                    at += 2;
                    reader.function = Some(name.clone());
                }
                Token::Word(word) => reader.word(word),
                Token::Quoted(word) => reader.current.words.push(word.clone()),
                Token::Background => {
                    reader.current.is_in_background = true;
                    reader.end();
                }
                Token::Break | Token::Open | Token::Close => reader.end(),
            }
        }
        reader.end();
        reader.script
    }

    /// The variables that name the program.
    fn variables_of(&self, is_it: &dyn Fn(&str) -> bool) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, value) in &self.assigned {
            let first = value.split_ascii_whitespace().next().unwrap_or_default();
            if is_it(first) || names.contains(plain(first)) {
                names.insert(name.clone());
            }
        }
        names
    }
}

struct Reader {
    script: Script,
    current: Command,
    /// The loops that are open; whether each is over a list.
    loops: Vec<bool>,
    /// The braces that are open; the function whose body each is.
    braces: Vec<Option<String>>,
    /// A function whose body has not begun.
    function: Option<String>,
}

impl Reader {
    fn word(&mut self, word: &str) {
        if !self.current.words.is_empty() {
            self.current.words.push(word.to_owned());
            return;
        }
        match word {
            "while" | "until" => self.loops.push(false),
            "for" | "select" => {
                self.loops.push(true);
                // Its variable and its list are no command.
                self.current.words.push(word.to_owned());
            }
            "done" => {
                self.loops.pop();
                self.current.words.push(word.to_owned());
            }
            "}" => {
                self.braces.pop();
            }
            "function" => self.function = Some(String::new()),
            "{" => {
                let function = self.function.take();
                self.braces.push(function);
            }
            _ if self.function.as_ref().is_some_and(String::is_empty) => {
                self.function = Some(word.to_owned());
            }
            _ if INTRODUCTIONS.contains(&word) => {}
            _ => match word.split_once('=') {
                Some((name, value)) if is_name(name) => {
                    self.script.assigned.push((name.to_owned(), value.to_owned()));
                }
                _ => self.current.words.push(word.to_owned()),
            },
        }
    }

    fn end(&mut self) {
        let mut command = std::mem::take(&mut self.current);
        if command.words.is_empty() {
            return;
        }
        command.within = self.braces.iter().rev().flatten().next().cloned();
        command.in_endless_loop = self.loops.iter().any(|is_over_a_list| !is_over_a_list);
        command.in_list_loop = self.loops.iter().any(|&is_over_a_list| is_over_a_list);
        self.script.commands.push(command);
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// The script as words and what stands between them; comments and here-documents are left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    let (mut word, mut is_quoted, mut here) = (String::new(), false, None::<String>);
    macro_rules! flush {
        () => {
            if is_quoted || !word.is_empty() {
                let word = std::mem::take(&mut word);
                // A value that begins with a name of its own is an assignment also where it is quoted.
                let is_plain = !is_quoted || word.split_once('=').is_some_and(|(name, _)| is_name(name));
                tokens.push(if is_plain { Token::Word(word) } else { Token::Quoted(word) });
                is_quoted = false;
            }
        };
    }
    while let Some(letter) = rest.next() {
        match letter {
            '\\' => match rest.next() {
                Some('\n') | None => {}
                Some(letter) => word.push(letter),
            },
            '\'' | '"' | '`' => {
                is_quoted |= letter != '`';
                while let Some(inner) = rest.next().filter(|&inner| inner != letter) {
                    match inner {
                        '\\' if letter == '"' => word.extend(rest.next().filter(|&next| next != '\n')),
                        _ => word.push(inner),
                    }
                }
            }
            '$' if rest.peek() == Some(&'(') => {
                let mut depth = 0_usize;
                for inner in rest.by_ref() {
                    match inner {
                        '(' => depth += 1,
                        ')' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
                word.push_str("$()");
            }
            '$' if rest.peek() == Some(&'{') => {
                word.push('$');
                for inner in rest.by_ref() {
                    word.push(inner);
                    if inner == '}' {
                        break;
                    }
                }
            }
            '#' if word.is_empty() && !is_quoted => while rest.next_if(|&next| next != '\n').is_some() {},
            '<' if rest.next_if_eq(&'<').is_some() => {
                flush!();
                while rest.next_if(|next| "-<'\" \\".contains(*next)).is_some() {}
                let mut end = String::new();
                while let Some(next) = rest.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    end.push(next);
                }
                rest.next_if(|next| "'\"".contains(*next));
                here = Some(end);
            }
            // `2>&1`, `&>log`, `>&2`: no background.
            '>' | '<' => {
                flush!();
                while rest.next_if(|next| "&>|".contains(*next)).is_some() {}
            }
            '&' if rest.peek() == Some(&'>') => flush!(),
            '&' => {
                flush!();
                tokens.push(if rest.next_if_eq(&'&').is_some() { Token::Break } else { Token::Background });
            }
            '\n' => {
                flush!();
                tokens.push(Token::Break);
                if let Some(end) = here.take() {
                    skip_lines_until(&mut rest, &end);
                }
            }
            ';' | '|' => {
                flush!();
                tokens.push(Token::Break);
            }
            '(' => {
                flush!();
                tokens.push(Token::Open);
            }
            ')' => {
                flush!();
                tokens.push(Token::Close);
            }
            letter if letter.is_whitespace() => flush!(),
            letter => word.push(letter),
        }
    }
    flush!();
    // What the last flush left behind is not read again.
    let _ = is_quoted;
    tokens
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

    fn loops(text: &str, arguments: &[&str]) -> bool {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        runs_in_a_loop(text, &arguments, &|word| word.to_lowercase().contains("qemu"))
    }

    #[test]
    fn a_loop_around_the_program_is_found_however_it_is_written() {
        for text in [
            "while :; do qemu-system-x86_64 -m 512; done",
            "while true\ndo\n  /usr/bin/qemu-system-x86_64 -m 512 \\\n   -S >log 2>&1\n  sleep 1\ndone\n",
            "until qemu-system-x86_64 -m 512; do echo again; done",
            "while ! qemu-system-x86_64; do sleep 1; done",
            "for ((;;)); do qemu-system-x86_64; done",
            "for i in $(seq 100); do qemu-system-x86_64; done",
            "QEMU=/opt/qemu; while :; do $QEMU -m 1; done",
            "BIN=/opt/qemu\nwhile :; do \"$BIN\" -m 1; done",
            "CMD=\"qemu-system-x86_64 -m 1\"\nwhile :; do eval \"$CMD\"; done",
            "args=(qemu-system-x86_64 -m 1)\nwhile :; do \"${args[@]}\"; done",
            "run() {\n  if [ -f x ]; then qemu-system-x86_64; fi\n}\nwhile sleep 1; do run; done",
            "function run { qemu-system-x86_64; }\nagain() { run; }\nwhile :; do again; done",
            "while :; do sudo -u vm nice -n 5 qemu-system-x86_64; done",
            "while :; do DISPLAY=:0 qemu-system-x86_64 & wait; done",
            "while [ ! -f stop ]; do (cd /srv && qemu-system-x86_64); done",
            "respawn() { while :; do \"$@\"; done; }\nrespawn qemu-system-x86_64 -m 1",
        ] {
            assert!(loops(text, &[]), "{text}");
        }
        assert!(loops("while :; do \"$@\"; done", &["qemu-system-x86_64", "-m", "1"]));
    }

    #[test]
    fn a_loop_beside_the_program_is_none_around_it() {
        for text in [
            "",
            "qemu-system-x86_64 -m 512",
            "for disk in *.img; do args=\"$args -drive file=$disk\"; done\nqemu-system-x86_64 $args",
            "qemu-system-x86_64 & while ! [ -S qemu.sock ]; do sleep 1; done; wait",
            "while pgrep qemu-system; do sleep 1; done; qemu-system-x86_64",
            "for i in 1 2 3; do qemu-system-x86_64 -name $i & done; wait",
            "# while :; do qemu-system-x86_64; done\nqemu-system-x86_64",
            "cat > again <<EOF\nwhile :; do qemu-system-x86_64; done\nEOF\nqemu-system-x86_64",
            "echo 'while :; do qemu-system-x86_64; done'; qemu-system-x86_64",
            "run() { qemu-system-x86_64; }\nwhile :; do break; done\nrun",
            "while :; do echo qemu-system-x86_64; done",
            "while read line; do echo \"$line\"; done < list; qemu-system-x86_64",
        ] {
            assert!(!loops(text, &[]), "{text}");
        }
        assert!(!loops("while :; do \"$@\"; done", &["sleep"]));
    }

    #[test]
    fn what_is_no_script_ends_too() {
        for text in
            ["'", "\"\\", "$(((", "${", "<<", "a=(", "done done }", "(((&&&|||", "f() {", "\u{0}\u{7f}"]
        {
            assert!(!loops(text, &["x"]), "{text}");
        }
    }
}
