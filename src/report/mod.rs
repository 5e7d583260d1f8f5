//! Faces of a record: what people and programs see of a migration.

/// What moving a guest would take, for people and for programs.
mod estimate;
/// One JSON object per line, on standard output.
mod json;
/// The line that is redrawn on a terminal, and the lines elsewhere.
mod progress;
/// What other policies would have done.
mod replay;
/// The end, in words.
mod summary;

pub use estimate::{estimate_json, estimate_lines};
pub use json::JsonLines;
pub use progress::Progress;
pub use replay::{recorded_lines, replay_lines, shadow_lines};
pub use summary::{foreign_line, status_lines, summary};
