//! Commands that run the command behind them (`sudo`, `timeout`): which of their words is that command.

use super::token::assignment;

/// One of them: its names, its options that take the next word as their value, and how many words of its own stand
/// before the command.
struct Prefix {
    names: &'static [&'static str],
    letters: &'static str,
    long: &'static [&'static str],
    operands: usize,
}

const fn prefix(
    names: &'static [&'static str],
    letters: &'static str,
    long: &'static [&'static str],
    operands: usize,
) -> Prefix {
    Prefix { names, letters, long, operands }
}

/// As their manuals tell.
const PREFIXES: [Prefix; 27] = [
    prefix(&["builtin", "catatonit", "command", "eval", "nohup", "setsid", "tini"], "", &[], 0),
    prefix(&["ash", "bash", "busybox", "dash", "ksh", "mksh", "rbash", "sh", "zsh"], "oO", SHELL, 0),
    prefix(&["chpst"], "/belmnopstuUcdfrLC", &[], 0),
    prefix(&["chrt"], "DPT", &["sched-deadline", "sched-period", "sched-runtime"], 1),
    prefix(&["doas"], "aCu", &[], 0),
    prefix(&["dumb-init"], "r", &["rewrite"], 0),
    prefix(&["env"], "Cu", &["chdir", "unset"], 0),
    prefix(&["exec"], "a", &[], 0),
    prefix(&["flock"], "Ew", &["conflict-exit-code", "timeout", "wait"], 1),
    prefix(&["gosu", "s6-setuidgid", "setuidgid", "su-exec"], "", &[], 1),
    prefix(&["ionice"], "cn", &["class", "classdata"], 0),
    prefix(&["ltrace"], "aAeFlnopsuwxX", &["output"], 0),
    prefix(&["nice"], "n", &["adjustment"], 0),
    prefix(&["nsenter"], "GSt", &["setgid", "setuid", "target"], 0),
    prefix(&["numactl"], "CimNpw", &["cpunodebind", "interleave", "membind", "physcpubind", "preferred"], 0),
    prefix(&["prlimit"], "op", &["output", "pid"], 0),
    prefix(&["runuser"], "gGsu", &["group", "shell", "supp-group", "user"], 0),
    prefix(&["setpriv"], "", SETPRIV, 0),
    prefix(&["softlimit"], "acdflmoprst", &[], 0),
    prefix(&["stdbuf"], "eio", &["error", "input", "output"], 0),
    prefix(&["strace"], "abeEIoOpPsSuUX", &["env", "output", "trace", "user"], 0),
    prefix(&["su"], "gGsw", &["group", "shell", "supp-group"], 1),
    prefix(&["sudo"], "CDghpRrTtUu", SUDO, 0),
    prefix(&["taskset"], "", &[], 1),
    prefix(&["time"], "fo", &["format", "output"], 0),
    prefix(&["timeout"], "ks", &["kill-after", "signal"], 1),
    prefix(&["unshare"], "GRSw", &["map-group", "map-user", "root", "setgid", "setuid", "wd"], 0),
];
const SHELL: &[&str] = &["init-file", "rcfile"];
const SETPRIV: &[&str] = &[
    "ambient-caps",
    "apparmor-profile",
    "bounding-set",
    "egid",
    "euid",
    "groups",
    "inh-caps",
    "pdeathsig",
    "regid",
    "reuid",
    "rgid",
    "ruid",
    "securebits",
    "selinux-label",
];
const SUDO: &[&str] = &[
    "chdir",
    "chroot",
    "close-from",
    "command-timeout",
    "group",
    "host",
    "other-user",
    "prompt",
    "role",
    "type",
    "user",
];
/// Those that are given the command as a text by `-c`.
const TAKE_TEXT: [&str; 3] = ["flock", "runuser", "su"];

/// The command that is run: the words themselves, or those behind all prefixes. Nothing where none is run.
pub(super) fn command(words: &[String]) -> &[String] {
    let mut words = words;
    while let Some((first, rest)) = words.split_first() {
        let name = first.rsplit('/').next().unwrap_or(first);
        let Some(prefix) = PREFIXES.iter().find(|prefix| prefix.names.contains(&name)) else { break };
        // `command -v` only tells where a command is.
        if name == "command" && rest.first().is_some_and(|word| word == "-v" || word == "-V") {
            return &[];
        }
        let text = rest.iter().position(|word| word == "-c" || word == "--command");
        words = match text.filter(|_| TAKE_TEXT.contains(&name)) {
            Some(at) => rest.get(at + 1..at + 2).unwrap_or_default(),
            None => prefix.behind(rest),
        };
    }
    words
}

impl Prefix {
    /// The command among the words behind it.
    fn behind<'a>(&self, words: &'a [String]) -> &'a [String] {
        let (mut at, mut operands) = (0, self.operands);
        while let Some(word) = words.get(at) {
            let is_number = word.starts_with(|letter: char| letter.is_ascii_digit());
            if word.starts_with('-') {
                at += usize::from(self.takes_next(word));
            } else if is_number || operands > 0 {
                operands = operands.saturating_sub(1);
            } else if assignment(word).is_none() {
                break;
            }
            at += 1;
        }
        words.get(at..).unwrap_or_default()
    }

    /// Whether the word behind an option is its value.
    fn takes_next(&self, option: &str) -> bool {
        if let Some(long) = option.strip_prefix("--") {
            return self.long.contains(&long);
        }
        // `-nu vm`: behind the first letter with a value stands the value, if there is more.
        let letters = option.trim_start_matches('-');
        letters.find(|letter| self.letters.contains(letter)).is_some_and(|at| at + 1 == letters.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::WAITERS;
    use super::*;

    #[test]
    fn the_command_behind_prefixes_is_found() {
        for (line, found) in [
            ("qemu -m 1", "qemu -m 1"),
            ("sudo kill -0 $QEMU_PID", "kill -0 $QEMU_PID"),
            ("timeout 5 test -S /tmp/qemu.sock", "test -S /tmp/qemu.sock"),
            ("timeout -k 5 -s KILL 10 qemu", "qemu"),
            ("timeout --signal KILL $LONG qemu", "qemu"),
            ("sudo -nu vm A=1 nice -n -5 /usr/bin/ionice -c2 -n 7 qemu", "qemu"),
            ("sudo -uvm --user=vm -- qemu -u", "qemu -u"),
            ("env -i -u X A=1 B=2 qemu", "qemu"),
            ("exec -a vm qemu", "qemu"),
            ("taskset -c 0-3 chrt -f 10 qemu", "qemu"),
            ("setuidgid vm chpst -n 2 -v qemu", "qemu"),
            ("flock -n /run/lock qemu", "qemu"),
            ("flock /run/lock -c qemu", "qemu"),
            ("su - vm -s /bin/sh -c qemu", "qemu"),
            ("numactl -m 0 --physcpubind 1-3 qemu", "qemu"),
            ("bash -eo pipefail start-qemu.sh", "start-qemu.sh"),
            ("busybox nice qemu", "qemu"),
            ("command qemu", "qemu"),
            ("command -v qemu", ""),
            ("sudo", ""),
            ("sudo -u", ""),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(command(&words).join(" "), found, "{line}");
        }
    }

    #[test]
    fn whatever_is_seen_through_as_a_process_is_so_as_a_word() {
        for waiter in WAITERS {
            let words = [waiter, "9", "qemu"].map(str::to_owned);
            assert_eq!(command(&words).last().map(String::as_str), Some("qemu"), "{waiter}");
            assert_ne!(command(&words).first().map(String::as_str), Some(waiter), "{waiter}");
        }
    }
}
