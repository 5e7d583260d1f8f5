//! Words for what could not even be looked at: an error of the rooms below becomes a blocker with a hint.

use super::{Blocker, chain};
use crate::host::{DirectoryError, ProcError};
use crate::qemu::LocateError;
use crate::qemu::rewrite::RewriteError;
use crate::qemu::twin::TwinError;
use crate::qmp::{CallError, ConnectError};

const ADD_A_MONITOR: &str = "start the guest with -qmp unix:PATH,server=on,wait=off";

impl From<LocateError> for Blocker {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Connect { error, holder } => connect(&error, holder),
            LocateError::Process(error) => process(&error),
            LocateError::CommandLine { .. } => {
                Self::new("not-qemu", error.to_string(), "name the QMP socket or the process of a QEMU")
            }
            LocateError::HumanMonitorOnly { .. } | LocateError::NoMonitor(_) => {
                Self::new("no-qmp", error.to_string(), ADD_A_MONITOR)
            }
            LocateError::OtherUser { .. } => {
                Self::new("other-user", error.to_string(), "run qmigrate as that user, or as root")
            }
        }
    }
}

fn connect(error: &ConnectError, holder: Option<(i32, String)>) -> Blocker {
    let message = chain(error);
    match error {
        ConnectError::NotFound { .. } => Blocker::new(
            "no-socket",
            message,
            "`qmigrate list` shows the QEMUs of this host and their sockets",
        ),
        ConnectError::PermissionDenied { .. } => {
            Blocker::new("permission", message, "run qmigrate as the user of that QEMU, or as root")
        }
        ConnectError::NobodyListens { .. } => Blocker::new(
            "nobody-listens",
            message,
            "the socket is a left-over; `qmigrate list` shows the QEMUs that run",
        ),
        ConnectError::NoGreeting { .. } => match holder {
            Some((pid, command)) => Blocker::new(
                "busy",
                format!("{message}; process {pid} holds it ({command})"),
                format!(
                    "end process {pid}, or give the guest a second monitor: -qmp unix:PATH2,server=on,wait=off"
                ),
            ),
            None => Blocker::new(
                "busy",
                message,
                "close the other client, or give the guest a second monitor: -qmp unix:PATH2,server=on,wait=off",
            ),
        },
        ConnectError::HumanMonitor { .. } => Blocker::new("human-monitor", message, ADD_A_MONITOR),
        ConnectError::NotQmp { .. } | ConnectError::ClosedBeforeGreeting { .. } => {
            Blocker::new("not-qmp", message, "name the socket that QEMU got by -qmp")
        }
        _ => Blocker::bare("connect", message),
    }
}

fn process(error: &ProcError) -> Blocker {
    match error {
        ProcError::Gone(_) => {
            Blocker::new("no-process", error.to_string(), "`qmigrate list` shows the QEMUs that run")
        }
        ProcError::Denied(..) => {
            Blocker::new("permission", error.to_string(), "run qmigrate as the user of that QEMU, or as root")
        }
        _ => Blocker::bare("process", chain(error)),
    }
}

impl From<CallError> for Blocker {
    fn from(error: CallError) -> Self {
        Self::bare("qmp", chain(&error))
    }
}

impl From<DirectoryError> for Blocker {
    fn from(error: DirectoryError) -> Self {
        Self::new(
            "directory",
            chain(&error),
            "make room for it, or set XDG_RUNTIME_DIR to a directory of your own",
        )
    }
}

impl From<RewriteError> for Blocker {
    fn from(error: RewriteError) -> Self {
        let message = error.to_string();
        match error {
            RewriteError::SharedMemory(_) => Self::new(
                "shared-memory",
                message,
                "start the guest with share=off, or with memory-backend-memfd",
            ),
            RewriteError::Snapshot(_) => {
                Self::new("snapshot", message, "start the guest with a real overlay: qemu-img create -b BASE")
            }
        }
    }
}

impl From<TwinError> for Blocker {
    fn from(error: TwinError) -> Self {
        let message = chain(&error);
        match error {
            TwinError::Launch { .. } => Self::new(
                "no-binary",
                message,
                "--qemu PATH names the destination's QEMU; is it there and executable?",
            ),
            TwinError::Died { words, .. } => {
                let hint = if words.contains("unsupported machine type") {
                    "this QEMU does not know the guest's machine type; --qemu PATH names another one"
                } else if words.contains("in use") {
                    "a port of the guest cannot be listened on twice; choose another with --incoming, or take the \
                     option off the guest's command line"
                } else {
                    "its command line is the source's; --dry-run prints it"
                };
                Self::new("destination-died", message, hint)
            }
            TwinError::Aborted => Self::bare("cancelled", message),
            _ => Self::bare("destination", message),
        }
    }
}
