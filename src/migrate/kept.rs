//! Directories that guests have kept: a terminal, or the only monitor, is in the directory of the migration that made it,
//! for as long as the guest lives. Nobody is there to see its end, so that the next engine removes what is left of it.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use nix::unistd::{Gid, Uid};

use super::journal;
use crate::host::{Credentials, PrivateDirectory, command_line, processes};
use crate::record::MigrationId;

/// Removes the directories of migrations that are over and whose guest has ended.
pub fn clear(runtime_directory: &Path, state_directory: &Path) {
    let Ok(entries) = std::fs::read_dir(runtime_directory) else { return };
    let is_named = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| MigrationId::from_str(name).is_ok())
    };
    let there: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| is_named(path)).collect();
    if there.is_empty() {
        return;
    }
    // A migration has a control socket and a journal before it has a directory, and its guest's words name that before it
    // has neither.
    let Ok(open) = journal::list(state_directory) else { return };
    let words: Vec<_> = processes().into_iter().filter_map(|pid| command_line(pid).ok()).flatten().collect();
    for path in there {
        let is_open =
            open.iter().any(|found| path.file_name().is_some_and(|name| *name == *found.id.as_str()))
                || path.with_extension("control").symlink_metadata().is_ok();
        let names_it = |word: &[u8]| {
            word.windows(path.as_os_str().len()).any(|part| part == path.as_os_str().as_bytes())
        };
        let Ok(about) = path.symlink_metadata() else { continue };
        if is_open || !about.is_dir() || words.iter().any(|word| names_it(word.as_bytes())) {
            continue;
        }
        let (user, group) = (Uid::from_raw(about.uid()), Gid::from_raw(about.gid()));
        let owner = Credentials { user, group, groups: Vec::new() };
        if let Err(error) = PrivateDirectory::of_another_engine(path.clone(), owner).remove() {
            tracing::warn!(directory = %path.display(), %error, "not removed");
        }
    }
}
