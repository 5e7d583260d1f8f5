//! What moving a guest would take: measured on it and on the link, before anything is moved.
//!
//! The forecast itself is pure and stands in [`converge::estimate`](crate::converge::estimate). Here is what it rests
//! on: the memory in use, what the guest dirties in windows of several lengths, and the rate of the stream. Nothing is
//! set on the source, and the guest runs on.

/// How fast a stream on this host can be.
mod link;
/// The memory of a guest that is in use.
mod memory;

pub use link::{Link, RestsOn};
pub use memory::in_use_bytes;

use std::time::Duration;

use crate::converge::estimate::Estimate;
use crate::converge::{Bound, DirtyCurve, Window};
use crate::qemu::dirty_rate::{Dirtied, SampleError, sample};
use crate::qmp::Client;
use crate::record::Warning;
use crate::units::DowntimeMs;

/// The windows, in milliseconds; the short ones twice, for a guest that works and rests. About 4 s.
const WINDOWS_MS: [u64; 8] = [50, 100, 250, 1000, 2000, 50, 100, 250];
/// What a QEMU has that knows whole seconds only.
const WINDOWS_S: [u64; 3] = [1, 2, 1];
/// No pass is measured that is longer.
const LONGEST: Duration = Duration::from_secs(8);

/// All that was measured and what comes of it.
#[derive(Debug, Clone)]
pub struct Findings {
    /// The guest as it was typed.
    pub source: String,
    /// The version of its QEMU.
    pub qemu_version: String,
    /// What the first pass has to send, in bytes.
    pub in_use_bytes: u64,
    /// What it dirtied.
    pub windows: Vec<Dirtied>,
    /// The stream.
    pub link: Link,
    /// The downtime budget.
    pub max_downtime: DowntimeMs,
    /// The time budget.
    pub max_time: Option<Duration>,
    /// What `migrate` refuses this guest for.
    pub blockers: Vec<Warning>,
    /// What it warns of.
    pub warnings: Vec<Warning>,
    /// What comes of it.
    pub estimate: Estimate,
    /// What to type.
    pub command: Option<String>,
}

/// Measures what a guest dirties in windows of several lengths, and in one as long as its longest pass on this link.
pub async fn windows(client: &Client, bytes_per_second: u64) -> Result<Vec<Dirtied>, SampleError> {
    let mut windows = vec![sample(client, Duration::from_millis(WINDOWS_MS[0])).await?];
    let rest: Vec<Duration> = if windows[0].length >= Duration::from_secs(1) {
        WINDOWS_S[1..].iter().map(|&seconds| Duration::from_secs(seconds)).collect()
    } else {
        WINDOWS_MS[1..].iter().map(|&milliseconds| Duration::from_millis(milliseconds)).collect()
    };
    for window in rest {
        windows.push(sample(client, window).await?);
    }
    if let Some(pass) = longest_pass(&windows, bytes_per_second) {
        windows.push(sample(client, pass).await?);
    }
    Ok(windows)
}

/// How long the passes of a guest remain that dirties faster than the link, where that is longer than was measured.
fn longest_pass(windows: &[Dirtied], bytes_per_second: u64) -> Option<Duration> {
    let longest = windows.iter().map(|dirtied| dirtied.length).max()?;
    let curve = DirtyCurve::fit(&for_the_curve(windows))?;
    let rate = bytes_per_ms(bytes_per_second);
    let from = windows.iter().map(|dirtied| dirtied.bytes).fold(0.0, f64::max) * 2.0;
    let pass_ms = curve.plateau_bytes(rate, from, Bound::Fitted) * 1.2 / rate;
    let pass = Duration::try_from_secs_f64(pass_ms / 1e3).ok()?.min(LONGEST);
    (pass > longest).then_some(pass)
}

/// What was measured, as the curve takes it. What dirtied less than QEMU can tell may have dirtied half of that.
pub fn for_the_curve(windows: &[Dirtied]) -> Vec<Window> {
    let window = |dirtied: &Dirtied| Window {
        length_ms: dirtied.length.as_secs_f64() * 1e3,
        dirtied_bytes: dirtied.bytes,
        weight: 1.0,
    };
    windows.iter().map(window).collect()
}

fn bytes_per_ms(bytes_per_second: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes")]
    let rate = bytes_per_second.max(1) as f64;
    rate / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirtied(milliseconds: u64, mebibytes: u32) -> Dirtied {
        let bytes = f64::from(mebibytes) * 1_048_576.0;
        Dirtied { length: Duration::from_millis(milliseconds), bytes, rounding_bytes: 0.0 }
    }

    #[test]
    fn a_pass_that_will_be_longer_than_the_windows_is_measured_too() {
        let hot = [dirtied(100, 256), dirtied(1000, 256), dirtied(2000, 256)];
        // 256 MiB at 114 MB/s take 2.35 s.
        let pass = longest_pass(&hot, 114_000_000).unwrap();
        assert!(pass > Duration::from_millis(2300) && pass < Duration::from_secs(4), "{pass:?}");
        assert_eq!(longest_pass(&hot, 10_000_000), Some(LONGEST));
        assert_eq!(longest_pass(&hot, 1_000_000_000), None);
        assert_eq!(longest_pass(&[dirtied(100, 0), dirtied(2000, 0)], 1000), None);
    }
}
