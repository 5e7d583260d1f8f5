//! The table in the documentation is the function: each change of phase and each action that any input makes from any
//! phase that can be reached, with its cause; none is missing there, and none is there that the function lacks.

use std::collections::BTreeSet;

use super::*;
use crate::migrate::phase::meaning;

/// One line of the function: in this place, by this, to that place, and this is done.
type Edge = (String, String, String, String);

/// A phase, as the table calls it.
fn place(phase: Phase) -> String {
    let rest = |rest| if rest == Rest::Running { "running" } else { "standing" };
    match phase {
        Phase::Streaming(guest) => match guest.at_source {
            AtSource::Running => "Streaming running".to_owned(),
            AtSource::Standing => "Streaming standing".to_owned(),
            AtSource::Held => "Streaming held".to_owned(),
        },
        Phase::Switchover { source, .. } => format!("{source:?}"),
        Phase::Armed { source_gone, .. } => format!("Armed{}", if source_gone { "-alone" } else { "" }),
        Phase::Committed { source_gone, .. } => {
            format!("Committed{}", if source_gone { "-alone" } else { "" })
        }
        Phase::Arrived(is) => format!("Arrived {}", rest(is)),
        Phase::Retreating(_, retreat) => format!("{retreat:?}"),
        Phase::Back(is) => format!("Back {}", rest(is)),
        Phase::Undecided(side) => format!("Undecided {side:?}"),
        Phase::Lost => "Lost".to_owned(),
    }
}

/// An input, as the table calls it.
fn cause(input: &Input) -> String {
    let seen = |leg: &str, seen: &Seen| match seen {
        Seen::Status(MigrationStatus::Other(_)) => format!("{leg} unknown status"),
        Seen::Status(status) => format!("{leg} {status}"),
        Seen::State(RunState::Other(_)) => format!("{leg} is in an unknown state"),
        Seen::State(state) => format!("{leg} is {state}"),
        Seen::Stopped => format!("{leg} STOP"),
        Seen::Resumed => format!("{leg} RESUME"),
        Seen::ContinueRefused => format!("{leg} refuses"),
        Seen::Gone => format!("{leg} gone"),
    };
    match input {
        Input::Source(what) => seen("S", what),
        Input::Destination(what) => seen("D", what),
        Input::DestinationAlive => "D alive".to_owned(),
        Input::DestinationSilent => "D silent".to_owned(),
        Input::Retreat => "cancel".to_owned(),
        Input::BlackoutOver => "too long".to_owned(),
        Input::StoppedByConsent => "consent".to_owned(),
        Input::Overdue => "overdue".to_owned(),
        Input::GiveUp => "give up".to_owned(),
    }
}

fn deed(action: Action) -> &'static str {
    match action {
        Action::AskSource => "ask S",
        Action::CancelSource => "migrate_cancel",
        Action::YankSource => "yank",
        Action::ContinueSource => "cont S",
        Action::ProveDestination => "prove D",
        Action::ContinueDestination => "cont D",
        Action::AskDestination => "ask D",
        Action::KillDestination => "kill D",
    }
}

/// The words of the table that stand for several causes.
fn stands_for(word: &str, causes: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let (leg, what) = word.split_at_checked(2)?;
    let is_meant = |seen: &Seen| match (what, seen) {
        ("given up", Seen::Status(status)) => meaning::has_given_up(status),
        ("switching", Seen::Status(status)) => meaning::is_switching(status),
        ("in postcopy", Seen::Status(status)) => meaning::is_postcopy(status),
        ("runs", seen) => meaning::runs(seen),
        ("stands", Seen::State(state)) => meaning::is_standing(state),
        ("has run", Seen::State(state)) => meaning::has_run(state),
        _ => false,
    };
    let meant = inputs().into_iter().filter(|input| match (leg, input) {
        ("S ", Input::Source(seen)) | ("D ", Input::Destination(seen)) => is_meant(seen),
        _ => false,
    });
    let meant: BTreeSet<String> = meant.map(|input| cause(&input)).collect();
    if meant.is_empty() {
        causes.contains(word).then(|| BTreeSet::from([word.to_owned()]))
    } else {
        Some(meant)
    }
}

/// Every phase that can be reached.
pub(super) fn reached() -> Vec<Phase> {
    let (mut reached, inputs): (Vec<Phase>, _) = (starts().collect(), inputs());
    let mut next = 0;
    while next < reached.len() {
        for input in &inputs {
            let (after, _) = reached[next].next(input);
            if !reached.contains(&after) {
                reached.push(after);
            }
        }
        next += 1;
    }
    reached
}

/// What the function does.
fn done() -> BTreeSet<Edge> {
    let inputs = inputs();
    let mut edges = BTreeSet::new();
    for phase in reached() {
        for input in &inputs {
            let (after, action) = phase.next(input);
            let (from, to) = (place(phase), place(after));
            if from != to || action.is_some() {
                edges.insert((from, cause(input), to, action.map_or("", deed).to_owned()));
            }
        }
    }
    edges
}

/// What the documentation says: a row of the table is a list of places, a list of causes, a place, and an action.
fn drawn() -> BTreeSet<Edge> {
    let places: BTreeSet<String> = reached().into_iter().map(place).collect();
    let causes: BTreeSet<String> = inputs().iter().map(cause).collect();
    let mut edges = BTreeSet::new();
    for row in include_str!("../../phase.rs").lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        let &[from, by, to, action] = cells.as_slice() else { panic!("a row has four cells: {row}") };
        if from == "in" || from.starts_with("---") {
            continue;
        }
        for from in from.split(", ") {
            // `Streaming` is all three of them.
            let is_meant = |place: &&String| *place == from || place.starts_with(&format!("{from} "));
            let from: Vec<&String> = places.iter().filter(is_meant).collect();
            assert!(!from.is_empty(), "no such place: {row}");
            for word in by.split(", ") {
                let causes =
                    stands_for(word, &causes).unwrap_or_else(|| panic!("no such cause: {word}: {row}"));
                for (from, cause) in
                    from.iter().flat_map(|from| causes.iter().map(move |cause| (from, cause)))
                {
                    let to = if to == "same" { (*from).clone() } else { to.to_owned() };
                    assert!(places.contains(&to), "no such place: {to}: {row}");
                    edges.insert(((*from).clone(), cause.clone(), to, action.to_owned()));
                }
            }
        }
    }
    edges
}

#[test]
fn the_documentation_draws_what_the_function_does() {
    let (done, drawn) = (done(), drawn());
    let missing: Vec<_> = done.difference(&drawn).collect();
    let invented: Vec<_> = drawn.difference(&done).collect();
    assert!(missing.is_empty() && invented.is_empty(), "not drawn: {missing:#?}\ndrawn only: {invented:#?}");
}
