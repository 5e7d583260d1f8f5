//! What the rewriting asks of the host, so that it stays a function of its arguments.

use std::fmt::Debug;
use std::io;
use std::net::{TcpListener, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

use crate::host::{Credentials, as_user, maps_file};

/// A configuration file that a person wrote is far smaller.
const LARGEST_CONFIGURATION: u64 = 1 << 20;

/// What a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Single messages.
    Udp,
}

/// The host around a QEMU, as far as its command line needs it.
pub trait Surroundings: Debug {
    /// The text of a configuration file.
    fn configuration(&self, path: &Path) -> io::Result<String>;
    /// Whether a path names a directory.
    fn is_directory(&self, path: &Path) -> bool;
    /// Whether the source has mapped the file that this path leads to now.
    fn is_mapped(&self, path: &Path) -> bool;
    /// Files, sockets and logs that the source has open, by their whole names.
    fn open_files(&self) -> &[PathBuf];
    /// The first port above this one on which somebody could listen; an empty host is every address.
    fn free_port(&self, protocol: Protocol, host: &str, above: u16) -> Option<u16>;
}

/// This host.
#[derive(Debug, Clone)]
pub struct ThisHost {
    /// The source's process.
    pub source: i32,
    /// The source's user, as whom its files are read.
    pub user: Credentials,
    /// What the source has open.
    pub open_files: Vec<PathBuf>,
}

impl Surroundings for ThisHost {
    fn configuration(&self, path: &Path) -> io::Result<String> {
        as_user(&self.user, || {
            let about = path.metadata()?;
            // A pipe would wait for a writer, a device never end.
            if !about.is_file() || about.len() > LARGEST_CONFIGURATION {
                return Err(io::Error::other("it is no plain file of up to 1 MiB"));
            }
            std::fs::read_to_string(path)
        })
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn is_mapped(&self, path: &Path) -> bool {
        maps_file(self.source, path)
    }

    fn open_files(&self) -> &[PathBuf] {
        &self.open_files
    }

    fn free_port(&self, protocol: Protocol, host: &str, above: u16) -> Option<u16> {
        let hosts = if host.is_empty() { vec!["0.0.0.0", "::"] } else { vec![host] };
        let is_free = |port: u16| {
            let addresses = hosts.iter().filter_map(|host| (*host, port).to_socket_addrs().ok()).flatten();
            let mut bound = addresses.map(|address| match protocol {
                Protocol::Tcp => TcpListener::bind(address).map(drop),
                Protocol::Udp => UdpSocket::bind(address).map(drop),
            });
            // A host without IPv6 has no `::`; one address in use is one too many.
            let results: Vec<_> = bound.by_ref().collect();
            let in_use = |result: &io::Result<()>| matches!(result, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
            results.iter().any(Result::is_ok) && !results.iter().any(in_use)
        };
        (above.checked_add(1)?..=u16::MAX).find(|&port| is_free(port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_not_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let user = Credentials::own().unwrap();
        let host = ThisHost { source: 1, user, open_files: Vec::new() };
        for place in ["127.0.0.1", "", "localhost"] {
            let free = host.free_port(Protocol::Tcp, place, port - 1).unwrap();
            assert!(free > port, "{place}: {free} is not above {port}");
        }
        assert_eq!(host.free_port(Protocol::Udp, "127.0.0.1", u16::MAX), None);
    }
}
