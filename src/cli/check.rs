//! `check`: all that stands in the way of moving a guest, at once.

use std::process::ExitCode;

use clap::Args;
use qmigrate::check::{Code, Findings, userfaultfd};
use qmigrate::host::runtime_directory;
use qmigrate::migrate::step::survey::{Survey, look};
use qmigrate::record::{End, MigrationId, SCHEMA, Warning};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::migrate::Choices;
use super::refuse;
use super::session::Signals;

/// Text for people is no wider.
const COLUMNS: usize = 80;

/// Tells all that stands in the way of moving a guest, and changes nothing; exits 0 if nothing does, else 2.
///
/// It looks where `migrate` looks before it begins, and takes the flags that decide.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    choices: Option<Choices>,
    /// Prints every code that `check` and `migrate` know, with its meaning.
    #[arg(long, exclusive = true)]
    list: bool,
    /// One JSON object per line on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        for code in Code::ALL {
            show!("{code:<18}  {}", code.meaning());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(choices) = arguments.choices else {
        return Ok(refuse("no guest is named", Some("qmigrate check SOURCE: its QMP socket, or pid:PID")));
    };
    let plan = match choices.plan(MigrationId::new(), &runtime_directory()?) {
        Ok(plan) => plan,
        Err(refused) => return Ok(refused),
    };
    let mut signals = Signals::catch()?;
    // What has been started to be asked ends when its future is dropped.
    let Survey { mut findings, source } = tokio::select! {
        survey = look(&plan) => survey,
        reason = signals.next() => return Ok(refuse(reason, None)),
    };
    if let Some(source) = source {
        findings.warnings.extend(source.rewritten.into_iter().flat_map(|rewritten| rewritten.warnings));
        if let Some(warning) = userfaultfd(&source.view.credentials) {
            findings.warn(warning);
        }
    }
    nameless(&mut findings, plan.id.as_str());
    let code = if findings.blockers.is_empty() { 0 } else { End::Refused.exit_code() };
    if arguments.json {
        for line in json_lines(&plan.typed, findings, code) {
            data!("{line}");
        }
    } else {
        show!("{}", text(findings).join("\n"));
    }
    Ok(ExitCode::from(code))
}

/// The name that this migration would have is another one each time.
fn nameless(findings: &mut Findings, id: &str) {
    let blockers = findings.blockers.iter_mut().map(|found| (&mut found.message, &mut found.hint));
    let warnings = findings.warnings.iter_mut().map(|found| (&mut found.message, &mut found.hint));
    for (message, hint) in blockers.chain(warnings) {
        *message = message.replace(id, "ID");
        *hint = hint.take().map(|hint| hint.replace(id, "ID"));
    }
}

/// One object for each finding, as `migrate --json` tells them, and one for the whole.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Blocker(Warning),
    Warning(Warning),
    Check { source: &'a str, blockers: usize, warnings: usize, exit_code: u8 },
}

/// A line with what every line carries.
#[derive(Serialize)]
struct Versioned<'a> {
    schema: u32,
    #[serde(flatten)]
    line: Line<'a>,
}

fn json_lines(source: &str, findings: Findings, exit_code: u8) -> Vec<String> {
    let (blockers, warnings) = (findings.blockers.len(), findings.warnings.len());
    let found = findings.blockers.into_iter().map(|blocker| Line::Blocker(blocker.into()));
    let lines = found.chain(findings.warnings.into_iter().map(Line::Warning));
    let whole = Line::Check { source, blockers, warnings, exit_code };
    let line = |line| serde_json::to_string(&Versioned { schema: SCHEMA, line }).ok();
    lines.chain([whole]).filter_map(line).collect()
}

/// For people: what stands in the way first, each with what to do about it.
fn text(findings: Findings) -> Vec<String> {
    let (blockers, warnings) = (findings.blockers.len(), findings.warnings.len());
    let mut lines = Vec::new();
    let mut tell = |kind: &str, found: Warning| {
        lines.extend(wrapped(&format!("{kind}: {} [{}]", found.message, found.code)));
        lines.extend(
            found
                .hint
                .iter()
                .flat_map(|hint| hint.lines())
                .flat_map(|hint| wrapped(&format!("hint: {hint}"))),
        );
    };
    for blocker in findings.blockers {
        tell("error", blocker.into());
    }
    for warning in findings.warnings {
        tell("warning", warning);
    }
    let number = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    lines.push(match (blockers, warnings) {
        (0, 0) => "nothing stands in the way".to_owned(),
        (0, _) => format!("{}: nothing stands in the way", number(warnings, "warning")),
        _ => format!(
            "{}, {}: this guest cannot be moved as it is",
            number(blockers, "blocker"),
            number(warnings, "warning")
        ),
    });
    lines
}

/// A line in as many as it takes; those after the first stand further in. A word that is too long stays whole: it may
/// be something to type.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(last) = lines.last_mut() else { break };
        if !last.trim().is_empty() && last.width() + 1 + word.width() > COLUMNS {
            lines.push(format!("  {word}"));
        } else {
            if !last.trim().is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use qmigrate::check::Blocker;

    use super::*;

    fn findings() -> Findings {
        let mut findings = Findings::default();
        findings.block(Blocker::new(Code::Colo, "word ".repeat(30), "first\nsecond"));
        findings.warn(Blocker::bare(Code::OlderQemu, "one"));
        findings
    }

    #[test]
    fn people_read_blockers_first_in_eighty_columns_and_what_it_comes_to() {
        let lines = text(findings());
        assert!(lines.iter().all(|line| line.width() <= COLUMNS), "{lines:?}");
        assert!(lines[0].starts_with("error: word word") && lines[1].starts_with("  word"), "{lines:?}");
        let rest = [
            "hint: first",
            "hint: second",
            "warning: one [older-qemu]",
            "1 blocker, 1 warning: this guest cannot be moved as it is",
        ];
        assert_eq!(lines[lines.len() - 4..], rest);
        assert_eq!(text(Findings::default()), ["nothing stands in the way"]);
        assert_eq!(wrapped(&"x".repeat(100)).len(), 1, "what may have to be typed stays whole");
    }

    #[test]
    fn programs_read_one_object_per_finding_and_one_for_the_whole() {
        let lines = json_lines("/run/vm.qmp", findings(), 2);
        assert!(
            lines[0].starts_with(r#"{"schema":1,"type":"blocker","code":"colo","message":"word "#),
            "{lines:?}"
        );
        assert_eq!(
            lines[1],
            r#"{"schema":1,"type":"warning","code":"older-qemu","message":"one","hint":null}"#
        );
        let whole =
            r#"{"schema":1,"type":"check","source":"/run/vm.qmp","blockers":1,"warnings":1,"exit_code":2}"#;
        assert_eq!(lines[2], whole);
    }
}
