//! A link that carries nothing any more while both sides live: the guest goes back whoever ends it, with one channel
//! and with several (where QEMU's own cancel waits for the link), and the next attempt works.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use qapi_qmp as words;
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::case::{Case, NEW, NEWEST, OLD, Version, arrives_with, set};
use crate::lab::{Ended, SOON, command, signal, until};

/// How many connections the stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channels {
    One,
    Several,
}

/// How the link dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// What is between the two takes nothing any more.
    OnTheWay,
    /// The destination does not read, and does nothing else either.
    AtItsEnd,
}

/// Who ends the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Signal(Signal),
    CancelCommand,
    TimeBudget,
    /// Nobody does: it must be noticed.
    Nobody,
}

/// One dead link.
#[derive(Debug, Clone, Copy)]
struct Play {
    version: Version,
    channels: Channels,
    death: Death,
    by: By,
}

/// All links that can die while memory is copied. The guest of 7.2 stands still meanwhile.
async fn while_streaming(test: &str, by: By) {
    for (version, channels) in [
        (OLD, Channels::Several),
        (NEW, Channels::One),
        (NEW, Channels::Several),
        (NEWEST, Channels::One),
        (NEWEST, Channels::Several),
    ] {
        for death in [Death::OnTheWay, Death::AtItsEnd] {
            Play { version, channels, death, by }.while_streaming(test).await;
        }
    }
}

async fn in_the_switchover(test: &str, by: By) {
    for version in [NEW, NEWEST] {
        for channels in [Channels::One, Channels::Several] {
            for death in [Death::OnTheWay, Death::AtItsEnd] {
                Play { version, channels, death, by }.in_the_switchover(test).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_ends_a_stream_that_stands_still() {
    while_streaming("sigint_ends_a_stream", By::Signal(Signal::SIGINT)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_stream_that_stands_still() {
    while_streaming("sigterm_ends_a_stream", By::Signal(Signal::SIGTERM)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_ends_a_stream_that_stands_still() {
    while_streaming("cancel_ends_a_stream", By::CancelCommand).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_budget_ends_a_stream_that_stands_still() {
    while_streaming("the_time_budget_ends_a_stream", By::TimeBudget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stands_still_is_noticed() {
    while_streaming("a_stream_that_stands_still_is_noticed", By::Nobody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_ends_a_switchover_that_stands_still() {
    in_the_switchover("sigint_ends_a_switchover", By::Signal(Signal::SIGINT)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_switchover_that_stands_still() {
    in_the_switchover("sigterm_ends_a_switchover", By::Signal(Signal::SIGTERM)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_ends_a_switchover_that_stands_still() {
    in_the_switchover("cancel_ends_a_switchover", By::CancelCommand).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_that_stands_still_is_noticed() {
    in_the_switchover("a_switchover_that_stands_still_is_noticed", By::Nobody).await;
}

impl Play {
    async fn while_streaming(self, test: &str) {
        let mut arguments = vec!["--max-bandwidth", "2MiB/s"];
        if self.by == By::TimeBudget {
            arguments.extend(["--max-time", "2s"]);
        }
        let Some((case, link)) = self.begin(test, &arguments, &[]).await else { return };
        case.until_it_streams().await;
        kill(link.as_ref(), &case);
        if matches!(self.by, By::Signal(_) | By::CancelCommand) {
            stands_still(&case).await;
        }
        let ended = self.end(case).await;
        let reasons: &[&str] = match self.by {
            // Sockets may have taken in the whole first pass: then it is seen to be too late a little earlier.
            By::TimeBudget => &["the time budget", "are too many for the last"],
            By::Nobody => &["the stream stood still"],
            By::Signal(_) | By::CancelCommand => &[""],
        };
        let message = ended.result()["message"].as_str().unwrap();
        assert!(reasons.iter().any(|reason| message.contains(reason)), "{self:?}: {ended:?}");
    }

    async fn in_the_switchover(self, test: &str) {
        // With the default the switchover would be over before somebody ends it.
        let arguments: &[&str] = if self.by == By::Nobody { &[] } else { &["--max-downtime", "20s"] };
        let stop = ["pause-before-switchover"];
        let Some((case, link)) = self.begin(test, arguments, &stop).await else { return };
        case.until(MigrationStatus::PreSwitchover).await;
        kill(link.as_ref(), &case);
        let state = words::MigrationStatus::pre_switchover;
        case.somebody.call(&words::migrate_continue { state }, SOON).await.unwrap();
        until("the source switches", async || {
            let asked = case.somebody.call_as::<MigrationInfo, _>(&words::query_migrate {}, A_MOMENT).await;
            // In the switchover its monitor may be silent.
            asked.is_err() || asked.is_ok_and(|info| info.status == Some(MigrationStatus::Device))
        })
        .await;
        self.end(case).await;
    }

    /// A migration through a relay, or to a destination that can be stopped, held no more. What is switched on behind
    /// the engine's back is so when it has set the source up.
    async fn begin(self, test: &str, arguments: &[&str], behind: &[&str]) -> Option<(Case, Option<Relay>)> {
        let lab = self.version.guest(test).await?;
        if self.channels == Channels::Several {
            set(&lab.somebody().await, &["multifd"], true).await;
        }
        let place = tempfile::Builder::new().prefix("qmd").tempdir().unwrap();
        let stream = place.path().join("stream");
        let incoming = match self.death {
            Death::OnTheWay => format!("unix:{}", stream.display()),
            Death::AtItsEnd => "tcp:127.0.0.1:0".to_owned(),
        };
        let all = [self.version.mode, &["--incoming", &incoming], arguments].concat();
        let mut case = Case::of(lab, "prepared", &all).await;
        let hold = case.engine.wait();
        let relay = (self.death == Death::OnTheWay).then(|| Relay::before(place, &stream));
        set(&case.somebody, behind, true).await;
        drop(hold);
        Some((case, relay))
    }

    /// Somebody ends it, the guest goes back, and the next attempt works.
    async fn end(self, case: Case) -> Ended {
        match self.by {
            By::Signal(by) => case.interrupt_by(by).await,
            By::CancelCommand => {
                let mut cancel = command(&["cancel", &case.lab.monitor()]);
                let output = tokio::task::spawn_blocking(move || cancel.output().unwrap()).await.unwrap();
                assert!(output.status.success(), "{self:?}: {output:?}");
            }
            By::TimeBudget | By::Nobody => {}
        }
        let (lab, ended) = case.back().await;
        arrives_with(&lab, self.version.mode).await;
        ended
    }
}

fn kill(link: Option<&Relay>, case: &Case) {
    match link {
        Some(relay) => relay.stop(),
        None => signal(case.lab.destination(), Signal::SIGSTOP),
    }
}

/// A monitor that answers does so within this.
const A_MOMENT: Duration = Duration::from_millis(200);

/// Waits until all that is between the two is full.
async fn stands_still(case: &Case) {
    let mut before = 0;
    until("the stream stands still", async || {
        tokio::time::sleep(A_MOMENT).await;
        let now = case.transferred().await;
        std::mem::replace(&mut before, now) == now
    })
    .await;
}

/// A relay in front of a socket; once it has stopped it keeps all connections and carries nothing, not even an end.
struct Relay {
    has_stopped: watch::Sender<bool>,
    _tasks: JoinSet<()>,
    _place: TempDir,
}

impl Relay {
    /// Takes the name of a socket, in a directory of its own, on which somebody listens.
    fn before(place: TempDir, path: &Path) -> Self {
        let behind = path.with_extension("behind");
        std::fs::rename(path, &behind).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let (has_stopped, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(relay(listener, behind, stopped));
        Self { has_stopped, _tasks: tasks, _place: place }
    }

    fn stop(&self) {
        self.has_stopped.send(true).unwrap();
    }
}

async fn relay(listener: UnixListener, behind: PathBuf, stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((front, _)) = listener.accept().await {
        let Ok(back) = UnixStream::connect(&behind).await else { continue };
        let (front, back) = (front.into_split(), back.into_split());
        connections.spawn(carry(front.0, back.1, stopped.clone()));
        connections.spawn(carry(back.0, front.1, stopped.clone()));
    }
}

async fn carry(
    mut from: tokio::net::unix::OwnedReadHalf,
    mut to: tokio::net::unix::OwnedWriteHalf,
    mut stopped: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        tokio::select! {
            biased;
            () = async { drop(stopped.wait_for(|&stopped| stopped).await) } => return std::future::pending().await,
            read = from.read(&mut bytes) => match read {
                Ok(length @ 1..) if to.write_all(&bytes[..length]).await.is_ok() => {}
                _ => return,
            },
        }
    }
}
