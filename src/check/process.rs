//! Where the source lives, and who looks after it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Blocker, Code, Findings};
use crate::host::{Supervisor, Unit, UnitName, supervisor};
use crate::qemu::argv::is_qemu_name;

/// What becomes of the source once the guest runs elsewhere, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceEnds<'a> {
    /// It is told to quit.
    ByItself,
    /// Its unit is stopped.
    ByUnit(&'a UnitName),
    /// It stays.
    Never,
}

/// What is mounted where.
const MOUNTS: &str = "mnt";
/// Namespaces in which a name means another thing, as /proc calls them, with the option by which `nsenter` enters them.
const NAMESPACES: [(&str, &str); 4] = [(MOUNTS, "-m"), ("net", "-n"), ("pid", "-p"), ("user", "-U")];
/// Parts of the name of what asks about a QEMU, and starts none.
const QUESTIONS: [&str; 16] = [
    "alive", "check", "checks", "exists", "has", "is", "kill", "pid", "ping", "probe", "ready", "running",
    "sock", "status", "stop", "wait",
];
/// What is called after QEMU and runs no guest.
const TOOLS: [&str; 8] = [
    "qemu-edid",
    "qemu-ga",
    "qemu-img",
    "qemu-io",
    "qemu-keymap",
    "qemu-nbd",
    "qemu-pr-helper",
    "qemu-storage-daemon",
];

/// All about the source's process, by its number. `started` is the file by which the destination is started, where that
/// is the source's.
pub async fn process(pid: i32, ends: SourceEnds<'_>, started: Option<&str>) -> Findings {
    let mut findings = Findings::default();
    let link = |whose: &str, name: &str| std::fs::read_link(format!("/proc/{whose}/ns/{name}")).ok();
    let other = NAMESPACES.into_iter().filter(|(name, _)| {
        let (own, its) = (link("self", name), link(&pid.to_string(), name));
        // One that this user may not read tells nothing.
        own.is_some() && its.is_some() && own != its
    });
    match other.collect::<Vec<_>>().as_slice() {
        [] => {}
        // A service with a /tmp of its own, for one: mostly the same files, and the images are looked at one by one.
        [(MOUNTS, _)] if has_same_root(pid) => findings.warn(namespaces(pid, &[(MOUNTS, "-m")])),
        other => findings.block(namespaces(pid, other)),
    }
    if let Ok(link) = std::fs::read_link(format!("/proc/{pid}/exe"))
        && let Some(path) = link.to_str().and_then(|link| link.strip_suffix(" (deleted)"))
    {
        if Path::new(path).exists() {
            findings.warn(replaced(path));
        } else if started == Some(path) {
            findings.block(Blocker { code: Code::NoBinary, ..gone(path) });
        } else {
            findings.warn(gone(path));
        }
    }
    let found = supervisor(pid, &may_start_qemu).await;
    match (ends, found) {
        (SourceEnds::ByUnit(named), found) => {
            findings.blockers.extend(unit_is(named, pid, found));
            let holds_engine = Unit::named(named, pid).holds(nix::unistd::getpid().as_raw());
            findings.blockers.extend(holds_engine.then(|| ends_engine(named)));
        }
        (SourceEnds::ByItself, Some(found)) => findings.block(supervised(&found)),
        (SourceEnds::Never, Some(found)) => findings.warn(supervised(&found)),
        (_, None) => {}
    }
    findings
}

/// Whether a word in a script may start a QEMU: its name, or a script or variable called after it.
fn may_start_qemu(word: &str) -> bool {
    let name = Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or(word).to_lowercase();
    let asks = || name.split(|letter: char| !letter.is_alphanumeric()).any(|part| QUESTIONS.contains(&part));
    let is_tool = || TOOLS.iter().any(|tool| name.starts_with(tool));
    is_qemu_name(&name) || (name.contains("qemu") && !is_tool() && !asks())
}

/// Whether a process's root directory and working directory are what goes by these names here.
fn has_same_root(pid: i32) -> bool {
    let is_same = |its: &Path, own: &Path| {
        its.metadata()
            .and_then(|its| Ok((its, own.metadata()?)))
            .is_ok_and(|(its, own)| (its.dev(), its.ino()) == (own.dev(), own.ino()))
    };
    let proc = Path::new("/proc").join(pid.to_string());
    let cwd = proc.join("cwd");
    is_same(&proc.join("root"), Path::new("/")) && cwd.read_link().is_ok_and(|name| is_same(&cwd, &name))
}

fn namespaces(pid: i32, other: &[(&str, &str)]) -> Blocker {
    let (names, options): (Vec<&str>, Vec<&str>) = other.iter().copied().unzip();
    Blocker::new(
        Code::OtherNamespace,
        format!(
            "the source (process {pid}) lives in namespaces of its own ({}), as in a container: its paths and ports are \
                 not those that are seen from here",
            names.join(", ")
        ),
        format!(
            "run qmigrate where the source lives: nsenter -t {pid} {} qmigrate migrate ...",
            options.join(" ")
        ),
    )
}

fn replaced(path: &str) -> Blocker {
    Blocker::new(
        Code::ProgramReplaced,
        format!(
            "the file {path} that the source runs was replaced since it started, as by an upgrade: the destination runs \
                 the new one"
        ),
        "--qemu PATH names another one",
    )
}

fn gone(path: &str) -> Blocker {
    Blocker::new(
        Code::ProgramReplaced,
        format!("the file {path} that the source runs is not there any more"),
        "--qemu PATH names the QEMU for the destination",
    )
}

fn supervised(by: &Supervisor) -> Blocker {
    const ANEW: &str = "would start the guest a second time once the source has ended";
    const KEEP: &str = "--keep-source moves the guest and leaves the source there, stopped";
    let (message, hint) = match by {
        Supervisor::Unit { unit, restart } => {
            let why = restart.as_ref().map_or_else(
                || "systemd cannot be asked from here, and is taken to restart it".to_owned(),
                |restart| format!("Restart={restart}"),
            );
            (
                format!("the source is the service {} of systemd ({why}), which {ANEW}", unit.name),
                format!("--source-unit {} ends it by `systemctl stop`; or {KEEP}", unit.name),
            )
        }
        Supervisor::Program { pid, name } => {
            let down = match name.as_str() {
                "runsv" => "`sv down`",
                "s6-supervise" => "`s6-svc -d`",
                "supervise" => "`svc -d`",
                "supervisord" => "`supervisorctl stop`",
                _ => "its own command",
            };
            (
                format!("{name} (process {pid}) looks after the source, and {ANEW}"),
                format!("{KEEP}; end it then by {down}"),
            )
        }
        Supervisor::Loop { pid, script } => (
            format!("{script} (process {pid}) runs QEMU in a loop, and {ANEW}"),
            format!("{KEEP}; end process {pid} before you end the source; or end it now"),
        ),
        Supervisor::Container => (
            format!(
                "the source is the first process of its container, which ends with it; whoever restarts that {ANEW}"
            ),
            // To stop the container would end the destination, which lives in it too.
            KEEP.to_owned(),
        ),
        Supervisor::Inittab { line } => (
            format!("init looks after the source (/etc/inittab: {line}), and {ANEW}"),
            format!("{KEEP}; or take the line out and tell init: `telinit q`"),
        ),
    };
    Blocker::new(Code::Supervised, message, hint)
}

/// Whether the unit that was named is the one to stop.
fn unit_is(named: &UnitName, pid: i32, found: Option<Supervisor>) -> Option<Blocker> {
    match Unit::around(pid) {
        Some(_) if Unit::named(named, pid).holds(pid) => None,
        Some(unit) => Some(Blocker::new(
            Code::SourceUnit,
            format!("the source runs in the unit {} and not in {named}", unit.name),
            if unit.is_scope() {
                "leave --source-unit away: nothing starts a source in a scope anew".to_owned()
            } else {
                format!("--source-unit {}", unit.name)
            },
        )),
        // In no unit that can be seen from here; whoever named one may see more.
        None => found.map(|found| supervised(&found)),
    }
}

/// The unit that is to be stopped would take the engine with it, and what that has started.
fn ends_engine(named: &UnitName) -> Blocker {
    Blocker::new(
        Code::SourceUnit,
        format!(
            "qmigrate itself runs in the unit {named}, and would end with it in the middle of the migration"
        ),
        "run it from another session, or by `systemd-run --scope qmigrate migrate ...` (with --user in a user's unit)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_would_end_with_the_unit_is_told_so() {
        let blocker = ends_engine(&"vm".parse().unwrap());
        assert_eq!(blocker.code, Code::SourceUnit);
        assert!(blocker.message.contains("vm.service"), "{blocker}");
        assert!(blocker.hint.unwrap().contains("systemd-run --scope"));
    }

    #[test]
    fn a_word_that_may_start_a_qemu_is_known() {
        for word in
            ["qemu-system-x86_64", "/usr/bin/kvm", "$QEMU", "${QEMU_BIN}", "./start-qemu.sh", "qemu-kvm"]
        {
            assert!(may_start_qemu(word), "{word}");
        }
        for word in [
            "qemu-img",
            "/usr/bin/qemu-nbd",
            "sleep",
            "$VM",
            "kvm-ok",
            "check_qemu",
            "qemu_ready",
            "qemu_is_up",
            "./wait-for-qemu.sh",
            "$QEMU_PID",
            "/tmp/qemu.sock",
        ] {
            assert!(!may_start_qemu(word), "{word}");
        }
    }

    #[test]
    fn the_way_into_other_namespaces_is_told() {
        let blocker = namespaces(7, &[("mnt", "-m"), ("net", "-n")]);
        assert!(has_same_root(i32::try_from(std::process::id()).unwrap()));
        assert!(blocker.message.contains("(mnt, net)"), "{blocker}");
        assert!(blocker.hint.unwrap().ends_with("nsenter -t 7 -m -n qmigrate migrate ..."));
    }

    #[tokio::test]
    async fn a_process_of_this_very_test_is_looked_after_by_nobody() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        for ends in [SourceEnds::ByItself, SourceEnds::Never, SourceEnds::ByUnit(&"vm".parse().unwrap())] {
            assert_eq!(process(pid, ends, None).await, Findings::default());
        }
        child.kill().await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_was_replaced_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (own, path) =
            (directory.path().canonicalize().unwrap().join("sleep"), std::env::var_os("PATH").unwrap());
        let real = std::env::split_paths(&path)
            .map(|place| place.join("sleep"))
            .find(|path| path.is_file())
            .unwrap();
        std::fs::copy(&real, &own).unwrap();
        let mut child = tokio::process::Command::new(&own).arg("1000").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        std::fs::remove_file(&own).unwrap();
        for (is_there, started, is_blocker) in [
            (false, own.to_str(), true),
            (false, Some("/usr/bin/other"), false),
            (false, None, false),
            (true, own.to_str(), false),
            (true, None, false),
        ] {
            if is_there {
                std::fs::copy(&real, &own).unwrap();
            }
            let Findings { blockers, warnings } = process(pid, SourceEnds::ByItself, started).await;
            assert_eq!((blockers.len(), warnings.len()), if is_blocker { (1, 0) } else { (0, 1) });
            let message = blockers.first().map_or_else(|| &warnings[0].message, |blocker| &blocker.message);
            let words = if is_there { "the destination runs the new one" } else { "is not there any more" };
            assert!(message.contains(words), "{message}");
            assert!(blockers.iter().all(|blocker| blocker.code == Code::NoBinary));
        }
        child.kill().await.unwrap();
    }

    #[test]
    fn whoever_looks_after_the_source_is_named_with_a_way_out() {
        let runsv = Supervisor::Program { pid: 9, name: "runsv".into() };
        let again = Supervisor::Loop { pid: 9, script: "/srv/run".into() };
        for (by, words) in [(runsv, "`sv down`"), (again, "process 9"), (Supervisor::Container, "container")]
        {
            let blocker = supervised(&by);
            let hint = blocker.hint.clone().unwrap();
            assert!(!hint.contains("stop the container"), "{hint}");
            assert!(
                hint.contains("--keep-source") && format!("{blocker} {hint}").contains(words),
                "{blocker}: {hint}"
            );
            // A process that is gone is in no unit.
            assert_eq!(unit_is(&"vm".parse().unwrap(), i32::MAX, Some(by)), Some(blocker));
        }
    }
}
