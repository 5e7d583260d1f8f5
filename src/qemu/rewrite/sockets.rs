//! The sockets on which a QEMU with a command line listens.

use std::path::PathBuf;

use super::CHARACTER_DEVICES;
use crate::qemu::argv::{CommandLine, CommandOption, Properties};

/// All unix sockets on which a QEMU with this command line listens. It unlinks whatever has their names.
pub(in crate::qemu) fn listening_sockets(line: &CommandLine) -> Vec<PathBuf> {
    let sockets = line.options.iter().filter_map(|option| match option.name.as_str() {
        "vnc" => option.get("vnc").and_then(|place| place.strip_prefix("unix:").map(PathBuf::from)),
        "chardev" => listening_chardev(&option.properties()?),
        name if CHARACTER_DEVICES.contains(&name) => unix_server(option),
        _ => None,
    });
    sockets.collect()
}

/// The unix sockets on which a QEMU with this command line speaks QMP, in order.
pub fn qmp_sockets(line: &CommandLine) -> impl Iterator<Item = PathBuf> {
    monitors(line, MonitorKind::Machine)
}

/// The unix sockets on which a QEMU with this command line has a monitor for people.
pub fn human_monitors(line: &CommandLine) -> impl Iterator<Item = PathBuf> {
    monitors(line, MonitorKind::Human)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MonitorKind {
    Machine,
    Human,
}

fn monitors(line: &CommandLine, kind: MonitorKind) -> impl Iterator<Item = PathBuf> {
    line.options.iter().filter_map(move |option| {
        match (option.name.as_str(), kind) {
            ("qmp" | "qmp-pretty", MonitorKind::Machine) | ("monitor", MonitorKind::Human) => {
                let id = option.value.as_deref()?.strip_prefix("chardev:");
                id.map_or_else(|| unix_server(option), |id| chardev_socket(line, id))
            }
            ("mon", _) => {
                let value = option.properties()?;
                let is_machine = value.get("mode") == Some("control");
                let id = value.get("chardev").filter(|_| is_machine == (kind == MonitorKind::Machine))?;
                chardev_socket(line, id)
            }
            // What 11.1 has in the place of -mon.
            ("object", _) => {
                let value = option.properties()?;
                let is_meant = match value.get("qom-type")? {
                    "monitor-qmp" => kind == MonitorKind::Machine,
                    "monitor-hmp" => kind == MonitorKind::Human,
                    _ => false,
                };
                chardev_socket(line, value.get("chardev").filter(|_| is_meant)?)
            }
            _ => None,
        }
    })
}

/// The path of a character device in its short form that is a unix socket and listens.
fn unix_server(option: &CommandOption) -> Option<PathBuf> {
    let value = option.properties()?;
    value.is_on("server").then(|| value.get("path").map(PathBuf::from)).flatten()
}

fn chardev_socket(line: &CommandLine, id: &str) -> Option<PathBuf> {
    let devices = line.options.iter().filter(|option| option.name == "chardev");
    devices
        .filter_map(CommandOption::properties)
        .filter(|value| value.get("id") == Some(id))
        .find_map(|value| listening_chardev(&value))
}

fn listening_chardev(value: &Properties) -> Option<PathBuf> {
    let listens = value.get("backend") == Some("socket") && value.is_on("server");
    listens.then(|| value.get("path").map(PathBuf::from)).flatten()
}
