//! Looks at the source, and at all that stands in the way.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use qapi_qmp as words;
use serde_json::Value;

/// How the twin is to be started.
mod start;

use self::start::{Start, start};
use super::standing::Wanted;
use super::tap;
use super::waiting::{self, GREETING_WITHIN, Waiting};
use crate::check::{
    self, Blocker, Code, Findings, Intent, Memory, Program, Short, SourceEnds, free_huge_pages, huge_pages,
    huge_pages_of, incoming_port, kvm, memory, older_qemu, ports,
};
use crate::host::{
    Credentials, ProcessHandle, ProcessIdentity, ProcessView, runtime_directory, state_directory,
};
use crate::migrate::journal;
use crate::migrate::plan::{Destination, Incoming, MadeFrom, Mode, Plan, Risks, SourceAfter};
use crate::migrate::side::{Contact, Side};
use crate::qemu::argv::CommandLine;
use crate::qemu::hardware::Untracked;
use crate::qemu::repetition::Repetition;
use crate::qemu::rewrite::Rewritten;
use crate::qemu::{ANSWER_WITHIN, Inventory, Located, locate};
use crate::qmp::{Address, CallError, Client, Deadlines, Events, Leg};
use crate::record::{LimitsBy, Party, Warning};

/// The source, known and spoken to.
#[derive(Debug)]
pub struct Source {
    /// Where its monitor is.
    pub address: Address,
    /// The connection.
    pub client: Client,
    /// All its events since it was connected to.
    pub events: Events,
    /// What it is.
    pub inventory: Inventory,
    /// How it is told its limits.
    pub limits_by: LimitsBy,
    /// How its twin is to be started: as it was itself, or where and with what a template says.
    pub view: ProcessView,
    /// What its twin is to have from this host; nothing where the user has started the twin.
    pub standing: Option<Wanted>,
    /// The taps that are to be made for its twin.
    pub taps: Vec<tap::Planned>,
    /// The twin's command line and what has to be done around it; nothing where the user has started the twin.
    pub rewritten: Option<Rewritten>,
    /// What is to be done to that twin before it is like its source.
    pub repetitions: Vec<Repetition>,
    /// A hold on its process.
    pub process: ProcessHandle,
    /// The destination, where the user has started it.
    pub waiting: Option<Box<Waiting>>,
    /// What somebody should know, though it stands in nobody's way.
    pub warnings: Vec<Warning>,
}

impl Source {
    /// One side of a migration, prepared or about to be.
    pub(in crate::migrate) fn into_side(self) -> Side {
        Side {
            leg: Leg::Source,
            address: self.address,
            client: self.client,
            events: self.events,
            process: self.process,
            limits_by: self.limits_by,
            contact: Contact::Heard,
        }
    }

    /// What of it is written into the journal.
    pub fn as_written_down(&self, party: Party) -> journal::Source {
        journal::Source {
            address: self.address.clone(),
            running: journal::Running::of(&self.process, &self.view),
            owner: (&self.view.credentials).into(),
            limits_by: self.limits_by,
            party,
        }
    }
}

/// All that was found on the way to a migration.
#[derive(Debug)]
pub struct Survey {
    /// What stands in the way, and what does not.
    pub findings: Findings,
    /// The source, where enough of it could be found.
    pub source: Option<Source>,
}

/// Finds the source, unless something stands in the way of moving it: then all that does. Changes nothing.
pub async fn survey(plan: &Plan) -> Result<Source, Vec<Blocker>> {
    // What this holds while it looks is not to be part of the future of a whole migration.
    let Survey { findings, source } = Box::pin(look(plan)).await;
    match source {
        Some(mut source) if findings.blockers.is_empty() => {
            source.warnings = findings.warnings;
            Ok(source)
        }
        _ => Err(findings.blockers),
    }
}

/// Finds the source and everything that can be known before anything is changed. What one thing that is in the way
/// hides is left out, and nothing else.
pub async fn look(plan: &Plan) -> Survey {
    let mut findings = Findings::default();
    let located = locate(&plan.source, Leg::Source, Deadlines { connect: GREETING_WITHIN }).await;
    let process = located.as_ref().ok().and_then(|located| located.process.as_ref());
    let starter = process.map(|(view, _)| (view.credentials.clone(), view.environment.clone()));
    let program = match &plan.destination {
        Destination::Start { qemu: Some(typed), .. } => Some(typed.clone()),
        Destination::Start { qemu: None, made_from: MadeFrom::Source, .. } => {
            process.and_then(replaced_program)
        }
        _ => None,
    };
    let (mut seen, program, waiting) = tokio::join!(
        async {
            match located {
                Ok(located) => see(plan, located, &mut findings).await,
                Err(error) => {
                    findings.block(error);
                    Seen::default()
                }
            }
        },
        ask_program(program, starter),
        find_waiting(plan),
    );
    if let Destination::Start { incoming: Incoming::Literal(uri), .. } = &plan.destination {
        findings.blockers.extend(incoming_port(uri));
    }
    match (program, &seen.inventory) {
        (Some((_, Err(blocker))), _) => findings.block(blocker),
        (Some((path, Ok(program))), Some(source)) => findings.add(program.findings(&path, source)),
        _ => {}
    }
    match (waiting, &seen.inventory) {
        (Some(Err(blocker)), _) => findings.block(blocker),
        (Some(Ok(waiting)), source) => {
            let there = &waiting.inventory;
            let older =
                source.as_ref().and_then(|source| older_qemu(there.version, &there.version_text, source));
            findings.warnings.extend(older.map(Warning::from));
            seen.waiting = Some(Box::new(waiting));
        }
        (None, _) => {}
    }
    Survey { findings, source: seen.into_source() }
}

/// A destination of the user's.
async fn find_waiting(plan: &Plan) -> Option<Result<Waiting, Blocker>> {
    let Destination::Started(name) = &plan.destination else { return None };
    Some(waiting::find(name).await)
}

/// Another file than the source runs, asked without a machine: as the source's user, if there is a source.
async fn ask_program(
    program: Option<PathBuf>,
    starter: Option<(Credentials, Vec<(OsString, OsString)>)>,
) -> Option<(PathBuf, Result<Program, Blocker>)> {
    let path = program?;
    let asked = async { Program::ask(&path, &runtime_directory()?, starter).await };
    let asked = asked.await;
    Some((path, asked))
}

/// The file that stands where the source's was before an upgrade.
fn replaced_program((view, line): &(ProcessView, CommandLine)) -> Option<PathBuf> {
    let runs = std::fs::read_link(format!("/proc/{}/exe", view.pid)).ok()?;
    let is_replaced = runs != view.executable && line.launcher.is_empty() && view.executable.exists();
    is_replaced.then(|| view.executable.clone())
}

/// As much of a source as could be found.
#[derive(Debug, Default)]
struct Seen {
    monitor: Option<(Address, Client, Events)>,
    inventory: Option<Inventory>,
    limits_by: Option<LimitsBy>,
    process: Option<(ProcessHandle, Start)>,
    waiting: Option<Box<Waiting>>,
}

impl Seen {
    fn into_source(self) -> Option<Source> {
        let ((address, client, events), (process, start)) = (self.monitor?, self.process?);
        let Start { view, standing, taps, rewritten, repetitions } = start;
        let (inventory, limits_by) = (self.inventory?, self.limits_by?);
        let (waiting, warnings) = (self.waiting, Vec::new());
        Some(Source {
            address,
            client,
            events,
            inventory,
            limits_by,
            view,
            standing,
            taps,
            rewritten,
            repetitions,
            process,
            waiting,
            warnings,
        })
    }
}

/// Looks at a source that answers.
async fn see(plan: &Plan, located: Located, findings: &mut Findings) -> Seen {
    let mut seen = Seen::default();
    let Located { address, client, process } = located;
    if let Some((view, _)) = &process
        && let Err(blocker) = is_free(view.pid)
    {
        // Where a migration is open, what the source says of itself leads astray.
        findings.block(blocker);
        return seen;
    }
    let events = client.events();
    let (inventory, held) = tokio::join!(Inventory::take(&client), Holdings::ask(&client));
    let source = match inventory {
        Ok(inventory) => inventory,
        Err(error) => {
            findings.block(error);
            return seen;
        }
    };
    findings.add(check::findings(&source, intent(plan)));
    findings.add(check::untracked(&source, &held.untracked, intent(plan)));
    match source.dialect.limits_by(plan.dialect) {
        Ok(limits_by) => seen.limits_by = Some(limits_by),
        Err(error) => findings.block(error),
    }
    match process {
        Some(process) => {
            seen.process = see_process(plan, (&address, &client), &source, &held, process, findings).await;
        }
        None => findings.block(Blocker::new(
            Code::NoProcess,
            format!("the process behind {address} cannot be told from its address"),
            "name the process: qmigrate migrate pid:PID",
        )),
    }
    seen.inventory = Some(source);
    seen.monitor = Some((address, client, events));
    seen
}

/// Looks at the source's process, at what it holds of its host, and at what its twin would need.
async fn see_process(
    plan: &Plan,
    (address, client): (&Address, &Client),
    source: &Inventory,
    held: &Holdings,
    (view, line): (ProcessView, CommandLine),
    findings: &mut Findings,
) -> Option<(ProcessHandle, Start)> {
    let pid = view.pid;
    let process = ProcessHandle::open(pid);
    let started =
        matches!(plan.destination, Destination::Start { qemu: None, made_from: MadeFrom::Source, .. })
            .then(|| line.launcher.first().unwrap_or(&line.program).as_str());
    findings.add(check::process(pid, ends(plan), started).await);
    findings.add(check::images(&view, &held.nodes, &held.block, &held.devices));
    let mut room = has_room(plan, source, held, &view);
    let start = match start(plan, (address, client), source, view, line).await {
        Ok(start) => start,
        Err(blockers) => {
            findings.blockers.extend(blockers);
            findings.add(room);
            return None;
        }
    };
    if start.rewritten.as_ref().is_some_and(|rewritten| !rewritten.in_place.is_empty()) {
        // Memory that stays where it is needs no second place.
        room.blockers.retain(|blocker| !matches!(blocker.code, Code::LittleMemory | Code::HugePages));
    }
    findings.add(room);
    let line = start.rewritten.as_ref().map(|rewritten| &rewritten.line);
    findings.blockers.extend(line.into_iter().flat_map(|line| ports(line, pid)));
    match process {
        Ok(process) => Some((process, start)),
        Err(error) => {
            let message = format!("process {pid} cannot be watched: {error}");
            findings.block(Blocker::bare(Code::Process, message));
            None
        }
    }
}

/// What a source holds of its host, as it says; what it does not tell is left out.
#[derive(Debug, Default)]
struct Holdings {
    nodes: Value,
    block: Value,
    /// Devices that were plugged in by name, with their kinds.
    devices: Vec<(String, String)>,
    memory_bytes: Option<u64>,
    huge_pages: BTreeMap<u64, u64>,
    untracked: Untracked,
}

impl Holdings {
    /// Asks it, all at once.
    async fn ask(client: &Client) -> Self {
        let listed = |path: &str| words::qom_list { path: path.to_owned() };
        let (named, anonymous) = (listed("/machine/peripheral"), listed("/machine/peripheral-anon"));
        let blocks =
            words::human_monitor_command { command_line: "info ramblock".to_owned(), cpu_index: None };
        let (nodes, block, named, anonymous, memory, backends, blocks) = tokio::join!(
            block_nodes(client),
            client.call(&words::query_block {}, ANSWER_WITHIN),
            client.call(&named, ANSWER_WITHIN),
            client.call(&anonymous, ANSWER_WITHIN),
            client.call(&words::query_memory_size_summary {}, ANSWER_WITHIN),
            client.call(&words::query_memdev {}, ANSWER_WITHIN),
            client.call(&blocks, ANSWER_WITHIN),
        );
        let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        let devices = |list: Value, directory: &str| -> Vec<(String, String)> {
            let device =
                |entry: &Value| Some((format!("{directory}{}", text(entry, "name")?), text(entry, "type")?));
            list.as_array().into_iter().flatten().filter_map(device).collect()
        };
        let mut all = devices(named.unwrap_or_default(), "");
        // One without a name of its own goes by its path.
        all.extend(devices(anonymous.unwrap_or_default(), "/machine/peripheral-anon/"));
        let size = |memory: &Value, key: &str| memory.get(key).and_then(Value::as_u64);
        let blocks = blocks.unwrap_or_default();
        let blocks = blocks.as_str().unwrap_or_default();
        Self {
            nodes: nodes.unwrap_or_default(),
            block: block.unwrap_or_default(),
            devices: all,
            memory_bytes: memory.ok().and_then(|memory| {
                Some(size(&memory, "base-memory")? + size(&memory, "plugged-memory").unwrap_or(0))
            }),
            huge_pages: huge_pages_of(blocks),
            untracked: Untracked::of(blocks, &backends.unwrap_or_default()).but_unused(client).await,
        }
    }
}

/// All block nodes; without those behind each of them, where the QEMU knows how to leave them out (5.0).
async fn block_nodes(client: &Client) -> Result<Value, CallError> {
    match client.call(&words::query_named_block_nodes { flat: Some(true) }, ANSWER_WITHIN).await {
        Err(CallError::Refused { .. }) => {
            client.call(&words::query_named_block_nodes { flat: None }, ANSWER_WITHIN).await
        }
        answer => answer,
    }
}

/// Whether the host has what a second QEMU needs; one that the user has started has it already, but for its memory.
fn has_room(plan: &Plan, source: &Inventory, held: &Holdings, view: &ProcessView) -> Findings {
    let mut findings = Findings::default();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let need = held.memory_bytes.map(|bytes| Memory::of(view.pid, bytes));
    match (need.and_then(|need| memory(need, &meminfo)), plan.risks) {
        (Some(Short::Certainly(blocker)), Risks::Refuse) => findings.block(blocker),
        (Some(Short::Certainly(blocker) | Short::Perhaps(blocker)), _) => findings.warn(blocker),
        (None, _) => {}
    }
    if let Destination::Start { .. } = plan.destination {
        findings.blockers.extend(huge_pages(&held.huge_pages, free_huge_pages));
        findings.blockers.extend(source.kvm.then(|| kvm(&view.credentials)).flatten());
    }
    findings
}

/// Whether no migration of this guest is open, by the journals of this user.
fn is_free(pid: i32) -> Result<(), Blocker> {
    let process = ProcessIdentity::of(pid)?;
    Ok(journal::is_free(&state_directory()?, &process)?)
}

fn ends(plan: &Plan) -> SourceEnds<'_> {
    match &plan.source_after {
        SourceAfter::Quit => SourceEnds::ByItself,
        SourceAfter::StopUnit(unit) => SourceEnds::ByUnit(unit),
        SourceAfter::Keep => SourceEnds::Never,
    }
}

fn intent(plan: &Plan) -> Intent {
    match (plan.mode, plan.risks) {
        (Mode::NonLive, _) => Intent::NonLive,
        (Mode::Live, Risks::Refuse) => Intent::Live,
        (Mode::Live, Risks::Accept) => Intent::LiveUnsafe,
    }
}
