//! What the source has from this host, and its destination is to have too.

use crate::check::{Blocker, locked_memory, memory_room};
use crate::host::{Credentials, ProcError, Standing, lockable_memory, resident_bytes};
use crate::migrate::plan::CgroupsOf;
use crate::qemu::argv::CommandLine;
use crate::record::Warning;

/// The code of the one warning that tells all that was not permitted.
const NOT_TAKEN: &str = "limits-not-taken";

/// What the destination of this source is to have.
pub fn wanted(source: i32, cgroups_of: CgroupsOf) -> Result<Standing, ProcError> {
    let mut standing = Standing::of(source)?;
    match cgroups_of {
        CgroupsOf::Source => {}
        CgroupsOf::Engine => standing.cgroups.clear(),
    }
    Ok(standing)
}

/// What of it a destination would fail without.
pub fn blockers(
    source: i32,
    owner: &Credentials,
    line: &CommandLine,
    wanted: &Standing,
) -> Result<Vec<Blocker>, ProcError> {
    let mut found = Vec::new();
    if let Some(room) = wanted.memory_room() {
        found.extend(memory_room(Some(&room), resident_bytes(source)?));
    }
    // Root may lock as much as there is (CAP_IPC_LOCK).
    if !owner.user.is_root() {
        found.extend(locked_memory(line, wanted.locked_memory(), lockable_memory()));
    }
    Ok(found)
}

/// What a destination that was started has instead of what it was to have.
pub fn warning(wanted: &Standing, destination: i32) -> Result<Option<Warning>, ProcError> {
    let lacking = wanted.lacking(&Standing::of(destination)?);
    Ok((!lacking.is_empty()).then(|| not_taken("the destination", &lacking)))
}

/// Tells what was not permitted.
pub(super) fn not_taken(whose: &str, lacking: &[String]) -> Warning {
    Warning {
        code: NOT_TAKEN.to_owned(),
        message: format!("{whose} was not permitted all that the source has: {}", lacking.join("; ")),
        hint: (!nix::unistd::geteuid().is_root()).then(|| "root may give all of it".to_owned()),
    }
}
