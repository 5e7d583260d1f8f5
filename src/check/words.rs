//! Words for what could not even be looked at: an error of the rooms below becomes a blocker with a hint.

use super::{Blocker, Code, chain};
use crate::host::{DirectoryError, ProcError};
use crate::qemu::LocateError;
use crate::qemu::dialect::LimitsError;
use crate::qemu::dialect::probe::ProbeError;
use crate::qemu::repetition::{Part, Unrepeatable};
use crate::qemu::rewrite::RewriteError;
use crate::qemu::template::TemplateError;
use crate::qemu::twin::TwinError;
use crate::qmp::{CallError, ConnectError};

const ADD_A_MONITOR: &str = "start the guest with -qmp unix:PATH,server=on,wait=off";

impl From<LocateError> for Blocker {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Connect { error, holder } => connect(&error, holder),
            LocateError::Process(error) => process(&error),
            LocateError::CommandLine { .. } => {
                Self::new(Code::NotQemu, error.to_string(), "name the QMP socket or the process of a QEMU")
            }
            LocateError::HumanMonitorOnly { .. } | LocateError::NoMonitor(_) => {
                Self::new(Code::NoQmp, error.to_string(), ADD_A_MONITOR)
            }
            LocateError::Another { .. } => Self::new(
                Code::AnotherProcess,
                error.to_string(),
                "`qmigrate list` shows which QEMU answers where",
            ),
            LocateError::NotLoopback(_) => Self::new(
                Code::NotLoopback,
                error.to_string(),
                "forward the monitor to a socket on this machine: ssh -L /run/x.qmp:/path/of/monitor HOST",
            ),
            LocateError::OtherUser { .. } => {
                Self::new(Code::OtherUser, error.to_string(), "run qmigrate as that user, or as root")
            }
        }
    }
}

fn connect(error: &ConnectError, holder: Option<(i32, String)>) -> Blocker {
    let message = chain(error);
    match error {
        ConnectError::NotFound { .. } => Blocker::new(
            Code::NoSocket,
            message,
            "`qmigrate list` shows the QEMUs of this host and their sockets",
        ),
        ConnectError::PermissionDenied { .. } => {
            Blocker::new(Code::Permission, message, "run qmigrate as the user of that QEMU, or as root")
        }
        ConnectError::NotASocket { .. } => Blocker::new(
            Code::NotASocket,
            message,
            "name the socket that QEMU got by -qmp; `qmigrate list` shows those of this host",
        ),
        ConnectError::NobodyListens { .. } => Blocker::new(
            Code::NobodyListens,
            message,
            "the socket is a left-over; `qmigrate list` shows the QEMUs that run",
        ),
        ConnectError::NoGreeting { .. } => match holder {
            Some((pid, _)) if u32::try_from(pid).is_ok_and(|pid| pid == std::process::id()) => Blocker::new(
                Code::SameQemu,
                format!("{message}; this very command holds it: source and destination are the same QEMU"),
                "name a second QEMU, started with the source's command line and -incoming defer",
            ),
            Some((pid, command)) if is_engine(pid) => Blocker::new(
                Code::Busy,
                format!("{message}; process {pid} holds it ({command})"),
                "`qmigrate status` tells what it does, `qmigrate cancel SOURCE` ends its migration",
            ),
            Some((pid, command)) => Blocker::new(
                Code::Busy,
                format!("{message}; process {pid} holds it ({command})"),
                format!(
                    "end process {pid}, or give the guest a second monitor: -qmp unix:PATH2,server=on,wait=off"
                ),
            ),
            None => Blocker::new(
                Code::Busy,
                message,
                "close the other client, or give the guest a second monitor: -qmp unix:PATH2,server=on,wait=off",
            ),
        },
        ConnectError::HumanMonitor { .. } => Blocker::new(Code::HumanMonitor, message, ADD_A_MONITOR),
        ConnectError::NotQmp { .. } => {
            Blocker::new(Code::NotQmp, message, "name the socket that QEMU got by -qmp")
        }
        ConnectError::ClosedBeforeGreeting { .. } => Blocker::new(
            Code::NotQmp,
            message,
            "the QEMU there has just ended, or that is not the socket that it got by -qmp; `qmigrate list` shows both",
        ),
        _ => Blocker::new(
            Code::Connect,
            message,
            "`qmigrate list` shows the QEMUs of this host and their sockets",
        ),
    }
}

/// Whether a process is this command, started by somebody else.
fn is_engine(pid: i32) -> bool {
    let program = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let own = program("self");
    let other = program(&pid.to_string());
    own.as_ref().and_then(|own| own.file_name()) == other.as_ref().and_then(|other| other.file_name())
}

fn process(error: &ProcError) -> Blocker {
    match error {
        ProcError::Gone(_) => {
            Blocker::new(Code::NoProcess, error.to_string(), "`qmigrate list` shows the QEMUs that run")
        }
        ProcError::Denied(..) => Blocker::new(
            Code::Permission,
            error.to_string(),
            "run qmigrate as the user of that QEMU, or as root",
        ),
        _ => Blocker::new(
            Code::Process,
            chain(error),
            "`qmigrate list` shows the QEMUs of this host; one can be named by its QMP socket too",
        ),
    }
}

impl From<ProcError> for Blocker {
    fn from(error: ProcError) -> Self {
        process(&error)
    }
}

impl From<LimitsError> for Blocker {
    fn from(error: LimitsError) -> Self {
        let hint = match error {
            LimitsError::NoOldCommands => {
                "QEMU dropped them in 6.0; --dialect auto, the default, uses migrate-set-parameters"
            }
            LimitsError::NoParameters => {
                "QEMU has them from 2.8 on; --dialect auto, the default, uses migrate_set_downtime and \
                 migrate_set_speed"
            }
            LimitsError::Neither => {
                "`qmigrate features SOURCE` shows what it has; every QEMU from 2.4 on has one or the other"
            }
        };
        Self::new(Code::Dialect, error.to_string(), hint)
    }
}

impl From<ProbeError> for Blocker {
    fn from(error: ProbeError) -> Self {
        let message = chain(&error);
        match error {
            ProbeError::Directory(error) => error.into(),
            ProbeError::Launch { .. } => Self::new(
                Code::NoBinary,
                message,
                "is it a program, executable, and for this kind of machine?",
            ),
            ProbeError::Died { .. } | ProbeError::NoMonitor { .. } | ProbeError::Connect { .. } => Self::new(
                Code::NotQemu,
                message,
                "is it a QEMU system emulator? It was started with -machine none, -S and a QMP monitor",
            ),
            ProbeError::Listen { .. } => Self::new(
                Code::Directory,
                message,
                "set XDG_RUNTIME_DIR to a directory of your own whose name is short: a socket's path has 107 bytes",
            ),
        }
    }
}

impl From<CallError> for Blocker {
    fn from(error: CallError) -> Self {
        Self::bare(Code::Qmp, chain(&error))
    }
}

impl From<DirectoryError> for Blocker {
    fn from(error: DirectoryError) -> Self {
        Self::new(
            Code::Directory,
            chain(&error),
            "make room for it, or set XDG_RUNTIME_DIR to a directory of your own",
        )
    }
}

impl From<RewriteError> for Blocker {
    fn from(error: RewriteError) -> Self {
        let code = match error {
            RewriteError::SharedMemory { .. } => Code::SharedMemory,
            RewriteError::Configuration { .. } => Code::ReadConfig,
            RewriteError::LostDirectory(_) => Code::RelativePath,
            RewriteError::RelativeImage(_) => Code::RelativeImage,
            RewriteError::Snapshot(_) => Code::Snapshot,
            RewriteError::Tap { .. } => Code::Tap,
            RewriteError::TapDescriptors { .. } => Code::TapDescriptor,
            RewriteError::Descriptor(_) => Code::Descriptor,
            RewriteError::Backend { .. } => Code::Backend,
            RewriteError::HostDevice { .. } => Code::HostDevice,
            RewriteError::Pipe(_) => Code::Pipe,
            RewriteError::Chroot(_) => Code::Chroot,
            RewriteError::NoFreePort { .. } => Code::NoPort,
            RewriteError::MapUnused(_) => Code::MapUnused,
        };
        Self::new(code, error.to_string(), error.hint())
    }
}

impl From<Unrepeatable> for Blocker {
    fn from(found: Unrepeatable) -> Self {
        let code = match found.part {
            Part::PluggedDevice => Code::PluggedDevice,
            Part::PluggedNetwork => Code::PluggedNetwork,
            Part::PluggedCharacterDevice => Code::PluggedCharacterDevice,
            Part::PluggedObject => Code::PluggedObject,
            Part::PluggedDisk => Code::PluggedDisk,
            Part::SharedMemory => Code::SharedMemory,
            Part::Unplugged => Code::Unplugged,
            Part::ChangedImage => Code::ChangedImage,
            Part::ChangedMedium => Code::ChangedMedium,
            Part::BlockJob => Code::BlockJob,
        };
        Self::new(code, found.message, found.hint)
    }
}

impl From<TemplateError> for Blocker {
    fn from(error: TemplateError) -> Self {
        Self::new(Code::Template, chain(&error), error.hint())
    }
}

impl From<TwinError> for Blocker {
    fn from(error: TwinError) -> Self {
        let message = chain(&error);
        match error {
            TwinError::Launch { .. } => Self::new(
                Code::NoBinary,
                message,
                "--qemu PATH names the destination's QEMU; is it there and executable?",
            ),
            TwinError::Died { words, .. } => {
                let hint = if words.contains("unsupported machine type") {
                    "this QEMU does not know the guest's machine type; --qemu PATH names another one"
                } else if words.contains("-incoming") {
                    "--incoming takes defer, tcp:HOST:PORT or unix:PATH, where nobody listens yet; with defer, the \
                     default, the stream finds its own way"
                } else if words.contains("in use") {
                    "the guest listens on a port of its own, which two QEMUs cannot have at once; take the option off \
                     the guest's command line, or give it port 0"
                } else {
                    "its command line is made from the source's, or from --template; -vv shows it, --qemu PATH names another QEMU"
                };
                Self::new(Code::DestinationDied, message, hint)
            }
            TwinError::Aborted => Self::bare(Code::Cancelled, message),
            _ => Self::new(
                Code::Destination,
                message,
                "-vv shows the destination's command line; does it start by hand?",
            ),
        }
    }
}
