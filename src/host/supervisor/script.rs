//! Whether a shell script starts a program again once that has ended: a loop with the program in it.
//!
//! This reads as much of a shell's grammar as tells a command from an argument, and a loop around it from one beside
//! it. To wait for the program is not to run it: only the word in the place of a command counts. A variable counts by its
//! value, or by its name where its value comes from elsewhere.

use std::collections::BTreeSet;

use super::prefix::command;
use super::token::{Token, assignment, is_name_letter, tokens};

/// Words behind which another command begins.
const INTRODUCTIONS: [&str; 8] = ["do", "then", "else", "elif", "if", "!", "{", "in"];
/// Commands that give values to variables.
const DECLARATIONS: [&str; 5] = ["declare", "export", "local", "readonly", "typeset"];
/// Commands that only ask about what they are told, or end it.
const ASKING: [&str; 17] = [
    "[", "[[", "cat", "echo", "fuser", "grep", "kill", "killall", "ls", "lsof", "pgrep", "pidof", "pkill",
    "ps", "rm", "stat", "test",
];

/// Whether the script has a loop in which it runs the program that `is_it` knows by its word. `arguments` and
/// `environment` are those that the script was given.
pub(super) fn runs_in_a_loop(
    text: &str,
    arguments: &[String],
    environment: &[(String, String)],
    is_it: &dyn Fn(&str) -> bool,
) -> bool {
    let mut script = Script::read(text);
    let given = environment.iter().map(|(name, value)| Assignment::new(name, value, None));
    script.assigned.splice(0..0, given);
    let mut meant = Meant {
        script: &script,
        is_it,
        assigned: script.assigned.iter().map(|assigned| assigned.name.as_str()).collect(),
        variables: BTreeSet::new(),
        functions: BTreeSet::new(),
        given: BTreeSet::new(),
    };
    if meant.names_one(arguments, None) {
        meant.given.insert(None);
    }
    while meant.learn() {}
    script
        .commands
        .iter()
        .any(|command| command.is_repeated() && meant.runs(&command.words, command.within()))
}

/// What stands for the program.
struct Meant<'a> {
    script: &'a Script,
    is_it: &'a dyn Fn(&str) -> bool,
    /// Variables whose values can be seen.
    assigned: BTreeSet<&'a str>,
    /// Those of them that name it.
    variables: BTreeSet<&'a str>,
    /// Functions that run it.
    functions: BTreeSet<&'a str>,
    /// Functions whose arguments name it (`respawn qemu-system-x86_64 ...`); `None` is the script itself.
    given: BTreeSet<Option<&'a str>>,
}

impl Meant<'_> {
    /// Goes through the script once; whether something new was found.
    fn learn(&mut self) -> bool {
        let before = self.variables.len() + self.functions.len() + self.given.len();
        for Assignment { name, value, within } in &self.script.assigned {
            if self.runs(&words(value), within.as_deref()) {
                self.variables.insert(name);
            }
        }
        for command in &self.script.commands {
            let Some((called, given)) = command.words.split_first() else { continue };
            if let Some(function) = self.script.functions.get(called)
                && self.names_one(given, command.within())
            {
                self.given.insert(Some(function));
            }
            if let Some(function) = command.within()
                && self.runs(&command.words, command.within())
            {
                self.functions.insert(function);
            }
        }
        before != self.variables.len() + self.functions.len() + self.given.len()
    }

    /// Whether a command runs it.
    fn runs(&self, words: &[String], within: Option<&str>) -> bool {
        let Some(word) = command(words).first() else { return false };
        // The text of an `eval`, or of a shell behind `-c`, where it is more than one word.
        let text = word.contains(char::is_whitespace).then(|| Script::read(word).commands);
        if let Some(commands) =
            text.filter(|commands| commands.iter().all(|other| other.words != [word.as_str()]))
        {
            return commands.iter().any(|command| self.runs(&command.words, within));
        }
        self.is_meant(word, within)
    }

    /// Whether one of the words that a command is given names it, and is not asked about.
    fn names_one(&self, given: &[String], within: Option<&str>) -> bool {
        let mut run = given.iter().take_while(|word| !ASKING.contains(&word.as_str()));
        run.any(|word| self.is_meant(word, within))
    }

    /// Whether a word in the place of a command stands for it.
    fn is_meant(&self, word: &str, within: Option<&str>) -> bool {
        if let Some(inner) = substitution(word) {
            // One within another is read as if it were a part of that.
            return self.names_one(&words(&inner.replace("$(", " ").replace(')', " ")), within);
        }
        if let Some((name, rest)) = expansion(word).or_else(|| expansion(super::base(word))) {
            let default = rest.trim_start_matches(':').strip_prefix(['-', '=']);
            return self.is_variable(name, within)
                || default.is_some_and(|default| self.runs(&words(default), within));
        }
        if self.script.functions.contains(word) {
            return self.functions.contains(word);
        }
        !word.starts_with('-') && (self.is_it)(word)
    }

    fn is_variable(&self, name: &str, within: Option<&str>) -> bool {
        if ["@", "*", "1"].contains(&name) {
            return self.given.contains(&within);
        }
        // One that gets its value where that cannot be seen, as in a file that the script reads, has but its name.
        if self.assigned.contains(name) { self.variables.contains(name) } else { (self.is_it)(name) }
    }
}

/// A command whose output is the word: `$(which qemu)`.
fn substitution(word: &str) -> Option<&str> {
    word.strip_prefix("$(")?.strip_suffix(')')
}

/// A variable and what it is cut by: `$X`, `${X}`, `${X[@]}`, `${X:-default}`.
fn expansion(word: &str) -> Option<(&str, &str)> {
    let inner = word.strip_prefix('$')?;
    let inner = inner.strip_prefix('{').map_or(Some(inner), |inner| inner.strip_suffix('}'))?;
    let length = inner.find(|letter| !is_name_letter(letter)).unwrap_or(inner.len());
    let (name, rest) = inner.split_at(length.max(inner.chars().next()?.len_utf8()));
    (word.starts_with("${") || rest.is_empty()).then_some((name, rest))
}

fn words(text: &str) -> Vec<String> {
    tokens(text).iter().filter_map(Token::word).map(str::to_owned).collect()
}

#[derive(Debug)]
struct Assignment {
    name: String,
    value: String,
    /// The function in which it stands.
    within: Option<String>,
}

impl Assignment {
    fn new(name: &str, value: &str, within: Option<&str>) -> Self {
        Self { name: name.to_owned(), value: value.to_owned(), within: within.map(str::to_owned) }
    }
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

    fn within(&self) -> Option<&str> {
        self.within.as_deref()
    }
}

#[derive(Debug, Default)]
struct Script {
    commands: Vec<Command>,
    assigned: Vec<Assignment>,
    /// The functions that it defines.
    functions: BTreeSet<String>,
}

impl Script {
    fn read(text: &str) -> Self {
        let tokens = tokens(text);
        let mut reader = Reader::default();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                // What stands before the parenthesis is a pattern, and no command.
                token if reader.is_in_pattern => {
                    let is_end = *token == Token::Word("esac".to_owned());
                    reader.cases -= usize::from(is_end);
                    reader.is_in_pattern = !is_end && *token != Token::Close;
                }
                Token::Word(name) if tokens.get(at) == Some(&Token::Open) && name.ends_with('=') => {
                    // An array.
                    let length = tokens.iter().skip(at).position(|token| *token == Token::Close);
                    let end = length.map_or(tokens.len(), |length| at + length);
                    let value: Vec<&str> =
                        tokens.get(at..end).into_iter().flatten().filter_map(Token::word).collect();
                    reader.assign(&format!("{name}{}", value.join(" ")));
                    at = end + 1;
                }
                Token::Word(name)
                    if reader.current.words.is_empty()
                        && tokens.get(at..at + 2) == Some(&[Token::Open, Token::Close]) =>
                {
                    at += 2;
                    reader.define(name);
                }
                Token::Word(word) => reader.word(word),
                Token::Quoted(word) => reader.current.words.push(word.clone()),
                Token::Background => {
                    reader.current.is_in_background = true;
                    reader.end();
                }
                Token::Open if tokens.get(at) == Some(&Token::Close) => at += 1,
                Token::Open => {
                    reader.end();
                    let function = reader.function.take();
                    reader.open.push((Token::Open, function));
                }
                Token::Close => {
                    reader.end();
                    reader.open.pop_if(|(token, _)| *token == Token::Open);
                }
                Token::Break => reader.end(),
                Token::NextCase => {
                    reader.end();
                    reader.is_in_pattern = reader.cases > 0;
                }
            }
        }
        reader.end();
        reader.script
    }
}

#[derive(Default)]
struct Reader {
    script: Script,
    current: Command,
    /// The loops that are open; whether each is over a list.
    loops: Vec<bool>,
    /// The braces and parentheses that are open; the function whose body each is.
    open: Vec<(Token, Option<String>)>,
    /// A function whose body has not begun.
    function: Option<String>,
    /// How many `case` are open.
    cases: usize,
    is_in_pattern: bool,
}

impl Reader {
    fn word(&mut self, word: &str) {
        if let Some(first) = self.current.words.first() {
            if first == "case" && word == "in" {
                self.current.words.clear();
                self.cases += 1;
                self.is_in_pattern = true;
            } else {
                self.current.words.push(word.to_owned());
            }
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
            "esac" => {
                self.cases = self.cases.saturating_sub(1);
                self.current.words.push(word.to_owned());
            }
            "}" => {
                self.open.pop_if(|(token, _)| *token != Token::Open);
            }
            "function" => self.function = Some(String::new()),
            "{" => {
                let function = self.function.take();
                self.open.push((Token::Word(word.to_owned()), function));
            }
            _ if self.function.as_ref().is_some_and(String::is_empty) => self.define(word),
            _ if INTRODUCTIONS.contains(&word) => {}
            _ if assignment(word).is_some() => self.assign(word),
            _ => self.current.words.push(word.to_owned()),
        }
    }

    fn define(&mut self, function: &str) {
        self.script.functions.insert(function.to_owned());
        self.function = Some(function.to_owned());
    }

    fn assign(&mut self, word: &str) {
        if let Some((name, value)) = assignment(word) {
            let assigned = Assignment::new(name, value, self.within());
            self.script.assigned.push(assigned);
        }
    }

    /// The function in whose body this is.
    fn within(&self) -> Option<&str> {
        self.open.iter().rev().find_map(|(_, function)| function.as_deref())
    }

    fn end(&mut self) {
        let mut command = std::mem::take(&mut self.current);
        let Some((first, rest)) = command.words.split_first() else { return };
        // A body is in braces or in parentheses.
        self.function = None;
        for word in rest {
            match (first.as_str(), expansion(word)) {
                ("for" | "select", _) => {
                    self.assign(&format!("{}={word}", rest.first().map_or("", String::as_str)));
                }
                // `: ${X:=value}`.
                (_, Some((name, rest))) if rest.starts_with(":=") || rest.starts_with('=') => {
                    self.assign(&format!("{name}{}", rest.trim_start_matches(':')));
                }
                (first, _) if DECLARATIONS.contains(&first) => self.assign(word),
                _ => {}
            }
        }
        command.within = self.within().map(str::to_owned);
        command.in_endless_loop = self.loops.iter().any(|is_over_a_list| !is_over_a_list);
        command.in_list_loop = self.loops.iter().any(|&is_over_a_list| is_over_a_list);
        self.script.commands.push(command);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loops(text: &str, arguments: &[&str]) -> bool {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        let environment = [("BINARY".to_owned(), "/opt/qemu".to_owned())];
        runs_in_a_loop(text, &arguments, &environment, &|word| word.to_lowercase().contains("qemu"))
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
            "respawn() { local it=$2; while :; do \"$@\"; done; }\nrespawn sudo -u vm qemu -m 1",
            ". /etc/vm.conf\nwhile :; do $QEMU -m 1; done",
            "while :; do \"$BINARY\" -m 1; done",
            ": ${VM:=/usr/bin/qemu}\nwhile :; do $VM; done",
            "while :; do ${VM:-/usr/bin/qemu -m 1}; done",
            "VM=$(command -v qemu-kvm); VM=$(which qemu-system-x86_64)\nwhile :; do $VM; done",
            "VM=\"$(readlink -f $(which qemu)) -m 1\"\nwhile :; do eval \"$VM\"; done",
            "while :; do sh -c '$QEMU -m 1'; done",
            "VM=`which qemu-system-x86_64`\nwhile :; do $VM; done",
            "export VM=\"$(dirname \"$0\")/qemu\"; while :; do exec -a x \"$VM\"; done",
            "for vm in /opt/qemu-10 /opt/qemu-9; do $vm -m 1; done",
            "while :; do env A=1 timeout -k 5 3600 qemu-system-x86_64 </dev/null; done",
            "while :; do sh -c 'cd /srv && qemu-system-x86_64'; su vm -c true; done",
            "while :; do bash /srv/start-qemu.sh; done",
            "run() (\n exec qemu-system-x86_64\n)\nwhile :; do run; done",
            "while :; do case $1 in a) qemu-system-x86_64 ;; esac; done",
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
            "check_qemu() { test -S q; }\nqemu-system-x86_64 &\nwhile ! check_qemu; do sleep 1; done",
            "qemu_ready() ( pgrep qemu )\nuntil qemu_ready; do sleep 1; done",
            "function check_qemu { [ -S q ]; }; retry() { until \"$@\"; do :; done; }; retry check_qemu",
            "retry() { until \"$@\"; do sleep 1; done; }; retry sudo test -S /tmp/qemu.sock; retry 5 kill -0 $QEMU_PID",
            "while sudo kill -0 $QEMU_PID; do sleep 1; done",
            "until timeout 5 test -S /tmp/qemu.sock; do sleep 1; done",
            "until nice -n 5 sudo -u qemu env A=qemu ls /tmp/qemu; do sleep 1; done",
            "until command -v qemu; do sleep 1; done",
            "until sh -c 'exec 3<>/tmp/qemu.sock'; do sleep 1; done",
            "QEMU_TEST='test -S q'; until $QEMU_TEST; do sleep 1; done",
            "QEMU=$(pgrep -f qemu-system); while $QEMU; do sleep 1; done",
            "while :; do sleep 1 > /tmp/qemu.log; > /tmp/qemu.log; done",
            "for d in *.img; do QEMU_ARGS+=\" -drive $d\"; QEMU_ARGS[1]=x; done",
            "while [ $# -gt 0 ]; do\n case $1 in\n  --qemu) Q=$2; shift ;;\n  kvm|qemu) ;;\n esac\n shift\ndone\nqemu",
        ] {
            assert!(!loops(text, &[]), "{text}");
        }
        assert!(!loops("while :; do \"$@\"; done", &["sleep"]));
        assert!(!loops("until \"$@\"; do sleep 1; done", &["test", "-S", "/tmp/qemu.sock"]));
    }

    #[test]
    fn what_is_no_script_ends_too() {
        for text in [
            "'",
            "\"\\",
            "`",
            "case in",
            "esac",
            ";;)",
            "<",
            "$",
            "${}",
            "$\u{e9}",
            "$(((",
            "${",
            "<<",
            "a=(",
            "done done }",
            "(((&&&|||",
            "f() {",
            "\u{0}\u{7f}",
        ] {
            assert!(!loops(text, &["x"]), "{text}");
        }
    }
}
