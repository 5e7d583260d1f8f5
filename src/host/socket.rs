//! Who holds the other end of a unix socket.
//!
//! A QMP socket serves one client. When it is taken, the user wants to know by whom. The kernel tells through
//! `sock_diag(7)`: the sockets bound to a path, and the peer of each; /proc then tells whose descriptors they are.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::nlas::{Nla, UnixDiagName};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponse};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::proc::processes;

/// The processes that the unix socket at `path` serves, and not those that still wait to be accepted. Best effort:
/// other users' processes are seen by root only.
pub fn unix_socket_clients(path: &Path) -> Vec<i32> {
    let Ok(sockets) = unix_sockets() else { return Vec::new() };
    let place = Place::of(path);
    let (listening, connected): (Vec<_>, Vec<_>) = sockets
        .iter()
        .filter(|socket| place.is_of(socket))
        .partition(|socket| socket.header.state == LISTENING);
    let waiting: HashSet<u32> = listening.into_iter().flat_map(waiting).collect();
    let served = connected.into_iter().filter_map(peer).filter(|end| !waiting.contains(end)).collect();
    holders(&served)
}

/// The process that listens at `path`.
pub fn listening_process(path: &Path) -> Option<i32> {
    let place = Place::of(path);
    let listening: HashSet<u32> = unix_sockets()
        .ok()?
        .iter()
        .filter(|socket| socket.header.state == LISTENING && place.is_of(socket))
        .map(|socket| socket.header.inode)
        .collect();
    holders(&listening).first().copied()
}

/// `TCP_LISTEN`, which unix sockets share.
const LISTENING: u8 = 10;

fn name(socket: &UnixResponse) -> Option<&Path> {
    socket.nlas.iter().find_map(|attribute| match attribute {
        Nla::Name(UnixDiagName::Pathname(path)) => Some(Path::new(path)),
        _ => None,
    })
}

/// A socket's file: its name may be another one than it was bound to (relative, by a link, renamed since).
struct Place<'a> {
    path: &'a Path,
    /// Device, as the kernel writes it inside, and the lower half of the inode number, as `sock_diag` tells it.
    file: Option<(u32, u32)>,
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> Self {
        let file = path.metadata().ok().and_then(|metadata| {
            let device = metadata.dev();
            let device = (nix::sys::stat::major(device) << 20) | nix::sys::stat::minor(device);
            let inode = metadata.ino() & u64::from(u32::MAX);
            Some((u32::try_from(device).ok()?, u32::try_from(inode).ok()?))
        });
        Self { path, file }
    }

    fn is_of(&self, socket: &UnixResponse) -> bool {
        let file = socket.nlas.iter().find_map(|attribute| match attribute {
            Nla::Vfs(_) => file(attribute),
            _ => None,
        });
        match (self.file, file) {
            (Some(own), Some(file)) => own == file,
            _ => name(socket).is_some_and(|name| name == self.path),
        }
    }
}

/// `struct unix_diag_vfs`: inode number and device.
fn file(attribute: &Nla) -> Option<(u32, u32)> {
    let mut bytes = [0; 8];
    if attribute.value_len() != bytes.len() {
        return None;
    }
    attribute.emit_value(&mut bytes);
    let (inode, device) = bytes.split_at(4);
    Some((u32::from_ne_bytes(device.try_into().ok()?), u32::from_ne_bytes(inode.try_into().ok()?)))
}

/// The ends of those who have connected and are not accepted yet.
fn waiting(socket: &UnixResponse) -> Vec<u32> {
    let inodes = socket.nlas.iter().find_map(|attribute| match attribute {
        Nla::PendingConnections(inodes) => Some(inodes.clone()),
        _ => None,
    });
    inodes.unwrap_or_default()
}

fn peer(socket: &UnixResponse) -> Option<u32> {
    socket.nlas.iter().find_map(|attribute| match attribute {
        Nla::Peer(inode) => Some(*inode),
        _ => None,
    })
}

/// The processes that hold one of these sockets.
fn holders(inodes: &HashSet<u32>) -> Vec<i32> {
    if inodes.is_empty() {
        return Vec::new();
    }
    let holds = |pid: &i32| {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|target| {
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode| inodes.contains(&inode))
        })
    };
    processes().into_iter().filter(holds).collect()
}

/// All unix stream sockets of this network namespace with their names and peers.
fn unix_sockets() -> io::Result<Vec<UnixResponse>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = UnixRequest {
        state_flags: StateFlags::ESTABLISHED | StateFlags::LISTEN,
        inode: 0,
        show_flags: ShowFlags::NAME | ShowFlags::VFS | ShowFlags::PEER | ShowFlags::ICONS,
        cookie: [0xff; 8],
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::UnixRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut found = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(response)) => {
                    found.push(*response);
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Each message is padded to four bytes; one of no length would keep us here for ever.
            let length = usize::try_from(message.header.length).unwrap_or(0).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_listener_and_the_client_of_a_socket_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(listening_process(&path), Some(own));
        assert_eq!(unix_socket_clients(&path), [] as [i32; 0]);

        let client = UnixStream::connect(&path).unwrap();
        assert_eq!(unix_socket_clients(&path), [] as [i32; 0], "whoever waits is not served");
        let (_server, _) = listener.accept().unwrap();
        assert_eq!(unix_socket_clients(&path), [own]);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(unix_socket_clients(&link), [own], "a name that leads there is as good");

        // A second process that holds the client's end: `sleep` with it as standard input.
        let mut other = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(std::os::fd::OwnedFd::from(client))
            .spawn()
            .unwrap();
        let found = unix_socket_clients(&path);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(found, [i32::try_from(other.id()).unwrap()]);
    }
}
