//! Who holds the other end of a unix socket.
//!
//! A QMP socket serves one client. When it is taken, the user wants to know by whom. The kernel tells through
//! `sock_diag(7)`: the sockets bound to a path, and the peer of each; /proc then tells whose descriptors they are.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::nlas::{Nla, UnixDiagName};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponse};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::proc::processes;

/// The processes that are connected to the unix socket at `path`, this one left out. Best effort: other users'
/// processes are seen by root only.
pub fn unix_socket_clients(path: &Path) -> Vec<i32> {
    let Ok(sockets) = unix_sockets() else { return Vec::new() };
    let ends: HashSet<u32> = sockets
        .iter()
        .filter(|socket| socket.header.state != LISTENING && name(socket).is_some_and(|name| name == path))
        .filter_map(peer)
        .collect();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    holders(&ends).into_iter().filter(|&pid| pid != own).collect()
}

/// The process that listens at `path`.
pub fn listening_process(path: &Path) -> Option<i32> {
    let listening: HashSet<u32> = unix_sockets()
        .ok()?
        .iter()
        .filter(|socket| socket.header.state == LISTENING && name(socket).is_some_and(|name| name == path))
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
        show_flags: ShowFlags::NAME | ShowFlags::PEER,
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
        let (_server, _) = listener.accept().unwrap();
        assert_eq!(unix_socket_clients(&path), [] as [i32; 0], "this process is left out");

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
