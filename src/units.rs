//! Bytes, rates and durations: read from what people type in one way, and shown in one way.
//!
//! Sizes are binary (`256MiB`, `1.5 GiB`) or decimal (`256MB`), as the [`bytesize`] crate reads them; rates are sizes
//! per second (`1GiB/s`, `50MiB/s`) or bits per second (`1Gbit/s`); durations are what [`humantime`] reads
//! (`300ms`, `2s`, `1m 30s`). Zero, negative and out-of-range values are refused here, so that no other module
//! has to ask again.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Why a size, a rate or a duration was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text is not a number with a unit.
    #[error("'{text}' is not {what}")]
    Unreadable {
        /// What was typed.
        text: String,
        /// What was expected, with its article.
        what: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// The value is below or above what may be asked of QEMU.
    #[error("'{text}' is out of range for {what}")]
    OutOfRange {
        /// What was typed.
        text: String,
        /// What was expected, with its article.
        what: &'static str,
        /// The smallest value allowed.
        smallest: &'static str,
        /// The largest value allowed.
        largest: &'static str,
    },
}

impl UnitError {
    /// What would have been taken.
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { example, .. } => format!("write for example {example}"),
            Self::OutOfRange { smallest, largest, .. } => {
                format!("it must be between {smallest} and {largest}")
            }
        }
    }
}

/// A number of bytes, more than none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(NonZeroU64);

impl Size {
    /// The largest size that QEMU takes: its sizes are signed 64-bit numbers inside.
    pub const LARGEST_BYTES: u64 = i64::MAX.unsigned_abs();

    /// A size of so many bytes; `None` for zero and for more than [`Size::LARGEST_BYTES`].
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match NonZeroU64::new(bytes) {
            Some(bytes) if bytes.get() <= Self::LARGEST_BYTES => Some(Self(bytes)),
            _ => None,
        }
    }

    /// A size of so many mebibytes; `None` for zero and what is too large.
    pub const fn from_mebibytes(mebibytes: u64) -> Option<Self> {
        match mebibytes.checked_mul(1 << 20) {
            Some(bytes) => Self::from_bytes(bytes),
            None => None,
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&show_bytes(self.bytes()))
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let out_of_range = || out_of_range(text, "a size", "1 byte", "8 EiB");
        match read_bytes(text) {
            Number::Bytes(bytes) => Self::from_bytes(bytes).ok_or_else(out_of_range),
            Number::BelowOrBeyond => Err(out_of_range()),
            Number::None => Err(unreadable(text, "a size", "256MiB")),
        }
    }
}

/// Bytes per second, more than none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// A rate of so many bytes per second; `None` for zero and for what QEMU could not hold (2^63 and more).
    pub const fn from_bytes_per_second(rate: u64) -> Option<Self> {
        match Size::from_bytes(rate) {
            Some(size) => Some(Self(size.0)),
            None => None,
        }
    }

    /// The rate in bytes per second.
    pub const fn bytes_per_second(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{}/s", show_bytes(self.bytes_per_second())))
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const WHAT: &str = "a rate";
        let bare = text.trim().strip_suffix("/s").unwrap_or_else(|| text.trim());
        let (size, bits) = match bare.strip_suffix("bit") {
            Some(size) => (format!("{size}B"), true),
            None => (bare.to_owned(), false),
        };
        let out_of_range = || out_of_range(text, WHAT, "1 byte/s", "8 EiB/s");
        match read_bytes(&size) {
            Number::Bytes(rate) => {
                Self::from_bytes_per_second(if bits { rate / 8 } else { rate }).ok_or_else(out_of_range)
            }
            Number::BelowOrBeyond => Err(out_of_range()),
            Number::None => Err(unreadable(text, WHAT, "1GiB/s")),
        }
    }
}

/// The longest blackout that the user allows: 1 ms to 2000 s, the range of QEMU's own `downtime-limit`
/// (`qapi/migration.json`, `MAX_MIGRATE_DOWNTIME`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DowntimeMs(u64);

impl TryFrom<u64> for DowntimeMs {
    type Error = &'static str;

    fn try_from(milliseconds: u64) -> Result<Self, Self::Error> {
        Self::new(milliseconds).ok_or("a downtime is between 1 and 2000000 milliseconds")
    }
}

impl From<DowntimeMs> for u64 {
    fn from(downtime: DowntimeMs) -> Self {
        downtime.milliseconds()
    }
}

impl DowntimeMs {
    /// QEMU refuses a longer one.
    pub const LARGEST: u64 = 2_000_000;

    /// So many milliseconds; `None` outside of 1 to [`DowntimeMs::LARGEST`].
    pub const fn new(milliseconds: u64) -> Option<Self> {
        if milliseconds == 0 || milliseconds > Self::LARGEST { None } else { Some(Self(milliseconds)) }
    }

    /// In milliseconds.
    pub const fn milliseconds(self) -> u64 {
        self.0
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Display for DowntimeMs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&show_duration(self.duration()))
    }
}

impl FromStr for DowntimeMs {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const WHAT: &str = "a downtime";
        let duration = read_duration(text, WHAT)?;
        u64::try_from(duration.as_millis())
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| out_of_range(text, WHAT, "1ms", "2000s"))
    }
}

/// A time budget as typed: 1 ms to 30 days.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    const WHAT: &str = "a time";
    let duration = read_duration(text, WHAT)?;
    if duration < Duration::from_millis(1) || duration > Duration::from_secs(30 * 24 * 3600) {
        return Err(out_of_range(text, WHAT, "1ms", "30days"));
    }
    Ok(duration)
}

/// A number of bytes as people read it: `256.0 MiB`.
pub fn show_bytes(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A duration as people read it, with three digits at most: `8.2 ms`, `1.25 s`, `2m 5s`.
pub fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1e3;
    match milliseconds {
        ..10.0 => format!("{} ms", trimmed(milliseconds, 1)),
        10.0..1e3 => format!("{milliseconds:.0} ms"),
        1e3..1e4 => format!("{} s", trimmed(milliseconds / 1e3, 2)),
        1e4..6e4 => format!("{} s", trimmed(milliseconds / 1e3, 1)),
        _ => humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string(),
    }
}

/// A number with at most `digits` decimals, and none that say nothing.
fn trimmed(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What a text is that should be a number of bytes.
enum Number {
    /// It is.
    Bytes(u64),
    /// It is one that is negative, or that nothing can hold.
    BelowOrBeyond,
    /// It is none.
    None,
}

fn read_bytes(text: &str) -> Number {
    let text = text.trim();
    let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return Number::None;
    }
    match text.parse::<ByteSize>() {
        Ok(_) if is_negative => Number::BelowOrBeyond,
        Ok(size) => Number::Bytes(size.as_u64()),
        // The same with a smaller number would do.
        Err(_) => {
            let unit = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
            if format!("1{unit}").parse::<ByteSize>().is_ok() { Number::BelowOrBeyond } else { Number::None }
        }
    }
}

fn read_duration(text: &str, what: &'static str) -> Result<Duration, UnitError> {
    if text.trim().strip_prefix('-').is_some_and(|rest| humantime::parse_duration(rest).is_ok()) {
        return Err(out_of_range(text, what, "1ms", if what == "a downtime" { "2000s" } else { "30days" }));
    }
    humantime::parse_duration(text.trim()).map_err(|_| unreadable(text, what, "300ms or 2s"))
}

fn unreadable(text: &str, what: &'static str, example: &'static str) -> UnitError {
    UnitError::Unreadable { text: text.to_owned(), what, example }
}

fn out_of_range(text: &str, what: &'static str, smallest: &'static str, largest: &'static str) -> UnitError {
    UnitError::OutOfRange { text: text.to_owned(), what, smallest, largest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_or_decimal() {
        for (text, bytes) in [("256MiB", 256 << 20), ("1.5 GiB", 3 << 29), ("1MB", 1_000_000), ("4096", 4096)]
        {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn rates_are_bytes_or_bits_per_second() {
        for (text, rate) in
            [("1GiB/s", 1 << 30), ("50MiB/s", 50 << 20), ("1Gbit/s", 125_000_000), ("8Mbit", 1_000_000)]
        {
            assert_eq!(text.parse::<Rate>().unwrap().bytes_per_second(), rate, "{text}");
        }
    }

    #[test]
    fn nonsense_zero_negative_and_too_large_are_told_apart() {
        for text in ["", "lots", "MiB", "12 parsecs", "∞", "--3"] {
            assert!(matches!(text.parse::<Size>(), Err(UnitError::Unreadable { .. })), "{text}");
            assert!(matches!(text.parse::<Rate>(), Err(UnitError::Unreadable { .. })), "{text}");
            assert!(matches!(text.parse::<DowntimeMs>(), Err(UnitError::Unreadable { .. })), "{text}");
        }
        for text in ["0", "0MiB", "-1MiB", "16EiB", "9223372036854775808", "99999999999999999999"] {
            assert!(matches!(text.parse::<Size>(), Err(UnitError::OutOfRange { .. })), "{text}");
            assert!(matches!(text.parse::<Rate>(), Err(UnitError::OutOfRange { .. })), "{text}");
        }
        for text in ["0s", "-300ms", "2001s", "1us"] {
            assert!(matches!(text.parse::<DowntimeMs>(), Err(UnitError::OutOfRange { .. })), "{text}");
        }
        assert!(matches!(parse_duration("31days"), Err(UnitError::OutOfRange { .. })));
    }

    #[test]
    fn durations_are_shown_with_three_digits_at_most() {
        for (microseconds, text) in [
            (0, "0 ms"),
            (8_200, "8.2 ms"),
            (300_000, "300 ms"),
            (1_250_000, "1.25 s"),
            (12_340_000, "12.3 s"),
            (125_000_000, "2m 5s"),
        ] {
            assert_eq!(show_duration(Duration::from_micros(microseconds)), text);
        }
    }
}
