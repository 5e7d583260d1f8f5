//! What the guest dirties while its memory is sent for the first time, sampled beside the stream.
//!
//! From the second pass on each pass tells it, and nothing is sampled any more. It runs beside the loop on the source's
//! connection, holds nothing up, and what goes wrong with it is nobody's concern.

use std::time::Duration;

use tokio::task::AbortHandle;

use super::{Answer, Driver};
use crate::migrate::phase::Phase;
use crate::qemu::dirty_rate::{self, Dirtied};
use crate::record::{DirtyWindow, Entry, Sample};

/// One after the other. A QEMU before 8.2 knows whole seconds only: there it is one of 1 s.
const WINDOWS: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1)];

/// The sampling of one migration.
#[derive(Debug, Default)]
pub(super) enum Sampling {
    /// It has not begun.
    #[default]
    ToCome,
    /// It is under way, as long as this is there.
    Runs {
        /// Only its end is of interest.
        _task: Task,
    },
    /// It is over.
    Over,
}

/// What samples; it ends when this is dropped. QEMU ends what it measures by itself.
#[derive(Debug)]
pub(super) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sampling {
    /// Ends it, for good.
    pub(super) fn stop(&mut self) {
        *self = Self::Over;
    }
}

impl Driver<'_> {
    /// Begins to sample once the first pass is seen to last until it is looked at, and ends with it.
    pub(super) fn sample_beside(&mut self, sample: &Sample) {
        let is_first = sample.passes <= 1 && matches!(self.phase, Phase::Streaming(_)) && !self.is_held();
        if !is_first || !self.tuning.dirty_windows.is_usable() {
            self.sampling.stop();
        } else if matches!(self.sampling, Sampling::ToCome) {
            let (client, answers) = (self.source.client.clone(), self.answers.clone());
            let task = tokio::spawn(async move {
                for window in WINDOWS {
                    let Ok(dirtied) = dirty_rate::sample(&client, window).await.inspect_err(|error| {
                        tracing::debug!(%error, "not sampled");
                    }) else {
                        return;
                    };
                    let is_longest = dirtied.length >= WINDOWS[WINDOWS.len() - 1];
                    if answers.send(Answer::Dirtied(dirtied)).is_err() || is_longest {
                        return;
                    }
                }
            });
            self.sampling = Sampling::Runs { _task: Task(task.abort_handle()) };
        }
    }

    /// Takes in a window that has just ended.
    pub(super) fn dirtied(&mut self, dirtied: Dirtied) {
        if !matches!((&self.sampling, self.phase), (Sampling::Runs { .. }, Phase::Streaming(_))) {
            // It is of a pass that has told more itself by now.
            return;
        }
        let (at_ms, length_ms) = (self.history.now_ms(), dirtied.length.as_secs_f64() * 1e3);
        let dirtied_bytes = dirtied.bytes;
        self.history.add(Entry::DirtyWindow(DirtyWindow { at_ms, length_ms, dirtied_bytes }));
        self.policy.observe_sampled(at_ms, length_ms, dirtied_bytes);
    }
}
