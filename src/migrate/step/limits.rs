//! Sets downtime and bandwidth in the words that a QEMU has.
//!
//! Both take effect at once in a migration that runs, and 0 is no bound for the bandwidth, by parameters and by the old
//! commands alike (run on 5.2, which has both).

use std::time::Duration;

use qapi_qmp as words;
use serde::{Deserialize, Serialize};

use crate::qmp::words::commands::{MigrateSetDowntime, MigrateSetSpeed};
use crate::qmp::{CallError, Client, Reply};
use crate::record::LimitsBy;
use crate::units::Rate;

/// What QEMU itself limits; what is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuLimits {
    /// The longest blackout that it aims at, in milliseconds.
    pub downtime_ms: Option<u64>,
    /// The largest rate of the stream; 0 for no bound.
    pub bytes_per_second: Option<u64>,
}

impl QemuLimits {
    /// Both limits; no bandwidth means no bound.
    pub fn both(downtime_ms: u64, max_bandwidth: Option<Rate>) -> Self {
        let bytes_per_second = max_bandwidth.map_or(0, Rate::bytes_per_second);
        Self { downtime_ms: Some(downtime_ms), bytes_per_second: Some(bytes_per_second) }
    }
}

/// Puts limits on the wire, all in one go; the future is their answers, and of several errors the first.
pub fn send(
    client: &Client,
    by: LimitsBy,
    limits: QemuLimits,
    deadline: Duration,
) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
    let QemuLimits { downtime_ms, bytes_per_second } = limits;
    let replies: Vec<Reply> = match by {
        _ if limits == QemuLimits::default() => Vec::new(),
        LimitsBy::Parameters => {
            let parameters = words::MigrateSetParameters {
                downtime_limit: downtime_ms,
                max_bandwidth: bytes_per_second,
                ..words::MigrateSetParameters::default()
            };
            vec![client.send(&words::migrate_set_parameters(parameters))]
        }
        LimitsBy::OldCommands => {
            let downtime =
                downtime_ms.map(|downtime_ms| MigrateSetDowntime { seconds: seconds(downtime_ms) });
            let speed = bytes_per_second.map(|bytes_per_second| MigrateSetSpeed { bytes_per_second });
            let downtime = downtime.map(|command| client.send(&command));
            downtime.into_iter().chain(speed.map(|command| client.send(&command))).collect()
        }
    };
    async move {
        let mut result = Ok(());
        for reply in replies {
            result = result.and(reply.within(deadline).await.map(drop));
        }
        result
    }
}

/// Seconds of which `migrate_set_downtime` makes exactly so many milliseconds: it multiplies by 1000 and cuts off, so
/// that 1.001 s would be 1000 ms (run on 5.2).
fn seconds(milliseconds: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "downtimes are at most 2,000,000 ms")]
    let milliseconds = milliseconds as f64;
    let mut seconds = milliseconds / 1e3;
    while seconds * 1e3 < milliseconds {
        seconds = seconds.next_up();
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_command_makes_every_millisecond_of_its_seconds() {
        for milliseconds in (0..20_000).chain((20_000..=2_000_000).step_by(97)) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "as QEMU 5.2 does it"
            )]
            let cut_off = (seconds(milliseconds) * 1e3) as u64;
            assert_eq!(cut_off, milliseconds);
        }
        assert!(seconds(1001) > 1.001, "the nearest double is too small");
        assert!((seconds(300) - 0.3).abs() < f64::EPSILON);
    }

    #[test]
    fn no_bandwidth_means_no_bound() {
        assert_eq!(QemuLimits::both(5, None).bytes_per_second, Some(0));
        let rate = Rate::from_bytes_per_second(7);
        assert_eq!(QemuLimits::both(5, rate), QemuLimits { downtime_ms: Some(5), bytes_per_second: Some(7) });
    }
}
