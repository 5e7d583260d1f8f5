//! Live migration of bare QEMU guests: a running guest moves from one QEMU process to another, by QMP and nothing
//! else. No libvirt, no cluster, no agent, no configuration.
//!
//! # The promise
//!
//! At no moment, under any fault, do source and destination both run the guest. A guest that runs nowhere is said so.
//! Budgets are hard: nothing sets a downtime limit above the one allowed, and a blackout that outlasts it is ended by
//! giving the guest back to its source, for as long as there is a way back. After a failure the source is left as it
//! was found. Downtime is measured, and each figure names its clock and its error.
//!
//! # The picture
//!
//! ```text
//!                    control socket ◄── status, watch, set, pause, cancel (other shells)
//!                          │
//!            ┌─────────────▼──────────────┐
//!            │  migrate: phase (pure) ◄── driver ──► history ──► report: progress, json
//!            │                            │  │    │
//!            └────────────────────────────┼──┼────┘
//!        QMP events, answers, commands    │  │   QMP
//!                  ┌──────────────────────┘  └──────────────────┐
//!            ┌─────▼──────┐        the stream            ┌──────▼───────┐
//!            │ source     │ ───────────────────────────► │ destination  │  started from the source's own
//!            │ QEMU       │      a private socket        │ QEMU -S      │  command line or a template of it,
//!            └────────────┘                              └──────────────┘  held until `cont`
//! ```
//!
//! A migration is one straight line, readable in [`migrate::engine`]: the source is surveyed ([`check`]), the
//! destination started ([`qemu`]), both are prepared, the [`migrate::driver`] drives until nothing more happens, and one
//! of the ends follows. Which side may run the guest is a value of the phase
//! ([`migrate::phase::Phase::may_run`]), and a property test holds the phase machine to the first promise. Each step is
//! in the [`migrate::journal`] before it is done, so that [`migrate::recover`] can finish or undo what an engine that was
//! killed has left.
//!
//! # Where to find what
//!
//! The rooms below stand in the order in which they may use each other: each uses only those above it.
//!
//! To move a guest from your own program, make a [`migrate::plan::Plan`], begin a [`migrate::journal::Journal`] and give
//! both to [`migrate::engine::run`]; what comes back is a [`record::Outcome`], and the whole course is in the [`record::Record`]. To speak QMP and nothing
//! more, take [`qmp::Client`]. To test something else that migrates, take the [`guest`], whose memory can be proven
//! byte by byte, and [`observe::heartbeat`], which sees from outside when it ran.

/// Bytes, rates and durations: parsed and shown in one way.
pub mod units;
/// One migration as plain, versioned data; others fill it or draw it.
pub mod record;
/// The QMP protocol: wire, client, words. Knows nothing of migration.
pub mod qmp;
/// Where a QEMU lives: processes, sockets, directories.
pub mod host;
/// One QEMU: its command line, as a file too, what it is, what it can do, and starting its twin.
pub mod qemu;
/// Who saw the guest when, on which clock, with which error.
pub mod observe;
/// Will it end, when, at what cost: pure functions on samples.
pub mod converge;
/// Every blocker at once.
pub mod check;
/// Moving one guest: phases, driver, steps.
pub mod migrate;
/// What moving a guest would take: measured on it and on the link, before anything is moved.
pub mod estimate;
/// The running engine's own socket: status, limits, decisions from other shells.
pub mod control;
/// The embedded test guest: a boot image assembled from this repository's own source.
pub mod guest;
/// Faces of a record: progress, json, summary.
pub mod report;
/// Experiments on top of the engine: the demo, plans of many migrations, and their subject.
pub mod lab;
