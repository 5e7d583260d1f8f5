//! Experiments on top of the engine.

/// The embedded guest, moved and proven, with nothing to prepare.
pub mod demo;
/// A guest to experiment with: started, looked at, ended.
pub mod subject;
