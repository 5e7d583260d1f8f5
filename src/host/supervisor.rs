//! Who would start a process anew once it has ended: a supervisor, a shell script's loop, a unit of systemd.
//!
//! Only what stands right above a process looks after it. From a process upwards scripts and commands that wait for
//! their child (`sudo`, `timeout`) are looked through; an interactive shell, a login or any other program ends the look,
//! whatever is above it: the `runsv` of an ssh server does not look after what people start in their sessions. What this
//! engine was started by ends the look too, since it does more than wait for QEMU: the script of a test, of a container.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Commands that run another one, as words.
mod prefix;
/// Loops in shell scripts.
mod script;
/// Scripts as words.
mod token;
/// Units of systemd: which a process is in, how it is asked for and stopped.
mod unit;

pub use unit::{Unit, UnitError, UnitName, UnitNameError};

use nix::unistd::{Pid, getpid, getsid};

use super::proc::{command_line, executable};
use super::process::executable_name;

/// Programs that start what they look after anew.
const SUPERVISORS: [&str; 13] = [
    "circusd",
    "forever",
    "god",
    "immortal",
    "monit",
    "perpd",
    "pm2",
    "runsv",
    "s6-supervise",
    "service-manager",
    "supervise",
    "supervise-daemon",
    "supervisord",
];
/// What keeps a container, and sees its first process end.
const SHIMS: [&str; 5] =
    ["conmon", "containerd-shim", "containerd-shim-runc-v2", "docker-containerd-shim", "lxc-start"];
/// Commands that run another one and wait for it.
const WAITERS: [&str; 20] = [
    "catatonit",
    "chpst",
    "doas",
    "dumb-init",
    "flock",
    "gosu",
    "ltrace",
    "nice",
    "nohup",
    "nsenter",
    "runuser",
    "setpriv",
    "setsid",
    "strace",
    "su",
    "sudo",
    "time",
    "timeout",
    "tini",
    "unshare",
];
const SHELLS: [&str; 9] = ["ash", "bash", "busybox", "dash", "ksh", "mksh", "rbash", "sh", "zsh"];
/// A script is no longer.
const LONGEST_SCRIPT_BYTES: u64 = 1 << 20;
/// Nobody stands further above.
const HIGHEST: usize = 32;

/// Whoever starts a process anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supervisor {
    /// A unit of systemd that restarts.
    Unit {
        /// Which.
        unit: Unit,
        /// Its `Restart=`; `None` where systemd cannot be asked.
        restart: Option<String>,
    },
    /// A program made for that.
    Program {
        /// Its process.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// A shell script with a loop.
    Loop {
        /// Its process.
        pid: i32,
        /// The script's file, or `sh -c`.
        script: String,
    },
    /// The process is the first one of a container, which ends with it.
    Container,
    /// A line of `/etc/inittab`.
    Inittab {
        /// The line.
        line: String,
    },
}

/// A process as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Facts {
    pid: i32,
    /// What the kernel calls it: for a script with `#!` the script's name.
    name: String,
    /// The file that it runs, without its directory.
    program: String,
    arguments: Vec<String>,
    /// The session that it is in.
    session: i32,
    /// Whether it is the first process of a namespace of its own.
    is_first_of_its_own: bool,
    /// What a shell reads, if that is no person.
    script: Option<Script>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Script {
    name: String,
    text: String,
    arguments: Vec<String>,
    /// The variables that the shell was started with.
    environment: Vec<(String, String)>,
}

/// Finds out who looks after a process. `is_it` knows a word by which it, or a program like it, is started.
pub async fn supervisor(pid: i32, is_it: &dyn Fn(&str) -> bool) -> Option<Supervisor> {
    let chain = chain(pid);
    let engine: Vec<i32> = self::chain(getpid().as_raw()).iter().map(|process| process.pid).collect();
    let (found, seen_through) = look_up(&chain, &engine, is_it);
    if found.is_some() {
        return found;
    }
    let unit = Unit::of(pid)?;
    let is_managers_own = chain.get(seen_through).is_none_or(is_manager);
    let processes: Vec<i32> = chain.iter().take(seen_through).map(|process| process.pid).collect();
    match unit.ask().await {
        Ok(answer) if answer.restarts() && answer.is_about(&processes, is_managers_own) => {
            Some(Supervisor::Unit { unit, restart: Some(answer.restart) })
        }
        Ok(_) => None,
        Err(_) => is_managers_own.then_some(Supervisor::Unit { unit, restart: None }),
    }
}

/// Who is found by looking upwards, and how many processes were seen through on the way. `engine` is this process with
/// all that are above it.
fn look_up(chain: &[Facts], engine: &[i32], is_it: &dyn Fn(&str) -> bool) -> (Option<Supervisor>, usize) {
    let Some(first) = chain.first() else { return (None, 0) };
    if first.pid == 1 {
        return (Some(Supervisor::Container), 1);
    }
    for (at, pair) in chain.windows(2).enumerate() {
        let [child, process] = pair else { continue };
        let names = process.names();
        let known_as =
            |known: &[&str]| names.iter().find(|name| known.contains(name)).map(|&name| name.to_owned());
        if process.pid == 1 {
            let line = std::fs::read_to_string("/etc/inittab").ok().and_then(|text| respawned(&text, is_it));
            if line.is_some() {
                return (line.map(|line| Supervisor::Inittab { line }), at + 1);
            }
            // Whoever has lost its parent has this one, and is of another session. (systemd's own children are too:
            // they are told by their unit.)
            if child.session != process.session {
                return (None, at + 1);
            }
        }
        if let Some(name) = known_as(&SUPERVISORS) {
            return (Some(Supervisor::Program { pid: process.pid, name }), at + 1);
        }
        if known_as(&SHIMS).is_some() {
            // What was started in a container later on is not looked after.
            return (child.is_first_of_its_own.then_some(Supervisor::Container), at + 1);
        }
        if engine.contains(&process.pid) {
            return (None, at + 1);
        }
        if process.pid == 1 && (process.script.is_some() || known_as(&WAITERS).is_some()) {
            return (Some(Supervisor::Container), at + 1);
        }
        if let Some(script) = &process.script {
            // A script that runs another one in its loop: the other one stands for what it has started.
            let called: Vec<&str> = child.names();
            let is_meant = |word: &str| is_it(word) || called.contains(&base(word));
            let Script { text, arguments, environment, .. } = script;
            if script::runs_in_a_loop(text, arguments, environment, &is_meant) {
                return (Some(Supervisor::Loop { pid: process.pid, script: script.name.clone() }), at + 1);
            }
        } else if known_as(&WAITERS).is_none() {
            return (None, at + 1);
        }
    }
    (None, chain.len())
}

impl Facts {
    /// What it may be known by: its own name, its file, and the script that an interpreter runs.
    fn names(&self) -> Vec<&str> {
        let first =
            self.arguments.iter().take(2).map(|word| base(word)).filter(|name| !SHELLS.contains(name));
        let first = first.filter(|name| !name.starts_with('-'));
        let is_shell = SHELLS.contains(&self.program.as_str());
        let own = [self.name.as_str(), self.program.as_str()]
            .into_iter()
            .filter(|name| !is_shell || !SHELLS.contains(name));
        own.chain(first).collect()
    }

    fn read(pid: i32) -> Option<(Self, i32)> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let arguments: Vec<String> =
            command_line(pid).ok()?.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let program = executable(pid).map_or_else(
            |_| arguments.first().map(|word| base(word).to_owned()).unwrap_or_default(),
            |path| executable_name(&path).to_owned(),
        );
        let numbers = field("NSpid:").unwrap_or_default().split_ascii_whitespace().collect::<Vec<_>>();
        let script = SHELLS.contains(&program.as_str()).then(|| script_of(pid, &arguments)).flatten();
        let facts = Self {
            pid,
            name: field("Name:")?.to_owned(),
            program,
            arguments,
            session: getsid(Some(Pid::from_raw(pid))).ok()?.as_raw(),
            is_first_of_its_own: numbers.len() > 1 && numbers.last() == Some(&"1"),
            script,
        };
        Some((facts, field("PPid:")?.parse().ok()?))
    }
}

/// The process, its parent, and so on.
fn chain(pid: i32) -> Vec<Facts> {
    let (mut chain, mut next) = (Vec::new(), pid);
    while next > 0 && chain.len() < HIGHEST {
        let Some((facts, parent)) = Facts::read(next) else { break };
        chain.push(facts);
        next = parent;
    }
    chain
}

/// systemd calls itself so also where it was started as `/sbin/init`.
fn is_manager(process: &Facts) -> bool {
    process.name == "systemd" || process.program == "systemd"
}

fn base(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

/// What a shell was told to read.
#[derive(Debug, PartialEq, Eq)]
enum Reads<'a> {
    /// `-c TEXT`.
    Text(&'a str, &'a [String]),
    /// A file.
    File(&'a str, &'a [String]),
    /// Its standard input.
    Input,
    /// A person.
    Person,
}

fn reads(arguments: &[String]) -> Reads<'_> {
    let skipped = usize::from(arguments.first().is_some_and(|word| base(word) == "busybox"));
    let (mut at, mut is_text) = (skipped + 1, false);
    while let Some(word) = arguments.get(at) {
        at += 1;
        let letters = word.strip_prefix(['-', '+']);
        match letters {
            Some("-" | "") => {}
            Some("-rcfile" | "-init-file") => at += 1,
            Some(long) if long.starts_with('-') => {}
            Some(letters) if letters.contains('i') => return Reads::Person,
            Some(letters) => {
                is_text |= letters.contains('c');
                at += usize::from(letters.ends_with(['o', 'O']));
            }
            None => {
                let rest = arguments.get(at..).unwrap_or_default();
                return if is_text { Reads::Text(word, rest) } else { Reads::File(word, rest) };
            }
        }
    }
    Reads::Input
}

fn script_of(pid: i32, arguments: &[String]) -> Option<Script> {
    let proc = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let (name, text, arguments) = match reads(arguments) {
        Reads::Person => return None,
        Reads::Text(text, arguments) => ("sh -c", text.to_owned(), arguments),
        Reads::File(name, arguments) => {
            // By the descriptor that the shell reads it by (bash, dash), which no `cd` leads astray.
            let by_name = proc("cwd").join(name);
            let text = [by_name, proc("fd/255"), proc("fd/10")].iter().find_map(|path| read_file(path))?;
            (name, text, arguments)
        }
        Reads::Input => ("its standard input", read_file(&proc("fd/0"))?, [].as_slice()),
    };
    let variables = std::fs::read(proc("environ")).unwrap_or_default();
    let variables = String::from_utf8_lossy(&variables);
    let variable = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment = variables.split('\0').filter_map(variable).collect();
    Some(Script { name: name.to_owned(), text, arguments: arguments.to_vec(), environment })
}

/// A plain file's text; nothing else is opened for long.
fn read_file(path: &Path) -> Option<String> {
    // The name is somebody else's, and a device may do something when it is opened.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let file = std::fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LONGEST_SCRIPT_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The line of an inittab that starts the program anew: `id:runlevels:respawn:process`.
fn respawned(inittab: &str, is_it: &dyn Fn(&str) -> bool) -> Option<String> {
    inittab.lines().map(str::trim).filter(|line| !line.starts_with('#')).find_map(|line| {
        let process = line.splitn(4, ':').nth(3)?;
        let respawns = line.split(':').nth(2) == Some("respawn");
        (respawns && process.split_ascii_whitespace().any(is_it)).then(|| line.to_owned())
    })
}

/// systemd answers within this, or is not there.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn is_qemu(word: &str) -> bool {
        word.contains("qemu")
    }

    fn process(pid: i32, name: &str, program: &str, arguments: &[&str]) -> Facts {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        Facts { pid, name: name.into(), program: program.into(), arguments, ..Facts::default() }
    }

    fn with_script(mut process: Facts, text: &str) -> Facts {
        process.script = Some(Script { name: "start".into(), text: text.into(), ..Script::default() });
        process
    }

    fn found(above: Vec<Facts>) -> Option<Supervisor> {
        found_by(&[], above)
    }

    /// By an engine that is one of these processes, or below them.
    fn found_by(engine: &[i32], above: Vec<Facts>) -> Option<Supervisor> {
        let mut chain = vec![process(100, "qemu-system-x86", "qemu-system-x86_64", &["qemu-system-x86_64"])];
        chain.extend(above);
        look_up(&chain, engine, &is_qemu).0
    }

    fn systemd() -> Facts {
        process(1, "systemd", "systemd", &["/sbin/init"])
    }

    #[test]
    fn a_supervisor_right_above_is_found_by_any_of_its_names() {
        for above in [
            process(9, "runsv", "runsv", &["runsv", "vm"]),
            process(9, "runsv", "dash", &["/bin/sh", "/sbin/runsv", "vm"]),
            process(9, "python3", "python3.11", &["/usr/bin/python3", "/usr/bin/supervisord", "-n"]),
            process(9, "s6-supervise", "s6-supervise", &["s6-supervise", "vm"]),
        ] {
            let name = found(vec![above.clone(), systemd()]);
            assert!(matches!(name, Some(Supervisor::Program { pid: 9, .. })), "{above:?}: {name:?}");
        }
        let script =
            with_script(process(12, "run", "dash", &["/bin/sh", "./run"]), "qemu-system-x86_64 -m 1");
        let sudo = process(11, "sudo", "sudo", &["sudo", "qemu-system-x86_64"]);
        let runsv = process(10, "runsv", "runsv", &["runsv", "vm"]);
        assert!(found(vec![sudo, script, runsv]).is_some(), "through what waits for its child");
    }

    #[test]
    fn what_people_and_programs_start_is_nobodys() {
        let bash = || process(20, "bash", "bash", &["-bash"]);
        let runsv = || process(9, "runsv", "runsv", &["runsv", "sshd"]);
        let sshd = || process(10, "sshd", "sshd", &["sshd: vm"]);
        for above in [
            vec![bash(), sshd(), runsv(), systemd()],
            vec![process(30, "python3", "python3.11", &["python3", "lab.py"]), bash(), runsv()],
            vec![process(30, "it-0123", "it-0123", &["target/debug/deps/it-0123"]), runsv()],
            vec![process(30, "make", "make", &["make", "run"]), bash()],
            vec![systemd()],
            vec![process(9, "containerd-shim", "containerd-shim", &["containerd-shim"]), systemd()],
        ] {
            assert_eq!(found(above.clone()), None, "{above:?}");
        }
    }

    #[test]
    fn a_script_with_a_loop_is_found_also_behind_another_script() {
        let again = "while :; do qemu-system-x86_64; done";
        let script = || process(40, "again", "bash", &["bash", "again"]);
        assert_eq!(
            found(vec![with_script(script(), again)]),
            Some(Supervisor::Loop { pid: 40, script: "start".into() })
        );
        let starts =
            with_script(process(41, "boot.sh", "dash", &["sh", "/srv/boot.sh"]), "qemu-system-x86_64");
        let calls = with_script(script(), "while sleep 1; do /srv/boot.sh; done");
        assert!(found(vec![starts.clone(), calls]).is_some());
        assert_eq!(
            found(vec![starts, with_script(script(), "while sleep 1; do ./other; done; ./boot.sh")]),
            None
        );
    }

    #[test]
    fn a_container_ends_with_its_first_process() {
        let shim = || process(9, "containerd-shim", "containerd-shim-runc-v2", &["containerd-shim-runc-v2"]);
        let mut first = process(100, "qemu-system-x86", "qemu-system-x86_64", &[]);
        assert_eq!(look_up(&[first.clone(), shim()], &[], &is_qemu).0, None, "docker exec");
        first.is_first_of_its_own = true;
        assert_eq!(look_up(&[first.clone(), shim()], &[9], &is_qemu).0, Some(Supervisor::Container));
        first.pid = 1;
        assert_eq!(look_up(&[first], &[], &is_qemu).0, Some(Supervisor::Container));
    }

    #[test]
    fn who_has_lost_its_parent_is_not_looked_after_by_the_first_process() {
        let mut tini = process(1, "tini", "tini", &["tini", "--", "qemu-system-x86_64"]);
        assert_eq!(found(vec![tini.clone()]), Some(Supervisor::Container));
        tini.session = 1;
        assert_eq!(found(vec![tini.clone()]), None, "started by somebody who has ended");
        tini.name = "supervisord".to_owned();
        assert_eq!(found(vec![tini]), None);
    }

    #[test]
    fn whoever_has_started_the_engine_too_does_not_look_after_the_source() {
        let again = "while :; do qemu-system-x86_64 & qmigrate migrate qmp; done";
        let soak = || with_script(process(50, "soak", "bash", &["bash", "soak"]), again);
        let first = |text: &str| with_script(process(1, "sh", "dash", &["sh", "ci.sh"]), text);
        let tini = || process(1, "tini", "tini", &["tini", "--", "sh", "ci.sh"]);
        let starts =
            || with_script(process(60, "start", "dash", &["sh", "start"]), "exec qemu-system-x86_64");
        for (engine, above) in [
            (&[90, 50, 1][..], vec![soak(), systemd()]),
            (&[90, 50, 1], vec![starts(), soak(), systemd()]),
            (&[90, 1], vec![first("qemu-system-x86_64 & qmigrate migrate qmp")]),
            (&[90, 50, 1], vec![soak(), tini()]),
            (&[90, 50, 1], vec![tini()]),
            (&[90, 50], vec![process(90, "qmigrate", "qmigrate", &["qmigrate"]), soak()]),
        ] {
            assert_eq!(found_by(engine, above.clone()), None, "{above:?}");
        }
        let loops = with_script(process(60, "start", "dash", &["sh", "start"]), "while :; do qemu; done");
        let supervisord = process(1, "supervisord", "python3.11", &["python3", "/usr/bin/supervisord"]);
        for (engine, above) in [
            (&[90, 50, 1][..], vec![loops, soak()]),
            (&[90, 80], vec![soak(), systemd()]),
            (&[90], vec![first("qemu-system-x86_64")]),
            (&[90, 70, 1], vec![supervisord]),
        ] {
            assert!(found_by(engine, above.clone()).is_some(), "{above:?}");
        }
        assert!(is_manager(&systemd()) && !is_manager(&tini()) && !is_manager(&first("")));
    }

    #[test]
    fn an_option_is_no_name_and_the_environment_is_known() {
        let qemu = process(100, "vm", "vm", &["/srv/vm", "-S"]);
        assert_eq!(qemu.names(), ["vm", "vm", "vm"]);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo; read line; exit", "x", "y"])
            .env("VM", "/opt/a=b")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It is a shell by then, with its arguments.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let script = Facts::read(pid).unwrap().0.script.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((script.name.as_str(), script.arguments), ("sh -c", vec!["x".to_owned(), "y".to_owned()]));
        assert!(script.environment.contains(&("VM".to_owned(), "/opt/a=b".to_owned())));
    }

    #[test]
    fn a_shells_words_tell_what_it_reads() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let file = |line: &str, name: &str| {
            assert!(matches!(reads(&words(line)), Reads::File(file, _) if file == name), "{line}");
        };
        file("sh run.sh a b", "run.sh");
        file("/bin/bash -eu -o pipefail run.sh", "run.sh");
        file("bash --norc --rcfile x run.sh", "run.sh");
        file("busybox sh run.sh", "run.sh");
        assert!(matches!(reads(&words("bash -lc text")), Reads::Text("text", [])));
        assert_eq!(reads(&words("-bash")), Reads::Input);
        assert_eq!(reads(&words("bash -i")), Reads::Person);
    }

    #[test]
    fn a_line_of_an_inittab_that_respawns_is_found() {
        let text =
            "# 1:2345:respawn:/usr/bin/qemu\n1:2345:respawn:/sbin/getty\nv:2345:respawn:/usr/bin/qemu -m 1\n";
        assert_eq!(respawned(text, &is_qemu).as_deref(), Some("v:2345:respawn:/usr/bin/qemu -m 1"));
        assert_eq!(respawned("v:2:once:/usr/bin/qemu\n", &is_qemu), None);
        assert_eq!(
            respawned("::respawn:/usr/bin/qemu\n", &is_qemu).as_deref(),
            Some("::respawn:/usr/bin/qemu")
        );
    }
}
