//! One QEMU: its command line, what it is, what it can do, and starting its twin.
//!
//! ```text
//!   SOURCE ──locate──► Located ──Inventory::take──► Inventory      present::ask ──► Present
//!                         │ CommandLine                │ machine type, Dialect        │ what was changed since
//!          ┌─── derive ◄──┴────────────► repetition ◄──┼──────────────────────────────┘
//!          ▼                              ▲  │  │ the line, edited
//!   template FILE ──fill──► Filled ───────┘  │  └──► rewrite ──► Rewritten
//!                              │             │ commands             ▼
//!                              │             └───────────────► twin::start ──► a destination that waits, held by -S
//!                              └───► template::start ──► a guest
//! ```

/// A QEMU command line as options in order, read from /proc and rendered back.
pub mod argv;
/// What a QEMU can do, known by asking it.
pub mod dialect;
/// How much memory the guest dirties within a window.
pub mod dirty_rate;
/// The guest's hardware as a QEMU has it now, and how that of two QEMUs differs.
pub mod hardware;
/// What each drive has in it, down its backing files.
pub mod images;
/// What a QEMU says of itself.
pub mod inventory;
/// Finds the QEMU that the user means.
pub mod locate;
/// What the guest really has now, whatever stands on its command line.
pub mod present;
/// What has to be done to a destination so that it has what the guest has now.
pub mod repetition;
/// The destination's command line, made from the source's.
pub mod rewrite;
/// The command line of a guest as a file that a person reads.
pub mod template;
/// Starts a destination and waits until it can be spoken to.
pub mod twin;

pub use inventory::{ANSWER_WITHIN, Inventory};
pub use locate::{LocateError, Located, QemuName, locate};
