//! Character devices, in the long form (`-chardev socket,id=c,...`) and in the short one (`-serial unix:...`).

use std::path::Path;

use super::names::{is_engine_made, public_log_name};
use super::surroundings::Protocol;
use super::{DEVICE_PREFIX, Sharing, Work, changed};
use crate::qemu::argv::{CommandOption, KeyValues};

/// What a character device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Device {
    /// A unix socket at this path on which QEMU listens.
    UnixServer(String),
    /// A TCP socket on which it listens.
    TcpServer,
    /// UDP, bound to a port of its own.
    Udp,
    /// A file that it writes.
    File(String),
    /// Two pipes, or one.
    Pipe(String),
    /// The terminal that QEMU was started on.
    Terminal,
    /// A new pseudo terminal each time.
    PseudoTerminal,
    /// Anything else.
    Other,
}

/// What a character device is.
pub(super) fn device(option: &CommandOption) -> Device {
    let text = option.value.as_deref().unwrap_or_default();
    let short = text.strip_prefix("mon:").unwrap_or(text);
    let properties = option.properties();
    let get = |key| properties.as_ref().and_then(|value| value.get(key)).map(str::to_owned);
    let listens = properties.as_ref().is_some_and(|value| value.is_on("server"));
    let socket = |path: Option<String>| match (path, listens) {
        (Some(path), true) => Device::UnixServer(path),
        (None, true) => Device::TcpServer,
        (_, false) => Device::Other,
    };
    if option.name == "chardev" {
        return match get("backend").as_deref() {
            Some("socket") if get("fd").is_none() => socket(get("path")),
            Some("udp") if get("localport").is_some() => Device::Udp,
            Some("file") => Device::File(get("path").unwrap_or_default()),
            Some("pipe") => Device::Pipe(get("path").unwrap_or_default()),
            Some("stdio") => Device::Terminal,
            Some("pty") => Device::PseudoTerminal,
            _ => Device::Other,
        };
    }
    if short == "stdio" || short.starts_with("stdio,") {
        return Device::Terminal;
    }
    match short.split_once(':') {
        Some(("unix", _)) => socket(get("path")),
        // The debugger's stub listens in any case.
        Some(("tcp", _)) if option.name == "gdb" => Device::TcpServer,
        Some(("tcp" | "telnet" | "websocket" | "tn3270", _)) => socket(None),
        Some(("udp", _)) if short.contains('@') => Device::Udp,
        Some(("file", path)) => Device::File(path.to_owned()),
        Some(("pipe", path)) => Device::Pipe(path.to_owned()),
        _ if short == "pty" => Device::PseudoTerminal,
        _ => Device::Other,
    }
}

/// The pipe of one that is none of the destination's own.
pub(super) fn pipe(work: &Work<'_>, option: &CommandOption) -> Option<String> {
    match device(option) {
        Device::Pipe(path) if work.setting.shared.files == Sharing::Same => {
            (!work.maps.has_given(&path)).then_some(path)
        }
        _ => None,
    }
}

/// What it is called in what people read.
pub(super) fn title(option: &CommandOption) -> String {
    match option.name.as_str() {
        "chardev" => format!("chardev {}", option.get("id").unwrap_or_default()),
        name => name.to_owned(),
    }
}

/// Whether this is the QMP socket that a migration before this one has added.
pub(super) fn is_the_engines(work: &Work<'_>, option: &CommandOption) -> bool {
    match device(option) {
        Device::UnixServer(path) if option.name != "chardev" => {
            is_engine_made(Path::new(&path), work.setting.runtime_directory.parent())
        }
        _ => false,
    }
}

/// A unix socket gets a name of its own. One in the abstract name space has no file that could be renamed.
pub(super) fn unix_server(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let Device::UnixServer(path) = device(&option) else { return option };
    let option = without_waiting(option);
    let title = title(&option);
    if !option.properties().is_some_and(|properties| properties.is_on("abstract")) {
        let own = work.own_name(&title, Path::new(&path));
        return changed(option, "path", own);
    }
    if work.setting.shared.network == Sharing::Other {
        return option;
    }
    let own = format!("{}.{}", public_log_name(&path), work.setting.id);
    work.has_moved(&title, path, own.clone());
    changed(option, "path", own)
}

/// A server that waits for its first visitor holds up the whole start, and nobody is there to visit a destination; it
/// waits unless it is told not to.
fn without_waiting(option: CommandOption) -> CommandOption {
    if option.properties().is_some_and(|value| value.get("wait") == Some("off") || value.get("fd").is_some())
    {
        return option;
    }
    changed(option, "wait", false)
}

/// A TCP socket gets a port of its own.
pub(super) fn tcp_server(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let title = title(&option);
    let option = if option.name == "gdb" { option } else { without_waiting(option) };
    if option.name == "chardev" {
        let (host, port) = (option.get("host").unwrap_or_default(), option.get("port").unwrap_or_default());
        let own = work.own_port(&title, Protocol::Tcp, &host, &port);
        return with(option, "port", own.map(|own| own.to_string()));
    }
    let address = option.get("address").unwrap_or_default();
    let own = work.own_address(&title, Protocol::Tcp, &address);
    with(option, "address", own)
}

/// The port to which UDP is bound; in the short form it stands behind an `@`.
pub(super) fn udp(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let title = title(&option);
    if option.name == "chardev" {
        let get = |key| option.get(key).unwrap_or_default();
        let own = work.own_port(&title, Protocol::Udp, &get("localaddr"), &get("localport"));
        return with(option, "localport", own.map(|own| own.to_string()));
    }
    let address = option.get("address").unwrap_or_default();
    let Some((remote, local)) = address.split_once('@') else { return option };
    let own = work.own_address(&title, Protocol::Udp, local);
    with(option, "address", own.map(|own| format!("{remote}@{own}")))
}

/// A file is appended to. The short form cannot say so; the long one can, and a device that names it is the same one.
pub(super) fn file(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let Device::File(path) = device(&option) else { return option };
    if option.name == "chardev" {
        if option.get("append").is_some() {
            return changed(option, "append", true);
        }
        // Right behind the kind of device, where no user writes it and a template knows it again.
        let mut value = KeyValues::parse(option.value.as_deref().unwrap_or_default());
        value.0.insert(1, ("append".to_owned(), "on".to_owned()));
        return option.having(value.render());
    }
    let mux = if option.value.as_deref().is_some_and(|text| text.starts_with("mon:")) { "mon:" } else { "" };
    // The device behind this option has a name of its own for what it writes to (`debugcon_parse`).
    let id = if option.name == "debugcon" {
        "debugcon".to_owned()
    } else {
        work.devices += 1;
        format!("{DEVICE_PREFIX}{}", work.devices - 1)
    };
    let chardev = format!("file,id={id},path={},append=on", path.replace(',', ",,"));
    work.push(CommandOption::with_value("chardev", chardev));
    option.having(format!("{mux}chardev:{id}"))
}

fn with(option: CommandOption, path: &str, value: Option<String>) -> CommandOption {
    match value {
        Some(value) => changed(option, path, value),
        None => option,
    }
}
