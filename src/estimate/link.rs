//! How fast a stream on this host can be.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::units::Rate;

/// Long enough for a few tens of mebibytes, and no burden to anybody.
const LASTS: Duration = Duration::from_millis(50);
/// What QEMU gives to the socket at once: 64 pages.
const PIECE_BYTES: usize = 64 * 4096;
/// More than a processor's cache, so that the memory itself is read.
const MEMORY_BYTES: usize = 32 << 20;

/// The rate of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Link {
    /// In bytes per second.
    pub bytes_per_second: u64,
    /// How it is known.
    pub rests_on: RestsOn,
}

/// How a rate is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RestsOn {
    /// It was said.
    Said,
    /// It is the budget for the bandwidth, and the link is faster.
    Budget,
    /// Memory was copied through a socket of this host: the most that a stream on it can be. A QEMU has been seen at a
    /// tenth of it where all processors were busy, and at all of it where they were not.
    Measured,
}

impl Link {
    /// The rate that was said, or else one that is measured, within a budget. Blocks for about 60 ms.
    pub fn find(said: Option<Rate>, budget: Option<Rate>) -> std::io::Result<Self> {
        let link = match said {
            Some(rate) => Self { bytes_per_second: rate.bytes_per_second(), rests_on: RestsOn::Said },
            None => Self { bytes_per_second: measure()?, rests_on: RestsOn::Measured },
        };
        Ok(match budget.map(Rate::bytes_per_second) {
            Some(bytes_per_second) if bytes_per_second < link.bytes_per_second => {
                Self { bytes_per_second, rests_on: RestsOn::Budget }
            }
            _ => link,
        })
    }
}

/// Copies memory through a socket for a short while.
fn measure() -> std::io::Result<u64> {
    let (mut near, mut far) = UnixStream::pair()?;
    let reader = std::thread::spawn(move || {
        let mut piece = vec![0; PIECE_BYTES];
        while far.read(&mut piece).is_ok_and(|read| read > 0) {}
    });
    let memory = vec![0xa5; MEMORY_BYTES];
    let (begun, mut sent) = (Instant::now(), 0_u64);
    let mut pieces = memory.chunks(PIECE_BYTES).cycle();
    while begun.elapsed() < LASTS {
        let Some(piece) = pieces.next() else { break };
        near.write_all(piece)?;
        sent += PIECE_BYTES as u64;
    }
    let elapsed = begun.elapsed();
    drop(near);
    let _ = reader.join();
    let microseconds = elapsed.as_micros().max(1);
    Ok(u64::try_from(u128::from(sent) * 1_000_000 / microseconds).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_one_that_was_said_within_the_budget() {
        let rate = |bytes| Rate::from_bytes_per_second(bytes);
        for (said, budget, bytes_per_second, rests_on) in
            [(9, None, 9, RestsOn::Said), (9, Some(5), 5, RestsOn::Budget), (9, Some(20), 9, RestsOn::Said)]
        {
            let link = Link::find(rate(said), budget.and_then(rate)).unwrap();
            assert_eq!(link, Link { bytes_per_second, rests_on });
        }
    }

    #[test]
    fn a_rate_that_was_not_said_is_measured() {
        let link = Link::find(None, None).unwrap();
        assert_eq!(link.rests_on, RestsOn::Measured);
        assert!(link.bytes_per_second > 1 << 20, "{link:?}");
    }
}
