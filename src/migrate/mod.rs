//! Moving one guest.

/// The record of a running migration, and those who watch it grow.
pub mod history;
/// What people may ask of a running migration.
pub mod order;
/// The phases as one pure function.
pub mod phase;
/// What is to be moved, where to, and within which limits.
pub mod plan;
