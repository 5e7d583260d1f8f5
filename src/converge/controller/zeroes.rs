//! Memory that is sent as nothing: while QEMU passes over untouched pages, the link empties what its buffers held.
//!
//! They are filled again at once, faster than the link is, and QEMU takes that for the link's rate for one window of 100 ms:
//! what it then thinks to fit the limit takes up to 26 ms more in 100 (3 MB on a gigabit). No limit is raised by a plan before
//! that window is over.

use crate::record::Sample;

/// The buffers are full again after 26 ms, and QEMU's window in which they were filled is over 100 ms later.
const MISLEADING_MS: f64 = 130.0;
/// So much less sent than done is what other pages are rounded by.
const LEAST_BYTES: u64 = 1 << 20;

/// Where untouched memory was last met.
#[derive(Debug, Clone, Default)]
pub(super) struct Zeroes {
    /// Sent and remaining bytes of the last sample, in the first pass.
    last: Option<(u64, u64)>,
    met_at_ms: Option<f64>,
}

impl Zeroes {
    /// Takes in a sample. From the second pass on nothing is untouched.
    pub(super) fn observe(&mut self, sample: &Sample) {
        let before = self.last.take();
        let left = if sample.passes > 1 { 0 } else { sample.remaining_bytes };
        if sample.passes <= 1 {
            self.last = Some((sample.transferred_bytes, left));
        }
        if let Some((sent, remaining)) = before {
            let done = remaining.saturating_sub(left);
            if done > sample.transferred_bytes.saturating_sub(sent) + LEAST_BYTES {
                self.met_at_ms = Some(sample.at_ms);
            }
        }
    }

    /// Until when QEMU's rate may be too high, in the time of the samples.
    pub(super) fn mislead_until_ms(&self) -> Option<f64> {
        self.met_at_ms.map(|met_at_ms| met_at_ms + MISLEADING_MS)
    }
}
