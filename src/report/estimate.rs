//! What moving a guest would take, for people and for programs.

use std::time::Duration;

use serde::Serialize;

use crate::converge::estimate::{Action, Fit, Pair, Prospected};
use crate::estimate::{Findings, Link, RestsOn};
use crate::record::{SCHEMA, Warning};
use crate::units::{show_bytes, show_duration};

/// For people, in 80 columns: what was measured, each action with its price, and what to type.
pub fn estimate_lines(found: &Findings) -> Vec<String> {
    let mut lines = measured_lines(found);
    lines.push(String::new());
    lines.push(format!(
        "  {:<18} {:>8} {:>9} {:>19} {:>10} {:>9}",
        "action", "time", "blackout", "between", "sent", "lost"
    ));
    for (at, one) in found.estimate.prospects.iter().enumerate() {
        lines.push(row(one, found.estimate.cheapest == Some(at)));
        lines.extend(why(one.fit).map(|why| format!("    {why}")));
    }
    lines.push(String::new());
    lines.extend(verdict_lines(found));
    lines
}

fn measured_lines(found: &Findings) -> Vec<String> {
    let mut lines = vec![format!(
        "guest      {} of its memory in use, QEMU {}",
        show_bytes(found.in_use_bytes),
        found.qemu_version
    )];
    let mut windows = found.windows.clone();
    windows.sort_by_key(|dirtied| dirtied.length);
    let windows: Vec<String> = windows
        .iter()
        .map(|dirtied| format!("{} in {}", show_bytes(whole(dirtied.bytes)), show_duration(dirtied.length)))
        .collect();
    let mut head = "dirties";
    for line in windows.chunks(3) {
        lines.push(format!("{head:<10} {}", line.join(", ")));
        head = "";
    }
    let Link { bytes_per_second, rests_on } = found.link;
    let rate = format!("link       {}/s, ", show_bytes(bytes_per_second));
    lines.push(match rests_on {
        RestsOn::Said => format!("{rate}as was said"),
        RestsOn::Budget => format!("{rate}the most that --max-bandwidth allows"),
        RestsOn::Measured => format!("{rate}copied through a socket of this host for 50 ms:"),
    });
    if rests_on == RestsOn::Measured {
        lines.push("           at most, QEMU may be several times slower; --link RATE says it".to_owned());
    }
    let time = found.max_time.map_or_else(|| "any time".to_owned(), show_duration);
    lines.push(format!("budgets    {} of blackout, {time}", found.max_downtime));
    lines
}

fn row(one: &Prospected, is_cheapest: bool) -> String {
    let or_none = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), milliseconds);
    let between = match (one.blackout_from_ms, one.blackout_to_ms) {
        (Some(from), Some(to)) => format!("{} .. {}", milliseconds(from), milliseconds(to)),
        (Some(from), None) => format!("{} .. ?", milliseconds(from)),
        (None, _) => "-".to_owned(),
    };
    format!(
        "{} {:<18} {:>8} {:>9} {:>19} {:>10} {:>9}",
        if is_cheapest { '>' } else { ' ' },
        name(one.action),
        or_none(one.total_ms),
        or_none(one.blackout_ms),
        between,
        one.sent_bytes.map_or_else(|| "-".to_owned(), |bytes| show_bytes(whole(bytes))),
        or_none(one.lost_ms),
    )
}

fn name(action: Action) -> String {
    match action {
        Action::Wait => "wait".to_owned(),
        Action::Raise { downtime_limit_ms } => format!("limit {downtime_limit_ms} ms"),
        Action::Throttle { percent } => format!("throttle {percent} %"),
        Action::Pause => "pause after pass 1".to_owned(),
        Action::NonLive => "--non-live".to_owned(),
    }
}

fn why(fit: Fit) -> Option<&'static str> {
    match fit {
        Fit::Fits => None,
        Fit::MayNot => Some("may break a budget, if the most that was measured is true"),
        Fit::BreaksDowntime => Some("breaks --max-downtime"),
        Fit::BreaksTime => Some("breaks --max-time"),
        Fit::BreaksBoth => Some("breaks --max-downtime and --max-time"),
        Fit::NeverEnds => Some("never ends: the guest dirties faster than the link"),
    }
}

fn verdict_lines(found: &Findings) -> Vec<String> {
    let mut lines = Vec::new();
    match found.estimate.cheapest() {
        Some(one) => {
            let figure = |figure: Option<f64>| milliseconds(figure.unwrap_or(0.0));
            let word = if one.fit == Fit::Fits { "it fits" } else { "it is likely to fit" };
            let (blackout, total) = (figure(one.blackout_ms), figure(one.total_ms));
            lines.push(format!("{word}: {}, {blackout} of blackout, {total} in all", name(one.action)));
        }
        None => lines.push("infeasible: no action keeps to the budgets".to_owned()),
    }
    if let Some(Pair { max_downtime_ms, max_time_ms }) = found.estimate.smallest {
        lines.push(format!(
            "the smallest budgets without further consent: {} of blackout, {}",
            milliseconds_whole(max_downtime_ms),
            milliseconds_whole(max_time_ms)
        ));
    }
    for blocker in &found.blockers {
        lines.push(format!("`migrate` refuses this guest as it is [{}]; see `check`", blocker.code));
    }
    // It is to be typed, and stays whole.
    lines.extend(found.command.as_ref().map(|command| format!("to type    {command}")));
    lines
}

/// Two words of it at most: a column holds no more, and nobody needs the seconds of an hour.
fn milliseconds(milliseconds: f64) -> String {
    let shown =
        show_duration(Duration::try_from_secs_f64(milliseconds.max(0.0) / 1e3).unwrap_or(Duration::MAX));
    shown.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn milliseconds_whole(milliseconds: u64) -> String {
    show_duration(Duration::from_millis(milliseconds))
}

fn whole(bytes: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
    let whole = bytes as u64;
    whole
}

/// One object for each thing found, and one for the whole.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Blocker(&'a Warning),
    Warning(&'a Warning),
    Window { length_ms: f64, dirtied_bytes: f64, rounding_bytes: f64 },
    Link(Link),
    Prospect(&'a Prospected),
    Estimate(Whole<'a>),
}

/// The whole.
#[derive(Serialize)]
struct Whole<'a> {
    source: &'a str,
    qemu_version: &'a str,
    in_use_bytes: u64,
    max_downtime_ms: u64,
    max_time_ms: Option<u128>,
    cheapest: Option<Action>,
    smallest: Option<Pair>,
    command: Option<&'a str>,
    exit_code: u8,
}

/// A line with what every line carries.
#[derive(Serialize)]
struct Versioned<'a> {
    schema: u32,
    #[serde(flatten)]
    line: Line<'a>,
}

/// For programs: one JSON object per line.
pub fn estimate_json(found: &Findings, exit_code: u8) -> Vec<String> {
    let whole = Whole {
        source: &found.source,
        qemu_version: &found.qemu_version,
        in_use_bytes: found.in_use_bytes,
        max_downtime_ms: found.max_downtime.milliseconds(),
        max_time_ms: found.max_time.map(|time| time.as_millis()),
        cheapest: found.estimate.cheapest().map(|one| one.action),
        smallest: found.estimate.smallest,
        command: found.command.as_deref(),
        exit_code,
    };
    let windows = found.windows.iter().map(|dirtied| Line::Window {
        length_ms: dirtied.length.as_secs_f64() * 1e3,
        dirtied_bytes: dirtied.bytes,
        rounding_bytes: dirtied.rounding_bytes,
    });
    let lines = found.blockers.iter().map(Line::Blocker).chain(found.warnings.iter().map(Line::Warning));
    let lines = lines.chain(windows).chain([Line::Link(found.link)]);
    let lines = lines.chain(found.estimate.prospects.iter().map(Line::Prospect));
    let line = |line| serde_json::to_string(&Versioned { schema: SCHEMA, line }).ok();
    lines.chain([Line::Estimate(whole)]).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::converge::Window;
    use crate::converge::estimate::{Question, Ways, estimate};
    use crate::qemu::dirty_rate::Dirtied;
    use crate::units::DowntimeMs;

    fn found(bytes: f64) -> Findings {
        let windows = [50_u32, 100, 250, 1000, 2000].map(|length_ms| Window {
            length_ms: length_ms.into(),
            dirtied_bytes: bytes,
            weight: 1.0,
        });
        let max_downtime = DowntimeMs::new(300).unwrap();
        let question = Question {
            windows: &windows,
            in_use_bytes: 3 << 40,
            bytes_per_second: 114_000_000,
            max_downtime,
            max_time: None,
            ways: Ways::All,
        };
        let dirtied = |window: &Window| Dirtied {
            length: Duration::from_secs_f64(window.length_ms / 1e3),
            bytes: window.dirtied_bytes,
            rounding_bytes: 0.0,
        };
        Findings {
            source: "/run/vm.qmp".into(),
            qemu_version: "10.0.2".into(),
            in_use_bytes: question.in_use_bytes,
            windows: windows.iter().map(dirtied).collect(),
            link: Link { bytes_per_second: 114_000_000, rests_on: RestsOn::Measured },
            max_downtime,
            max_time: None,
            blockers: Vec::new(),
            warnings: Vec::new(),
            estimate: estimate(&question).unwrap(),
            command: Some("qmigrate migrate /run/vm.qmp".into()),
        }
    }

    #[test]
    fn people_read_it_in_eighty_columns() {
        for bytes in [0.0, 68e6, 300e6] {
            let lines = estimate_lines(&found(bytes));
            assert!(lines.iter().all(|line| line.width() <= 80), "{lines:#?}");
        }
        let lines = estimate_lines(&found(300e6));
        assert!(lines.contains(&"infeasible: no action keeps to the budgets".to_owned()), "{lines:#?}");
    }

    #[test]
    fn programs_read_one_object_per_thing_and_one_for_the_whole() {
        let lines = estimate_json(&found(0.0), 1);
        assert_eq!(
            lines[0],
            r#"{"schema":1,"type":"window","length_ms":50.0,"dirtied_bytes":0.0,"rounding_bytes":0.0}"#
        );
        assert_eq!(
            lines[5],
            r#"{"schema":1,"type":"link","bytes_per_second":114000000,"rests_on":"measured"}"#
        );
        assert!(
            lines[6].starts_with(r#"{"schema":1,"type":"prospect","action":"wait","fit":"#),
            "{}",
            lines[6]
        );
        let whole = lines.last().unwrap();
        assert!(whole.starts_with(r#"{"schema":1,"type":"estimate","source":"/run/vm.qmp""#), "{whole}");
        assert!(whole.ends_with(r#""command":"qmigrate migrate /run/vm.qmp","exit_code":1}"#), "{whole}");
    }
}
