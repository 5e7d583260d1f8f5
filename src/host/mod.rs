//! Where a QEMU lives: its process, its sockets, and the engine's own directories on that host.
//!
//! This room knows processes and files, and nothing of QEMU or of migration. A process is named by more than its
//! number ([`ProcessIdentity`](crate::host::ProcessIdentity)) and is watched and ended through a pidfd ([`ProcessHandle`](crate::host::ProcessHandle)), so that a recycled
//! number is never taken for it.

/// The engine's own directories: private, owned by the right user, never in /tmp.
mod directory;
/// Starts a process that outlives the engine.
mod launch;
/// What /proc says of a process.
mod proc;
/// One process, watched and ended as itself.
mod process;
/// Who holds the other end of a unix socket.
mod socket;
/// What a process has from its host besides its user: limits, priorities, processors, cgroups.
mod standing;
/// Who would start a process anew once it has ended.
mod supervisor;
/// Taps: which ones a process holds, what one is, and another one beside it.
mod tap;
/// Whom a process runs as.
mod user;

pub use directory::{DirectoryError, PrivateDirectory, runtime_directory, state_directory};
pub use launch::{Launch, Life, Output, end, launch};
pub use proc::{ProcError, ProcessView, command_line, executable, maps_file, open_files, processes};
pub use process::{ProcessHandle, ProcessIdentity, executable_name};
pub use socket::{listening_process, unix_socket_clients};
pub use standing::{Cgroup, Limit, MemoryRoom, Standing, ThreadStanding, lockable_memory, resident_bytes};
pub use supervisor::{Supervisor, Unit, UnitError, UnitName, UnitNameError, supervisor};
pub use tap::{Tap, TapError, held_taps, may_make_taps, remove_tap, shares_network};
pub use user::{Credentials, as_user};
