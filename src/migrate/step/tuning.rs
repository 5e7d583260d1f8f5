//! What of a source is set besides its limits, for as long as it sends.
//!
//! `avail-switchover-bandwidth` (8.2): QEMU stops the guest once what is left fits `downtime-limit` at the rate of its
//! last 100 ms. In a stream that `max-bandwidth` holds back that rate is the bound, or less where QEMU was busy otherwise
//! for a moment, such as with pages that are all zeros; the bound itself holds no longer once the guest stands still. As
//! long as the stream is seen to reach its bound, the bound is what the last copy gets at least: QEMU is told so, and
//! goes by that. A stream that does not reach it is bounded by its link, and QEMU's own rate counts.

use serde_json::{Map, Value, json};

use super::agree::Capabilities;
use super::throttle;
use crate::converge::{Throttle, Wish};
use crate::units::Rate;

/// QEMU's word for how fast the last copy will be; 0 lets it go by its own rate.
pub const SWITCHOVER_BANDWIDTH: &str = "avail-switchover-bandwidth";

/// Whether a source has something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Knob {
    /// It is not there, or is not to be touched.
    #[default]
    Absent,
    /// It can be used.
    Usable,
}

impl Knob {
    fn is(usable: bool) -> Self {
        if usable { Self::Usable } else { Self::Absent }
    }

    /// Whether it can be used.
    pub fn is_usable(self) -> bool {
        self == Self::Usable
    }
}

/// What of a source can be set or asked besides its limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Its guest can be slowed down.
    pub throttle: Knob,
    /// It can be told how fast the last copy will be, and nobody has told it before.
    pub switchover_bandwidth: Knob,
    /// It can be asked what its guest dirties, beside the stream.
    pub dirty_windows: Knob,
}

impl Tuning {
    /// Of a source that is set up so, which has `calc-dirty-rate` or not.
    pub fn of(capabilities: &Capabilities, parameters: &Map<String, Value>, dirty_windows: Knob) -> Self {
        // What a person has set is what that person knows of the link.
        let is_untold = parameters.get(SWITCHOVER_BANDWIDTH).is_some_and(|value| *value == json!(0));
        Self {
            throttle: Knob::is(throttle::is_usable(capabilities, parameters)),
            switchover_bandwidth: Knob::is(is_untold),
            dirty_windows,
        }
    }

    /// Of one whose engine has ended: what that one was about to set, since it is written down as it was.
    pub fn of_originals(originals: &Map<String, Value>) -> Self {
        Self {
            throttle: Knob::is(throttle::names().any(|name| originals.contains_key(name))),
            switchover_bandwidth: Knob::is(originals.contains_key(SWITCHOVER_BANDWIDTH)),
            dirty_windows: Knob::Absent,
        }
    }

    /// The same without what this migration does not set.
    #[must_use]
    pub fn for_plan(self, wish: Wish, max_bandwidth: Option<Rate>) -> Self {
        let throttle = if wish.throttle == Throttle::Never { Knob::Absent } else { self.throttle };
        let switchover_bandwidth =
            if max_bandwidth.is_some() { self.switchover_bandwidth } else { Knob::Absent };
        Self { throttle, switchover_bandwidth, ..self }
    }

    /// The parameters that are set, as they are now: to be set back.
    pub fn originals(self, parameters: &Map<String, Value>) -> Map<String, Value> {
        let throttle = throttle::names().filter(|_| self.throttle.is_usable());
        let switchover = [SWITCHOVER_BANDWIDTH].into_iter().filter(|_| self.switchover_bandwidth.is_usable());
        let found = throttle.chain(switchover);
        found.filter_map(|name| Some((name.to_owned(), parameters.get(name)?.clone()))).collect()
    }
}

/// How fast the last copy is said to be, in bytes per second: at least as fast as the stream is let, once it has been
/// seen to be so fast. 0 leaves it to QEMU. `told` is what was said before: it is not taken back for a moment's sake.
pub fn switchover_bytes_per_second(
    max_bandwidth: Option<Rate>,
    stream_bytes_per_second: u64,
    told: u64,
) -> u64 {
    let bound = max_bandwidth.map_or(0, Rate::bytes_per_second);
    // QEMU gives each 100 ms their share and sleeps for the rest: a stream at its bound is measured a little below it.
    let tenths = if told == bound { 8 } else { 9 };
    let reaches = u128::from(stream_bytes_per_second) * 10 >= u128::from(bound) * tenths;
    if reaches { bound } else { 0 }
}

/// That as a parameter.
pub fn switchover_bandwidth(bytes_per_second: u64) -> Map<String, Value> {
    Map::from_iter([(SWITCHOVER_BANDWIDTH.to_owned(), json!(bytes_per_second))])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        if let Value::Object(map) = value { map } else { panic!("{value}") }
    }

    fn parameters(switchover: u64) -> Map<String, Value> {
        map(json!({
            "throttle-trigger-threshold": 50, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10,
            "max-cpu-throttle": 99, "avail-switchover-bandwidth": switchover, "downtime-limit": 300,
        }))
    }

    fn wish(throttle: Throttle) -> Wish {
        Wish { downtime_limit_ms: 2, throttle }
    }

    #[test]
    fn only_what_is_set_is_set_back() {
        let has = vec![("auto-converge".to_owned(), true)];
        let all = Tuning::of(&has, &parameters(0), Knob::Absent);
        let rate = Rate::from_bytes_per_second(1 << 20);
        assert_eq!(all.for_plan(wish(Throttle::Never), None).originals(&parameters(0)), Map::new());
        let capped = all.for_plan(wish(Throttle::Never), rate);
        assert_eq!(capped.originals(&parameters(0)), map(json!({ "avail-switchover-bandwidth": 0 })));
        let throttled = all.for_plan(wish(Throttle::ByHand { percent: 0 }), None);
        let kept = throttled.originals(&parameters(0));
        assert_eq!((kept.len(), kept["max-cpu-throttle"].as_u64()), (4, Some(99)));
        assert_eq!(Tuning::of_originals(&kept), throttled);
    }

    #[test]
    fn what_a_person_has_told_of_the_switchover_stays() {
        let told = Tuning::of(&Vec::new(), &parameters(5), Knob::Absent);
        assert_eq!(told, Tuning::default());
    }

    #[test]
    fn the_bound_is_told_as_long_as_the_stream_reaches_it() {
        let bound = Rate::from_bytes_per_second(1000);
        for (stream, before, told) in [
            (0, 0, 0),
            (899, 0, 0),
            (900, 0, 1000),
            (899, 1000, 1000),
            (799, 1000, 0),
            (1200, 1000, 1000),
            (950, 700, 1000),
        ] {
            assert_eq!(switchover_bytes_per_second(bound, stream, before), told);
        }
        assert_eq!(switchover_bytes_per_second(None, 5000, 0), 0);
    }
}
