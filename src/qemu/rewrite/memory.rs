//! Guest memory in a file that both QEMUs would map.
//!
//! Sent like any other, its pages would be written by the destination into the guest that still runs (proved on 10.0).
//! Left where it is, with `x-ignore-shared` on both sides, nothing of it is sent and nothing is written: a QEMU that
//! waits for a stream loads no ROM into it (run on 10.0 and 11.1).

use super::{RewriteError, Sharing, Work, changed};
use crate::qemu::argv::CommandOption;

/// Whether a `-object` is guest memory in a file that the source has mapped, shared. A directory is none: each QEMU makes
/// a file without a name in it.
pub(super) fn is_shared_file(work: &Work<'_>, option: &CommandOption) -> bool {
    shared_path(option).is_some_and(|path| {
        work.setting.shared.files == Sharing::Same
            && !work.maps.has_given(&path)
            && !work.setting.surroundings.is_directory(&work.directory.join(path))
    })
}

fn shared_path(option: &CommandOption) -> Option<String> {
    let properties = option.properties()?;
    let is_meant = properties.get("qom-type") == Some("memory-backend-file") && properties.is_on("share");
    Some(properties.get("mem-path").filter(|_| is_meant)?.to_owned())
}

/// Whether a `-object` is shared memory that each QEMU has for itself. `x-ignore-shared` would leave it behind: before
/// 8.0 any of it, later what is in a file, also in one without a name.
fn is_shared_otherwise(work: &Work<'_>, option: &CommandOption) -> bool {
    let properties = option.properties().filter(|_| option.name == "object");
    properties.is_some_and(|properties| match properties.get("qom-type") {
        Some("memory-backend-memfd" | "memory-backend-shm") => properties.get("share") != Some("off"),
        Some("memory-backend-ram") => properties.is_on("share"),
        Some("memory-backend-file") => properties.is_on("share") && !is_shared_file(work, option),
        _ => false,
    })
}

/// Leaves it where it is, or says why that cannot be.
pub(super) fn in_place(work: &mut Work<'_>, option: CommandOption) -> Option<CommandOption> {
    let Some(properties) = option.properties() else { return Some(option) };
    let why = if properties.is_on("discard-data") {
        Some("with discard-data=on the source would empty that file as it ends")
    } else if work.setting.incoming != "defer" {
        Some("a destination that listens from its start cannot be told to leave it where it is")
    } else if !shared_path(&option)
        .is_some_and(|path| work.setting.surroundings.is_mapped(&work.directory.join(path)))
    {
        Some("another file is there now than the source has mapped")
    } else if work.source.options.iter().any(|other| is_shared_otherwise(work, other)) {
        Some("beside it there is shared memory that the destination would not have")
    } else {
        None
    };
    if let Some(why) = why {
        let option = format!("-object {}", option.shown().unwrap_or_default());
        work.errors.push(RewriteError::SharedMemory { option, why });
        return None;
    }
    work.rewritten.in_place.extend(properties.get("id").map(str::to_owned));
    // Its pages are there. To touch them means to write them where the kernel knows nothing better (before Linux 5.14
    // and QEMU 6.2), beside the guest that does.
    if properties.is_on("prealloc") || work.source.has("mem-prealloc") {
        return Some(changed(option, "prealloc", false));
    }
    Some(option)
}
