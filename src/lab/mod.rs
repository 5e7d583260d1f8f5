//! Experiments on top of the engine.

/// The embedded guest, moved and proven, with nothing to prepare.
pub mod demo;
/// Medians, shares and Markdown tables.
pub mod figures;
/// What a record foretold at pass 2, and what came.
pub mod foretold;
/// Where it was measured.
pub mod host;
/// The link of an experiment: a shaped one in a network namespace of its own, or QEMU's `max-bandwidth`.
pub mod link;
/// Where a runner keeps its guests, and what one that was killed has left there.
pub mod place;
/// A plan: which guests are moved under which policies and budgets over which links, and how often.
pub mod plan;
/// The results of a plan: one JSON object per line, appended as soon as a run has ended.
pub mod results;
/// One run of a plan: a guest, a link, the built command, and what was seen from outside.
pub mod run;
/// Forecasts held against what came.
pub mod score;
/// A guest to experiment with: started, looked at, ended.
pub mod subject;
/// Results as people compare them: one row per cell.
pub mod table;
/// How much of its work a guest lost to a migration.
pub mod work;
