//! Moving one guest.
//!
//! - [`plan`](crate::migrate::plan) says what is to be moved, and is fixed before anything starts.
//! - [`engine`](crate::migrate::engine) is the straight line from the plan to the outcome.
//! - [`step`](crate::migrate::step) holds what happens once: survey, destination, prepare, finish; and how
//!   limits are set.
//! - [`phase`](crate::migrate::phase) is the part that must be right, as a pure function, drawn in its documentation.
//! - [`driver`](crate::migrate::driver) lets it meet the world: the only writer of a migration's state.
//! - [`watchdog`](crate::migrate::watchdog) knows when a blackout or a silence has lasted too long.
//! - [`journal`](crate::migrate::journal) holds what is about to be done, for [`recover`](crate::migrate::recover) after
//!   a crash of the engine.
//! - [`history`](crate::migrate::history) is the record as it grows, [`order`](crate::migrate::order) what people ask.

/// What is to be moved, where to, and within which limits.
pub mod plan;
/// One migration, from the plan to its outcome.
pub mod engine;
/// What happens once, in order.
pub mod step;
/// The phases as one pure function.
pub mod phase;
/// The only writer of a migration's state.
pub mod driver;
/// What is about to be done, written down before it is done.
pub mod journal;
/// One side of a migration: its connection, its events, its process.
pub mod side;
/// When a blackout or a silent stream has lasted too long.
pub mod watchdog;
/// The record of a running migration, and those who watch it grow.
pub mod history;
/// What people may ask of a running migration.
pub mod order;
/// What is left to be brought to an end once the driver is through.
mod ending;
/// Brings a migration to its end whose engine has ended before it.
pub mod recover;
/// Directories that guests have kept, and need no more.
pub mod kept;
/// The sentence at the end.
mod outcome;
/// Points at which a test holds the engine still.
#[cfg(feature = "hold-points")]
mod hold;
/// A policy that does what a test says.
#[cfg(feature = "hold-points")]
mod rehearsal;
