//! One migration as the command runs it: history, orders, signals, control socket, report.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use qmigrate::check::Blocker;
use qmigrate::control::{Server, Watchers, keep};
use qmigrate::host::state_directory;
use qmigrate::migrate::history::{History, Witness};
use qmigrate::migrate::journal::{Begun, Journal, JournalError};
use qmigrate::migrate::order::{Commander, Orders, Request, orders};
use qmigrate::migrate::plan::Plan;
use qmigrate::record::{End, Outcome, Record, Warning};
use qmigrate::report::{JsonLines, Progress, shadow_lines, summary};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Hinted, refuse};

/// Where a migration is shown.
#[derive(Debug, Clone, Args)]
pub(crate) struct OutputArguments {
    /// One JSON object per line on standard output.
    #[arg(long)]
    pub(crate) json: bool,
    /// Writes the whole record to this file at the end.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

/// The file that the record goes to.
pub(crate) type Report = (PathBuf, File);

impl OutputArguments {
    /// Whether programs read.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Opens the report, if one is wanted.
    pub(crate) fn open_report(&self) -> anyhow::Result<Option<Report>> {
        let Some(path) = &self.report else { return Ok(None) };
        let file = File::create(path)
            .with_context(|| format!("the report {} cannot be written", path.display()))
            .map_err(|error| {
                Hinted::new(&error, "--report takes a file in a directory that this user may write to")
            })?;
        Ok(Some((path.clone(), file)))
    }
}

/// SIGINT, SIGTERM and SIGHUP, caught from the moment this is made, and acted on by a session.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn catch() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next SIGINT or SIGTERM; a closed terminal is none.
    pub(crate) async fn next(&mut self) -> &'static str {
        loop {
            return tokio::select! {
                _ = self.interrupt.recv() => "cancelled by Ctrl-C",
                _ = self.terminate.recv() => "cancelled by SIGTERM",
                _ = self.hangup.recv() => continue,
            };
        }
    }

    /// SIGINT and SIGTERM cancel, also when they came before there was anything to cancel; a closed terminal does not.
    fn cancel(mut self, commander: Commander) {
        tokio::spawn(async move {
            loop {
                let reason = self.next().await;
                if let Err(refusal) = commander.give(Request::Cancel(reason.to_owned())).await {
                    say!("not cancelled: {refusal}");
                }
            }
        });
    }
}

/// A migration under way.
pub(crate) struct Session {
    pub(crate) history: History,
    pub(crate) orders: Orders,
    pub(crate) journal: Journal,
    server: Option<Server>,
    report: Option<Report>,
}

impl Session {
    /// Opens everything that could fail before anything is touched.
    pub(crate) fn open(
        plan: &Plan,
        output: &OutputArguments,
        report: Option<Report>,
        signals: Signals,
        runtime: &Path,
    ) -> anyhow::Result<Self> {
        let journal = Journal::begin(&state_directory()?, Begun::of(plan)).map_err(unwritable)?;
        let record = Record::new(plan.id.clone(), plan.request(), jiff::Timestamp::now());
        Self::of(record, journal, output, report, signals, runtime).map_err(|(error, journal)| {
            // Nothing has begun: what is left of it is in nobody's way.
            let _ = journal.close();
            error
        })
    }

    /// The session of a migration that another engine has begun.
    pub(crate) fn of(
        record: Record,
        journal: Journal,
        output: &OutputArguments,
        report: Option<Report>,
        signals: Signals,
        runtime: &Path,
    ) -> Result<Self, (anyhow::Error, Journal)> {
        let watchers = Watchers::new();
        let mut witnesses: Vec<Box<dyn Witness>> =
            vec![Box::new(watchers.clone()), Box::new(Progress::new())];
        if output.json {
            witnesses.push(Box::new(JsonLines::new(std::io::stdout())));
        }
        let id = record.id.clone();
        let history = History::new(record, witnesses);
        let (commander, orders) = orders();
        signals.cancel(commander.clone());
        let server = Server::start(runtime, &id, history.shared(), commander, watchers);
        match server.with_context(|| format!("no control socket in {}", runtime.display())) {
            Ok(server) => Ok(Self { history, orders, journal, server: Some(server), report }),
            Err(error) => Err((error, journal)),
        }
    }

    /// Tells the end to all who want to know, and gives the exit code.
    pub(crate) async fn close(mut self, outcome: &Outcome) -> ExitCode {
        self.history.finish();
        let record = self.history.record().clone();
        if let Some((path, mut file)) = self.report.take() {
            let written = serde_json::to_writer_pretty(&file, &record).map_err(std::io::Error::from);
            if let Err(error) = written.and_then(|()| writeln!(file)) {
                say!("warning: the report {} was not written: {error}", path.display());
            }
        }
        // A refused migration is no part of a guest's history.
        if outcome.end != End::Refused
            && let Err(error) =
                state_directory().map_err(anyhow::Error::from).and_then(|at| Ok(keep(&at, &record)?))
        {
            say!("warning: {error:#}");
        }
        // Whoever comes from now on finds the record.
        if let Some(server) = self.server.take() {
            server.finish().await;
        }
        // The last of all: what an engine leaves that is killed before this, `recover` finds.
        if !outcome.open
            && let Err(error) = self.journal.close()
        {
            say!("warning: {:#}", anyhow::Error::from(error));
            say!(
                "hint: once that is mended, `qmigrate recover {}` closes it; until then it counts as open",
                record.id
            );
        }
        if outcome.end == End::Refused && !record.blockers.is_empty() {
            return refuse_all(&record.blockers);
        }
        let code = tell(outcome);
        for line in shadow_lines(&record) {
            say!("{line}");
        }
        code
    }
}

/// A journal that cannot be had, with what to do about it.
pub(crate) fn unwritable(error: JournalError) -> anyhow::Error {
    let blocker = Blocker::from(error);
    Hinted::new(&anyhow::anyhow!(blocker.message), blocker.hint.unwrap_or_default()).into()
}

/// Says all that stood in the way, each with what to do about it; what is to be done about several is said once.
fn refuse_all(blockers: &[Warning]) -> ExitCode {
    for (at, blocker) in blockers.iter().enumerate() {
        let hint = blocker.hint.as_deref();
        let is_next_ones_too = blockers.get(at + 1).is_some_and(|next| next.hint.as_deref() == hint);
        refuse(&blocker.message, hint.filter(|_| !is_next_ones_too));
    }
    ExitCode::from(End::Refused.exit_code())
}

/// Says how a migration ended, and gives the exit code.
pub(crate) fn tell(outcome: &Outcome) -> ExitCode {
    for line in summary(outcome) {
        let is_error = outcome.end == End::Refused && !line.starts_with("hint: ");
        say!("{}{line}", if is_error { "error: " } else { "" });
    }
    ExitCode::from(outcome.exit_code)
}
