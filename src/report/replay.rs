//! What other policies would have done, in words that fit 80 columns.

use std::time::Duration;

use crate::converge::{Budget, Finish, Replay, Simulated, Why};
use crate::record::{Choice, Decision, PhaseName, Record};
use crate::units::{show_bytes, show_duration};

const COLUMNS: usize = 80;
/// Where the text stands, beside its label.
const INDENT: usize = 11;

/// What was recorded, and what the simulator makes of the same limits.
pub fn recorded_lines(record: &Record, as_it_was: Option<&Simulated>) -> Vec<String> {
    let began_ms = stream_began_ms(record);
    let mut lines = vec![format!("{}  {}", record.id, record.request.source)];
    let done = record.decisions.iter().filter(|decision| decision.policy.is_none());
    lines.extend(done.flat_map(|decision| {
        labelled("done", &format!("at {}: {}", since(decision.at_ms, began_ms), decision.reason))
    }));
    lines.extend(labelled("ended", &ended(record, began_ms)));
    if let Some(simulated) = as_it_was {
        lines.extend(labelled("simulated", &format!("the same limits: {}", outcome(simulated))));
    }
    lines
}

/// What one policy would have done.
pub fn replay_lines(replay: &Replay, budget: Budget) -> Vec<String> {
    let began_ms = replay.stream_began_ms;
    let keeps = if replay.policy.keeps_budgets() { "" } else { " (keeps no budgets)" };
    let mut lines = vec![format!("{}{keeps}", replay.policy)];
    for decision in &replay.decisions {
        let text = format!("at {}: {}", since(decision.at_ms, began_ms), decision.reason);
        let is_beyond = matches!(decision.choice, Choice::Limit { downtime_limit_ms }
            if downtime_limit_ms > budget.max_downtime.milliseconds());
        let mark = if is_beyond { ", above the budget" } else { "" };
        lines.extend(labelled("would", &format!("{text}{mark}")));
    }
    let known = match replay.parts {
        Some(parting) => {
            let at = since(parting.at_ms, began_ms);
            format!("what came after {at}, when {}", why(parting.why))
        }
        None => "nothing: the guest would have gone as it did".to_owned(),
    };
    lines.extend(labelled("not known", &known));
    match &replay.simulated {
        Some(simulated) => {
            lines.extend(labelled("simulated", &outcome(simulated)));
            let beyond = |breach| labelled("beyond", &format!("{breach}{}", of_budget(breach, budget)));
            lines.extend(simulated.breaches.iter().flat_map(|breach| beyond(*breach)));
        }
        None => lines.extend(labelled("simulated", "not: the record tells too little of guest and link")),
    }
    lines
}

/// What the policies that were only asked would have done last, one after the other.
pub fn shadow_lines(record: &Record) -> Vec<String> {
    let began_ms = stream_began_ms(record);
    let mut names: Vec<&str> = Vec::new();
    for name in record.decisions.iter().filter_map(|decision| decision.policy.as_deref()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let last = |name: &&str| {
        record.decisions.iter().rev().find(|decision| decision.policy.as_deref() == Some(*name))
    };
    let line = |decision: &Decision, name: &str| {
        let at = since(decision.at_ms, began_ms);
        labelled("shadow", &format!("{name} would, at {at}: {}", decision.reason))
    };
    names.iter().filter_map(|name| Some(line(last(name)?, name))).flatten().collect()
}

fn why(why: Why) -> &'static str {
    match why {
        Why::Stops => "the guest would have stood still",
        Why::GivesUp => "it would have given up",
        Why::Pauses => "it would have stopped the guest",
        Why::Throttles => "QEMU's throttle would have begun",
        Why::GoesOn => "it was over: it would have gone on",
    }
}

fn of_budget(breach: crate::converge::Breach, budget: Budget) -> String {
    use crate::converge::Breach;
    match (breach, budget.max_time) {
        (Breach::Blackout | Breach::Freeze, _) => format!(" of {}", budget.max_downtime),
        (Breach::Time, Some(time)) => format!(" of {}", show_duration(time)),
        _ => String::new(),
    }
}

fn outcome(simulated: &Simulated) -> String {
    let total = milliseconds(simulated.total_ms);
    let sent = show_bytes(simulated.transferred_bytes);
    let throttled = match simulated.throttled_ms {
        none if none <= 0.0 => String::new(),
        lost => format!(", {} of work lost to the throttle", milliseconds(lost)),
    };
    let end = match (simulated.finish, simulated.blackout_ms) {
        (Finish::Moved, Some(blackout)) => format!("moved in {total}, blackout {}", milliseconds(blackout)),
        (Finish::Moved | Finish::Censored, _) => format!("no end within {total}"),
        (Finish::GaveUp, _) => format!("given up after {total}"),
    };
    format!("{end}, {sent} sent{throttled}")
}

/// How it really ended, in the words in which a simulated end is told.
fn ended(record: &Record, began_ms: f64) -> String {
    let Some(outcome) = &record.outcome else { return "not known".to_owned() };
    let sent = show_bytes(outcome.totals.transferred_bytes);
    let arrived = record.phases.iter().find(|change| change.phase == PhaseName::Finish);
    match (arrived, outcome.blackout.as_ref().and_then(|blackout| blackout.stop_to_resume_ms)) {
        (Some(arrived), Some(blackout)) => {
            let total = since(arrived.at_ms, began_ms);
            format!("moved in {total}, blackout {}, {sent} sent", milliseconds(blackout))
        }
        _ => format!("{}, {sent} sent", outcome.message.lines().next().unwrap_or_default()),
    }
}

fn stream_began_ms(record: &Record) -> f64 {
    record.phases.iter().find(|change| change.phase == PhaseName::Stream).map_or(0.0, |change| change.at_ms)
}

fn since(at_ms: f64, began_ms: f64) -> String {
    milliseconds(at_ms - began_ms)
}

fn milliseconds(milliseconds: f64) -> String {
    show_duration(Duration::try_from_secs_f64(milliseconds.max(0.0) / 1e3).unwrap_or_default())
}

/// A text beside its label, in as many lines as it takes.
fn labelled(label: &str, text: &str) -> Vec<String> {
    let mut lines = vec![format!("{label:<width$}", width = INDENT - 1)];
    for word in text.split_whitespace() {
        let Some(last) = lines.last_mut() else { break };
        if last.chars().count() + 1 + word.chars().count() > COLUMNS && last.len() > INDENT {
            lines.push(format!("{}{word}", " ".repeat(INDENT)));
        } else {
            last.push(' ');
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::{Breach, Parting, PolicyName};
    use crate::record::{Entry, MigrationId, PhaseChange, Request};
    use crate::units::DowntimeMs;

    fn decision(at_ms: f64, policy: Option<&str>) -> Decision {
        let reason =
            "what is left has risen 6 times: the limit is doubled to 400 ms, and so it goes on".to_owned();
        let choice = Choice::Limit { downtime_limit_ms: 400 };
        Decision { at_ms, choice, reason, forecast: None, cost: None, policy: policy.map(str::to_owned) }
    }

    fn record() -> Record {
        let request = Request::in_a_test("/run/vm.qmp");
        let mut record = Record::new(MigrationId::from_number(1), request, jiff::Timestamp::UNIX_EPOCH);
        record.apply(Entry::Phase(PhaseChange { phase: PhaseName::Stream, at_ms: 100.0 }));
        for (at_ms, policy) in [(600.0, None), (1100.0, Some("proxmox")), (3300.0, Some("proxmox"))] {
            record.apply(Entry::Decision(decision(at_ms, policy)));
        }
        record
    }

    fn simulated() -> Simulated {
        Simulated {
            finish: Finish::Moved,
            total_ms: 3250.0,
            blackout_ms: Some(560.0),
            throttled_ms: 1200.0,
            transferred_bytes: 300 << 20,
            breaches: vec![Breach::Blackout, Breach::Throttle],
        }
    }

    #[test]
    fn a_replay_tells_what_would_be_done_what_is_not_known_and_what_is_simulated() {
        let replay = Replay {
            policy: PolicyName::Proxmox,
            stream_began_ms: 100.0,
            decisions: vec![decision(3300.0, Some("proxmox"))],
            parts: Some(Parting { at_ms: 3300.0, why: Why::Stops }),
            simulated: Some(simulated()),
        };
        let budget = Budget { max_downtime: DowntimeMs::new(300).unwrap(), max_time: None };
        let lines = replay_lines(&replay, budget);
        assert_eq!(
            lines,
            [
                "proxmox (keeps no budgets)",
                "would      at 3.2 s: what is left has risen 6 times: the limit is doubled to 400",
                "           ms, and so it goes on, above the budget",
                "not known  what came after 3.2 s, when the guest would have stood still",
                "simulated  moved in 3.25 s, blackout 560 ms, 300.0 MiB sent, 1.2 s of work lost",
                "           to the throttle",
                "beyond     the blackout is above the budget of 300 ms",
                "beyond     the guest is slowed down without consent",
            ]
        );
        assert!(
            lines.iter().chain(&recorded_lines(&record(), Some(&simulated()))).all(|line| line.len() <= 80)
        );
    }

    #[test]
    fn what_was_only_asked_is_no_part_of_what_was_done() {
        let done = recorded_lines(&record(), None);
        assert_eq!(done.iter().filter(|line| line.starts_with("done")).count(), 1, "{done:?}");
        let shadows = shadow_lines(&record());
        assert!(shadows[0].starts_with("shadow     proxmox would, at 3.2 s: what is left"), "{shadows:?}");
        assert!(shadows.len() == 2 && shadows.iter().all(|line| line.len() <= 80), "{shadows:?}");
    }
}
