//! What of a command line cannot be carried over.

/// Something on the command line that cannot be carried over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Guest memory in a file that both would share, and that cannot be left in its place.
    #[error("guest memory is shared through a file ({option}), and {why}")]
    SharedMemory {
        /// The option, safe to show.
        option: String,
        /// Why it cannot be left in its place either.
        why: &'static str,
    },
    /// A configuration file that cannot be read, or not be said in options.
    #[error("the guest was started with -readconfig {file}, and {problem}")]
    Configuration {
        /// The file, as it was named.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Relative paths whose directory is not known any more.
    #[error(
        "the guest was started with -daemonize and relative paths ({0}): what they are relative to is not known any more"
    )]
    LostDirectory(String),
    /// Images that QEMU looks for in vain as it hands over.
    #[error(
        "the guest was started with -daemonize and relative images ({0}): QEMU opens them anew as it hands over, and does not \
         find them in /"
    )]
    RelativeImage(String),
    /// Disks whose writes go to a private temporary file.
    #[error("the source runs with {0}: what it wrote is in a temporary file that no second QEMU can open")]
    Snapshot(String),
    /// A tap interface, which only one process can hold.
    #[error(
        "the tap interface {interface} (-{option}) is held by the source, and a second QEMU cannot have it"
    )]
    Tap {
        /// The option that names it.
        option: String,
        /// The interface.
        interface: String,
    },
    /// Tap interfaces that were handed to the source as open descriptors.
    #[error(
        "the network device {netdev} got its tap interface as an open descriptor ({descriptors}), which no other QEMU has"
    )]
    TapDescriptors {
        /// The id of the network device; empty where it has none.
        netdev: String,
        /// The numbers, as they stand there.
        descriptors: String,
    },
    /// Any other open descriptor.
    #[error("the source got an open descriptor ({0}), and no other QEMU has that")]
    Descriptor(String),
    /// A program that serves one guest: vhost-user, virtiofsd, swtpm.
    #[error("the program behind {path} ({user}) serves the source, and cannot serve a second QEMU")]
    Backend {
        /// The socket.
        path: String,
        /// What needs it.
        user: String,
    },
    /// A device of the host, which only one guest can have.
    #[error("the guest has the host's device {address} ({user}), which a second QEMU cannot have")]
    HostDevice {
        /// What needs it.
        user: String,
        /// The device.
        address: String,
    },
    /// A pipe, whose bytes come out once.
    #[error("{0} is a pipe: what is written into it would be read by either of the two QEMUs")]
    Pipe(String),
    /// A root directory that can be entered by root only.
    #[error(
        "the guest runs below {0} as another user than root, and only root can start a second QEMU there"
    )]
    Chroot(String),
    /// No port is free.
    #[error("no port is free for {what}, which listens on {place} on the source")]
    NoFreePort {
        /// What listens.
        what: String,
        /// Where.
        place: String,
    },
    /// A `--map` that has changed nothing.
    #[error("--map {0}: nothing on the command line has this value")]
    MapUnused(String),
}

impl RewriteError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        const YOURSELF: &str = "start the destination yourself: --destination-qmp";
        match self {
            Self::SharedMemory { .. } => "start the guest with share=off, or with memory-backend-memfd; --map FILE=OTHER \
                gives the destination a file of its own"
                .to_owned(),
            Self::Configuration { .. } => format!("put its options on the command line, or {YOURSELF}"),
            Self::LostDirectory(_) => {
                format!("start guests that daemonize with absolute paths, or {YOURSELF}")
            }
            Self::RelativeImage(_) => {
                "start guests that daemonize with absolute paths, or with auto-read-only=off".to_owned()
            }
            Self::Snapshot(_) => "start the guest with a real overlay: qemu-img create -b BASE".to_owned(),
            Self::Tap { interface, .. } => format!(
                "make another one on the same bridge (ip tuntap add NEW mode tap; ip link set NEW master BRIDGE up) and \
                 name it: --map {interface}=NEW"
            ),
            Self::TapDescriptors { .. } => format!(
                "a number cannot be mapped; start the guest with -netdev tap,ifname=NAME, or {YOURSELF}"
            ),
            Self::Descriptor(_) => {
                format!("a number cannot be mapped; start the guest with a path in its place, or {YOURSELF}")
            }
            Self::Backend { path, .. } => {
                format!("start a second one on a socket of its own and name it: --map {path}=NEW")
            }
            Self::HostDevice { address, .. } => {
                format!("--map {address}=OTHER names another one, such as a second virtual function")
            }
            Self::Pipe(path) => format!("make other ones and name them: --map {path}=NEW"),
            Self::Chroot(_) => YOURSELF.to_owned(),
            Self::NoFreePort { .. } => "--map OLD=NEW names another place, as the option writes it".to_owned(),
            Self::MapUnused(_) => {
                "OLD is a whole value as the command line has it, such as a path or an interface; --dry-run without \
                 --map shows the command line"
                    .to_owned()
            }
        }
    }
}
