//! How the twin of a source is to be started: where, with what, and by which command line.

use nix::unistd::geteuid;

use super::super::standing::{self, Wanted};
use super::super::{prepare, tap};
use crate::check::{Blocker, Code, host_programs};
use crate::host::{ProcError, ProcessView, open_files, runtime_directory};
use crate::migrate::plan::{Destination, HostPrograms, Incoming, MadeFrom, Plan};
use crate::qemu::argv::CommandLine;
use crate::qemu::repetition::{Repetition, Repetitions, Whose, repetitions};
use crate::qemu::rewrite::{
    RewriteError, Rewritten, Setting, Shared, TapChange, ThisHost, expanded, rewrite,
};
use crate::qemu::template::{Origin, Placeholder, TemplateFile, Values, derive};
use crate::qemu::{Inventory, present};
use crate::qmp::{Address, Client};
use crate::record::Warning;

/// How a twin is to be started.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) view: ProcessView,
    pub(super) standing: Option<Wanted>,
    pub(super) taps: Vec<tap::Planned>,
    /// Nothing where the user has started it.
    pub(super) rewritten: Option<Rewritten>,
    /// What is to be done once it is there.
    pub(super) repetitions: Vec<Repetition>,
}

/// How the twin is started, and with which command line; or all that stands in the way of that.
pub(super) async fn start(
    plan: &Plan,
    (address, client): (&Address, &Client),
    source: &Inventory,
    view: ProcessView,
    line: CommandLine,
) -> Result<Start, Vec<Blocker>> {
    let (mut view, line) = match &plan.destination {
        Destination::Start { made_from: MadeFrom::Template(file, typed), .. } => {
            as_template_says(file, typed, address, view, &line).map_err(|blocker| vec![blocker])?
        }
        _ => (view, line),
    };
    let mut host =
        ThisHost { source: view.pid, user: view.credentials.clone(), open_files: open_files(view.pid) };
    // Its monitor is open too, by a name that is not to be seen in /proc.
    host.open_files.extend(address.path().and_then(|path| std::path::absolute(path).ok()));
    // What cannot be read is told by the rewriting.
    let line = expanded(&line, &host, &view.working_directory).unwrap_or(line);
    let (standing, mut found) = standing(plan, &view, &line).map_err(|error| vec![error.into()])?;
    let (line, repetitions, warnings) = match repeated(plan, client, &line).await {
        Ok(repeated) => repeated,
        Err(blockers) => {
            found.extend(blockers);
            (line, Vec::new(), Vec::new())
        }
    };
    let (taps, changes) = taps(plan, &view, &line, &mut found);
    let mut rewritten = rewritten(plan, source, &view, &line, (&host, &changes)).unwrap_or_else(|more| {
        // Why there is no other tap has been said.
        let is_said = found.iter().any(|said| said.code == Code::Tap);
        found.extend(more.into_iter().filter(|blocker| !(is_said && blocker.code == Code::Tap)));
        None
    });
    if rewritten.as_ref().is_some_and(|rewritten| !rewritten.in_place.is_empty()) {
        // No second copy of it is made.
        found.retain(|blocker| blocker.code != Code::CgroupMemory);
    }
    let starts = matches!(plan.destination, Destination::Start { .. });
    if starts && plan.host_programs == HostPrograms::Refuse && geteuid().is_root() {
        // What a line of the source's own says may not be what the destination's would.
        found.extend(rewritten.iter().flat_map(|rewritten| host_programs(&rewritten.line)));
    }
    if !found.is_empty() {
        return Err(found);
    }
    if let Some(rewritten) = &mut rewritten {
        view.working_directory.clone_from(&rewritten.working_directory);
        rewritten.warnings.extend(warnings);
    }
    Ok(Start { view, standing, taps, rewritten, repetitions })
}

/// The line of a twin that the engine is to start, without what the guest has no more, and what comes after its start.
async fn repeated(
    plan: &Plan,
    source: &Client,
    line: &CommandLine,
) -> Result<(CommandLine, Vec<Repetition>, Vec<Warning>), Vec<Blocker>> {
    let whose = match &plan.destination {
        Destination::Started(_) => return Ok((line.clone(), Vec::new(), Vec::new())),
        Destination::Start { made_from: MadeFrom::Source, .. } => Whose::Source,
        Destination::Start { made_from: MadeFrom::Template(..), .. } => Whose::Template,
    };
    let present = present::ask(source, line).await.map_err(|error| vec![error.into()])?;
    let Repetitions { line, commands, warnings } = repetitions(&present, line, whose)
        .map_err(|errors| errors.into_iter().map(Blocker::from).collect::<Vec<_>>())?;
    Ok((line, commands, warnings))
}

/// What the twin that the engine is to start is to have from this host, and what stands in the way of that.
fn standing(
    plan: &Plan,
    view: &ProcessView,
    line: &CommandLine,
) -> Result<(Option<Wanted>, Vec<Blocker>), ProcError> {
    let Destination::Start { .. } = &plan.destination else { return Ok((None, Vec::new())) };
    let wanted = standing::wanted(view.pid, plan.cgroups_of())?;
    let blockers = standing::blockers(view.pid, &view.credentials, line, &wanted)?;
    Ok((Some(wanted), blockers))
}

/// The taps of its own that the twin is to have.
fn taps(
    plan: &Plan,
    view: &ProcessView,
    line: &CommandLine,
    found: &mut Vec<Blocker>,
) -> (Vec<tap::Planned>, Vec<TapChange>) {
    let Destination::Start { .. } = &plan.destination else { return (Vec::new(), Vec::new()) };
    let (planned, changes, blockers) = tap::plan(&plan.id, &plan.maps, view, line);
    found.extend(blockers);
    (planned, changes)
}

/// The command line of the twin that the engine is to start.
fn rewritten(
    plan: &Plan,
    source: &Inventory,
    view: &ProcessView,
    line: &CommandLine,
    (host, taps): (&ThisHost, &[TapChange]),
) -> Result<Option<Rewritten>, Vec<Blocker>> {
    let Destination::Start { qemu, incoming, .. } = &plan.destination else { return Ok(None) };
    let (incoming, globals) = match incoming {
        Incoming::Defer => ("defer", Vec::new()),
        Incoming::Literal(uri) => (uri.as_str(), prepare::globals_for_literal_incoming(&source.dialect)),
    };
    let setting = Setting {
        id: &plan.id,
        shared: Shared::SIDE_BY_SIDE,
        surroundings: host,
        maps: &plan.maps,
        working_directory: &view.working_directory,
        runtime_directory: &plan.directory,
        machine: source.machine.as_deref(),
        incoming,
        qemu: qemu.as_deref(),
        globals: &globals,
        taps,
    };
    let blockers = |errors: Vec<RewriteError>| errors.into_iter().map(Blocker::from).collect();
    rewrite(line, &setting).map(Some).map_err(blockers)
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
            Code::NoDirectory,
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
