//! Which capabilities both sides of a migration need, so that the stream of one fits the other.
//!
//! | capability | is | why (run on 5.2, 7.2, 10.0 and 11.1, as far as they have it) |
//! |---|---|---|
//! | `events` | on | QEMU tells each change of status |
//! | `return-path` | on | without it a source says completed though its destination has died |
//! | `late-block-activate` | on | no image lock is taken before `cont`: what 10.0 always does |
//! | `validate-uuid` | on | a destination with another `-uuid` refuses the stream as it begins, and ends; looked at on the source alone. Where one side has none the guest is taken |
//! | `switchover-ack` | on, if both know it | a device may ask for time before the switch; without such a device the destination agrees at once. On at the source alone a guest that runs is never switched |
//! | `multifd` | as the source has it | on at one side alone: it fails (at the source), or waits for ever (at the destination) |
//! | `compress` | as the source has it | on at the source alone: `Received an unexpected compressed page`; until 9.0 |
//! | `postcopy-ram`, `postcopy-preempt` | off | with it on, and postcopy never started, the guest's last writes to a page were lost in 6 of 50 moves (11.1 under TCG; in 0 of 25 without, and in 0 of 25 on 10.0). It would have to be alike: on at the source alone the destination ends (`RAM postcopy is disabled but have 16 byte advise`), preempt on at the destination alone lets 7.2 wait for ever |
//! | `pause-before-switchover` | off | the source would wait for `migrate-continue` |
//! | `auto-converge`, `dirty-limit` | off | the guest would be slowed down without consent; with it, `auto-converge` is on at the source, the only one that looks at it |
//! | `background-snapshot`, `mapped-ram`, `x-colo` | off | they do something else than move a guest, and refuse or never end |
//! | `x-ignore-shared` | on where guest memory is in a file that both have mapped, else off | sent, that memory would be written into the running guest; left out, memory of the destination's own would not get its contents |
//!
//! The others may differ: `xbzrle`, `zero-blocks`, `release-ram`, `dirty-bitmaps` (also with a bitmap),
//! `postcopy-blocktime`, `zero-copy-send`. With `multifd` on, its channels and its compression must be the same too:
//! else it fails, or waits for ever; `zero-page-detection` may differ (10.0, 11.1).

use serde_json::{Map, Value};

use super::throttle;
use crate::qemu::rewrite::Memory;

/// Capabilities with their states, as a QEMU lists them.
pub type Capabilities = Vec<(String, bool)>;

/// What a capability is to be.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// On wherever it is known.
    On,
    /// On where both know it, off where one does not.
    OnIfBoth,
    /// On at both sides if it is at the source.
    Alike,
    /// On at both where memory is left in its place, else off.
    InPlace,
    /// Off at both, for this reason.
    Off(&'static str),
}

const SLOWS_DOWN: &str = "it would slow the guest down, which nobody has allowed";
const NO_MOVE: &str = "with it a guest is not moved";
const LOSES_WRITES: &str = "QEMU may lose writes of the guest with it";

const RULES: [(&str, Rule); 16] = [
    ("events", Rule::On),
    ("return-path", Rule::On),
    ("late-block-activate", Rule::On),
    ("validate-uuid", Rule::On),
    ("switchover-ack", Rule::OnIfBoth),
    ("multifd", Rule::Alike),
    ("compress", Rule::Alike),
    ("postcopy-ram", Rule::Off(LOSES_WRITES)),
    ("postcopy-preempt", Rule::Off(LOSES_WRITES)),
    ("pause-before-switchover", Rule::Off("the source would wait for somebody's word before it switches")),
    (throttle::CAPABILITY, Rule::Off(SLOWS_DOWN)),
    ("dirty-limit", Rule::Off(SLOWS_DOWN)),
    ("background-snapshot", Rule::Off(NO_MOVE)),
    ("mapped-ram", Rule::Off(NO_MOVE)),
    ("x-colo", Rule::Off(NO_MOVE)),
    (IGNORE_SHARED, Rule::InPlace),
];

/// Only who started the destination knows whether both share the memory.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// Several channels: their parameters must be alike.
pub const MULTIFD: &str = "multifd";
const MULTIFD_PARAMETERS: [&str; 2] = ["multifd-channels", "multifd-compression"];

/// How both sides are to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// On the source.
    pub source: Capabilities,
    /// On the destination.
    pub destination: Capabilities,
    /// What somebody has switched on at the source and goes without, with the reason.
    pub dropped: Vec<(&'static str, &'static str)>,
    /// Whether the stream has channels, whose parameters must be alike.
    pub has_channels: bool,
}

impl Agreement {
    /// The same where the guest may be slowed down: `auto-converge` is on at the source, which has it in this state.
    #[must_use]
    pub fn with_throttle(mut self, source: &Capabilities) -> Self {
        self.source.retain(|(name, _)| name != throttle::CAPABILITY);
        self.dropped.retain(|&(name, _)| name != throttle::CAPABILITY);
        if state(source, throttle::CAPABILITY) == Some(false) {
            self.source.push((throttle::CAPABILITY.to_owned(), true));
        }
        self
    }
}

/// A destination, as far as it decides what is agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twin {
    /// The user has started it, and knows whether both share memory.
    OfTheUser,
    /// The engine has, and the guest's memory comes to it so.
    OfTheEngine(Memory),
}

/// Whether both know how to leave memory in its place.
pub fn can_leave_memory(source: &Capabilities, destination: &Capabilities) -> bool {
    [source, destination].iter().all(|side| state(side, IGNORE_SHARED).is_some())
}

/// What a source and a destination with these capabilities agree on.
pub fn agree(source: &Capabilities, destination: &Capabilities, twin: Twin) -> Agreement {
    let mut agreement = Agreement::default();
    for (name, rule) in RULES {
        if name == IGNORE_SHARED && twin == Twin::OfTheUser {
            continue;
        }
        let (here, there) = (state(source, name), state(destination, name));
        let (on, why) = match rule {
            Rule::On => (true, ""),
            Rule::OnIfBoth => (here.is_some() && there.is_some(), "the destination has not got it"),
            Rule::Alike => (here == Some(true) && there.is_some(), "the destination has not got it"),
            Rule::InPlace => (
                twin == Twin::OfTheEngine(Memory::InPlace),
                "shared memory that each has for itself would be left behind",
            ),
            Rule::Off(why) => (false, why),
        };
        let change = |now: Option<bool>| now.filter(|&now| now != on).map(|_| (name.to_owned(), on));
        agreement.source.extend(change(here));
        agreement.destination.extend(change(there));
        if here == Some(true) && !on {
            agreement.dropped.push((name, why));
        }
        agreement.has_channels |= name == MULTIFD && on;
    }
    agreement
}

fn state(capabilities: &Capabilities, name: &str) -> Option<bool> {
    capabilities.iter().find(|(known, _)| known == name).map(|&(_, on)| on)
}

/// The parameters that must be alike where the stream has channels.
pub fn of_channels(parameters: &Map<String, Value>) -> Map<String, Value> {
    let found = MULTIFD_PARAMETERS
        .iter()
        .filter_map(|&name| parameters.get(name).map(|value| (name.to_owned(), value.clone())));
    found.collect()
}

/// The capabilities to be switched on for a destination that listens from its start, when there is no time to ask it.
pub fn for_literal_incoming(is_on_at_source: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static str> {
    RULES.into_iter().filter_map(move |(name, rule)| match rule {
        // The other ones are no properties of `migration` (run on 5.2 to 11.1), or of newer QEMUs alone.
        Rule::On => matches!(name, "events" | "return-path").then_some(name),
        Rule::Alike => is_on_at_source(name).then_some(name),
        Rule::OnIfBoth | Rule::InPlace | Rule::Off(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(text: &str) -> Capabilities {
        let state = |word: &str| {
            let (sign, name) = word.split_at(1);
            (name.to_owned(), sign == "+")
        };
        text.split_ascii_whitespace().map(state).collect()
    }

    #[track_caller]
    fn agreed(source: &str, destination: &str, expected: (&str, &str)) -> Agreement {
        let agreement =
            agree(&capabilities(source), &capabilities(destination), Twin::OfTheEngine(Memory::Sent));
        assert_eq!(agreement.source, capabilities(expected.0), "of the source");
        assert_eq!(agreement.destination, capabilities(expected.1), "of the destination");
        agreement
    }

    #[test]
    fn only_what_a_qemu_knows_and_has_otherwise_is_set() {
        agreed("+events -return-path -xbzrle", "-events -new", ("+return-path", "+events"));
    }

    #[test]
    fn what_waits_for_an_answer_is_on_at_both_or_at_neither() {
        agreed("-switchover-ack", "-switchover-ack", ("+switchover-ack", "+switchover-ack"));
        agreed("-switchover-ack", "-events", ("", "+events"));
        agreed("+switchover-ack", "", ("-switchover-ack", ""));
        agreed("", "+switchover-ack", ("", "-switchover-ack"));
    }

    #[test]
    fn the_form_of_the_stream_is_the_sources() {
        let with_channels = agreed("+multifd -compress", "-multifd +compress", ("", "+multifd -compress"));
        assert!(with_channels.has_channels && with_channels.dropped.is_empty());
        let without = agreed("+compress -multifd", "+multifd", ("-compress", "-multifd"));
        assert_eq!(without.dropped, [("compress", "the destination has not got it")]);
        assert!(!without.has_channels);
    }

    #[test]
    fn what_does_not_move_a_guest_is_off_and_said_to_be() {
        let names = ["background-snapshot", "mapped-ram", "x-ignore-shared"];
        let found = agreed(
            "+background-snapshot +mapped-ram +x-ignore-shared -x-colo",
            "+mapped-ram",
            ("-background-snapshot -mapped-ram -x-ignore-shared", "-mapped-ram"),
        );
        assert_eq!(found.dropped.iter().map(|&(name, _)| name).collect::<Vec<_>>(), names);
    }

    #[test]
    fn a_guest_is_slowed_down_by_consent_and_at_its_source_alone() {
        for (source, change) in [("-auto-converge -events", "+events +auto-converge"), ("+auto-converge", "")]
        {
            let (source, destination) = (capabilities(source), capabilities("+auto-converge"));
            let agreement =
                agree(&source, &destination, Twin::OfTheEngine(Memory::Sent)).with_throttle(&source);
            assert_eq!(agreement.source, capabilities(change));
            assert_eq!(agreement.destination, capabilities("-auto-converge"));
            assert_eq!(agreement.dropped, []);
        }
    }

    #[test]
    fn who_started_the_destination_knows_whether_memory_is_shared() {
        let shares = capabilities("+x-ignore-shared");
        assert_eq!(agree(&shares, &shares, Twin::OfTheUser), Agreement::default());
    }

    #[test]
    fn memory_that_both_have_mapped_is_left_in_its_place() {
        let neither = capabilities("-x-ignore-shared");
        let agreement = agree(&neither, &neither, Twin::OfTheEngine(Memory::InPlace));
        let both = capabilities("+x-ignore-shared");
        assert_eq!((&agreement.source, &agreement.destination), (&both, &both));
        assert!(can_leave_memory(&neither, &both) && !can_leave_memory(&neither, &capabilities("+events")));
    }

    #[test]
    fn a_literal_address_takes_the_form_of_the_stream_along() {
        let found: Vec<_> = for_literal_incoming(|name| matches!(name, "multifd" | "mapped-ram")).collect();
        assert_eq!(found, ["events", "return-path", "multifd"]);
    }
}
