//! A guest to experiment with: started, looked at, ended.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qapi_qmp as words;

use crate::guest::image::MemoryFile;
use crate::guest::{
    Accelerator, Corruption, GuestState, ImageError, Machine, NotVerifiable, Proof, StateError, Verifier,
    Workload, memfd,
};
use crate::host::{Credentials, Launch, Life, Output, ProcessHandle, launch};
use crate::observe::heartbeat::{Observer, ObserverError};
use crate::qemu::twin::last_words;
use crate::qmp::{Address, AddressError, CallError, Client, ConnectError, Deadlines, Leg};

/// A first beat may take seconds where KVM itself is emulated.
const FIRST_BEAT_WITHIN: Duration = Duration::from_secs(30);
/// Filling 4 GiB under TCG takes 9 s; under an emulated KVM it takes minutes.
const FILLED_WITHIN: Duration = Duration::from_secs(300);
/// Memory is read in pieces, so that a big guest needs no big file.
const PIECE_BYTES: u64 = 64 << 20;
/// A piece is written to a file by QEMU; a slow disk takes a while.
const PIECE_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The monitor for whoever wants to meddle, in the subject's directory.
pub const SECOND_MONITOR: &str = "second-qmp";

/// An experiment's guest cannot be had, or cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// Its image cannot be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its heart cannot be observed.
    #[error(transparent)]
    Observer(#[from] ObserverError),
    /// Its QEMU cannot be started.
    #[error("{} cannot be started", qemu.display())]
    Start {
        /// The QEMU.
        qemu: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its heart never beat.
    #[error("the guest's heart did not beat within {} s; QEMU said: {words}", FIRST_BEAT_WITHIN.as_secs())]
    NoBeat {
        /// What its QEMU wrote.
        words: String,
    },
    /// Its QEMU has ended.
    #[error("the guest's QEMU ended as it started; it said: {words}")]
    Ended {
        /// What it wrote.
        words: String,
    },
    /// Its monitor cannot be named.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Its monitor cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Its monitor says no.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Its memory cannot be read.
    #[error("the guest's memory cannot be read through {}", path.display())]
    Memory {
        /// The file it was to be in.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its state block is not what the guest writes.
    #[error(transparent)]
    State(#[from] StateError),
    /// It has not filled its working set in time.
    #[error("the guest has not filled its working set within {} s", FILLED_WITHIN.as_secs())]
    NotFilled,
    /// It is not in a state in which its memory can be held against anything.
    #[error(transparent)]
    NotVerifiable(#[from] NotVerifiable),
    /// Its memory is not what it must be.
    #[error(transparent)]
    Corruption(#[from] Corruption),
}

/// What a guest is started on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Board<'a> {
    /// The machine type: a versioned one where QEMUs of several versions are to have the guest.
    pub machine: &'a str,
    /// Who executes it.
    pub accelerator: Accelerator,
    /// Further options and their values: devices that the guest takes no notice of.
    pub more: &'a [&'a str],
}

impl Board<'_> {
    /// The newest machine that a QEMU has.
    pub fn newest(accelerator: Accelerator) -> Self {
        Self { machine: "pc", accelerator, more: &[] }
    }
}

/// A guest with its observer, in a directory of its own.
#[derive(Debug)]
pub struct Subject {
    /// What it does.
    pub workload: Workload,
    /// How it was started: a twin has another monitor.
    pub machine: Machine,
    /// Who sees its heart.
    pub observer: Observer,
    /// The QEMU that it was started in.
    pub process: ProcessHandle,
    /// Where its monitor is, also after it was moved.
    pub monitor: Address,
    directory: PathBuf,
    /// The image lives as long as this process holds it; a destination opens it again.
    _image: MemoryFile,
}

impl Subject {
    /// Starts a guest and waits until it does what it is to do.
    pub async fn start(
        qemu: &Path,
        board: Board<'_>,
        workload: Workload,
        directory: &Path,
    ) -> Result<Self, SubjectError> {
        let failed = |source| SubjectError::Start { qemu: qemu.to_owned(), source };
        let image = memfd(&workload)?;
        let observer = Observer::listen(&directory.join("beats"))?;
        let qmp = directory.join("qmp");
        let machine = Machine {
            machine: board.machine.to_owned(),
            accelerator: board.accelerator,
            memory: workload.memory(),
            kernel: Some(image.path()),
            qmp: qmp.clone(),
            second_qmp: Some(directory.join(SECOND_MONITOR)),
            heartbeat: observer.path().to_owned(),
            more: board.more.iter().copied().map(str::to_owned).collect(),
        };
        // It starts in the guest's directory, from which a relative path names something else.
        let mut command = vec![std::path::absolute(qemu).map_err(failed)?.into_os_string()];
        command.extend(machine.arguments());
        let log = directory.join("source.log");
        let mut child = launch(&Launch {
            command,
            environment: std::env::vars_os().collect(),
            working_directory: directory.to_owned(),
            credentials: Credentials::own().map_err(|error| failed(error.into()))?,
            standing: None,
            output: Output::Log(log.clone()),
            life: Life::OfItsOwn,
        })
        .map_err(failed)?;
        let pid = i32::try_from(child.id()).map_err(|error| failed(io::Error::other(error)))?;
        let process = ProcessHandle::open(pid).map_err(|error| failed(io::Error::other(error)))?;
        std::thread::spawn(move || child.wait());
        let subject = Self {
            workload,
            machine,
            observer,
            process,
            monitor: Address::unix(qmp)?,
            directory: directory.to_owned(),
            _image: image,
        };
        subject.wait_until_it_works(&log).await?;
        Ok(subject)
    }

    async fn wait_until_it_works(&self, log: &Path) -> Result<(), SubjectError> {
        let deadline = tokio::time::Instant::now() + FIRST_BEAT_WITHIN;
        while self.observer.heart(self.process.pid()).is_none_or(|heart| heart.first.is_none()) {
            if self.process.has_ended() {
                return Err(SubjectError::Ended { words: last_words(log) });
            }
            if tokio::time::Instant::now() > deadline {
                return Err(SubjectError::NoBeat { words: last_words(log) });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let client = self.connect().await?;
        let deadline = tokio::time::Instant::now() + FILLED_WITHIN;
        // Until the guest has written its first state there is nothing to read.
        while !self.state(&client).await.is_ok_and(|state| state.filled()) {
            if self.process.has_ended() || tokio::time::Instant::now() > deadline {
                return Err(SubjectError::NotFilled);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The latest QEMU but the one in which the guest was started that has connected to the observer.
    pub fn destination(&self) -> Option<i32> {
        let source = self.process.pid();
        self.observer.pids().into_iter().rfind(|&pid| pid != source)
    }

    /// Every QEMU that its heart was seen in and that still lives.
    pub fn processes(&self) -> Vec<ProcessHandle> {
        let lives = |pid: &i32| self.observer.heart(*pid).is_some_and(|heart| heart.connected);
        let pids = self.observer.pids().into_iter().filter(lives);
        pids.filter_map(|pid| ProcessHandle::open(pid).ok()).collect()
    }

    /// Connects to the monitor of the QEMU that has the guest now.
    pub async fn connect(&self) -> Result<Client, SubjectError> {
        Ok(Client::connect(&self.monitor, Leg::Source, Deadlines::default()).await?)
    }

    /// What the guest says of itself.
    pub async fn state(&self, client: &Client) -> Result<GuestState, SubjectError> {
        let block = self.read(client, GuestState::ADDRESS, GuestState::LENGTH as u64).await?;
        Ok(GuestState::read(&block)?)
    }

    /// Stops the guest and proves that no byte of its working set was lost.
    pub async fn verify(&self, client: &Client) -> Result<(Proof, GuestState), SubjectError> {
        client.call(&words::stop {}, ANSWER_WITHIN).await?;
        let state = self.state(client).await?;
        let mut verifier = Verifier::new(&self.workload, &state)?;
        let (start, length) = (self.workload.working_set_address(), self.workload.working_set().bytes());
        let mut done = 0;
        while done < length {
            let piece = PIECE_BYTES.min(length - done);
            verifier.feed(&self.read(client, start + done, piece).await?);
            done += piece;
        }
        Ok((verifier.finish()?, state))
    }

    /// Reads the guest's physical memory.
    async fn read(&self, client: &Client, address: u64, length: u64) -> Result<Vec<u8>, SubjectError> {
        let path = self.directory.join("memory");
        let filename = path.display().to_string();
        client.call(&words::pmemsave { val: address, size: length, filename }, PIECE_WITHIN).await?;
        let read = std::fs::read(&path).and_then(|bytes| std::fs::remove_file(&path).map(|()| bytes));
        read.map_err(|source| SubjectError::Memory { path, source })
    }
}

/// The QEMU in which an experiment's guest was started ends with the experiment, also where that ends early. After a
/// move it has ended already.
impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.process.has_ended_within(ANSWER_WITHIN);
    }
}

/// The version of a QEMU, as it says itself.
pub fn qemu_version(qemu: &Path) -> Result<(u32, u32), SubjectError> {
    let failed = |source| SubjectError::Start { qemu: qemu.to_owned(), source };
    let output = Command::new(qemu).arg("--version").output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_ascii_whitespace().skip_while(|&word| word != "version").nth(1);
    let numbers = version.and_then(|version| {
        let mut numbers = version.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    numbers.ok_or_else(|| failed(io::Error::other("it does not say its version")))
}
