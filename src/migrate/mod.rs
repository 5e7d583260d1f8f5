//! Moving one guest.

/// One migration, from the plan to its outcome.
pub mod engine;
/// The only writer of a migration's state.
pub mod driver;
/// Points at which a test holds the engine still.
#[cfg(feature = "hold-points")]
mod hold;
/// The record of a running migration, and those who watch it grow.
pub mod history;
/// What people may ask of a running migration.
pub mod order;
/// The sentence at the end.
mod outcome;
/// The phases as one pure function.
pub mod phase;
/// What is to be moved, where to, and within which limits.
pub mod plan;
/// One side of a migration.
pub mod side;
/// What happens once, in order.
pub mod step;
/// When a blackout or a silent stream has lasted too long.
pub mod watchdog;
