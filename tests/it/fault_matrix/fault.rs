//! Faults, made for real.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use qapi_qmp as words;
use qmigrate::lab::subject::SECOND_MONITOR;
use qmigrate::qmp::{CallError, Client, Deadlines, Leg};
use qmigrate::record::MigrationId;

use super::state::{Closed, Kind, StateDirectory};
use super::table::{Fault, Moment};
use crate::lab::{Lab, SOON, kill_for_certain, signal};

/// Longer than a blackout may last, and shorter than an answer is waited for at the end (5 s).
const A_WHILE: Duration = Duration::from_millis(3500);
/// Until long after the guest was to run there; a retreat is tried for 30 s.
const LOCKED_FOR: Duration = Duration::from_secs(6);
/// A command that QEMU has not answered within this hangs.
const HANGS: Duration = Duration::from_millis(200);

/// Writes the word "panicked" to the port of pvpanic.
const PANIC: &str = "o /b 0x505 1";
/// Writes "sleep in S5" to the port of ACPI's power management where `SeaBIOS` has put it.
const POWER_OFF: &str = "o /h 0x604 0x2000";

/// Where a fault strikes.
pub(super) struct Scene<'a> {
    pub(super) lab: &'a Lab,
    /// Another client of the source's, connected before anything moved: in the blackout nobody is let in.
    pub(super) somebody: &'a Client,
    pub(super) migration: &'a MigrationId,
    pub(super) moment: Moment,
    pub(super) engine: i32,
    pub(super) source: i32,
    pub(super) destination: i32,
    /// Outside the guest's directory.
    pub(super) scratch: &'a Path,
    /// The engine's own, if it has one.
    pub(super) state: Option<&'a StateDirectory>,
}

/// What is undone later.
pub(super) enum Undo {
    Nothing,
    Continue(i32),
    /// Reads what the source writes into a pipe.
    Read(PathBuf),
    Unlock(File),
    LetGo(UnixStream),
    Open(Closed),
}

/// When it is undone.
pub(super) enum When {
    /// So long after the engine goes on.
    After(Duration),
    /// When the engine has ended.
    AtTheEnd,
}

impl Undo {
    pub(super) fn perform(self) {
        match self {
            Self::Nothing => {}
            // It may have been killed meanwhile.
            Self::Continue(pid) => {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
            }
            Self::Read(path) => drop(std::fs::read(path)),
            Self::Unlock(file) => drop(file),
            Self::LetGo(stream) => drop(stream),
            Self::Open(closed) => drop(closed),
        }
    }
}

impl Scene<'_> {
    /// The second monitor of the destination.
    fn destination_monitor(&self) -> PathBuf {
        self.lab.directory.path().join(format!(".qmigrate-{}", self.migration)).join(SECOND_MONITOR)
    }

    async fn at_destination(&self) -> Client {
        let address = format!("unix:{}", self.destination_monitor().display()).parse().unwrap();
        Client::connect(&address, Leg::Destination, Deadlines::default()).await.unwrap()
    }

    /// What another client wants of the source; in the blackout that is answered only after it.
    async fn asks<C: qapi::Command>(&self, command: C) {
        let reply = self.somebody.send(&command);
        if self.moment == Moment::Switchover {
            tokio::spawn(reply.within(SOON));
        } else {
            // A QEMU that quits may not answer.
            let _ = reply.within(SOON).await;
        }
    }

    /// What the guest would write to a port of the source.
    async fn writes(&self, line: &str) {
        self.asks(writing(line)).await;
    }

    fn close_state(&self, kind: Kind) -> (Undo, When) {
        (Undo::Open(self.state.unwrap().close(kind).unwrap()), When::AtTheEnd)
    }

    pub(super) async fn strike(&self, fault: Fault) -> (Undo, When) {
        let nothing = (Undo::Nothing, When::AtTheEnd);
        match fault {
            Fault::DestinationKilled => kill_for_certain(self.destination).await,
            Fault::DestinationStopped => {
                signal(self.destination, Signal::SIGSTOP);
                // What was heard of it last is no sign of life any more.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return (Undo::Continue(self.destination), When::AtTheEnd);
            }
            // It was started so.
            Fault::DestinationRefuses => {}
            Fault::DiskLocked => {
                return (Undo::Unlock(lock(&self.scratch.join("disk"))), When::After(LOCKED_FOR));
            }
            Fault::SourceKilled => kill_for_certain(self.source).await,
            Fault::SourceHung => return (self.hang().await, When::After(A_WHILE)),
            Fault::SourceStopped => {
                signal(self.source, Signal::SIGSTOP);
                return (Undo::Continue(self.source), When::After(A_WHILE));
            }
            Fault::EngineKilled => signal(self.engine, Signal::SIGKILL),
            Fault::StateFull => return self.close_state(Kind::Full),
            Fault::StateReadOnly => return self.close_state(Kind::ReadOnly),
            Fault::Sigterm => self.interrupt(Signal::SIGTERM).await,
            Fault::Sigint => self.interrupt(Signal::SIGINT).await,
            Fault::StreamCut => {
                let cut = yank(self.somebody, words::YankInstance::migration).await;
                // Once it has completed there is no stream any more.
                let is_over = self.moment == Moment::Switchover
                    && cut.as_ref().is_err_and(|error| error.to_string().contains("Instance not found"));
                assert!(cut.is_ok() || is_over, "{cut:?}");
            }
            Fault::SourceControlCut => yank(self.somebody, first_monitor()).await.unwrap(),
            Fault::SourceControlTaken => {
                // It waits in line, and is next.
                let path = self.lab.directory.path().join("qmp");
                let next = UnixStream::connect(path).unwrap();
                yank(self.somebody, first_monitor()).await.unwrap();
                return (Undo::LetGo(next), When::AtTheEnd);
            }
            Fault::DestinationControlCut => {
                yank(&self.at_destination().await, first_monitor()).await.unwrap();
            }
            Fault::GuestResets => self.asks(words::system_reset {}).await,
            Fault::GuestPowersOff => self.writes(POWER_OFF).await,
            Fault::GuestQuits => self.asks(words::quit {}).await,
            Fault::GuestPanics if self.moment == Moment::Arrived => {
                self.at_destination().await.call(&writing(PANIC), SOON).await.unwrap();
            }
            Fault::GuestPanics => self.writes(PANIC).await,
            Fault::SomebodyStops => self.asks(words::stop {}).await,
            Fault::SomebodyCancels => self.asks(words::migrate_cancel {}).await,
            Fault::SomebodySetsLimits => {
                let limits = words::MigrateSetParameters {
                    max_bandwidth: Some(24 << 20),
                    downtime_limit: Some(250),
                    ..words::MigrateSetParameters::default()
                };
                self.asks(words::migrate_set_parameters(limits)).await;
            }
        }
        nothing
    }

    async fn interrupt(&self, by: Signal) {
        signal(self.engine, by);
        // Until it has been taken in, and what was heard of the destination last is no sign of life any more.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Makes the source's main loop open a pipe for writing, which lasts until somebody reads.
    async fn hang(&self) -> Undo {
        let pipe = self.scratch.join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let filename = pipe.display().to_string();
        let reply = self.somebody.send(&words::pmemsave { val: 0, size: 1, filename });
        assert!(reply.within(HANGS).await.is_err(), "the source hangs");
        Undo::Read(pipe)
    }
}

/// The monitor's command that writes to a port.
fn writing(line: &str) -> words::human_monitor_command {
    words::human_monitor_command { command_line: line.to_owned(), cpu_index: None }
}

/// The first monitor on a command line, as QEMU calls it.
fn first_monitor() -> words::YankInstance {
    words::YankInstance::chardev(words::YankInstanceChardev { id: "compat_monitor0".to_owned() })
}

async fn yank(client: &Client, instance: words::YankInstance) -> Result<(), CallError> {
    let answer = client.send_out_of_band(&words::yank { instances: vec![instance] }).within(SOON).await;
    answer.map(drop)
}

/// Locks a raw image so that nobody may begin to write to it: byte 201 is QEMU's "nobody else writes".
fn lock(image: &Path) -> File {
    let file = File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(image).unwrap();
    let lock = libc::flock {
        l_type: i16::try_from(libc::F_RDLCK).unwrap(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
        l_start: 201,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    file
}
