//! The lines that say what was decided, and why.

use std::time::Duration;

use super::view::Slowdown;
use crate::converge::forecast::Prospect;
use crate::units::{show_bytes, show_duration};

/// An end after so many passes comes at once.
const AT_ONCE: u32 = 2;

/// A time in milliseconds as people read it.
pub(super) fn time(ms: f64) -> String {
    show_duration(Duration::from_secs_f64(ms.clamp(0.0, 1e12) / 1e3))
}

fn end(prospect: &Prospect) -> String {
    format!("expected to stand still in {} for {}", time(prospect.stream_ms), time(prospect.blackout_ms))
}

/// What to expect as it is.
pub(super) fn going_on(left_bytes: u64, prospect: &Prospect) -> String {
    format!("{} left, and less each pass: {}", show_bytes(left_bytes), end(prospect))
}

/// The link has become another one.
pub(super) fn link_changed(bytes_per_second: u64, prospect: Option<&Prospect>) -> String {
    let now = format!("the stream now runs at {}/s", show_bytes(bytes_per_second));
    match prospect {
        Some(prospect) => format!("{now}: {}", end(prospect)),
        None => format!("{now}: no end within the budgets in sight"),
    }
}

/// The limit rises because there is no better end.
pub(super) fn raised(left_bytes: u64, prospect: &Prospect) -> String {
    let left = show_bytes(left_bytes);
    // It stops at the next looks, or after some more passes.
    if prospect.passes <= AT_ONCE {
        format!("passes stay near {left}, more would bring little: {}", end(prospect))
    } else {
        format!("{left} left, waiting for less brings little: {}", end(prospect))
    }
}

/// The limit rises though no end is certain.
pub(super) fn raised_blindly(left_bytes: u64, limit_ms: u64) -> String {
    let limit = time(crate::converge::bandwidth::as_f64(limit_ms));
    format!("passes stay near {}: from now on a moment with {limit} left is taken", show_bytes(left_bytes))
}

/// The link has become another one in the first pass.
pub(super) fn link_changed_early(bytes_per_second: u64) -> String {
    format!("the stream now runs at {}/s; the first pass tells more", show_bytes(bytes_per_second))
}

/// The guest is slowed down.
pub(super) fn slowed(percent: u8, need: Slowdown, left_bytes: u64) -> String {
    let known = if need.is_guess { "at most" } else { "about" };
    format!(
        "passes stay near {} however long it waits: {known} {percent} % slower, and they fit the budget",
        show_bytes(left_bytes)
    )
}

/// The guest is slowed down less.
pub(super) fn slowed_less(percent: u8) -> String {
    format!("the guest dirties less than it did: {percent} % of throttle will do")
}

/// The throttle goes because there is an end without it.
pub(super) const NO_LONGER_SLOWED: &str =
    "passes get smaller by themselves: the throttle is not needed any more";

/// The throttle goes because it does not help.
pub(super) fn slowed_in_vain(percent: u8) -> String {
    format!("at {percent} % of throttle passes do not get small enough: it is of no use, and goes")
}

/// The guest is stopped.
pub(super) fn paused(left_bytes: u64, blackout_ms: f64) -> String {
    format!(
        "{} left fit the budget, no limit would do it: stopped for {}",
        show_bytes(left_bytes),
        time(blackout_ms)
    )
}

/// There is no end in sight, and it waits all the same.
pub(super) fn no_end_so_far(left_bytes: u64, pair: Option<(u64, u64)>) -> String {
    format!("passes stay near {}: waiting for a quiet moment{}", show_bytes(left_bytes), would_do(pair))
}

/// It gives up.
pub(super) fn infeasible(left_bytes: u64, pair: Option<(u64, u64)>, budget_ms: u64) -> String {
    format!(
        "passes stay near {}, too much for {}{}",
        show_bytes(left_bytes),
        time(crate::converge::bandwidth::as_f64(budget_ms)),
        would_do(pair)
    )
}

/// It gives up, since even a guest that rests would be too late.
pub(super) fn too_late(left_bytes: u64, left_ms: f64, pair: Option<(u64, u64)>) -> String {
    format!("{} left are too many for the last {}{}", show_bytes(left_bytes), time(left_ms), would_do(pair))
}

/// The switch alone is longer than the budget.
pub(super) fn switch_too_long(switch_ms: f64, budget_ms: u64) -> String {
    format!("the switch alone takes {} on this link, more than {budget_ms} ms", time(switch_ms))
}

/// A downtime and a time in milliseconds.
fn would_do(pair: Option<(u64, u64)>) -> String {
    let as_f64 = crate::converge::bandwidth::as_f64;
    pair.map_or_else(String::new, |(downtime_ms, time_ms)| {
        format!(" (would do: downtime {} in {})", time(as_f64(downtime_ms)), time(as_f64(time_ms)))
    })
}
