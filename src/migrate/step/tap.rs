//! Taps of the destination's own, each on the bridge on which its source has one.
//!
//! Their names come from the migration's id, and are in the journal before the taps are made. A tap that an earlier
//! migration has made goes once the guest has left it; one of the user's stays.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::check::{Blocker, Code, chain};
use crate::host::{ProcessView, Tap, held_taps, may_make_taps, remove_tap, shares_network};
use crate::qemu::argv::CommandLine;
use crate::qemu::rewrite::{Map, TapChange, TapName, taps};
use crate::record::{MigrationId, Moved, Warning};

/// What all of these are called, before the migration's id.
const PREFIX: &str = "qm-";

/// A tap in the place of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTap {
    /// The one that the source has.
    pub from: String,
    /// The destination's.
    pub to: String,
}

/// One that is to be made.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What changes.
    pub tap: NewTap,
    beside: Tap,
}

/// The taps that a destination with this command line needs, and what is to be changed on it. A blocker for each that
/// cannot be made. What the source does not hold a destination can have.
pub fn plan(
    id: &MigrationId,
    maps: &[Map],
    source: &ProcessView,
    line: &CommandLine,
) -> (Vec<Planned>, Vec<TapChange>, Vec<Blocker>) {
    let (mut planned, mut changes, mut blockers) = (Vec::new(), Vec::new(), Vec::new());
    let held = held_taps(source.pid);
    let is_mapped = |name: &TapName| matches!(name, TapName::Interface(name) if maps.iter().any(|map| map.replaces(name)));
    for name in taps(line).filter(|name| !is_mapped(name)) {
        let interface = match &name {
            TapName::Interface(name) => held.values().find(|held| *held == name).cloned(),
            TapName::Descriptors(descriptors) => descriptors.first().and_then(|one| held.get(one)).cloned(),
            TapName::Unnamed => only(held.values().cloned()),
        };
        let Some(from) = interface else {
            blockers.extend(unknown(&name));
            continue;
        };
        if !shares_network(source.pid) {
            let message =
                format!("the guest's interface {from} is in another network namespace than this engine");
            blockers.push(blocker(&name, &message));
            continue;
        }
        match Tap::look(&from) {
            Ok(_) if !may_make_taps() => blockers.push(blocker(
                &name,
                &format!(
                    "the guest has the interface {from}, and this user may make no second one beside it"
                ),
            )),
            Ok(beside) => {
                let to = own_name(id, planned.len());
                changes.push(TapChange { from: name, to: to.clone(), has_header: beside.has_header() });
                planned.push(Planned { tap: NewTap { from, to }, beside });
            }
            Err(error) => blockers.push(blocker(&name, &chain(&error))),
        }
    }
    (planned, changes, blockers)
}

/// The one that there is; none where there are several.
fn only(mut all: impl Iterator<Item = String>) -> Option<String> {
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

/// An interface that the source does not hold is the destination's to open; a descriptor of the source's is nothing to it.
fn unknown(name: &TapName) -> Option<Blocker> {
    let what = match name {
        TapName::Interface(_) => return None,
        TapName::Descriptors(_) => "a descriptor on the guest's command line is of no tap that can be found",
        TapName::Unnamed => "which of its taps the guest was started with cannot be told",
    };
    Some(blocker(name, what))
}

/// A name can be mapped, a number cannot.
fn blocker(tap: &TapName, message: &str) -> Blocker {
    let hint = match tap {
        TapName::Interface(name) => format!("make one as the guest needs it, and say so: --map {name}=NEW"),
        TapName::Descriptors(_) | TapName::Unnamed => {
            "start guests with -netdev tap,ifname=NAME, or start the destination yourself: --destination-qmp"
                .to_owned()
        }
    };
    Blocker::new(Code::Tap, message, hint)
}

/// What the first, second, ... tap of a migration is called. An interface's name has 15 letters at most.
fn own_name(id: &MigrationId, number: usize) -> String {
    if number == 0 { format!("{PREFIX}{id}") } else { format!("{PREFIX}{id}-{number}") }
}

/// Whether a migration has made the tap of this name.
fn is_own(name: &str) -> bool {
    let Some(id) = name.strip_prefix(PREFIX) else { return false };
    MigrationId::from_str(id.split_once('-').map_or(id, |(id, _)| id)).is_ok()
}

/// Makes them. On an error none of them is left.
pub fn make(planned: &[Planned], source: &ProcessView) -> Result<Vec<NewTap>, Blocker> {
    let taps: Vec<NewTap> = planned.iter().map(|planned| planned.tap.clone()).collect();
    let make = |planned: &Planned| planned.beside.make_twin(&planned.tap.to, &source.credentials);
    if let Err(error) = planned.iter().try_for_each(make) {
        remove(&taps);
        let name = taps.first().map_or(TapName::Unnamed, |tap| TapName::Interface(tap.from.clone()));
        return Err(blocker(&name, &chain(&error)));
    }
    Ok(taps)
}

/// Removes those of a destination that is not needed any more.
pub fn remove(taps: &[NewTap]) {
    for tap in taps {
        remove_one(&tap.to);
    }
}

/// Removes those that the guest has left, of those that migrations have made.
pub fn remove_left(taps: &[NewTap]) {
    for tap in taps {
        remove_one(&tap.from);
    }
}

/// What a journal says is input: only a tap that is called as a migration's are is removed.
fn remove_one(name: &str) {
    if is_own(name)
        && let Err(error) = remove_tap(name)
    {
        tracing::warn!(%name, %error, "not removed");
    }
}

/// What a person should know of it.
pub fn warnings(taps: &[NewTap]) -> Vec<Warning> {
    let warning = |NewTap { from, to }: &NewTap| Warning {
        code: "tap".to_owned(),
        message: format!(
            "the guest's interface {from} is {to} on the destination: rules of this host's that name {from} (nftables, \
             tc) do not hold for that"
        ),
        hint: None,
    };
    taps.iter().map(warning).collect()
}

/// What has another name now.
pub fn moved(taps: &[NewTap]) -> Vec<Moved> {
    let moved =
        |NewTap { from, to }: &NewTap| Moved { what: "tap".to_owned(), from: from.clone(), to: to.clone() };
    taps.iter().map(moved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_known_again() {
        let id = MigrationId::from_number(7);
        for number in [0, 1, 12] {
            let name = own_name(&id, number);
            assert!(name.len() <= 15 && is_own(&name), "{name}");
        }
        for name in ["tap0", "qm-", "qm-tap0", "qm", "xqm-k3f9x2ab"] {
            assert!(!is_own(name), "{name}");
        }
    }

    #[test]
    fn one_of_several_is_not_guessed() {
        let names = |names: &[&str]| only(names.iter().map(|name| (*name).to_owned()));
        assert_eq!(names(&[]), None);
        assert_eq!(names(&["a", "a"]).as_deref(), Some("a"));
        assert_eq!(names(&["a", "b"]), None);
    }
}
