//! A unit of systemd: which one a process is in, whether it restarts, and how it is stopped.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::ANSWER_WITHIN;
use crate::host::standing::Cgroup;

/// The name of a unit, such as `vm.service`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

/// The text is no name of a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the name of a systemd unit, such as vm.service")]
pub struct UnitNameError(String);

impl FromStr for UnitName {
    type Err = UnitNameError;

    fn from_str(text: &str) -> Result<Self, UnitNameError> {
        // As in systemd.unit(5); one without a kind is a service, as for systemctl.
        let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
        if text.is_empty() || text.len() > 255 || text.starts_with('-') || !text.chars().all(is_allowed) {
            return Err(UnitNameError(text.to_owned()));
        }
        let has_kind =
            [".service", ".scope", ".socket", ".target", ".slice"].iter().any(|kind| text.ends_with(kind));
        Ok(Self(if has_kind { text.to_owned() } else { format!("{text}.service") }))
    }
}

impl TryFrom<String> for UnitName {
    type Error = UnitNameError;

    fn try_from(text: String) -> Result<Self, UnitNameError> {
        text.parse()
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whose unit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    /// The host's.
    System,
    /// A user's own.
    User(u32),
}

impl Manager {
    /// Whoever runs in this unit.
    fn in_unit(name: &str) -> Option<Self> {
        name.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok().map(Self::User)
    }
}

/// A unit, and who manages it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: UnitName,
    manager: Manager,
}

/// systemd does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// It does not run here.
    #[error("systemd does not run here")]
    NotRunning,
    /// `systemctl` cannot be run.
    #[error("systemctl cannot be run")]
    Command(#[source] std::io::Error),
    /// It takes too long.
    #[error("systemctl has not answered within {} s", .0.as_secs())]
    Late(Duration),
    /// It says no.
    #[error("systemctl said: {0}")]
    Refused(String),
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) restart: String,
    main_process: i32,
}

impl Unit {
    /// The service that a process is in; the innermost unit counts. A scope is none: nothing starts it anew.
    pub fn of(pid: i32) -> Option<Self> {
        Self::among(&cgroups(pid))
    }

    /// The service or scope that a process is in.
    pub fn around(pid: i32) -> Option<Self> {
        Self::innermost(&cgroups(pid))
    }

    /// Whether nothing starts it anew: its processes were started by somebody else.
    pub fn is_scope(&self) -> bool {
        is_of_kind(&self.name.0, &["scope"])
    }

    /// The service that a process in these cgroups is in.
    pub(in crate::host) fn among(cgroups: &[Cgroup]) -> Option<Self> {
        Self::innermost(cgroups).filter(|unit| is_of_kind(&unit.name.0, &["service"]))
    }

    /// The service or scope that a process in these cgroups is in, also in one that the unit has made for itself
    /// (`Delegate=`).
    fn innermost(cgroups: &[Cgroup]) -> Option<Self> {
        paths(cgroups).find_map(|path| {
            let mut parts = path.split('/').rev();
            let name = parts.find(|part| is_of_kind(part, &["service", "scope"]))?;
            let manager = parts.find_map(Manager::in_unit).unwrap_or(Manager::System);
            Some(Self { name: name.parse().ok()?, manager })
        })
    }

    /// The unit of this name, managed by whoever manages the one that a process is in.
    pub fn named(name: &UnitName, pid: i32) -> Self {
        let manager = Self::innermost(&cgroups(pid)).map_or(Manager::System, |unit| unit.manager);
        Self { name: name.clone(), manager }
    }

    /// Whether a process ends with it: it is in this unit, or in one below.
    pub fn holds(&self, pid: i32) -> bool {
        self.is_above(&cgroups(pid))
    }

    fn is_above(&self, cgroups: &[Cgroup]) -> bool {
        paths(cgroups).any(|path| {
            let mut manager = Manager::System;
            path.split('/').any(|part| {
                let is_it = part == self.name.0 && manager == self.manager;
                manager = Manager::in_unit(part).unwrap_or(manager);
                is_it
            })
        })
    }

    /// Asks systemd about it.
    pub(super) async fn ask(&self) -> Result<Answer, UnitError> {
        // As sd_booted(3) tells it.
        if !Path::new("/run/systemd/system").is_dir() {
            return Err(UnitError::NotRunning);
        }
        let said = self.systemctl(&["show", "-p", "Restart,MainPID"], ANSWER_WITHIN).await?;
        Answer::read(&said).ok_or(UnitError::Refused(said))
    }

    /// Stops it, and waits until it has stopped.
    pub async fn stop(&self, within: Duration) -> Result<(), UnitError> {
        self.systemctl(&["stop"], within).await.map(drop)
    }

    async fn systemctl(&self, words: &[&str], within: Duration) -> Result<String, UnitError> {
        let mut command = Command::new("systemctl");
        if let Manager::User(user) = self.manager {
            command.arg("--user");
            if user != nix::unistd::geteuid().as_raw() {
                command.arg(format!("--machine={user}@.host"));
            }
        }
        command
            .args(words)
            .arg("--")
            .arg(&self.name.0)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(within, command.output()).await;
        let output = output.map_err(|_| UnitError::Late(within))?.map_err(UnitError::Command)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let said = text(&output.stderr);
        Err(UnitError::Refused(if said.is_empty() { output.status.to_string() } else { said }))
    }
}

fn cgroups(pid: i32) -> Vec<Cgroup> {
    Cgroup::read(&std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default(), "")
}

/// Where a process is in what systemd keeps: a hierarchy of its own (v1), or the only one (v2), which /proc names last.
fn paths(cgroups: &[Cgroup]) -> impl Iterator<Item = &str> {
    let told = cgroups.iter().filter(|cgroup| matches!(cgroup.hierarchy.as_str(), "name=systemd" | ""));
    told.map(|cgroup| cgroup.path.as_str())
}

fn is_of_kind(unit: &str, kinds: &[&str]) -> bool {
    unit.rsplit_once('.').is_some_and(|(_, kind)| kinds.contains(&kind))
}

impl Answer {
    fn read(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Some(Self { restart: field("Restart")?.to_owned(), main_process: field("MainPID")?.parse().ok()? })
    }

    pub(super) fn restarts(&self) -> bool {
        self.restart != "no"
    }

    /// Whether the unit ends with one of these processes: one of them is its main one. Where it has none, a process that
    /// the manager itself has started counts.
    pub(super) fn is_about(&self, processes: &[i32], is_managers_own: bool) -> bool {
        processes.contains(&self.main_process) || (self.main_process == 0 && is_managers_own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> Option<(String, Manager)> {
        Unit::among(&Cgroup::read(text, "")).map(|unit| (unit.name.to_string(), unit.manager))
    }

    #[test]
    fn a_service_is_known_by_both_kinds_of_cgroup() {
        let vm = |manager| Some(("vm@a\\x2db.service".to_owned(), manager));
        assert_eq!(unit("0::/system.slice/system-vm.slice/vm@a\\x2db.service\n"), vm(Manager::System));
        assert_eq!(unit("0::/system.slice/vm@a\\x2db.service/qemu\n"), vm(Manager::System), "delegated");
        let old = "9:cpu:/x\n1:name=systemd:/system.slice/vm@a\\x2db.service\n0::/\n";
        assert_eq!(unit(old), vm(Manager::System));
        let users = "0::/user.slice/user-7.slice/user@7.service/app.slice/vm@a\\x2db.service\n";
        assert_eq!(unit(users), vm(Manager::User(7)));
    }

    #[test]
    fn a_session_and_a_scope_are_no_services() {
        for text in [
            "0::/\n",
            "",
            "9:name=systemd:/\n0::/\n",
            "0::/user.slice/user-7.slice/session-3.scope\n",
            "0::/user.slice/user-7.slice/user@7.service/app.slice/app-terminal-1.scope\n",
            "0::/machine.slice/machine-qemu.scope/libvirt/emulator\n",
            "0::/system.slice/docker-0123.scope\n",
        ] {
            assert_eq!(unit(text), None, "{text}");
        }
    }

    #[test]
    fn a_unit_ends_all_that_is_in_it_and_below() {
        let unit = |name: &str, manager| Unit { name: name.parse().unwrap(), manager };
        let (vm, users) = (unit("vm.service", Manager::System), unit("vm.service", Manager::User(7)));
        let slice = unit("guests.slice", Manager::System);
        let own = "/user.slice/user-7.slice/user@7.service";
        for (unit, text, is_in_it) in [
            (&vm, "0::/system.slice/vm.service\n".to_owned(), true),
            (&vm, "0::/system.slice/vm.service/.control\n".to_owned(), true),
            (&vm, "4:memory:/\n1:name=systemd:/system.slice/vm.service\n0::/\n".to_owned(), true),
            (&vm, "4:memory:/vm.service\n0::/\n".to_owned(), false),
            (&vm, "0::/system.slice/vm.service.d\n".to_owned(), false),
            (&vm, "0::/user.slice/user-7.slice/session-3.scope\n".to_owned(), false),
            (&vm, format!("0::{own}/app.slice/vm.service\n"), false),
            (&users, format!("0::{own}/app.slice/vm.service/qemu\n"), true),
            (&users, "0::/system.slice/vm.service\n".to_owned(), false),
            (&slice, "0::/guests.slice/vm.service\n".to_owned(), true),
            (&slice, "0::/\n".to_owned(), false),
        ] {
            assert_eq!(unit.is_above(&Cgroup::read(&text, "")), is_in_it, "{unit:?}: {text}");
        }
    }

    #[test]
    fn a_unit_ends_with_its_main_process() {
        let answer = Answer::read("Restart=on-failure\nMainPID=7\n").unwrap();
        assert!(answer.restarts() && answer.is_about(&[9, 7], false) && !answer.is_about(&[9], true));
        let answer = Answer::read("MainPID=0\nRestart=no\n").unwrap();
        assert!(!answer.restarts() && answer.is_about(&[9], true) && !answer.is_about(&[9], false));
        assert_eq!(Answer::read("Unit vm.service could not be found."), None);
    }

    #[test]
    fn a_name_is_no_option_and_no_path() {
        for text in ["", "-H", "--host=x", "a/b", "a b", "a;b", "\u{e9}", &"x".repeat(256)] {
            assert!(text.parse::<UnitName>().is_err(), "{text}");
        }
        assert_eq!("vm@1".parse::<UnitName>().unwrap().to_string(), "vm@1.service");
        assert_eq!("vm.scope".parse::<UnitName>().unwrap().to_string(), "vm.scope");
    }
}
