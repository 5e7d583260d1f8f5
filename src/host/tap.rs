//! Taps: which ones a process holds, what one is, and another one beside it on the same bridge.
//!
//! A tap has room for one process, so that a second one needs a tap of its own. It is made by `ip` (iproute2): what it
//! takes is a netlink conversation and half a dozen ioctls, which `ip` has right on every kernel.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::user::Credentials;

const INTERFACES: &str = "/sys/class/net";
/// `IFF_MULTI_QUEUE` and `IFF_VNET_HDR` of `linux/if_tun.h`.
const MULTI_QUEUE: u32 = 0x0100;
const HEADER: u32 = 0x4000;
/// The longest name of an interface: `IFNAMSIZ` less its NUL.
const LONGEST_NAME: usize = 15;

/// What a bridge does with a port, beside forwarding: who may see what through it.
const PORT_SETTINGS: [&str; 10] = [
    "isolated",
    "hairpin_mode",
    "learning",
    "unicast_flood",
    "multicast_flood",
    "broadcast_flood",
    "bpdu_guard",
    "root_block",
    "proxyarp",
    "neigh_suppress",
];

/// A tap cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It cannot be looked at.
    #[error("the interface {name} cannot be looked at")]
    Look {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing tells where another one would have to be.
    #[error("the interface {0} is on no bridge, so that no second one can be put beside it")]
    NoBridge(String),
    /// It is on something else.
    #[error("the interface {0} is on {1}, which is no bridge of Linux's")]
    OtherMaster(String, String),
    /// Its port has networks of its own.
    #[error("the bridge {1}, which {0} is on, tells virtual networks apart (vlan_filtering)")]
    Filtering(String, String),
    /// `ip` cannot be run.
    #[error("the program ip (iproute2) cannot be run")]
    Program(#[source] io::Error),
    /// `ip` says no.
    #[error("ip could not do it: {0}")]
    Refused(String),
    /// A port cannot be set up as the other one is.
    #[error("the new port {name} cannot be set up as the old one is ({setting})")]
    Port {
        /// Which.
        name: String,
        /// What.
        setting: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A tap on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    name: String,
    bridge: String,
    owner: Option<u32>,
    group: Option<u32>,
    mtu: u32,
    flags: u32,
}

impl Tap {
    /// The tap of this name, as it is.
    pub fn look(name: &str) -> Result<Self, TapError> {
        let failed = |source| TapError::Look { name: name.to_owned(), source };
        let place = place(name).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let text = |file: &str| std::fs::read_to_string(place.join(file)).map_err(failed);
        let malformed = || failed(io::ErrorKind::InvalidData.into());
        let flags = text("tun_flags")?;
        let flags =
            u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).map_err(|_| malformed())?;
        let mtu = text("mtu")?.trim().parse().map_err(|_| malformed())?;
        // `-1` is nobody.
        let number = |file: &str| Ok(text(file)?.trim().parse().ok());
        let (owner, group) = (number("owner")?, number("group")?);
        let master = std::fs::read_link(place.join("master")).ok();
        let master = master.as_deref().and_then(Path::file_name).and_then(|master| master.to_str());
        let bridge = master.ok_or_else(|| TapError::NoBridge(name.to_owned()))?.to_owned();
        let of_bridge = Path::new(INTERFACES).join(&bridge).join("bridge");
        if !of_bridge.is_dir() {
            return Err(TapError::OtherMaster(name.to_owned(), bridge));
        }
        if std::fs::read_to_string(of_bridge.join("vlan_filtering")).is_ok_and(|on| on.trim() != "0") {
            return Err(TapError::Filtering(name.to_owned(), bridge));
        }
        Ok(Self { name: name.to_owned(), bridge, owner, group, mtu, flags })
    }

    /// Whether packets have a header of virtio's.
    pub fn has_header(&self) -> bool {
        self.flags & HEADER != 0
    }

    /// Makes another one of the same kind on the same bridge, that stays until it is removed. Whoever may open the old one
    /// may open it, and so may this user. On an error it may be there, or half there.
    pub fn make_twin(&self, name: &str, user: &Credentials) -> Result<(), TapError> {
        ip(&self.orders(name, user))?;
        for setting in PORT_SETTINGS {
            let file = |name: &str| Path::new(INTERFACES).join(name).join("brport").join(setting);
            // An older kernel does not have all of them.
            let Ok(value) = std::fs::read_to_string(file(&self.name)) else { continue };
            if std::fs::read_to_string(file(name)).is_ok_and(|own| own == value) {
                continue;
            }
            let written = std::fs::write(file(name), value.trim());
            written.map_err(|source| TapError::Port { name: name.to_owned(), setting, source })?;
        }
        Ok(())
    }

    fn orders(&self, name: &str, user: &Credentials) -> String {
        let mut make = format!("tuntap add dev {name} mode tap");
        if self.flags & MULTI_QUEUE != 0 {
            make.push_str(" multi_queue");
        }
        if self.has_header() {
            make.push_str(" vnet_hdr");
        }
        let user = (!user.user.is_root()).then(|| user.user.as_raw());
        if let Some(owner) = self.owner.or(user) {
            make = format!("{make} user {owner}");
        }
        if let Some(group) = self.group {
            make = format!("{make} group {group}");
        }
        format!(
            "{make}\nlink set dev {name} address {}\nlink set dev {name} mtu {} master {} up\n",
            high_address(name),
            self.mtu,
            self.bridge
        )
    }
}

/// An address that no bridge takes for its own: one without takes the lowest of its ports', and a host whose address
/// changes is cut off until its neighbours have learnt that (qemu-bridge-helper does the same).
fn high_address(name: &str) -> String {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.to_le_bytes().iter().take(5).fold("fe".to_owned(), |address, byte| format!("{address}:{byte:02x}"))
}

/// Removes a tap. One that is gone is fine.
pub fn remove_tap(name: &str) -> Result<(), TapError> {
    let is_tap = place(name).is_some_and(|place| place.join("tun_flags").exists());
    if is_tap { ip(&format!("link del dev {name}\n")) } else { Ok(()) }
}

/// The interfaces of the taps that a process holds, by the descriptor.
pub fn held_taps(pid: i32) -> BTreeMap<i32, String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return BTreeMap::new() };
    let held = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let descriptor = entry.file_name().to_str()?.parse().ok()?;
        let text = std::fs::read_to_string(entry.path()).ok()?;
        let name = text.lines().find_map(|line| line.strip_prefix("iff:"))?.trim();
        Some((descriptor, name.to_owned()))
    };
    entries.filter_map(held).collect()
}

/// Whether a process sees the interfaces that this one sees.
pub fn shares_network(pid: i32) -> bool {
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    network(&pid.to_string()) == network("self")
}

/// Whether this process may make interfaces.
pub fn may_make_taps() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    super::standing::own_capabilities() >> CAP_NET_ADMIN & 1 == 1
}

/// Where Linux tells of an interface; nowhere for a name that none can have.
fn place(name: &str) -> Option<PathBuf> {
    let is_odd = |letter: char| letter == '/' || letter.is_whitespace();
    let can_be = !matches!(name, "" | "." | "..") && name.len() <= LONGEST_NAME && !name.contains(is_odd);
    can_be.then(|| Path::new(INTERFACES).join(name))
}

/// Has `ip` do these things in order, and stop at the first that it cannot do.
fn ip(orders: &str) -> Result<(), TapError> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(TapError::Program)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(orders.as_bytes()).map_err(TapError::Program)?;
    }
    let output = child.wait_with_output().map_err(TapError::Program)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(TapError::Refused(words.lines().next().unwrap_or("it did not say why").to_owned()))
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Gid, Uid};

    use super::*;

    #[test]
    fn a_twin_is_of_the_same_kind_and_its_user_may_open_it() {
        let user = |number| Credentials {
            user: Uid::from_raw(number),
            group: Gid::from_raw(number),
            groups: Vec::new(),
        };
        let mut tap = Tap {
            name: "tap0".to_owned(),
            bridge: "br0".to_owned(),
            owner: None,
            group: None,
            mtu: 9000,
            flags: 0x1802,
        };
        let address = high_address("qm-k3f9x2ab");
        assert!(address.starts_with("fe:") && address != high_address("qm-k3f9x2ac"));
        let set = format!(
            "link set dev qm-k3f9x2ab address {address}\nlink set dev qm-k3f9x2ab mtu 9000 master br0 up\n"
        );
        let add = "tuntap add dev qm-k3f9x2ab mode tap";
        assert_eq!(tap.orders("qm-k3f9x2ab", &user(0)), format!("{add}\n{set}"));
        assert_eq!(tap.orders("qm-k3f9x2ab", &user(7)), format!("{add} user 7\n{set}"));
        (tap.owner, tap.group, tap.flags) = (Some(8), Some(9), 0x5902);
        let more = "multi_queue vnet_hdr user 8 group 9";
        assert_eq!(tap.orders("qm-k3f9x2ab", &user(7)), format!("{add} {more}\n{set}"));
    }

    #[test]
    fn a_name_that_no_interface_can_have_leads_nowhere() {
        for name in ["", ".", "..", "../../x", "a b", "a\nb", "sixteen-letters-"] {
            assert_eq!(place(name), None, "{name}");
            assert!(matches!(Tap::look(name), Err(TapError::Look { .. })));
        }
        assert!(matches!(Tap::look("lo"), Err(TapError::Look { .. })));
        assert!(place("qm-k3f9x2ab-12").is_some());
        remove_tap("no-such-tap").expect("one that is gone is fine");
    }
}
