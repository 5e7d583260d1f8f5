//! What a QEMU has from its host besides its user, and its destination has too: limits, priorities, processors, cgroups.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use qmigrate::record::MigrationId;
use serde_json::Value;

use crate::small_qemu::{Place, Said, Source, command, migrate, qemu_or_skip, run, wait_for};
use crate::support::{Process, skip};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// A QEMU that a shell becomes once it has run these lines; what stands last are words before a command.
fn start(qemu: &Path, lines: &str, options: &[&str]) -> Source {
    start_in(Place::new(), qemu, lines, options)
}

/// One of nobody's, in a directory of nobody's.
fn start_as_nobody(qemu: &Path, words: &str) -> Source {
    let place = Place::new();
    chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let who = format!("exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {words}");
    start_in(place, qemu, &who, &[])
}

fn start_in(place: Place, qemu: &Path, lines: &str, options: &[&str]) -> Source {
    let words = ["-nodefaults", "-display", "none", "-machine", "pc", "-accel", "tcg", "-m", "32"];
    let monitor = place.at("qmp");
    let mut shell: Vec<OsString> =
        vec!["-c".into(), format!("{lines} \"$@\"").into(), "sh".into(), qemu.into()];
    shell.extend(words.iter().chain(options).map(OsString::from));
    shell.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", monitor.display()).into()]);
    let process = Process::start(Path::new("/bin/sh"), &shell, place.at("qmp.log"));
    wait_for("a monitor", || {
        assert!(Path::new(&format!("/proc/{}", process.pid())).exists(), "{}", process.log());
        UnixStream::connect(&monitor).ok()
    });
    Source { process, place }
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// What a thread has, by /proc and by the tools that people use.
fn of_thread(pid: i32, thread: i32) -> BTreeMap<String, String> {
    let task = format!("/proc/{pid}/task/{thread}");
    let status = read(format!("{task}/status"));
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let stat = read(format!("{task}/stat"));
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let tool = |name: &str| {
        let output = Command::new(name).args(["-p", &thread.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().replace(&thread.to_string(), "")
    };
    [
        ("processors", field("Cpus_allowed_list:")),
        ("bounds", field("CapBnd:")),
        ("no new privileges", field("NoNewPrivs:")),
        ("umask", field("Umask:")),
        ("nice", fields[19 - 3].to_owned()),
        ("policy", tool("chrt")),
        ("I/O priority", tool("ionice")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What a process has.
fn of_process(pid: i32) -> BTreeMap<String, String> {
    let mut all = of_thread(pid, pid);
    for file in ["limits", "oom_score_adj", "cgroup"] {
        all.insert(file.to_owned(), read(format!("/proc/{pid}/{file}")));
    }
    all
}

/// The one QEMU that there is after a move.
fn destination(source: &Source) -> i32 {
    let all = source.place.qemus();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_ne!(all[0], source.process.pid());
    all[0]
}

/// Moves a guest whose destination is to have all that its source has.
fn moves_with_all(source: &Source) -> BTreeMap<String, String> {
    let before = of_process(source.process.pid());
    let said = migrate(text(&source.qmp()), &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!said.text.contains("has not all"), "{said:?}");
    let after = of_process(destination(source));
    assert_eq!(after, before);
    before
}

#[test]
fn a_destination_has_the_limits_and_priorities_of_its_source() {
    const TEST: &str = "a_destination_has_the_limits_and_priorities_of_its_source";
    if !geteuid().is_root() {
        return skip(TEST, "only root may take capabilities away");
    }
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let lines = "umask 0013; echo 300 > /proc/self/oom_score_adj; ulimit -c 0; \
        exec prlimit --nofile=1000:2000 --memlock=65536:131072 --sigpending=500:600 --stack=4194304:8388608 \
        chrt --batch 0 nice -n 3 ionice -c 2 -n 6 taskset -c 0 setpriv --no-new-privs --bounding-set -sys_time";
    let source = start(&qemu, lines, &[]);
    let has = moves_with_all(&source);
    // What it was started with is what was looked at.
    for (name, part) in [
        ("limits", "Max pending signals       500                  600"),
        ("limits", "Max locked memory         65536                131072"),
        ("processors", "0"),
        ("umask", "0013"),
        ("policy", "SCHED_BATCH"),
        ("I/O priority", "best-effort: prio 6"),
        ("oom_score_adj", "300"),
        ("no new privileges", "1"),
    ] {
        assert!(has[name].contains(part), "{name}: {}", has[name]);
    }
    assert_ne!(has["bounds"], of_process(std::process::id().try_into().unwrap())["bounds"]);
}

#[test]
fn a_destination_of_another_user_has_them_too() {
    const TEST: &str = "a_destination_of_another_user_has_them_too";
    if !geteuid().is_root() {
        return skip(TEST, "only root may start a QEMU as somebody else");
    }
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = start_as_nobody(&qemu, "prlimit --sigpending=600:700 chrt --idle 0");
    let has = moves_with_all(&source);
    assert!(has["limits"].contains("600                  700"), "{}", has["limits"]);
    assert!(has["policy"].contains("SCHED_IDLE"), "{}", has["policy"]);
}

/// An engine of root's runs nothing as root that the source's user could have put there.
#[test]
fn a_program_is_asked_what_it_is_as_the_user_of_the_source() {
    const TEST: &str = "a_program_is_asked_what_it_is_as_the_user_of_the_source";
    if !geteuid().is_root() {
        return skip(TEST, "only root may start a QEMU as somebody else");
    }
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = start_as_nobody(&qemu, "env");
    let (program, users) = (source.place.at("qemu-system-x86_64"), source.place.at("users"));
    let lines = format!("#!/bin/sh\nid -u >> {}\nexec {} \"$@\"\n", users.display(), qemu.display());
    std::fs::write(&program, lines).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut check = command();
    check.args(["check", source.qmp().to_str().unwrap(), "--qemu", program.to_str().unwrap()]);
    let said = run(check);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(std::fs::read_to_string(users).unwrap(), format!("{NOBODY}\n"));
}

#[test]
fn what_a_user_may_not_give_is_named_and_stops_nothing() {
    const TEST: &str = "what_a_user_may_not_give_is_named_and_stops_nothing";
    if !geteuid().is_root() {
        return skip(TEST, "only root can run the command as somebody else");
    }
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let source = start_as_nobody(&qemu, "prlimit --sigpending=1000:2000");
    // The tests may be run with `nice` themselves.
    let nice: i32 = of_process(source.process.pid())["nice"].parse().unwrap();
    // The command may be in a directory that nobody else may enter.
    let program = source.place.at("qmigrate.log");
    std::fs::copy(env!("CARGO_BIN_EXE_qmigrate"), &program).unwrap();
    let mut command = Command::new("/usr/bin/prlimit");
    command.args(["--sigpending=500:600", "nice", "-n", "5"]).arg(&program).arg("migrate").arg(source.qmp());
    command.uid(NOBODY).gid(NOBODY).env("XDG_RUNTIME_DIR", source.place.path());
    command.env("XDG_STATE_HOME", source.place.path()).stdin(Stdio::null());
    let said = Said::of(&run(command));
    assert_eq!(said.code, Some(0), "{said:?}");
    said.tells(&[
        "has not all that the source has",
        &format!("nice {} instead of nice {nice}", nice + 5),
        "max pending signals 600:600 instead of 1000:2000",
        "root may give all of it",
    ]);
    assert_eq!(said.text.matches("instead of nice").count(), 1, "{said:?}");
}

#[test]
fn each_thread_that_was_pinned_is_pinned_on_the_destination() {
    const TEST: &str = "each_thread_that_was_pinned_is_pinned_on_the_destination";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return skip(TEST, "there is one processor only");
    }
    let options = ["-smp", "2", "-object", "iothread,id=first", "-object", "iothread,id=second"];
    let source = Source::start(&qemu, &options);
    let pid = source.process.pid();
    let own = threads(&source);
    let tool = |words: &[&str], name: &str| {
        let mut tool = Command::new(words[0]);
        tool.args(&words[1..]).arg(own[name].to_string()).stdout(Stdio::null());
        assert!(tool.status().unwrap().success(), "{words:?} {name}");
    };
    tool(&["taskset", "-p", "-c", "0"], "processor 0");
    tool(&["taskset", "-p", "-c", "1"], "processor 1");
    tool(&["taskset", "-p", "-c", "1"], "first");
    tool(&["renice", "-n", "4", "-p"], "second");
    let of_all = |pid: i32, threads: BTreeMap<String, i32>| -> BTreeMap<String, BTreeMap<String, String>> {
        threads.into_iter().map(|(name, thread)| (name, of_thread(pid, thread))).collect()
    };
    let before = of_all(pid, own);
    assert_eq!(before["processor 1"]["processors"], "1");
    source.moves();
    let after = of_all(destination(&source), threads(&source));
    assert_eq!(after, before);
}

/// The threads of a QEMU, by what they do.
fn threads(source: &Source) -> BTreeMap<String, i32> {
    let mut monitor = source.monitor();
    let number = |thread: &Value| i32::try_from(thread["thread-id"].as_i64().unwrap()).unwrap();
    let mut threads = BTreeMap::new();
    for processor in monitor.ask("query-cpus-fast").as_array().unwrap() {
        threads.insert(format!("processor {}", processor["cpu-index"]), number(processor));
    }
    for thread in monitor.ask("query-iothreads").as_array().unwrap() {
        threads.insert(thread["id"].as_str().unwrap().to_owned(), number(thread));
    }
    threads
}

/// A cgroup of a test's own in each hierarchy in which it may make one.
struct Cgroups {
    name: String,
    made: Vec<PathBuf>,
}

impl Cgroups {
    /// They have a name that no other test's have, with this at its end.
    fn make(suffix: &str) -> Self {
        let name = format!("qmigrate-{}{suffix}", MigrationId::new());
        let own = read("/proc/self/cgroup");
        let mut made = Vec::new();
        for line in read("/proc/self/mountinfo").lines() {
            let (fields, kind) = line.split_once(" - cgroup").unwrap_or((line, ""));
            let mount = Path::new(fields.split(' ').nth(4).unwrap());
            let controller = kind.rsplit([' ', ',']).next().unwrap_or_default();
            let is_it = |line: &&str| match kind.as_bytes().first() {
                Some(b'2') => line.starts_with("0::"),
                Some(_) => line.split(':').nth(1) == Some(controller),
                None => false,
            };
            let Some(line) = own.lines().find(is_it) else { continue };
            let parent = mount.join(line.rsplit(':').next().unwrap().trim_start_matches('/'));
            let directory = parent.join(&name);
            if std::fs::create_dir(&directory).is_err() {
                continue;
            }
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = std::fs::read(parent.join(file)) {
                    std::fs::write(directory.join(file), all).ok();
                }
            }
            made.push(directory);
        }
        Self { name, made }
    }

    /// Lines that put a shell into all of them.
    fn entering(&self) -> String {
        let enter = |path: &PathBuf| format!("echo $$ > {}/cgroup.procs || exit 1; ", path.display());
        self.made.iter().map(enter).collect::<String>() + "exec"
    }

    fn find(&self, file: &str) -> Option<PathBuf> {
        self.made.iter().map(|directory| directory.join(file)).find(|path| path.exists())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in &self.made {
            wait_for("an empty cgroup", || std::fs::remove_dir(directory).ok());
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn number(path: &Path) -> u64 {
    read(path).trim().parse().unwrap()
}

#[test]
fn a_destination_is_in_the_cgroups_of_its_source_from_its_first_page_on() {
    const TEST: &str = "a_destination_is_in_the_cgroups_of_its_source_from_its_first_page_on";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let cgroups = Cgroups::make("");
    if cgroups.made.is_empty() {
        return skip(TEST, "no cgroup can be made here");
    }
    let source = start(&qemu, &cgroups.entering(), &[]);
    let has = moves_with_all(&source);
    let inside = has["cgroup"].lines().filter(|line| line.ends_with(&cgroups.name)).count();
    assert_eq!(inside, cgroups.made.len(), "{}", has["cgroup"]);
    let used = ["memory.usage_in_bytes", "memory.current"].into_iter().find_map(|file| cgroups.find(file));
    let Some(used) = used else { return skip(TEST, "no hierarchy here counts memory") };
    let anonymous = qmigrate::host::resident_bytes(destination(&source)).unwrap();
    assert!(anonymous > 0 && number(&used) >= anonymous, "{} of {anonymous} are counted", number(&used));
}

#[test]
fn a_destination_is_kept_out_of_a_service_that_ends_with_its_source() {
    const TEST: &str = "a_destination_is_kept_out_of_a_service_that_ends_with_its_source";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let cgroups = Cgroups::make(".service");
    let is_systemds =
        |path: &PathBuf| ["/systemd/", "/unified/"].iter().any(|name| text(path).contains(name));
    if !cgroups.made.iter().any(|path| is_systemds(path) || path.join("cgroup.type").exists()) {
        return skip(TEST, "no cgroup of the kind that systemd looks at can be made here");
    }
    let source = start(&qemu, &cgroups.entering(), &[]);
    assert!(of_process(source.process.pid())["cgroup"].contains(&cgroups.name));
    let said = migrate(text(&source.qmp()), &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    said.tells(&[&format!("outside of {}, with which systemd would end it", cgroups.name)]);
    let cgroup = &of_process(destination(&source))["cgroup"];
    assert!(!cgroup.contains(&cgroups.name), "{cgroup}");
}

#[test]
fn two_that_their_cgroup_has_no_room_for_are_not_started() {
    const TEST: &str = "two_that_their_cgroup_has_no_room_for_are_not_started";
    let Some(qemu) = qemu_or_skip(TEST) else { return };
    let cgroups = Cgroups::make("");
    let limit = [("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")];
    let find = |(limit, used)| Some((cgroups.find(limit)?, cgroups.find(used)?));
    let Some((limit, used)) = limit.into_iter().find_map(find) else {
        return skip(TEST, "no cgroup that counts memory can be made here");
    };
    let memory = ["-object", "memory-backend-ram,id=x,size=256M,prealloc=on", "-machine", "memory-backend=x"];
    let source = start(&qemu, &cgroups.entering(), &[&memory[..], &["-m", "256"]].concat());
    // A socket listens before there is any memory; who is greeted speaks to a QEMU that has all of it.
    source.monitor();
    let resident = qmigrate::host::resident_bytes(source.process.pid()).unwrap();
    std::fs::write(&limit, (number(&used) + resident / 2).to_string()).unwrap();
    source.refuses(&[]).tells(&["their cgroup has room for", text(&limit), "raise the limit"]);
    std::fs::write(&limit, (number(&used) + 4 * resident).to_string()).unwrap();
    source.moves();
}
