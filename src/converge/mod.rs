//! Will it end, when, at what cost: pure functions on samples, without I/O and without a clock.
//!
//! QEMU stops the guest as soon as what is left fits `downtime-limit` at the rate of its last 100 ms; it takes the
//! first state that fits and does not look for a better one. A tight limit is therefore nearly free where the guest
//! dirties slower than the stream (measured on 10.0: 300 ms gave 115 ms of downtime, 5 ms gave 1 ms, in the
//! same total time), so the [`Controller`](crate::converge::Controller) starts low and rises only when passes no longer get smaller, and never
//! above the budget.

/// The rate of the stream, from what was sent.
mod bandwidth;
/// The dirty set as a curve: what a pass of some length leaves.
mod curve;
/// What a migration will take from here on.
mod forecast;
/// The passes of one migration as windows in which the guest dirtied memory.
mod passes;
/// What moving a guest would take, before anything is moved.
pub mod estimate;
/// What decides: samples in, wishes and verdicts out.
mod policy;
/// Ours: the limit that starts low and rises only within the budget.
mod controller;
/// What a user allows, and a wish held to it.
mod consent;
/// The policies of others, as they were published, and the names by which one is chosen.
mod rivals;
/// Policies that are asked beside the one in force, and change nothing.
mod shadow;
/// What a policy would have made of a recorded migration.
mod replay;
/// A recorded migration as a guest and a link for the simulator.
mod fitted;
/// QEMU's migration loop without QEMU: passes, blackout and cost of a migration in a few milliseconds.
pub mod simulator;

pub use bandwidth::Bandwidth;
pub use consent::{Permission, PermissionError};
pub use controller::{Budget, Controller, Verdict};
pub use curve::{Bound, DirtyCurve, Window};
pub use fitted::{Breach, Finish, Fitted, Simulated};
pub use forecast::{Course, Feasible, Prospect};
pub use passes::Passes;
pub use policy::{AutoConverge, Consent, Consents, Policy, Throttle, Wish};
pub use replay::{Parting, Replay, ReplayError, replay};
pub use rivals::{PolicyName, PolicyNameError};
pub use shadow::{Shadow, Shadows, Why};
