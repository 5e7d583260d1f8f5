//! What a migration has left: processes and files that were not there before, told by the guest's directory and the
//! migration's id, so that other tests may run at the same time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use qmigrate::host::{command_line, processes, runtime_directory, state_directory};
use qmigrate::record::MigrationId;

/// What there was of a guest before a migration.
pub(crate) struct Audit {
    directory: PathBuf,
    state: PathBuf,
    before: BTreeSet<Thing>,
}

/// Something that could be left. What a QEMU exports or works on is its own, and held against what it was by
/// `lab::settings`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    /// A process that names the guest's directory, the migration, or both.
    Process(i32),
    /// A file, socket or directory beside the guest's, or named after the migration.
    File(PathBuf),
}

impl Audit {
    /// Looks at the guest in this directory before anything moves.
    pub(crate) fn before(directory: &Path) -> Self {
        Self::before_with_state(directory, &state_directory().unwrap())
    }

    /// The same where the engine's state directory is another one.
    pub(crate) fn before_with_state(directory: &Path, state: &Path) -> Self {
        Self { directory: directory.to_owned(), state: state.to_owned(), before: things(directory, None) }
    }

    /// What is there now and was not before. The record of a migration that has ended stays on purpose.
    pub(crate) fn left(&self, migration: &MigrationId) -> BTreeSet<Thing> {
        things(&self.directory, Some((migration, &self.state))).difference(&self.before).cloned().collect()
    }
}

impl std::fmt::Display for Thing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::os::unix::fs::FileTypeExt;
        match self {
            Self::Process(pid) => {
                let words = command_line(*pid).unwrap_or_default();
                let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
                write!(formatter, "process {pid}: {}", words.join(" "))
            }
            Self::File(path) => {
                let kind = path.symlink_metadata().map(|data| data.file_type());
                let what = match kind {
                    Ok(kind) if kind.is_socket() => "socket",
                    Ok(kind) if kind.is_dir() => "directory",
                    _ => "file",
                };
                write!(formatter, "{what} {}", path.display())
            }
        }
    }
}

/// All that names the guest's directory or the migration now.
pub(crate) fn things(directory: &Path, migration: Option<(&MigrationId, &Path)>) -> BTreeSet<Thing> {
    let own = [Some(directory.to_string_lossy().into_owned()), migration.map(|(id, _)| id.to_string())];
    let names_it = |text: &str| own.iter().flatten().any(|own| text.contains(own));
    let is_of_it = |&pid: &i32| {
        let words = command_line(pid).unwrap_or_default();
        words.iter().any(|word| names_it(&word.to_string_lossy()))
    };
    let mut things: BTreeSet<Thing> = processes().into_iter().filter(is_of_it).map(Thing::Process).collect();
    let mut files = below(directory);
    if let Some((migration, state)) = migration {
        let runtime = runtime_directory().unwrap();
        let record = state.join("records").join(format!("{migration}.json"));
        let named = |path: &PathBuf| path.to_string_lossy().contains(migration.as_str()) && *path != record;
        files.extend(below(&runtime).into_iter().chain(below(state)).filter(named));
    }
    things.extend(files.into_iter().map(Thing::File));
    things
}

/// Everything below a directory; what goes away meanwhile is not there.
fn below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.symlink_metadata().is_ok_and(|data| data.is_dir()) {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found
}
