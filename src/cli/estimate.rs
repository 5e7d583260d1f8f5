//! `estimate`: what moving a guest would take, before anything is moved.

use std::process::ExitCode;

use clap::Args;
use qmigrate::check::{Blocker, Code};
use qmigrate::converge::estimate::{Action, Estimate, Question, Ways, estimate};
use qmigrate::estimate::{Findings, Link, for_the_curve, in_use_bytes, windows};
use qmigrate::host::runtime_directory;
use qmigrate::migrate::plan::{Limits, Mode};
use qmigrate::migrate::step::survey::{Source, Survey, look};
use qmigrate::qemu::ANSWER_WITHIN;
use qmigrate::qemu::dirty_rate::SampleError;
use qmigrate::record::{End, MigrationId, Warning};
use qmigrate::report::{estimate_json, estimate_lines};
use qmigrate::units::Rate;
use serde_json::Value;

use super::migrate::{Choices, LimitArguments};
use super::refuse;
use super::session::Signals;

/// Tells what moving a guest would take: time, blackout, bytes, and what each action would cost. Exits 0 if one of them
/// keeps to the budgets, 1 if none does, 2 if nothing can be said. Changes nothing.
///
/// It measures for some seconds what the guest dirties, and takes the flags of `migrate` that decide.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    limits: LimitArguments,
    /// The rate of the link, such as 1Gbit/s; else it is measured on this host.
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    link: Option<Rate>,
    /// One JSON object per line on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { choices, limits, link, json } = arguments;
    let limits = limits.limits();
    let plan = match choices.plan(MigrationId::new(), &runtime_directory()?) {
        Ok(plan) => plan,
        Err(refused) => return Ok(refused),
    };
    let mut signals = Signals::catch()?;
    let estimated = async {
        let Survey { findings, source } = look(&plan).await;
        let source = source.filter(|_| !findings.blockers.iter().any(is_in_the_way));
        let source = source.ok_or_else(|| in_the_way(findings.blockers.clone()))?;
        let link = tokio::task::spawn_blocking(move || Link::find(link, limits.max_bandwidth)).await;
        let link = link.map_err(std::io::Error::from).and_then(|link| link);
        let link = link.map_err(|error| {
            vec![Blocker::new(
                Code::Process,
                format!("no socket can be measured: {error}"),
                "--link RATE says it",
            )]
        })?;
        let asked = Asked { limits, link, mode: plan.mode };
        let blockers: Vec<Warning> = findings.blockers.into_iter().map(Warning::from).collect();
        measure(&source, asked, plan.typed.clone(), (blockers, findings.warnings)).await
    };
    let found = tokio::select! {
        found = estimated => found,
        // QEMU measures to the end of its window for nobody.
        reason = signals.next() => return Ok(refuse(reason, None)),
    };
    let found = match found {
        Ok(found) => found,
        Err(blockers) => {
            for blocker in &blockers {
                refuse(blocker, blocker.hint.as_deref());
            }
            return Ok(ExitCode::from(End::Refused.exit_code()));
        }
    };
    let code = u8::from(found.estimate.cheapest.is_none());
    if json {
        for line in estimate_json(&found, code) {
            data!("{line}");
        }
    } else {
        for warning in &found.warnings {
            say!("warning: {} [{}]", warning.message, warning.code);
        }
        show!("{}", estimate_lines(&found).join("\n"));
    }
    Ok(ExitCode::from(code))
}

/// With these there is no guest here whose move could be estimated, or somebody moves it.
fn is_in_the_way(blocker: &Blocker) -> bool {
    matches!(blocker.code, Code::AlreadyMigrating | Code::InMigrate | Code::PostMigrate | Code::PreConfig)
}

/// What stood in the way of looking at the guest.
fn in_the_way(blockers: Vec<Blocker>) -> Vec<Blocker> {
    let first: Vec<Blocker> = blockers.iter().filter(|blocker| is_in_the_way(blocker)).cloned().collect();
    if first.is_empty() { blockers } else { first }
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    limits: Limits,
    link: Link,
    mode: Mode,
}

async fn measure(
    source: &Source,
    asked: Asked,
    typed: String,
    (blockers, warnings): (Vec<Warning>, Vec<Warning>),
) -> Result<Findings, Vec<Blocker>> {
    let Asked { limits, link, mode } = asked;
    let memory = source.client.call(&qapi_qmp::query_memory_size_summary {}, ANSWER_WITHIN).await;
    let memory = memory.map_err(|error| vec![Blocker::bare(Code::Qmp, error.to_string())])?;
    let bytes = |key| memory.get(key).and_then(Value::as_u64).unwrap_or(0);
    let in_use_bytes = in_use_bytes(source.process.pid(), bytes("base-memory") + bytes("plugged-memory"));
    let windows =
        windows(&source.client, link.bytes_per_second).await.map_err(|error| vec![unmeasured(&error)])?;
    let loses_writes = blockers.iter().any(|blocker| blocker.code == Code::TcgLosesWrites.word());
    let only_standing = mode == Mode::NonLive || loses_writes;
    let question = Question {
        windows: &for_the_curve(&windows),
        in_use_bytes,
        bytes_per_second: link.bytes_per_second,
        max_downtime: limits.max_downtime,
        max_time: limits.max_time,
        ways: if only_standing { Ways::NonLiveOnly } else { Ways::All },
    };
    let estimate = estimate(&question)
        .ok_or_else(|| vec![Blocker::bare(Code::Qmp, "nothing was measured of which anything follows")])?;
    let command = command(&std::env::args().collect::<Vec<_>>(), &estimate);
    Ok(Findings {
        source: typed,
        qemu_version: source.inventory.version_text.clone(),
        in_use_bytes,
        windows,
        link,
        max_downtime: limits.max_downtime,
        max_time: limits.max_time,
        blockers,
        warnings,
        estimate,
        command,
    })
}

fn unmeasured(error: &SampleError) -> Blocker {
    let hint = match error {
        SampleError::Busy | SampleError::Endless => "try again once the other measurement has ended",
        SampleError::Unknown => "`qmigrate migrate` measures while it moves the guest",
        SampleError::Window | SampleError::Call(_) => {
            "`qmigrate check SOURCE` looks at the guest in all other ways"
        }
    };
    Blocker::new(Code::Qmp, error.to_string(), hint)
}

/// The words that do what was found best, or with which something would do.
fn command(typed: &[String], estimate: &Estimate) -> Option<String> {
    let at = typed.iter().position(|word| word == "estimate")?;
    let mut words = vec!["qmigrate".to_owned(), "migrate".to_owned()];
    let cheapest = estimate.cheapest().map(|one| one.action);
    let widened = ["--max-downtime", "--max-time"];
    let mut rest = typed[at + 1..].iter();
    while let Some(word) = rest.next() {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        let is_dropped = name == "--link" || (cheapest.is_none() && widened.contains(&name));
        if is_dropped {
            if !word.contains('=') {
                rest.next();
            }
        } else if !matches!(name, "--json" | "-v" | "-vv" | "--verbose") {
            words.push(word.clone());
        }
    }
    let has = |flag: &str| typed.iter().any(|word| word == flag);
    match (cheapest, estimate.smallest) {
        (Some(Action::Wait | Action::Raise { .. }), _) => {}
        (Some(Action::Throttle { percent }), _) => {
            words.extend(["--allow".to_owned(), format!("throttle={percent}%")]);
        }
        (Some(Action::Pause), _) => words.extend(["--allow", "pause"].map(str::to_owned)),
        (Some(Action::NonLive), _) if has("--non-live") => {}
        (Some(Action::NonLive), _) => words.push("--non-live".to_owned()),
        (None, Some(pair)) => {
            words.extend(["--max-downtime".to_owned(), format!("{}ms", pair.max_downtime_ms)]);
            if typed.iter().any(|word| word.starts_with("--max-time")) {
                words.extend(["--max-time".to_owned(), format!("{}ms", pair.max_time_ms)]);
            }
        }
        (None, None) => return None,
    }
    Some(shell_words::join(words))
}

#[cfg(test)]
mod tests {
    use qmigrate::converge::estimate::{Fit, Pair, Prospected};

    use super::*;

    fn estimate(action: Option<Action>) -> Estimate {
        let prospects = action.map(|action| Prospected {
            action,
            fit: Fit::Fits,
            total_ms: None,
            blackout_ms: None,
            blackout_from_ms: None,
            blackout_to_ms: None,
            sent_bytes: None,
            lost_ms: None,
        });
        let smallest = Some(Pair { max_downtime_ms: 600, max_time_ms: 4500 });
        Estimate { prospects: prospects.into_iter().collect(), cheapest: action.map(|_| 0), smallest }
    }

    #[test]
    fn what_is_to_be_typed_is_what_was_typed_with_what_it_takes() {
        let typed = "./qmigrate -v estimate --link 1Gbit/s /run/vm.qmp --json --max-downtime=1s --qemu q";
        let typed: Vec<String> = typed.split(' ').map(str::to_owned).collect();
        for (action, expected) in [
            (Some(Action::Wait), "--max-downtime=1s --qemu q"),
            (Some(Action::Throttle { percent: 80 }), "--max-downtime=1s --qemu q --allow throttle=80%"),
            (Some(Action::Pause), "--max-downtime=1s --qemu q --allow pause"),
            (Some(Action::NonLive), "--max-downtime=1s --qemu q --non-live"),
            (None, "--qemu q --max-downtime 600ms"),
        ] {
            // By its words: a shell's quotes may stand around any of them.
            let line = command(&typed, &estimate(action)).unwrap();
            let expected = format!("qmigrate migrate /run/vm.qmp {expected}");
            assert_eq!(shell_words::split(&line).unwrap().join(" "), expected);
        }
        assert_eq!(command(&[], &estimate(None)), None);
    }
}
