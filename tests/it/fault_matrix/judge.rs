//! What must be true of a cell when its engine has ended: seen from outside, not told.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use qapi_qmp as words;
use qmigrate::lab::subject::SECOND_MONITOR;
use qmigrate::observe::heartbeat::Sequence;
use qmigrate::qmp::words::{RunState, StatusInfo};
use qmigrate::qmp::{Address, Client, Deadlines, Leg};
use qmigrate::record::MigrationId;
use serde_json::Value;

use super::cell::Cell;
use super::table::{Before, End, Fault, Where};
use crate::audit::{Audit, Thing};
use crate::lab::{Ended, Lab, SOON, lives, run, settings, until};

/// What is about to happen by itself has happened by then.
const SETTLED: Duration = Duration::from_secs(10);

/// What a QEMU does, seen from outside.
#[derive(Debug, Clone, PartialEq)]
enum Sight {
    Gone,
    Running,
    Standing(RunState),
    Mute(String),
}

impl Sight {
    fn is_silent(&self) -> bool {
        matches!(self, Self::Gone | Self::Standing(_))
    }
}

fn is_true(end: End, source: &Sight, destination: &Sight) -> bool {
    let stands = |sight: &Sight| matches!(sight, Sight::Standing(_));
    let (runs, is_gone) = (Sight::Running, Sight::Gone);
    let panicked = Sight::Standing(RunState::GuestPanicked);
    match end {
        End::Refused | End::Back => *source == runs && *destination == is_gone,
        End::There => *source == is_gone && *destination == runs,
        End::TherePaused => *source == is_gone && stands(destination),
        End::TherePanicked => *source == is_gone && *destination == panicked,
        End::Crashed => stands(source) && *destination == panicked,
        End::Remainder => source.is_silent() && *destination == runs,
        // QEMU may have dropped a `cont` that it had not read when its client went.
        End::Undecided(Where::Destination) => {
            source.is_silent() && (*destination == runs || stands(destination))
        }
        End::Lost => source.is_silent() && *destination == is_gone,
        End::Undecided(Where::Source) => *source == runs && destination.is_silent(),
        End::BackPaused | End::Undecided(Where::Nowhere) => stands(source) && *destination == is_gone,
    }
}

pub(super) struct Judge<'a> {
    pub(super) cell: &'a Cell,
    pub(super) lab: Lab,
    pub(super) audit: Audit,
    /// The engine's state directory.
    pub(super) state: PathBuf,
    pub(super) migration: MigrationId,
    pub(super) source: i32,
    pub(super) destination: i32,
    pub(super) deviations: Vec<String>,
}

impl Judge<'_> {
    pub(super) async fn judge(
        mut self,
        ended: &Ended,
        before: &(Value, Value),
    ) -> (Option<End>, Vec<String>) {
        let ends = self.ends(ended);
        let Some(end) = self.truth(&ends).await else {
            self.deviations.push(format!("it said: {}", ended.stderr));
            self.never_two();
            return (None, self.deviations);
        };
        self.never_two();
        let told = end;
        let is_open = ended.result()["open"] == true || self.cell.fault == Fault::StateReadOnly;
        let Some(end) = self.settled(told, is_open).await else { return (Some(told), self.deviations) };
        self.nothing_left(end);
        if matches!(end, End::Refused | End::Back | End::BackPaused) {
            self.as_before(before).await;
        }
        if !matches!(end, End::Lost | End::Crashed) && self.deviations.is_empty() {
            self.again(end, ended).await;
        }
        (Some(told), self.deviations)
    }

    /// The source's settings and run state are what they were.
    async fn as_before(&mut self, before: &(Value, Value)) {
        let somebody = self.lab.somebody().await;
        let now = settings(&somebody).await;
        self.hold(now == *before, || format!("the source's settings were {before:?} and are {now:?}"));
        if self.cell.before == Before::Paused {
            let state =
                somebody.call_as::<StatusInfo, _>(&words::query_status {}, SOON).await.unwrap().status;
            // Up to 7.2 QEMU itself takes a paused source there when a migration that had begun fails.
            let is_postmigrate = self.cell.version.name == "7.2" && state == RunState::PostMigrate;
            self.hold(state == RunState::Paused || is_postmigrate, || {
                format!("it was paused and is {state}")
            });
        }
    }

    /// What is left open `recover` settles, now that the fault is over.
    async fn settled(&mut self, told: End, is_open: bool) -> Option<End> {
        if !is_open {
            return Some(told);
        }
        let recovered = run(self.lab.command(&["recover", self.migration.as_str(), "--json"]));
        let end = match recovered.code {
            0 => End::There,
            1 if self.cell.before == Before::Paused => End::BackPaused,
            1 => End::Back,
            4 => {
                // It may have run on a destination that is gone; what the hint offers is taken.
                let client = self.connect(self.source).await.unwrap();
                client.call(&words::cont {}, SOON).await.unwrap();
                End::Back
            }
            _ => {
                self.deviations.push(format!("not recovered: {recovered:?}"));
                return None;
            }
        };
        let is_same = matches!(told, End::Undecided(_) | End::Refused | End::Remainder) || told == end;
        self.hold(is_same, || format!("{told} was told, and recovered is {end}: {recovered:?}"));
        let end = self.truth(&[end]).await;
        self.never_two();
        end
    }

    fn hold(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.deviations.push(otherwise());
        }
    }

    /// The promised ends that the command tells.
    fn ends(&mut self, ended: &Ended) -> Vec<End> {
        let results = ended.entries("result");
        let Some(result) = results.first() else {
            self.deviations.push(format!("no result: {ended:?}"));
            return Vec::new();
        };
        let told = result["guest"].as_str().unwrap_or_default();
        let fits = |end: &End| end.exit_code() == ended.code && end.guest().contains(&told);
        let ends: Vec<End> = self.cell.ends.iter().copied().filter(fits).collect();
        self.hold(!ends.is_empty(), || {
            format!("exit {}, guest {told}: {}", ended.code, result["message"].as_str().unwrap_or_default())
        });
        self.hold(result["exit_code"] == ended.code, || format!("exit {}: {result}", ended.code));
        if ended.code != 2 {
            self.recorded(ended, result);
        }
        if self.cell.fault == Fault::StateReadOnly {
            let hint = format!("hint: once that is mended, `qmigrate recover {}`", self.migration);
            self.hold(ended.stderr.contains(&hint), || format!("it is left open, unsaid: {}", ended.stderr));
        }
        if self.cell.fault == Fault::GuestPanics && ends.contains(&End::TherePanicked) {
            let says_so = result["message"].as_str().is_some_and(|text| text.contains("panicked"));
            self.hold(says_so, || format!("it does not say that the guest has panicked: {result}"));
        }
        ends
    }

    /// The record says the same; where it could not be kept, that was told.
    fn recorded(&mut self, ended: &Ended, result: &Value) {
        let path = self.state.join("records").join(format!("{}.json", self.migration));
        let record: Option<Value> =
            std::fs::read(path).ok().map(|record| serde_json::from_slice(&record).unwrap_or_default());
        let is_told = ended.stderr.contains("warning: the records in ");
        if self.cell.state().is_some() {
            self.hold(record.is_none() && is_told, || format!("no record, unsaid: {}", ended.stderr));
            return;
        }
        let outcome = &record.unwrap_or_default()["outcome"];
        let same = ["exit_code", "guest", "message"].iter().all(|key| outcome[key] == result[key]);
        self.hold(same, || format!("the record says {outcome}"));
    }

    /// The one that is true: what the two QEMUs do is what it says.
    async fn truth(&mut self, ends: &[End]) -> Option<End> {
        let start = Instant::now();
        loop {
            let (source, destination) = (self.look(self.source).await, self.look(self.destination).await);
            if let Some(end) = ends.iter().find(|end| is_true(**end, &source, &destination)) {
                if source == Sight::Running {
                    self.lab.beats_on(self.source);
                } else if destination == Sight::Running {
                    self.lab.beats_on(self.destination);
                }
                return Some(*end);
            }
            if ends.is_empty() || start.elapsed() > SETTLED {
                self.deviations.push(format!("the source is {source:?}, the destination {destination:?}"));
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where a QEMU's second monitor is: beside the guest's own until it takes over the name.
    fn monitors(&self) -> [PathBuf; 2] {
        let directory = self.lab.directory.path();
        [directory.join(SECOND_MONITOR), self.private().join(SECOND_MONITOR)]
    }

    fn private(&self) -> PathBuf {
        self.lab.directory.path().join(format!(".qmigrate-{}", self.migration))
    }

    async fn connect(&self, pid: i32) -> Option<Client> {
        let listens = |path: &&PathBuf| qmigrate::host::listening_process(path) == Some(pid);
        let path = self.monitors().iter().find(listens).cloned()?;
        Client::connect(&Address::unix(path).ok()?, Leg::Source, Deadlines::default()).await.ok()
    }

    async fn look(&self, pid: i32) -> Sight {
        if !lives(pid) {
            return Sight::Gone;
        }
        let Some(client) = self.connect(pid).await else { return Sight::Mute("no monitor".to_owned()) };
        match client.call_as::<StatusInfo, _>(&words::query_status {}, SOON).await {
            Ok(StatusInfo { status: RunState::Running, .. }) => Sight::Running,
            Ok(status) => Sight::Standing(status.status),
            Err(error) => Sight::Mute(error.to_string()),
        }
    }

    /// At most one ran at every instant, by the guest's own heart.
    fn never_two(&mut self) {
        let observer = &self.lab.subject.observer;
        let ran = observer.heart(self.destination).is_some_and(|heart| heart.beats > 0);
        if !ran {
            return;
        }
        let handover = observer.handover(self.source, self.destination);
        // A guest that was reset counts its ticks anew, perhaps only there.
        let goes_on = |sequence| sequence == Sequence::Continuous || self.cell.fault == Fault::GuestResets;
        let is_one =
            handover.as_ref().is_ok_and(|handover| goes_on(handover.sequence) && handover.overlap.is_none());
        self.hold(is_one, || format!("two ran: {handover:?}"));
    }

    /// Nothing is there that was not before, but what the end speaks of.
    fn nothing_left(&mut self, end: End) {
        let names_are_kept = matches!(end, End::Remainder | End::Crashed);
        let runtime = qmigrate::host::runtime_directory().unwrap().join(self.migration.as_str());
        let is_known = |thing: &Thing| match thing {
            Thing::Process(pid) => *pid == self.destination && end != End::Lost,
            Thing::File(path) => {
                names_are_kept && (path.starts_with(self.private()) || path.starts_with(&runtime))
            }
        };
        let left: Vec<Thing> =
            self.audit.left(&self.migration).into_iter().filter(|thing| !is_known(thing)).collect();
        self.hold(left.is_empty(), || format!("left behind: {left:?}"));
    }

    /// The next attempt succeeds, and every byte of the guest is there.
    async fn again(&mut self, end: End, first: &Ended) {
        let (at, home) = (self.lab.destination(), self.lab.subject.monitor.clone());
        let from = match end {
            End::Refused | End::Back | End::BackPaused => self.source,
            _ => at,
        };
        match end {
            // As the hint says; one that has panicked goes on after it.
            End::BackPaused | End::TherePaused | End::TherePanicked => {
                let client = self.lab.subject.connect().await.unwrap();
                client.call(&words::cont {}, SOON).await.unwrap();
            }
            // What the hint says: the source is ended by hand.
            End::Remainder => {
                if let Some(client) = self.connect(self.source).await {
                    let _ = client.call(&words::quit {}, SOON).await;
                }
                until("the source has ended", async || !lives(self.source)).await;
                let address = first.entries("destination")[0]["qmp"].as_str().unwrap().to_owned();
                self.lab.subject.monitor = address.parse().unwrap();
                // Only where it stands still does this change anything.
                let client = self.lab.subject.connect().await.unwrap();
                client.call(&words::cont {}, SOON).await.unwrap();
            }
            _ => {}
        }
        let mut arguments = vec!["--max-downtime", "20s"];
        if self.cell.version.non_live {
            arguments.push("--non-live");
        }
        let again = self.lab.migrate(&arguments);
        if again.code != 0 {
            self.deviations.push(format!("the second migration: exit {}: {}", again.code, again.stderr));
            return;
        }
        // It has its own name again.
        self.lab.subject.monitor = home;
        let to = self.lab.destination();
        self.lab.beats_on(to);
        self.lab.never_two(from, to);
        // A guest that was reset counts its ticks anew.
        if self.cell.fault == Fault::GuestResets {
            let client = self.lab.subject.connect().await.unwrap();
            self.lab.subject.verify(&client).await.unwrap();
        } else {
            self.lab.prove().await;
        }
    }
}
