//! Looks at the source, and at all that stands in the way.

use std::time::Duration;

use super::prepare;
use crate::check::{Blocker, Intent, blockers};
use crate::host::{ProcessHandle, ProcessIdentity, ProcessView, runtime_directory, state_directory};
use crate::migrate::journal;
use crate::migrate::plan::{Destination, Incoming, MadeFrom, Mode, Plan, Risks};
use crate::migrate::side::{Contact, Side};
use crate::qemu::argv::CommandLine;
use crate::qemu::repetition::{Repetition, Repetitions, Whose, repetitions};
use crate::qemu::rewrite::{RewriteError, Rewritten, Setting, rewrite};
use crate::qemu::template::{Origin, Placeholder, TemplateFile, Values, derive};
use crate::qemu::{Inventory, Located, locate, present};
use crate::qmp::{Address, Client, Deadlines, Events, Leg};
use crate::record::{LimitsBy, Party, Warning};

/// A monitor that is free greets at once; people wait this long for one that is not.
pub const GREETING_WITHIN: Duration = Duration::from_secs(3);

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
    /// The twin's command line and what has to be done around it; nothing where the user has started the twin.
    pub rewritten: Option<Rewritten>,
    /// What is to be done to that twin before it is like its source.
    pub repetitions: Vec<Repetition>,
    /// A hold on its process.
    pub process: ProcessHandle,
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

/// Finds the source and everything that stands in the way of moving it. Changes nothing.
pub async fn survey(plan: &Plan) -> Result<Source, Vec<Blocker>> {
    let one = |blocker| vec![blocker];
    let deadlines = Deadlines { connect: GREETING_WITHIN };
    let located = locate(&plan.source, Leg::Source, deadlines).await.map_err(|error| one(error.into()))?;
    let Located { address, client, process } = located;
    let events = client.events();
    let inventory = Inventory::take(&client).await.map_err(|error| one(error.into()))?;
    if let Some((view, _)) = &process {
        // First of all: where a migration is open, what the source says of itself leads astray.
        is_free(view.pid).map_err(one)?;
    }
    let mut found = blockers(&inventory, intent(plan));
    let limits_by = inventory.dialect.limits_by(plan.dialect);
    found.extend(limits_by.err().map(Blocker::from));
    let (true, Ok(limits_by)) = (found.is_empty(), limits_by) else { return Err(found) };
    let Some((view, line)) = process else {
        return Err(one(Blocker::new(
            "no-process",
            format!("the process behind {address} cannot be told from its address"),
            "name the process: qmigrate migrate pid:PID",
        )));
    };
    let process = ProcessHandle::open(view.pid).map_err(|error| {
        one(Blocker::bare("process", format!("process {} cannot be watched: {error}", view.pid)))
    })?;
    let (view, line) = match &plan.destination {
        Destination::Start { made_from: MadeFrom::Template(file, typed), .. } => {
            as_template_says(file, typed, &address, view, &line).map_err(one)?
        }
        _ => (view, line),
    };
    let (line, repetitions, warnings) = repeated(plan, &client, line).await?;
    let mut rewritten = rewritten(plan, &inventory, &view, &line)?;
    if let Some(rewritten) = &mut rewritten {
        rewritten.warnings.extend(warnings);
    }
    Ok(Source { address, client, events, inventory, limits_by, view, rewritten, repetitions, process })
}

/// The line of a twin that the engine is to start, without what the guest has no more, and what comes after its start.
async fn repeated(
    plan: &Plan,
    source: &Client,
    line: CommandLine,
) -> Result<(CommandLine, Vec<Repetition>, Vec<Warning>), Vec<Blocker>> {
    let whose = match &plan.destination {
        Destination::Started(_) => return Ok((line, Vec::new(), Vec::new())),
        Destination::Start { made_from: MadeFrom::Source, .. } => Whose::Source,
        Destination::Start { made_from: MadeFrom::Template(..), .. } => Whose::Template,
    };
    let present = present::ask(source, &line).await.map_err(|error| vec![error.into()])?;
    let Repetitions { line, commands, warnings } = repetitions(&present, &line, whose)
        .map_err(|errors| errors.into_iter().map(Blocker::from).collect::<Vec<_>>())?;
    Ok((line, commands, warnings))
}

/// The command line of the twin that the engine is to start.
fn rewritten(
    plan: &Plan,
    source: &Inventory,
    view: &ProcessView,
    line: &CommandLine,
) -> Result<Option<Rewritten>, Vec<Blocker>> {
    let Destination::Start { qemu, incoming, .. } = &plan.destination else { return Ok(None) };
    let (incoming, globals) = match incoming {
        Incoming::Defer => ("defer", Vec::new()),
        Incoming::Literal(uri) => (uri.as_str(), prepare::globals_for_literal_incoming(&source.dialect)),
    };
    let setting = Setting {
        id: &plan.id,
        working_directory: &view.working_directory,
        runtime_directory: &plan.directory,
        machine: source.machine.as_deref(),
        incoming,
        qemu: qemu.as_deref(),
        globals: &globals,
    };
    let blockers = |errors: Vec<RewriteError>| errors.into_iter().map(Blocker::from).collect();
    rewrite(line, &setting).map(Some).map_err(blockers)
}

/// Whether no migration of this guest is open, by the journals of this user.
fn is_free(pid: i32) -> Result<(), Blocker> {
    let process = ProcessIdentity::of(pid)?;
    Ok(journal::is_free(&state_directory()?, &process)?)
}

/// The twin's start by a template, with the values that were typed, or else those that the source shows.
fn as_template_says(
    file: &TemplateFile,
    typed: &Values,
    address: &Address,
    mut view: ProcessView,
    line: &CommandLine,
) -> Result<(ProcessView, CommandLine), Blocker> {
    let runtime = runtime_directory()?;
    let derived = derive(Origin { view: &view, line, machine: None, runtime: &runtime });
    let mut reached = Values::default();
    if let Some(path) = address.path().and_then(|path| path.to_str()) {
        reached.set(Placeholder::Qmp, path);
    }
    let with = |shown: &Values| file.fill(&typed.or(shown).or(&reached));
    let mut filled = with(&derived.values)?;
    if derived.directory_is_known && filled.working_directory != view.working_directory {
        // The names of the guest count from where they always did.
        filled = with(&derived.values.from_directory(&view.working_directory))?;
    }
    if !filled.working_directory.is_dir() {
        return Err(Blocker::new(
            "no-directory",
            format!("the directory {} is not there", filled.working_directory.display()),
            "it is the template's; --set dir=DIRECTORY names another, where the template says {dir}",
        ));
    }
    view.working_directory = filled.working_directory;
    for (name, value) in filled.environment {
        view.environment.retain(|(other, _)| *other != *name);
        view.environment.push((name.into(), value.into()));
    }
    Ok((view, filled.line))
}

fn intent(plan: &Plan) -> Intent {
    match (plan.mode, plan.risks) {
        (Mode::NonLive, _) => Intent::NonLive,
        (Mode::Live, Risks::Refuse) => Intent::Live,
        (Mode::Live, Risks::Accept) => Intent::LiveUnsafe,
    }
}
