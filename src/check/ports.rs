//! Ports on which the destination is to listen while the source still lives.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Blocker, Code};
use crate::qemu::argv::{CommandLine, CommandOption, KeyValues};

/// VNC's displays count from here.
const FIRST_VNC_PORT: u16 = 5900;

/// A place at which somebody listens, or is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    address: IpAddr,
    port: u16,
}

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listening {
    place: Place,
    inode: u64,
}

/// The ports of a destination's command line that are taken, those of `-incoming` too.
pub fn ports(line: &CommandLine, source: i32) -> Vec<Blocker> {
    let wanted: Vec<_> = line.options.iter().flat_map(places).collect();
    if wanted.is_empty() {
        // A host may have thousands of sockets.
        return Vec::new();
    }
    let listening = listening();
    let own = sockets_of(source);
    let taken = |(option, place): (String, Place)| {
        let by = listening.iter().find(|listening| listening.place.excludes(place))?;
        Some(blocker(&option, place.port, own.contains(&by.inode)))
    };
    wanted.into_iter().filter_map(taken).collect()
}

/// The port of an `--incoming` that is taken.
pub fn incoming_port(incoming: &str) -> Option<Blocker> {
    let place = incoming.strip_prefix("tcp:").and_then(host_and_port)?;
    let is_taken = listening().iter().any(|listening| listening.place.excludes(place));
    is_taken.then(|| {
        Blocker::new(
            Code::PortTaken,
            format!("--incoming {incoming}: a process listens there already (Address already in use)"),
            "--incoming tcp:HOST:0 takes a port that is free; with defer, the default, the stream finds its own way",
        )
    })
}

fn blocker(option: &str, port: u16, is_sources: bool) -> Blocker {
    let by = if is_sources { "the source itself" } else { "another process" };
    Blocker::new(
        Code::PortTaken,
        format!(
            "{option}: {by} listens on port {port}, so that the destination cannot (Address already in use)"
        ),
        "take the option off the guest's command line, or give it port 0; --template FILE takes an edited one",
    )
}

impl Place {
    /// Whether a socket that listens here keeps another from listening there.
    fn excludes(self, other: Self) -> bool {
        self.port == other.port
            && (self.address == other.address || self.address.is_unspecified() || other.address.is_unspecified())
            // A socket of IPv4 is in nobody's way at an address of IPv6; one for all of IPv6 takes IPv4 too.
            && (self.address.is_ipv4() == other.address.is_ipv4() || self.address == IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    }
}

/// Where an option makes QEMU listen, with the option as it is shown.
fn places(option: &CommandOption) -> Vec<(String, Place)> {
    let Some(value) = option.value.as_deref() else { return Vec::new() };
    let shown = || format!("-{} {}", option.name, option.shown().unwrap_or_default());
    let found: Vec<Place> = match option.name.as_str() {
        "qmp" | "qmp-pretty" | "monitor" | "serial" | "parallel" | "debugcon" => {
            let device = value.strip_prefix("mon:").unwrap_or(value);
            let rest = device.strip_prefix("tcp:").or_else(|| device.strip_prefix("telnet:"));
            let listens = rest.map(KeyValues::parse).filter(|device| device.is_on("server"));
            listens.and_then(|device| host_and_port(device.implied()?)).into_iter().collect()
        }
        "chardev" => {
            let device = KeyValues::parse(value);
            let place = || {
                let port = device.get("port")?.parse().ok().filter(|&port: &u16| port > 0)?;
                Some(Place { address: address(device.get("host").unwrap_or_default())?, port })
            };
            let listens = device.implied() == Some("socket") && device.is_on("server");
            place().filter(|_| listens).into_iter().collect()
        }
        "vnc" => {
            let place = || {
                let display = KeyValues::parse(value);
                let (host, number) = display.implied()?.rsplit_once(':')?;
                // With a range it takes the next one that is free.
                let is_one = display.get("to").is_none()
                    && !host.starts_with("unix")
                    && display.get("reverse").is_none();
                let port = number.parse::<u16>().ok().and_then(|number| FIRST_VNC_PORT.checked_add(number));
                Some(Place { address: address(host)?, port: port.filter(|_| is_one)? })
            };
            place().into_iter().collect()
        }
        "netdev" | "nic" | "net" => {
            let device = KeyValues::parse(value);
            let forwards = device.0.iter().filter(|(key, _)| key == "hostfwd").filter_map(|(_, rule)| {
                // `tcp:HOSTADDRESS:HOSTPORT-GUESTADDRESS:GUESTPORT`; `udp:` is not looked at.
                let rule = rule.strip_prefix("tcp:").or_else(|| rule.strip_prefix(':'))?;
                host_and_port(rule.split_once('-')?.0)
            });
            let listens = device.get("listen").and_then(host_and_port);
            forwards.chain(listens).collect()
        }
        _ => Vec::new(),
    };
    found.into_iter().map(|place| (shown(), place)).collect()
}

fn host_and_port(text: &str) -> Option<Place> {
    let text = text.split(',').next()?;
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port: &u16| port > 0)?;
    Some(Place { address: address(host)?, port })
}

/// An address, if it is one; a name is not looked up.
fn address(host: &str) -> Option<IpAddr> {
    match host.trim_start_matches('[').trim_end_matches(']') {
        "" | "0" => Some(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        host => host.parse().ok(),
    }
}

/// All TCP sockets that listen in this network namespace.
fn listening() -> Vec<Listening> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    ["tcp", "tcp6"].iter().flat_map(|name| table(&read(name))).collect()
}

/// `/proc/net/tcp` and `tcp6` (`proc(5)`): of each line the local address, the state and the inode.
fn table(text: &str) -> Vec<Listening> {
    let listening = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, port) = words.get(1)?.split_once(':')?;
        let is_listening = *words.get(3)? == "0A";
        let place = Place { address: of_hexadecimal(address)?, port: u16::from_str_radix(port, 16).ok()? };
        is_listening.then_some(Listening { place, inode: words.get(9)?.parse().ok()? })
    };
    text.lines().skip(1).filter_map(listening).collect()
}

/// Words of 32 bits as the machine has them, in hexadecimal.
fn of_hexadecimal(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes: Vec<u8> = (0..4).map(word).collect::<Option<Vec<_>>>()?.concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
        }
        _ => None,
    }
}

/// The inodes of a process's sockets.
fn sockets_of(pid: i32) -> HashSet<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inode =
        |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn found(words: &str) -> Vec<String> {
        let words: Vec<_> = words.split(' ').map(std::ffi::OsString::from).collect();
        let line = CommandLine::parse(&words).unwrap();
        let places = line.options.iter().flat_map(places);
        places.map(|(_, Place { address, port })| format!("{address} {port}")).collect()
    }

    #[test]
    fn whatever_listens_is_found_on_a_command_line() {
        let line = "qemu-system-x86_64 -qmp tcp:127.0.0.1:4444,server=on,wait=off -monitor mon:telnet::4445,server \
                    -serial tcp:1.2.3.4:5 -chardev socket,id=c,host=::1,port=7,server=on -chardev socket,id=d,path=/x,server \
                    -vnc :1 -vnc 127.0.0.1:2,to=9 -vnc unix:/x -vnc none -qmp unix:/y,server -serial tcp:127.0.0.1:0,server \
                    -netdev user,id=n,hostfwd=tcp::2222-:22,hostfwd=udp::53-:53,hostfwd=tcp:127.0.0.1:80-10.0.2.15:80 \
                    -netdev socket,id=s,listen=:9000 -netdev tap,id=t";
        let expected = [
            "127.0.0.1 4444",
            "0.0.0.0 4445",
            "::1 7",
            "0.0.0.0 5901",
            "0.0.0.0 2222",
            "127.0.0.1 80",
            "0.0.0.0 9000",
        ];
        assert_eq!(found(line), expected);
    }

    #[test]
    fn a_port_that_is_taken_is_told_with_whoever_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let option = format!("tcp:127.0.0.1:{port},server=on");
        let words = ["qemu-system-x86_64", "-serial", &option].map(std::ffi::OsString::from);
        let line = CommandLine::parse(&words).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let blockers = ports(&line, own);
        assert!(blockers[0].message.contains("the source itself listens"), "{blockers:?}");
        assert!(ports(&line, 1)[0].message.contains("another process"));
        assert!(incoming_port(&format!("tcp:0:{port}")).is_some());
        assert!(incoming_port(&format!("tcp:127.0.0.2:{port}")).is_none());
        drop(listener);
        assert_eq!(ports(&line, own), []);
        assert_eq!(incoming_port("unix:/x"), None);
    }

    #[test]
    fn the_table_of_sockets_is_read_as_linux_writes_it() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1680 1 0 100 0 0 10 0
   1: 0100007F:07E8 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 1681 1 0 100 0 0 10 0
";
        let place = Place { address: Ipv4Addr::LOCALHOST.into(), port: 2024 };
        if cfg!(target_endian = "little") {
            assert_eq!(table(text), [Listening { place, inode: 1680 }]);
        }
        let v6 = of_hexadecimal("00000000000000000000000001000000");
        assert!(cfg!(target_endian = "big") || v6 == Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(of_hexadecimal("xyz"), None);
        let all = |address: IpAddr| Place { address, port: 2024 };
        assert!(
            all(Ipv6Addr::UNSPECIFIED.into()).excludes(place)
                && !all(Ipv6Addr::LOCALHOST.into()).excludes(place)
        );
        assert!(!Place { port: 1, ..place }.excludes(place));
    }
}
