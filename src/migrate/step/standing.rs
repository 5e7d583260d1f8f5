//! What the source has from this host, and its destination is to have too.

use crate::check::{Blocker, locked_memory, memory_room};
use crate::host::{Credentials, ProcError, Standing, UnitName, lockable_memory, resident_bytes};
use crate::migrate::plan::CgroupsOf;
use crate::qemu::argv::CommandLine;
use crate::record::Warning;

/// The code of the one warning that tells all that was not permitted.
const NOT_TAKEN: &str = "limits-not-taken";

/// What a destination is to have.
#[derive(Debug)]
pub struct Wanted {
    /// All of it.
    pub standing: Standing,
    /// The service that it is kept out of, though its source is in it.
    service: Option<UnitName>,
}

/// What the destination of this source is to have.
///
/// As the main process of a service ends, systemd ends all that is in the service's cgroup. A source may be that process,
/// and its destination is to outlive it.
pub fn wanted(source: i32, cgroups_of: CgroupsOf) -> Result<Wanted, ProcError> {
    let mut standing = Standing::of(source)?;
    let own = Standing::of(nix::unistd::getpid().as_raw())?;
    let service = match cgroups_of {
        CgroupsOf::Source => standing.service_apart_from(&own),
        CgroupsOf::Engine => None,
    };
    if service.is_some() || cgroups_of == CgroupsOf::Engine {
        standing.cgroups = own.cgroups;
    }
    Ok(Wanted { standing, service })
}

/// What of it a destination would fail without.
pub fn blockers(
    source: i32,
    owner: &Credentials,
    line: &CommandLine,
    wanted: &Wanted,
) -> Result<Vec<Blocker>, ProcError> {
    let (wanted, mut found) = (&wanted.standing, Vec::new());
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
pub fn warning(wanted: &Wanted, destination: i32) -> Result<Option<Warning>, ProcError> {
    let mut lacking = wanted.standing.lacking(&Standing::of(destination)?);
    let outside = |service: &UnitName| format!("outside of {service}, with which systemd would end it");
    lacking.extend(wanted.service.as_ref().map(outside));
    Ok((!lacking.is_empty()).then(|| not_taken("the destination", &lacking)))
}

/// Tells what was not permitted.
pub(super) fn not_taken(whose: &str, lacking: &[String]) -> Warning {
    Warning {
        code: NOT_TAKEN.to_owned(),
        message: format!("{whose} has not all that the source has: {}", lacking.join("; ")),
        hint: (!nix::unistd::geteuid().is_root()).then(|| "root may give all of it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_in_the_engines_cgroups_is_where_the_engine_is() {
        let own = nix::unistd::getpid().as_raw();
        let wanted = wanted(1, CgroupsOf::Engine).unwrap();
        assert_eq!(wanted.standing.cgroups, Standing::of(own).unwrap().cgroups);
        assert_eq!(wanted.service, None);
    }
}
