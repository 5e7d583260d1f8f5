//! The embedded test guest: a boot image assembled from this repository's own source.
//!
//! It has no firmware calls, no disk, no paging and one vCPU. It beats a thousand times a second on port 0xe9 and
//! rewrites a working set at an exact rate, in an order that Rust can replay: from the number of writes alone
//! a [`Verifier`](crate::guest::Verifier) knows what every byte of the working set must be. So a test does not ask QEMU whether a migration went
//! well, it reads the memory of the guest.
//!
//! ```text
//!  Workload ──image()/memfd()──▶ QEMU -kernel ──pmemsave──▶ GuestState + working set ──Verifier──▶ Proof
//!                                   │
//!                                   └── one byte per tick ──▶ observe::heartbeat
//! ```
//!
//! x86-64 hosts only: the image is assembled by rustc, and rustc assembles for its target.

/// The boot image: assembly, the parameters patched into it, and the file descriptor QEMU loads it from.
pub mod image;
/// A QEMU that runs the guest: its command line, and whether KVM really can.
pub mod machine;
/// What one page must hold, byte by byte.
pub mod page;
/// In which order pages are rewritten, and what is in them.
pub mod pattern;
/// Which write goes to which page, and which write a page shows.
pub mod schedule;
/// The state block that the guest keeps in its memory, and the memory map.
pub mod state;
/// The proof that no byte of the working set was lost.
pub mod verify;
/// What the guest is asked to do.
pub mod workload;

pub use image::{ImageError, image, memfd};
pub use machine::{Accelerator, KvmUnusable, Machine, probe_kvm};
pub use pattern::{Content, Pattern, PatternError};
pub use state::{GuestState, StateError, Status};
pub use verify::{Corruption, NotVerifiable, Proof, Verifier};
pub use workload::{Workload, WorkloadError};
