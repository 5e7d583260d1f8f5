//! One cell: a guest, a fault, an end, and everything that must be true of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use qapi_qmp as words;
use qmigrate::guest::Accelerator;
use qmigrate::host::state_directory;
use qmigrate::lab::subject::Board;
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus};
use qmigrate::record::MigrationId;

use super::fault::{Scene, Undo, When};
use super::judge::Judge;
use super::state::{Kind, StateDirectory};
use super::table::{Before, End, Fault, Moment};
use crate::audit::Audit;
use crate::lab::{Ended, Held, Lab, SOON, run, settings, signal, until};

/// An engine tries for 30 s what may still come right, and needs a few more to clear up.
const ENGINE_WITHIN: Duration = Duration::from_secs(90);

/// Which QEMU, and how its guest is moved.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) name: &'static str,
    pub(super) qemu: PathBuf,
    /// TCG before 9.0 loses writes of a guest that is moved live.
    pub(super) non_live: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) version: Version,
    pub(super) before: Before,
    pub(super) fault: Fault,
    pub(super) moment: Moment,
    pub(super) ends: &'static [End],
}

/// What was seen of a cell.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) cell: Cell,
    pub(super) end: Option<End>,
    pub(super) took: Duration,
    pub(super) deviations: Vec<String>,
}

impl Cell {
    /// What it is called, here and in `QMIGRATE_CELLS`.
    pub(super) fn name(&self) -> String {
        let before = if self.before == Before::Paused { "+paused" } else { "" };
        format!("{:?}@{:?}{before}", self.fault, self.moment)
    }

    /// What is done to the engine's state directory.
    pub(super) fn state(&self) -> Option<Kind> {
        match self.fault {
            Fault::StateFull => Some(Kind::Full),
            Fault::StateReadOnly => Some(Kind::ReadOnly),
            _ => None,
        }
    }

    /// Plays it in a thread and a runtime of its own, so that a failed assertion is this cell's alone.
    pub(super) fn run(self, number: u64) -> Verdict {
        let (start, cell) = (Instant::now(), self.clone());
        let played = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(cell.play(number))
        });
        let (end, deviations) = played.join().unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            (None, vec![text.to_owned()])
        });
        Verdict { cell: self, end, took: start.elapsed(), deviations }
    }

    async fn play(self, number: u64) -> (Option<End>, Vec<String>) {
        let scratch = tempfile::Builder::new().prefix("qmf").tempdir().unwrap();
        let migration = MigrationId::from_number(u64::from(std::process::id()) << 32 | number);
        let own = self.state().map(|kind| StateDirectory::make(kind, scratch.path()).unwrap());
        let state = own.as_ref().map_or_else(|| state_directory().unwrap(), |own| own.path().to_owned());
        let mut lab = self.start(scratch.path()).await;
        lab.prefix = own.as_ref().map(StateDirectory::prefix).unwrap_or_default();
        let somebody = lab.somebody().await;
        if self.before == Before::Paused {
            somebody.call(&words::stop {}, SOON).await.unwrap();
        }
        let before = settings(&somebody).await;
        let audit = Audit::before_with_state(lab.directory.path(), &state);

        let mut engine = self.begin(&lab, &migration, scratch.path());
        let hold = engine.wait();
        let scene = Scene {
            lab: &lab,
            somebody: &somebody,
            migration: &migration,
            moment: self.moment,
            engine: engine.child.id().try_into().unwrap(),
            source: lab.source(),
            destination: lab.destination(),
            scratch: scratch.path(),
            state: own.as_ref(),
        };
        self.reach(&scene).await;
        let (undo, when) = scene.strike(self.fault).await;
        if self.moment == Moment::Switchover && self.fault != Fault::DestinationStopped {
            Undo::Continue(scene.destination).perform();
        }
        drop(hold);
        let ended = match when {
            When::After(delay) => {
                let undone = tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    tokio::task::spawn_blocking(|| undo.perform()).await.unwrap();
                });
                let ended = end(engine).await;
                undone.await.unwrap();
                ended
            }
            When::AtTheEnd => {
                let ended = end(engine).await;
                undo.perform();
                ended
            }
        };
        let (source, destination) = (scene.source, scene.destination);
        drop(somebody);
        let mut deviations = Vec::new();
        let ended = if self.fault == Fault::EngineKilled {
            recovered(&lab, &migration, &mut deviations)
        } else {
            ended
        };
        let judge = Judge { cell: &self, lab, audit, state, migration, source, destination, deviations };
        judge.judge(&ended, &before).await
    }

    /// A guest that rewrites little, so that it arrives soon; one that rewrites much where the final copy is to take
    /// a while.
    async fn start(&self, scratch: &Path) -> Lab {
        let more = match self.fault {
            Fault::DiskLocked => {
                let disk = scratch.join("disk");
                std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
                let image =
                    format!("driver=raw,node-name=disk,file.driver=file,file.filename={}", disk.display());
                format!("\"$@\" -blockdev {image} -device virtio-blk-pci,drive=disk")
            }
            Fault::DestinationRefuses => "\"$@\" -serial null".to_owned(),
            Fault::GuestPanics => "\"$@\" -device pvpanic -action panic=pause".to_owned(),
            _ => String::new(),
        };
        let qemu = if more.is_empty() {
            self.version.qemu.clone()
        } else {
            script(&scratch.join("source"), &format!("exec '{}' {more}", self.version.qemu.display()))
        };
        let board = Board::newest(Accelerator::Tcg);
        if self.moment == Moment::Switchover && self.fault != Fault::DestinationRefuses {
            Lab::start_on(&qemu, board, 48, None).await
        } else {
            Lab::start_on(&qemu, board, 16, Some("4MiB/s")).await
        }
    }

    fn begin(&self, lab: &Lab, migration: &MigrationId, scratch: &Path) -> Held {
        let mut arguments = vec!["--detached".to_owned(), migration.to_string()];
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
        if self.version.non_live {
            add(&["--non-live"]);
        }
        let mut hold = self.moment.hold();
        match self.moment {
            _ if self.fault == Fault::DestinationRefuses => {
                // Nobody waits for the refusal.
                hold = "prepared";
                let memory = format!("{}M", lab.subject.machine.memory.bytes() >> 20);
                let change = if self.moment == Moment::Streaming {
                    format!("{memory}) word=48M ;;")
                } else {
                    "-serial | null) continue ;;".to_owned()
                };
                let lines = format!(
                    "for word; do shift; case $word in {change} esac; set -- \"$@\" \"$word\"; done\nexec '{}' \"$@\"",
                    self.version.qemu.display()
                );
                let qemu = script(&scratch.join("destination"), &lines);
                // The engine would find it before anything is sent.
                add(&["--unsafe", "--qemu", qemu.to_str().unwrap()]);
            }
            Moment::Streaming => {
                let goes_on = |end: &End| matches!(end, End::There | End::TherePaused | End::TherePanicked);
                // These two strike at its end.
                let is_late = matches!(self.fault, Fault::DiskLocked | Fault::StateReadOnly);
                let is_sent_whole = is_late || self.ends.iter().any(goes_on);
                add(&["--max-bandwidth", if is_sent_whole { "8MiB/s" } else { "2MiB/s" }]);
            }
            Moment::Switchover => add(&["--max-downtime", "1s"]),
            _ => {}
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        lab.migrate_held(hold, &arguments)
    }

    /// Waits until the QEMUs too are where the engine is held.
    async fn reach(&self, scene: &Scene<'_>) {
        match self.moment {
            Moment::Streaming if self.fault != Fault::DestinationRefuses => {
                until("the stream runs", async || {
                    let asked = scene.somebody.call_as(&words::query_migrate {}, SOON).await;
                    let info: MigrationInfo = asked.unwrap();
                    info.status == Some(MigrationStatus::Active)
                })
                .await;
            }
            // It must still let somebody in.
            Moment::Switchover if self.fault == Fault::DestinationControlCut => {}
            Moment::Switchover => signal(scene.destination, Signal::SIGSTOP),
            // Until what was heard of the destination last is no sign of life any more.
            Moment::Armed => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => {}
        }
    }
}

/// What has been left by an engine that was killed is open until it is recovered, and then is not.
fn recovered(lab: &Lab, migration: &MigrationId, deviations: &mut Vec<String>) -> Ended {
    let mut hold = |is_open: bool| {
        let list = run(lab.command(&["recover", "--list", "--json"]));
        let own = list.lines.iter().find(|line| line["id"] == migration.as_str());
        if own.is_some() != is_open || own.is_some_and(|own| own["engine_lives"] != false) {
            deviations.push(format!("it is to be listed as open: {is_open}; the list: {list:?}"));
        }
    };
    hold(true);
    let ended = run(lab.command(&["recover", migration.as_str(), "--json"]));
    hold(false);
    ended
}

/// Waits for the engine's end, which must come.
async fn end(engine: Held) -> Ended {
    let pid = engine.child.id().try_into().unwrap();
    let mut ended = tokio::task::spawn_blocking(|| engine.end());
    if let Ok(ended) = tokio::time::timeout(ENGINE_WITHIN, &mut ended).await {
        return ended.unwrap();
    }
    signal(pid, Signal::SIGKILL);
    panic!("the engine does not end: {:?}", ended.await.unwrap());
}

/// A program that becomes another one with other words.
fn script(path: &Path, lines: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}
