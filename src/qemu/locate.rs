//! Finds the QEMU that the user means: its monitor, its process, its command line.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::argv::{CommandLine, CommandLineError, KeyValues};
use super::rewrite::{human_monitors, public_name, qmp_sockets};
use crate::host::{ProcError, ProcessView, listening_process, unix_socket_clients};
use crate::qmp::{Address, AddressError, Client, ConnectError, Deadlines, Leg};

/// What the user typed for a QEMU: a QMP address, or a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuName {
    /// `path`, `unix:path` or `tcp:host:port`.
    Monitor(Address),
    /// `pid:1234`.
    Process(i32),
}

/// The text names no QEMU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a QMP address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Not a process number.
    #[error("'{0}' is not a process number")]
    Process(String),
    /// On another host.
    #[error("'{0}' is on another host, and this version moves guests on one machine only")]
    Remote(String),
}

impl FromStr for QemuName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some(number) = text.strip_prefix("pid:") {
            let pid = number.parse().ok().filter(|&pid: &i32| pid > 0);
            return pid.map(Self::Process).ok_or_else(|| NameError::Process(number.to_owned()));
        }
        if text.starts_with("ssh://") {
            return Err(NameError::Remote(text.to_owned()));
        }
        Ok(Self::Monitor(text.parse()?))
    }
}

impl fmt::Display for QemuName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Monitor(address) => address.fmt(formatter),
            Self::Process(pid) => write!(formatter, "pid:{pid}"),
        }
    }
}

/// A QEMU cannot be reached, or not be understood.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// No connection to its monitor.
    #[error("{error}")]
    Connect {
        /// Why.
        error: ConnectError,
        /// Who holds the monitor, where it is busy and that can be found: number and command line.
        holder: Option<(i32, String)>,
    },
    /// Its process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// Its process is no QEMU, or its command line cannot be read.
    #[error("process {pid} cannot be used as a source: {error}")]
    CommandLine {
        /// The process.
        pid: i32,
        /// Why.
        error: CommandLineError,
    },
    /// It has no monitor for programs, only one for people.
    #[error("process {pid} has only a human monitor ({}), and no QMP monitor", monitor.display())]
    HumanMonitorOnly {
        /// The process.
        pid: i32,
        /// The human monitor's socket.
        monitor: PathBuf,
    },
    /// It has no monitor that can be reached.
    #[error("process {0} has no QMP monitor on a socket")]
    NoMonitor(i32),
    /// Another process listens where its monitor was.
    #[error("the monitor of process {pid} was at {address}, and now process {other} listens there")]
    Another {
        /// Where.
        address: Address,
        /// The process that was named.
        pid: i32,
        /// The one that listens.
        other: i32,
    },
    /// A monitor that anybody on the way could speak to.
    #[error(
        "the monitor at {0} is not on this machine: whoever is on the way there could take the guest over"
    )]
    NotLoopback(Address),
    /// It belongs to somebody else.
    #[error("the QEMU at {address} (process {pid}) runs as user {user}, and this is user {own}")]
    OtherUser {
        /// Where.
        address: Address,
        /// The process.
        pid: i32,
        /// Its user.
        user: u32,
        /// This user.
        own: u32,
    },
}

/// A QEMU that has been found and is spoken to.
#[derive(Debug)]
pub struct Located {
    /// Where its monitor is.
    pub address: Address,
    /// The connection.
    pub client: Client,
    /// Its process and its command line, where it is on this host and can be read.
    pub process: Option<(ProcessView, CommandLine)>,
}

/// Finds a QEMU and connects to it.
pub async fn locate(name: &QemuName, leg: Leg, deadlines: Deadlines) -> Result<Located, LocateError> {
    match name {
        QemuName::Monitor(address) => {
            let client = connect(address, leg, deadlines).await?;
            let process = match client.peer_pid() {
                Some(pid) => Some(read_process(pid)?),
                None => None,
            };
            if let Some((view, _)) = &process {
                check_user(address, view)?;
            }
            Ok(Located { address: address.clone(), client, process })
        }
        QemuName::Process(pid) => {
            let (view, line) = read_process(*pid)?;
            let address = monitor_of(&view, &line)?;
            check_user(&address, &view)?;
            let client = connect(&address, leg, deadlines).await?;
            if let Some(other) = client.peer_pid().filter(|other| other != pid) {
                return Err(LocateError::Another { address, pid: *pid, other });
            }
            Ok(Located { address, client, process: Some((view, line)) })
        }
    }
}

/// Where a QEMU's QMP monitor is, by its command line.
pub fn monitor_of(view: &ProcessView, line: &CommandLine) -> Result<Address, LocateError> {
    let candidates = qmp_sockets(line).flat_map(|path| {
        // A guest that was moved before shows its private name, and answers at the public one.
        let path = view.working_directory.join(path);
        [public_name(&path), path]
    });
    let heard = candidates.map(|path| (listening_process(&path), path)).collect::<Vec<_>>();
    let mine = heard.iter().filter(|(pid, _)| *pid == Some(view.pid));
    // One that nobody is seen to listen at may be another network namespace's, or another user's; or a left-over.
    let perhaps = heard.iter().filter(|(pid, path)| pid.is_none() && path.exists());
    if let Some(address) = mine.chain(perhaps).find_map(|(_, path)| Address::unix(path.clone()).ok()) {
        return Ok(address);
    }
    if let Some(address) = line.values("qmp").find_map(tcp_server) {
        return Ok(address);
    }
    let human = human_monitors(line).next();
    Err(human.map_or(LocateError::NoMonitor(view.pid), |monitor| LocateError::HumanMonitorOnly {
        pid: view.pid,
        monitor,
    }))
}

fn tcp_server(device: &str) -> Option<Address> {
    let rest = device.strip_prefix("tcp:")?;
    let value = KeyValues::parse(rest);
    let place = value.implied().filter(|_| value.is_on("server"))?;
    let place = if place.starts_with(':') { format!("localhost{place}") } else { place.to_owned() };
    format!("tcp:{place}").parse().ok()
}

async fn connect(address: &Address, leg: Leg, deadlines: Deadlines) -> Result<Client, LocateError> {
    if let Address::Tcp { host, .. } = address
        && host != "localhost"
        && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    {
        return Err(LocateError::NotLoopback(address.clone()));
    }
    Client::connect(address, leg, deadlines).await.map_err(|error| {
        let holder = match (&error, address.path()) {
            (ConnectError::NoGreeting { .. }, Some(path)) => holder_of(path),
            _ => None,
        };
        LocateError::Connect { error, holder }
    })
}

/// Who is connected to a monitor, as the kernel tells.
fn holder_of(path: &Path) -> Option<(i32, String)> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let clients = unix_socket_clients(path);
    // This process holds a monitor that it wants again where both sides of a migration are one QEMU.
    let pid = *clients.iter().find(|&&pid| pid != own).or(clients.first())?;
    let words = crate::host::command_line(pid).unwrap_or_default();
    let words = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>();
    Some((pid, words.join(" ").chars().take(80).collect()))
}

fn read_process(pid: i32) -> Result<(ProcessView, CommandLine), LocateError> {
    let view = ProcessView::read(pid)?;
    let mut line = CommandLine::of_process(&view.arguments, &view.executable)
        .map_err(|error| LocateError::CommandLine { pid, error })?;
    // The name on the command line may be relative to a PATH or a directory that is not ours; the file that runs is
    // known, unless that is a loader.
    if line.launcher.is_empty() && super::argv::is_qemu_name(&view.executable.to_string_lossy()) {
        line.program = program_to_start(&line.program, &view.executable).to_string_lossy().into_owned();
    }
    Ok((view, line))
}

/// The file by which a QEMU is started again as it was. One that is called by a name that ends in `kvm` takes KVM where no
/// accelerator is named, and by another TCG (run on 5.2 to 11.1); Proxmox calls it by such a link.
fn program_to_start(called: &str, executable: &Path) -> PathBuf {
    let prefers_kvm = |path: &Path| path.to_string_lossy().ends_with("kvm");
    if !prefers_kvm(Path::new(called)) || prefers_kvm(executable) {
        return executable.to_owned();
    }
    let name = Path::new(called).file_name().unwrap_or_default();
    let links = [PathBuf::from(called), executable.with_file_name(name)];
    let leads_there = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == executable);
    links
        .into_iter()
        .filter(|path| path.is_absolute())
        .find(leads_there)
        .unwrap_or_else(|| executable.to_owned())
}

/// A destination gets its source's user; only root can give it another than its own.
fn check_user(address: &Address, view: &ProcessView) -> Result<(), LocateError> {
    let (own, user) = (nix::unistd::geteuid(), view.credentials.user);
    if own.is_root() || own == user {
        return Ok(());
    }
    Err(LocateError::OtherUser {
        address: address.clone(),
        pid: view.pid,
        user: user.as_raw(),
        own: own.as_raw(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_is_named_by_its_monitor_or_by_its_process() {
        assert_eq!("pid:12".parse(), Ok(QemuName::Process(12)));
        assert!(matches!("/run/vm.qmp".parse(), Ok(QemuName::Monitor(Address::Unix(_)))));
        assert!(matches!("tcp:localhost:4444".parse(), Ok(QemuName::Monitor(Address::Tcp { .. }))));
        for text in ["pid:", "pid:x", "pid:-1", "pid:0"] {
            assert!(matches!(text.parse::<QemuName>(), Err(NameError::Process(_))), "{text}");
        }
        assert!(matches!("ssh://far/run/vm.qmp".parse::<QemuName>(), Err(NameError::Remote(_))));
    }

    #[test]
    fn a_qemu_is_started_again_by_the_name_that_gives_it_kvm() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().canonicalize().unwrap();
        let (qemu, kvm) = (place.join("qemu-system-x86_64"), place.join("kvm"));
        std::fs::write(&qemu, "").unwrap();
        assert_eq!(program_to_start("/gone/kvm", &qemu), qemu);
        std::os::unix::fs::symlink(&qemu, &kvm).unwrap();
        for called in [kvm.to_str().unwrap(), "kvm"] {
            assert_eq!(program_to_start(called, &qemu), kvm, "{called}");
        }
        for called in ["qemu-system-x86_64", "web", "/usr/bin/qemu-system-x86_64"] {
            assert_eq!(program_to_start(called, &qemu), qemu, "{called}");
        }
    }

    #[test]
    fn a_monitor_on_a_port_is_found_on_the_command_line() {
        assert_eq!(tcp_server("tcp:127.0.0.1:4444,server=on,wait=off"), "tcp:127.0.0.1:4444".parse().ok());
        assert_eq!(tcp_server("tcp::4444,server,nowait"), "tcp:localhost:4444".parse().ok());
        assert_eq!(tcp_server("tcp:127.0.0.1:4444"), None);
    }
}
