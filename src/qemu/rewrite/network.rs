//! Ports and interfaces: what listens beside the guest, and what joins it to a network.

use std::path::Path;

use super::surroundings::Protocol;
use super::{RewriteError, Sharing, Work, changed};
use crate::qemu::argv::CommandOption;

/// Display 0 of VNC.
const FIRST_VNC_PORT: u16 = 5900;
/// The port of `-s`.
pub(super) const GDB: &str = "tcp::1234";

impl Work<'_> {
    /// A port of the destination's own for one that the source listens on; nothing where the old one will do: on another
    /// network, or where QEMU chooses (0), or where a service is named.
    pub(super) fn own_port(&mut self, what: &str, protocol: Protocol, host: &str, port: &str) -> Option<u16> {
        let port = port.parse::<u16>().ok().filter(|port| *port > 0)?;
        let own = self.next_port(what, protocol, host, port)?;
        self.has_moved(what, place(host, port), place(host, own));
        Some(own)
    }

    /// The same without a word.
    fn next_port(&mut self, what: &str, protocol: Protocol, host: &str, port: u16) -> Option<u16> {
        if self.setting.shared.network == Sharing::Other || self.maps.has_given(&place(host, port)) {
            return None;
        }
        let mut above = port;
        loop {
            let Some(free) = self.setting.surroundings.free_port(protocol, host, above) else {
                let (what, place) = (what.to_owned(), place(host, port));
                self.errors.push(RewriteError::NoFreePort { what, place });
                return None;
            };
            // What has been given away here nobody listens on yet.
            if !self.ports.contains(&free) {
                self.ports.push(free);
                return Some(free);
            }
            above = free;
        }
    }

    /// The same for `host:port`, as one text.
    pub(super) fn own_address(&mut self, what: &str, protocol: Protocol, address: &str) -> Option<String> {
        let (host, port) = address.rsplit_once(':')?;
        let own = self.own_port(what, protocol, host.trim_matches(['[', ']']), port)?;
        Some(format!("{host}:{own}"))
    }
}

fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// `-vnc`: a unix socket, or a display number with or without a port for browsers.
pub(super) fn vnc(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let Some(properties) = option.properties() else { return option };
    let listens = properties.get("vnc").unwrap_or_default().to_owned();
    if properties.is_on("reverse") || work.maps.has_given(&listens) {
        return option;
    }
    if let Some(path) = listens.strip_prefix("unix:") {
        let own = work.own_name("vnc", Path::new(path));
        return changed(option, "vnc", format!("unix:{own}"));
    }
    let Some((host, display)) = listens.rsplit_once(':') else { return option };
    let bare = host.trim_matches(['[', ']']);
    let port = display.parse::<u16>().ok().and_then(|display| display.checked_add(FIRST_VNC_PORT));
    let port = port.map(|port| port.to_string()).unwrap_or_default();
    let mut option = option;
    if let Some(own) = work.own_port("vnc", Protocol::Tcp, bare, &port) {
        option = changed(option, "vnc", format!("{host}:{}", own - FIRST_VNC_PORT));
    }
    // `on` is a port that goes with the display.
    if let Some(own) =
        properties.get("websocket").and_then(|port| work.own_port("vnc websocket", Protocol::Tcp, bare, port))
    {
        option = changed(option, "websocket", own.to_string());
    }
    option
}

/// `-spice`: two ports, or a unix socket.
pub(super) fn spice(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let Some(mut properties) = option.properties() else { return option };
    let host = properties.get("addr").unwrap_or_default().to_owned();
    let mut option = option;
    if properties.is_on("unix") {
        let own = work.own_name("spice", Path::new(&host));
        return changed(option, "addr", own);
    }
    for key in ["port", "tls-port"] {
        let port = properties.get(key).unwrap_or_default().to_owned();
        if let Some(own) = work.own_port("spice", Protocol::Tcp, &host, &port) {
            // It has a place, so that it can be set.
            drop(properties.set(key, own.to_string()));
        }
    }
    option.set_properties(&properties);
    option
}

/// `-s`, which is `-gdb tcp::1234`.
pub(super) fn debugger(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    if work.setting.shared.network == Sharing::Other {
        return option;
    }
    super::characters::tcp_server(work, CommandOption::with_value("gdb", GDB))
}

/// What a network device listens on: `hostfwd` of `user`, and the ends of `socket`, `stream` and `dgram`.
pub(super) fn netdev(work: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let Some(mut properties) = option.properties() else { return option };
    let title = format!("{} {}", option.name, properties.get("id").unwrap_or_default());
    let title = title.trim_end();
    let listens = properties.is_on("server");
    let kind = properties.get("type").unwrap_or_default().to_owned();
    let get = |key: &str| properties.get(key).unwrap_or_default().to_owned();
    let (hosts, types) = ((get("addr.host"), get("local.host")), (get("addr.type"), get("local.type")));
    properties.replace_each(|key, value| {
        let first = key.split('.').next().unwrap_or(key);
        let is_path = |kind: &str| kind == "unix";
        match (kind.as_str(), key) {
            ("user", _) if first == "hostfwd" => forwarded(work, title, value),
            ("socket", "listen") => work.own_address(title, Protocol::Tcp, value),
            ("socket", "localaddr") => work.own_address(title, Protocol::Udp, value),
            ("stream", "addr.port") if listens => {
                work.own_port(title, Protocol::Tcp, &hosts.0, value).map(|port| port.to_string())
            }
            ("stream", "addr.path") if listens && is_path(&types.0) => {
                Some(work.own_name(title, Path::new(value)))
            }
            ("dgram", "local.port") => {
                work.own_port(title, Protocol::Udp, &hosts.1, value).map(|port| port.to_string())
            }
            ("dgram", "local.path") if is_path(&types.1) => Some(work.own_name(title, Path::new(value))),
            _ => None,
        }
    });
    let mut option = option;
    option.set_properties(&properties);
    option
}

/// `tcp:127.0.0.1:2222-:22` with a port of the destination's own.
fn forwarded(work: &mut Work<'_>, title: &str, rule: &str) -> Option<String> {
    let (host_side, guest_side) = rule.split_once('-').filter(|_| !work.maps.has_given(rule))?;
    let (protocol, address) = host_side.split_once(':')?;
    let spoken = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
    let own = work.own_address(&format!("{title} hostfwd"), spoken, address)?;
    Some(format!("{protocol}:{own}-{guest_side}"))
}

/// The interface of a network device, if it has one by name that is not the destination's own.
pub(super) fn interface(work: &Work<'_>, option: &CommandOption) -> Option<String> {
    let is_held = |kind: &str| matches!(kind, "tap" | "af-xdp" | "netmap");
    let properties = option.properties()?;
    properties.get("type").filter(|kind| is_held(kind))?;
    let is_own =
        |name: &&str| work.maps.has_given(name) || work.setting.taps.iter().any(|tap| tap.to == **name);
    properties.get("ifname").filter(|name| !is_own(name)).map(str::to_owned)
}

/// A tap that QEMU was handed as open descriptors.
pub(super) fn tap_descriptors(option: &CommandOption) -> Option<String> {
    let properties = option.properties()?;
    properties.get("type").filter(|kind| *kind == "tap")?;
    properties.get("fds").or(properties.get("fd")).map(str::to_owned)
}

/// A tap by name whose vhost side was handed over as descriptors: QEMU opens that one itself.
pub(super) fn without_vhost_descriptors(_: &mut Work<'_>, option: CommandOption) -> CommandOption {
    let mut option = option;
    if let Some(mut properties) = option.properties() {
        properties.remove("vhostfd");
        properties.remove("vhostfds");
        option.set_properties(&properties);
    }
    option
}
