//! Slows the guest down, with consent: `auto-converge` at the source, and the parameters that say by how much.
//!
//! QEMU looks after each pass, and once a second at most, whether the guest dirties more than
//! `throttle-trigger-threshold` per cent of what was sent; the second time it throttles by `cpu-throttle-initial`, each
//! further time by `cpu-throttle-increment` more, and never by more than `max-cpu-throttle`. With initial = maximum = 1
//! and an increment of 99 that does nothing, and the maximum alone sets, lowers and releases the throttle from the next
//! look on. It begins about 3.2 s after the start at the earliest (run on 5.2, 7.2, 10.0 and 11.1).
//!
//! QEMU ends it itself with the migration, at once also with one that is cancelled: a guest that was throttled by 95 % did
//! 4 to 90 times as much in the half second after the cancel (run on the same four).
//!
//! All of it is there from 5.0 on (`throttle-trigger-threshold`); `cpu-throttle-tailslow` came with 5.1, and is off.

use serde_json::{Map, Value, json};

use super::agree::Capabilities;
use crate::converge::{AutoConverge, Throttle};

/// The capability, which is the source's alone.
pub const CAPABILITY: &str = "auto-converge";
/// The parameters without which a guest cannot be slowed down by a policy.
const NEEDED: [&str; 4] =
    ["throttle-trigger-threshold", "cpu-throttle-initial", "cpu-throttle-increment", MAXIMUM];
const MAXIMUM: &str = "max-cpu-throttle";
const TAIL_SLOW: &str = "cpu-throttle-tailslow";
/// What is inert: QEMU takes no maximum below 1.
const LEAST_PERCENT: u8 = 1;

/// Whether a QEMU that is set up so can slow its guest down.
pub fn is_usable(capabilities: &Capabilities, parameters: &Map<String, Value>) -> bool {
    capabilities.iter().any(|(name, _)| name == CAPABILITY)
        && NEEDED.iter().all(|&name| parameters.contains_key(name))
}

/// The parameters that are set for it.
pub fn names() -> impl Iterator<Item = &'static str> {
    NEEDED.into_iter().chain([TAIL_SLOW])
}

/// All that is to be set before the stream, of what the QEMU has; nothing for a guest that is never slowed down.
pub fn at_start(throttle: Throttle, known: &Map<String, Value>) -> Map<String, Value> {
    let mut parameters = all(throttle);
    if !parameters.is_empty() && known.contains_key(TAIL_SLOW) {
        parameters.insert(TAIL_SLOW.to_owned(), json!(false));
    }
    parameters
}

/// What is to be set while the stream runs; nothing where nothing changes.
pub fn change(before: Throttle, now: Throttle) -> Map<String, Value> {
    match (before, now) {
        _ if before == now => Map::new(),
        (Throttle::ByHand { .. }, Throttle::ByHand { percent }) => maximum(percent),
        _ => all(now),
    }
}

/// What was set by an engine that has ended may be anything: it is set anew.
pub fn again(throttle: Throttle) -> Map<String, Value> {
    match throttle {
        Throttle::ByHand { percent } => maximum(percent),
        other => all(other),
    }
}

fn maximum(percent: u8) -> Map<String, Value> {
    Map::from_iter([(MAXIMUM.to_owned(), json!(percent.max(LEAST_PERCENT)))])
}

fn all(throttle: Throttle) -> Map<String, Value> {
    let AutoConverge { initial_percent, increment_percent, maximum_percent, threshold_percent } =
        match throttle {
            Throttle::Never => return Map::new(),
            Throttle::ByHand { percent } => {
                let maximum_percent = u64::from(percent.max(LEAST_PERCENT));
                AutoConverge { maximum_percent, ..AutoConverge::BY_HAND }
            }
            Throttle::Automatic(as_it_climbs) => as_it_climbs,
        };
    let values = [threshold_percent, initial_percent, increment_percent, maximum_percent];
    NEEDED.iter().zip(values).map(|(&name, value)| (name.to_owned(), json!(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        if let Value::Object(map) = value { map } else { panic!("{value}") }
    }

    /// QEMU's own, as it tells them.
    fn known() -> Map<String, Value> {
        map(json!({
            "throttle-trigger-threshold": 50, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10,
            "max-cpu-throttle": 99, "cpu-throttle-tailslow": true, "max-bandwidth": 0,
        }))
    }

    #[test]
    fn by_hand_it_begins_inert_and_the_maximum_alone_sets_and_releases_it() {
        let inert = json!({
            "throttle-trigger-threshold": 1, "cpu-throttle-initial": 1, "cpu-throttle-increment": 99,
            "max-cpu-throttle": 1, "cpu-throttle-tailslow": false,
        });
        let by_hand = |percent| Throttle::ByHand { percent };
        assert_eq!(at_start(by_hand(0), &known()), map(inert));
        assert_eq!(change(by_hand(0), by_hand(60)), map(json!({ "max-cpu-throttle": 60 })));
        assert_eq!(change(by_hand(60), by_hand(0)), map(json!({ "max-cpu-throttle": 1 })));
        assert_eq!(change(by_hand(60), by_hand(60)), Map::new());
        assert_eq!(again(by_hand(0)), map(json!({ "max-cpu-throttle": 1 })));
    }

    #[test]
    fn qemus_own_ladder_goes_out_as_it_is() {
        let expected = map(json!({
            "throttle-trigger-threshold": 50, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10,
            "max-cpu-throttle": 99,
        }));
        let mut before_5_1 = known();
        before_5_1.remove(TAIL_SLOW);
        assert_eq!(at_start(Throttle::Automatic(AutoConverge::DEFAULT), &before_5_1), expected);
    }

    #[test]
    fn without_consent_nothing_is_set() {
        assert_eq!(at_start(Throttle::Never, &known()), Map::new());
        assert_eq!(again(Throttle::Never), Map::new());
    }

    #[test]
    fn a_qemu_that_lacks_a_part_of_it_cannot_throttle_by_hand() {
        let has = vec![(CAPABILITY.to_owned(), false)];
        assert!(is_usable(&has, &known()) && !is_usable(&Vec::new(), &known()));
        for name in NEEDED {
            let mut older = known();
            older.remove(name);
            assert!(!is_usable(&has, &older), "{name}");
        }
    }
}
