//! Asks a QEMU how many distinct bytes its guest dirties within a window: `calc-dirty-rate` by page sampling.
//!
//! QEMU takes a checksum of pages chosen at random, waits, and takes it again; the share that has changed stands for
//! all memory. It does so beside the guest and beside a migration, in a thread of its own, and sets nothing: it works
//! with any accelerator, and a page that is written with what it held already does not count. What was run:
//!
//! | | 5.2 | 7.2 | 10.0, 11.1 |
//! |---|---|---|---|
//! | windows | 1 to 60 whole seconds | the same | 50 ms to 60 s (`calc-time-unit`, 8.2) |
//! | `sample-pages`, of each GiB | not there: 512 | 128 to 16384 | 128 to 16384 |
//! | how long it was, in the answer | as asked for | as asked for | as it was (1001 ms for 1000) |
//!
//! - What it does not know it refuses: `Parameter 'calc-time-unit' is unexpected`.
//! - A second `calc-dirty-rate` while one runs is refused: `the dirty rate is already being measured.` (all four). One
//!   that was begun is `unstarted` until its thread runs, and until then another one is taken and comes to nothing: both
//!   who asked are then told what the first one found (10.0).
//! - The rate is in whole MiB/s, cut off: half of one is added here.
//! - Nothing ends a measurement but its time, and no event tells its end (none came on any of the four): it is asked
//!   for. One that is let go of ends by itself, and leaves nothing but its answer in `query-dirty-rate`.
//! - How near it comes, on 10.0 and 11.1, mean and standard deviation of 8 windows, with 512 pages of each GiB and with
//!   16384: a sweep of 20 MiB/s in a guest of 64 MiB, 100 ms: 1.7 +- 1.9 and 1.7 +- 0.3 MiB (2 were written); 250 ms:
//!   5.0 +- 2.2 and 4.6 +- 0.5 MiB (5). A guest of 1 GiB that rewrites 256 MiB all the time, 100 ms: 256 +- 18 and
//!   254 +- 4 MiB. The checksums of 16384 pages, twice, take 25 to 70 ms of one processor beside the guest.
//! - The other modes are never asked for: `dirty-bitmap` crashes 7.2 under TCG and answers 0 on 10.0 and 11.1.

use std::time::Duration;

use qapi_qmp as words;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::ANSWER_WITHIN;
use crate::qmp::{CallError, Client};

/// The shortest window that any QEMU takes.
pub const SHORTEST: Duration = Duration::from_millis(50);
/// The longest.
pub const LONGEST: Duration = Duration::from_secs(60);
/// So many pages are looked at, where QEMU lets them be chosen: what 1 % of a guest's memory is, is then known to 4 % of
/// itself, and their checksums take about 0.2 s.
const SAMPLED_PAGES: u64 = 65536;
/// As many of each GiB as QEMU takes.
const MOST_PAGES_PER_GIB: u64 = 16384;
/// What QEMU itself takes; 5.2 has no other.
const USUAL_PAGES_PER_GIB: u64 = 512;
/// A window that is over is asked after so often.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Taking the checksums of a large guest twice takes a while beyond the window itself.
const OVERTIME: Duration = Duration::from_secs(30);
const MEBIBYTE: f64 = 1_048_576.0;

/// What a guest dirtied in one window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dirtied {
    /// How long the window was: never shorter than asked for, and whole seconds where the QEMU knows no others.
    pub length: Duration,
    /// The distinct bytes that were dirtied in it, as far as whole MiB/s tell.
    pub bytes: f64,
    /// QEMU rounds: it may be so much more or less, besides what chance does to a sample.
    pub rounding_bytes: f64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// This QEMU is older than 5.2.
    #[error("this QEMU cannot tell what its guest dirties (calc-dirty-rate came with 5.2)")]
    Unknown,
    /// Somebody else is measuring; nothing was begun.
    #[error("somebody else measures what this guest dirties")]
    Busy,
    /// The window is shorter or longer than QEMU takes; nothing was begun.
    #[error("QEMU measures windows of 50 ms to 60 s")]
    Window,
    /// It was begun and did not end in time. It ends by itself, and has no effect on the guest.
    #[error("QEMU measures what the guest dirties, and does not come to an end of it")]
    Endless,
    /// QEMU could not be asked.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// How finely a QEMU can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// In milliseconds (8.2).
    Milliseconds,
    /// In seconds, with as many pages as wanted (6.1).
    Seconds,
    /// In seconds (5.2).
    SecondsOnly,
}

impl Words {
    /// The window that comes of it.
    fn window(self, wanted: Duration) -> Duration {
        match self {
            Self::Milliseconds => wanted,
            Self::Seconds | Self::SecondsOnly => {
                Duration::from_millis(whole_milliseconds(wanted).div_ceil(1000) * 1000)
            }
        }
    }

    fn command(self, wanted: Duration, pages_per_gib: u64) -> words::calc_dirty_rate {
        let window = whole_milliseconds(self.window(wanted));
        let (calc_time, calc_time_unit) = match self {
            Self::Milliseconds => (window, Some(words::TimeUnit::millisecond)),
            Self::Seconds | Self::SecondsOnly => (window / 1000, None),
        };
        let whole = |number| i64::try_from(number).unwrap_or(i64::MAX);
        words::calc_dirty_rate {
            calc_time: whole(calc_time),
            calc_time_unit,
            sample_pages: (self != Self::SecondsOnly).then(|| whole(pages_per_gib)),
            mode: None,
        }
    }

    /// What the time in an answer means.
    fn length(self, calc_time: u32) -> Duration {
        match self {
            Self::Milliseconds => Duration::from_millis(calc_time.into()),
            Self::Seconds | Self::SecondsOnly => Duration::from_secs(calc_time.into()),
        }
    }

    /// Those of an older QEMU.
    fn older(self) -> Option<Self> {
        match self {
            Self::Milliseconds => Some(Self::Seconds),
            Self::Seconds => Some(Self::SecondsOnly),
            Self::SecondsOnly => None,
        }
    }
}

/// What QEMU answers; what else it says is of no interest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    status: String,
    #[serde(rename = "dirty-rate")]
    mebibytes_per_second: Option<u32>,
    /// In the unit that it was asked for in.
    calc_time: u32,
}

/// Has a QEMU measure for so long, and says what its guest dirtied meanwhile. Changes nothing, and may be dropped at any
/// time: QEMU then measures to the end for nobody, and refuses another measurement until then.
pub async fn sample(client: &Client, wanted: Duration) -> Result<Dirtied, SampleError> {
    if wanted < SHORTEST || wanted > LONGEST {
        return Err(SampleError::Window);
    }
    let begun = begin(client, wanted).await?;
    let window = begun.window(wanted);
    let unit = (begun == Words::Milliseconds).then_some(words::TimeUnit::millisecond);
    let ask = words::query_dirty_rate { calc_time_unit: unit };
    let (ends, latest) = (Instant::now() + window, Instant::now() + window + OVERTIME);
    sleep_until(ends).await;
    loop {
        let answer: Answer = client.call_as(&ask, ANSWER_WITHIN).await?;
        match (answer.status.as_str(), answer.mebibytes_per_second) {
            ("measured", Some(rate)) => return Ok(dirtied(begun.length(answer.calc_time), rate)),
            _ if Instant::now() < latest => sleep(ASK_EVERY).await,
            _ => return Err(SampleError::Endless),
        }
    }
}

/// Begins a measurement in the finest words that the QEMU knows, and says in which.
async fn begin(client: &Client, wanted: Duration) -> Result<Words, SampleError> {
    let memory = client.call(&words::query_memory_size_summary {}, ANSWER_WITHIN).await.unwrap_or_default();
    let bytes = |key| memory.get(key).and_then(Value::as_u64).unwrap_or(0);
    let pages_per_gib = pages_per_gib(bytes("base-memory").saturating_add(bytes("plugged-memory")));
    let mut finest = Some(Words::Milliseconds);
    while let Some(now) = finest {
        match client.call(&now.command(wanted, pages_per_gib), ANSWER_WITHIN).await {
            Ok(_) => return Ok(now),
            Err(error) if error.is_command_not_found() => return Err(SampleError::Unknown),
            Err(CallError::Refused { desc, .. }) if desc.contains("is unexpected") => finest = now.older(),
            Err(CallError::Refused { desc, .. }) if desc.contains("already being measured") => {
                return Err(SampleError::Busy);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(SampleError::Unknown)
}

/// How many pages of each GiB make up enough of a guest with so much memory.
fn pages_per_gib(memory_bytes: u64) -> u64 {
    let mebibytes = (memory_bytes >> 20).max(1);
    (SAMPLED_PAGES * 1024 / mebibytes).clamp(USUAL_PAGES_PER_GIB, MOST_PAGES_PER_GIB)
}

/// QEMU cuts its rate off to whole MiB/s: in the middle it is half of one more. Nothing is nothing: most guests that
/// show none dirty none.
fn dirtied(window: Duration, mebibytes_per_second: u32) -> Dirtied {
    let one = MEBIBYTE * window.as_secs_f64();
    let bytes = match mebibytes_per_second {
        0 => 0.0,
        rate => (f64::from(rate) + 0.5) * one,
    };
    Dirtied { length: window, bytes, rounding_bytes: one / if mebibytes_per_second == 0 { 1.0 } else { 2.0 } }
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use qapi::Execute;

    use super::*;

    fn line(words: Words, milliseconds: u64) -> String {
        let command = words.command(Duration::from_millis(milliseconds), 16384);
        serde_json::to_string(&Execute::with_id(command, 1)).unwrap()
    }

    #[test]
    fn each_qemu_is_asked_in_the_words_that_it_has() {
        assert_eq!(
            line(Words::Milliseconds, 50),
            r#"{"execute":"calc-dirty-rate","arguments":{"calc-time-unit":"millisecond","sample-pages":16384,"calc-time":50},"id":1}"#
        );
        assert_eq!(
            line(Words::Seconds, 50),
            r#"{"execute":"calc-dirty-rate","arguments":{"sample-pages":16384,"calc-time":1},"id":1}"#
        );
        assert_eq!(
            line(Words::SecondsOnly, 2001),
            r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":3},"id":1}"#
        );
    }

    #[test]
    fn a_large_guest_is_known_from_as_many_pages_as_one_of_four_gibibytes() {
        for (gibibytes, pages) in [(0, 16384), (1, 16384), (4, 16384), (8, 8192), (64, 1024), (1024, 512)] {
            assert_eq!(pages_per_gib(gibibytes << 30), pages, "{gibibytes} GiB");
        }
    }

    #[test]
    fn a_rate_that_was_cut_off_stands_for_the_middle_of_what_it_may_have_been() {
        let one = dirtied(Duration::from_millis(250), 7);
        let (bytes, rounding) = (7.5 * MEBIBYTE / 4.0, MEBIBYTE / 8.0);
        assert!((one.bytes - bytes).abs() < 1.0 && (one.rounding_bytes - rounding).abs() < 1.0, "{one:?}");
        let none = dirtied(Duration::from_secs(2), 0);
        assert!(none.bytes == 0.0 && (none.rounding_bytes - 2.0 * MEBIBYTE).abs() < 1.0, "{none:?}");
    }
}
