//! Plays a recorded conversation to the real driver, with a stopped clock.
//!
//! ```text
//!   Conversation ──► Script ──► Player ◄── duplex streams, or a unix socket after a cut ──► Client ◄── Driver
//!                                 │  ▲
//!                    World ◄──────┘  └── stand-ins: processes that the driver watches and ends
//! ```
//!
//! Both legs are one script. What follows a command that changes something is played once the driver has given the same
//! command; queries are answered at any time, with what the record says at this place. Where the driver, or a cut,
//! leaves the record, [`World`] says how QEMU goes on. The player judges by its own view: what it was told to do, and
//! which of its two machines run.

/// Two QEMUs as they are played.
mod world;
/// What is played, and in which order.
mod script;
/// Processes that the driver can watch and end.
mod stand_in;
/// The player at work.
mod perform;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qmigrate::converge::Consents;
use qmigrate::host::ProcessHandle;
use qmigrate::migrate::driver::{Conclusion, Driver};
use qmigrate::migrate::history::History;
use qmigrate::migrate::journal::{JournalError, Ledger};
use qmigrate::migrate::order::{Orders, orders};
use qmigrate::migrate::phase::{AtDestination, AtSource, Guest, Phase, Retreat};
use qmigrate::migrate::plan::Limits;
use qmigrate::migrate::side::{Contact, Side};
use qmigrate::migrate::step::tuning::{Knob, Tuning};
use qmigrate::qmp::Leg::{self, Destination, Source};
use qmigrate::qmp::{Address, Client, Deadlines};
use qmigrate::record::{Allowed, LimitsBy, MigrationId, Record};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use crate::conversation::{Conversation, Said};
use crate::scripted_peer::ScriptedPeer;
use perform::Player;
pub(crate) use script::{Dice, Item, Script, Step};
pub(crate) use stand_in::Cast;
pub(crate) use world::World;

/// By the stopped clock; the driver itself gives up after 30 s.
const PATIENCE: Duration = Duration::from_secs(300);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Peer = ScriptedPeer<Box<dyn Stream>>;

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its monitor cannot be reached any more; the process lives.
    Unreachable,
    /// It can be connected to anew.
    ServedAgain,
    /// It can be connected to anew so long after.
    ServedLater(Duration),
    /// The process is killed.
    Killed,
    /// The process is killed so long after its monitor has closed.
    ClosedFirst(Duration),
}

/// A cut of one leg's connection before one place of the script.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) place: usize,
    pub(crate) leg: Leg,
    pub(crate) kind: Kind,
}

/// How QEMU takes what is not in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Luck {
    /// A cancel is in time; what a source that dies has sent is lost.
    Good,
    /// A cancel comes too late; a source that dies in the switchover has sent all of the guest.
    Late,
}

/// Where phases are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paper {
    /// It takes all that is written.
    Good,
    /// It takes everything but that the destination is about to be told to run the guest.
    Torn,
}

/// What the driver has written down, in order; the player reads along.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    paper: Paper,
    phases: Arc<Mutex<Vec<Phase>>>,
}

impl Book {
    fn new(paper: Paper) -> Self {
        Self { paper, phases: Arc::default() }
    }

    pub(crate) fn phases(&self) -> Vec<Phase> {
        self.phases.lock().unwrap().clone()
    }

    /// Whether it stands there that this is done to a QEMU: whoever takes the migration up goes on with it.
    fn permits(&self, leg: Leg, deed: &str) -> bool {
        let is_for_it = |phase: &Phase| match (leg, deed) {
            (Destination, "cont") => matches!(phase, Phase::Committed { .. }) || self.paper == Paper::Torn,
            (Destination, "kill") => matches!(phase, Phase::Retreating(_, Retreat::Clearing)),
            (Source, "cont") => {
                matches!(phase, Phase::Retreating(_, Retreat::Settling | Retreat::Reviving))
            }
            (Source, "migrate_cancel" | "yank") => matches!(phase, Phase::Retreating(_, Retreat::Stopping)),
            (Source, "stop") => matches!(phase, Phase::Streaming(guest) if guest.at_source == AtSource::Held),
            _ => true,
        };
        deed == "migrate" || self.phases().iter().any(is_for_it)
    }
}

impl Ledger for Book {
    fn enter(&mut self, phase: Phase) -> Result<(), JournalError> {
        if self.paper == Paper::Torn && matches!(phase, Phase::Committed { .. }) {
            return Err(JournalError::Io {
                path: "/paper".into(),
                source: ErrorKind::ReadOnlyFilesystem.into(),
            });
        }
        self.phases.lock().unwrap().push(phase);
        Ok(())
    }
}

/// One play.
#[derive(Debug)]
pub(crate) struct Play<'a> {
    pub(crate) conversation: &'a Conversation,
    pub(crate) script: Script,
    pub(crate) cut: Option<Cut>,
    pub(crate) luck: Luck,
    pub(crate) paper: Paper,
    /// Answers to queries come up to 3 ms late, behind events that came later.
    pub(crate) late_answers: Option<Dice>,
}

impl<'a> Play<'a> {
    /// As it was recorded.
    pub(crate) fn new(conversation: &'a Conversation) -> Self {
        let script = Script::new(conversation);
        Self { conversation, script, cut: None, luck: Luck::Good, paper: Paper::Good, late_answers: None }
    }

    /// Plays it to a driver of its own.
    pub(crate) fn run(self, cast: &mut Cast) -> Played {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(self.play(cast))
    }

    async fn play(self, cast: &mut Cast) -> Played {
        let directory = tempfile::Builder::new().prefix("qmp").tempdir().unwrap();
        let addresses = [Source, Destination].map(|leg| directory.path().join(leg.to_string()));
        let [(near_source, far_source), (near_destination, far_destination)] =
            [Source, Destination].map(|_| tokio::io::duplex(1 << 20));
        let stand_ins = [cast.get(), cast.get()];
        let processes = [stand_ins[0].handle(), stand_ins[1].handle()];
        let (commander, mut orders) = orders();
        let far = [far_source, far_destination];
        let greeting = greeting(self.conversation);
        let mut book = Book::new(self.paper);
        let mut player =
            Player::new(far, addresses.clone(), stand_ins, self.script, greeting, commander, book.clone());
        player.greet().await;
        let clients = tokio::select! {
            clients = connect([near_source, near_destination]) => clients,
            () = player.run() => unreachable!("it plays for ever"),
        };
        player.log.clear();
        (player.cut, player.luck, player.late_answers) = (self.cut, self.luck, self.late_answers);
        player.last = Some(Instant::now());
        let start = Instant::now();
        let ended = {
            let mut history = history();
            let limits_by = match self.conversation.course.name {
                "limits-legacy" => LimitsBy::OldCommands,
                _ => LimitsBy::Parameters,
            };
            let sides = sides(clients, &addresses, processes, limits_by);
            let driver = driver(sides, &mut history, &mut orders, &mut book);
            let run = driver.run("unix:/run/vm/stream", self.conversation.course.mode);
            tokio::select! {
                biased;
                ended = timeout(PATIENCE, run) => ended,
                () = player.run() => unreachable!("it plays for ever"),
            }
        };
        if ended.is_err() {
            player.came_to_no_end();
        }
        let lasted = start.elapsed();
        player.drain().await;
        player.look_at(Source);
        player.look_at(Destination);
        let Player { stand_ins, world, faults, sent, log, cut, is_killed, .. } = player;
        for stand_in in stand_ins {
            cast.give(stand_in);
        }
        let conclusion = ended.ok().map(|(conclusion, ..)| conclusion);
        let written = book.phases();
        Played { conclusion, lasted, world, faults, sent, written, log, is_uncut: cut.is_some(), is_killed }
    }
}

fn sides(
    clients: [Client; 2],
    addresses: &[PathBuf; 2],
    processes: [ProcessHandle; 2],
    limits_by: LimitsBy,
) -> (Side, Side) {
    let [source, destination] = clients;
    let [source_process, destination_process] = processes;
    let side = |leg: Leg, client: Client, address: &PathBuf, process| Side {
        leg,
        address: Address::unix(address).unwrap(),
        events: client.events(),
        client,
        process,
        limits_by,
        contact: Contact::Heard,
    };
    (
        side(Source, source, &addresses[0], source_process),
        side(Destination, destination, &addresses[1], destination_process),
    )
}

/// A driver for a guest that runs, within the limits that apply where nobody sets any. It may slow the guest down, and
/// samples what that dirties.
fn driver<'a>(
    sides: (Side, Side),
    history: &'a mut History,
    orders: &'a mut Orders,
    book: &'a mut Book,
) -> Driver<'a> {
    let guest = Guest { at_source: AtSource::Running, at_destination: AtDestination::AsBefore };
    let consents = Consents { throttle_percent: Some(80), ..Consents::default() };
    let limits = Limits { consents, ..Limits::default() };
    let tuning = Tuning { throttle: Knob::Usable, dirty_windows: Knob::Usable, ..Tuning::default() };
    let phase = Phase::Streaming(guest);
    Driver::new(sides, phase, limits, limits.build_policy(), history, orders, book).tuned(tuning)
}

async fn connect(streams: [tokio::io::DuplexStream; 2]) -> [Client; 2] {
    let [source, destination] = streams;
    let over = |stream, leg| Client::over(stream, leg, Deadlines::default(), None);
    let (source, destination) = tokio::join!(over(source, Source), over(destination, Destination));
    [source.unwrap(), destination.unwrap()]
}

fn peer(stream: impl Stream + 'static) -> Peer {
    ScriptedPeer::over(Box::new(stream))
}

fn greeting(conversation: &Conversation) -> Value {
    let greeting = conversation.entries.iter().find_map(|entry| match &entry.said {
        Said::Greeting(greeting) => Some(greeting.clone()),
        _ => None,
    });
    greeting.expect("a conversation begins with a greeting")
}

fn history() -> History {
    let request = qmigrate::record::Request {
        source: "/run/vm/qmp".to_owned(),
        max_downtime_ms: Limits::default().max_downtime,
        grace_ms: 2000,
        max_time_ms: None,
        max_bandwidth_bytes_per_second: None,
        live: true,
        allowed: Allowed::default(),
        policy: "qmigrate".to_owned(),
        budgets_enforced: true,
    };
    History::new(Record::new(MigrationId::from_number(1), request, jiff::Timestamp::UNIX_EPOCH), Vec::new())
}

/// What came of a play.
#[derive(Debug)]
pub(crate) struct Played {
    /// None for a driver that came to no end.
    pub(crate) conclusion: Option<Conclusion>,
    /// By the stopped clock.
    pub(crate) lasted: Duration,
    pub(crate) world: World,
    /// What must never be.
    pub(crate) faults: Vec<String>,
    /// What the driver told a QEMU to do, in order.
    pub(crate) sent: Vec<(Leg, String)>,
    /// The phases that it wrote down.
    pub(crate) written: Vec<Phase>,
    /// What was played and heard, for whoever has to find out.
    pub(crate) log: Vec<String>,
    /// It came to its end before its cut.
    pub(crate) is_uncut: bool,
    /// The driver has ended the destination.
    pub(crate) is_killed: bool,
}

impl Played {
    /// How often this was told.
    pub(crate) fn count(&self, leg: Leg, command: &str) -> usize {
        self.sent.iter().filter(|(of, name)| *of == leg && name == command).count()
    }
}
