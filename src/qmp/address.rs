//! Where a monitor is: a unix socket or a TCP port, as people type it and as records keep it.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The address of a QMP monitor.
///
/// Read from `/path`, `unix:/path`, `tcp:host:port` and `tcp:[::1]:port`; shown with its prefix, so that what is
/// shown is read back as the same address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket with a name in the file system.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// A name or an IP address, without brackets.
        host: String,
        /// The port, not zero.
        port: u16,
    },
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing where a path or a host should be.
    #[error("'{text}' names no socket; write for example /run/vm/qmp.sock or tcp:127.0.0.1:4444")]
    Empty {
        /// What was typed.
        text: String,
    },
    /// The path does not fit in a socket address.
    #[error(
        "the path of a unix socket has at most {} bytes, '{path}' has {bytes}",
        Address::LONGEST_PATH_BYTES
    )]
    PathTooLong {
        /// The path.
        path: String,
        /// Its length.
        bytes: usize,
    },
    /// The path holds a zero byte.
    #[error("the path of a unix socket holds no zero byte, '{path}' does")]
    ZeroByte {
        /// The path, escaped.
        path: String,
    },
    /// No port from 1 to 65535 behind the host.
    #[error("'{text}' has no port from 1 to 65535; write tcp:host:port")]
    NoPort {
        /// What was typed.
        text: String,
    },
    /// Colons in a host that is not in brackets, or brackets that do not match.
    #[error("the host in '{text}' is unclear; an IPv6 address goes in brackets: tcp:[::1]:4444")]
    UnclearHost {
        /// What was typed.
        text: String,
    },
}

impl Address {
    /// The longest path of a unix socket: Linux has room for 108 bytes and QEMU wants the last one to be zero.
    pub const LONGEST_PATH_BYTES: usize = 107;

    /// The address of the unix socket at `path`.
    pub fn unix(path: impl Into<PathBuf>) -> Result<Self, AddressError> {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() {
            return Err(AddressError::Empty { text: String::new() });
        }
        if bytes.contains(&0) {
            return Err(AddressError::ZeroByte {
                path: path.display().to_string().escape_debug().to_string(),
            });
        }
        if bytes.len() > Self::LONGEST_PATH_BYTES {
            return Err(AddressError::PathTooLong { path: path.display().to_string(), bytes: bytes.len() });
        }
        Ok(Self::Unix(path))
    }

    /// The path of a unix socket, `None` for TCP.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some(rest) = text.strip_prefix("tcp:") else {
            let path = text.strip_prefix("unix:").unwrap_or(text);
            return Self::unix(path).map_err(|error| match error {
                AddressError::Empty { .. } => AddressError::Empty { text: text.to_owned() },
                error => error,
            });
        };
        let (host, port) =
            rest.rsplit_once(':').ok_or_else(|| AddressError::NoPort { text: text.to_owned() })?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bare.is_none() && host.contains([':', '[', ']'])
            || bare.is_some_and(|host| host.contains(['[', ']']))
        {
            return Err(AddressError::UnclearHost { text: text.to_owned() });
        }
        let host = bare.unwrap_or(host);
        if host.is_empty() {
            return Err(AddressError::Empty { text: text.to_owned() });
        }
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port != 0 => Ok(Self::Tcp { host: host.to_owned(), port }),
            _ => Err(AddressError::NoPort { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(formatter, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(formatter, "tcp:{host}:{port}"),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Self::Unix(path) = self
            && path.to_str().is_none()
        {
            return Err(serde::ser::Error::custom("the path of the socket is not UTF-8"));
        }
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read_and_shown_so_that_it_is_read_back() {
        for (typed, shown) in [
            ("/run/vm.sock", "unix:/run/vm.sock"),
            ("vm.sock", "unix:vm.sock"),
            ("unix:vm.sock", "unix:vm.sock"),
            ("unix:tcp:1:2", "unix:tcp:1:2"),
            ("unix:unix:x", "unix:unix:x"),
            ("tcp:localhost:4444", "tcp:localhost:4444"),
            ("tcp:[::1]:1", "tcp:[::1]:1"),
            ("tcp:[10.0.0.1]:65535", "tcp:10.0.0.1:65535"),
        ] {
            let address: Address = typed.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().unwrap(), address);
            let json = serde_json::to_string(&address).unwrap();
            assert_eq!(json, format!("\"{shown}\""));
            assert_eq!(serde_json::from_str::<Address>(&json).unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for text in ["", "unix:", "tcp::4444", "tcp:[]:4444"] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::Empty { .. })), "{text}");
        }
        for text in
            ["tcp:", "tcp:host", "tcp:host:", "tcp:host:0", "tcp:host:65536", "tcp:host:+1", "tcp:host:x"]
        {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::NoPort { .. })), "{text}");
        }
        for text in ["tcp:::1:4444", "tcp:[::1:4444", "tcp:::1]:4444", "tcp:[[::1]]:4444", "tcp:a:b:1"] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::UnclearHost { .. })), "{text}");
        }
        assert!(matches!("a\0b".parse::<Address>(), Err(AddressError::ZeroByte { .. })));
    }

    #[test]
    fn a_path_has_107_bytes_at_most() {
        assert!("x".repeat(107).parse::<Address>().is_ok());
        assert!(matches!(
            "x".repeat(108).parse::<Address>(),
            Err(AddressError::PathTooLong { bytes: 108, .. })
        ));
    }
}
