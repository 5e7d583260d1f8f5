//! Blockers in what a destination on this host would have to be given: memory that it may have, and may lock.

use super::{Blocker, Code};
use crate::host::{Limit, MemoryRoom};
use crate::qemu::argv::CommandLine;
use crate::units::show_bytes;

/// A destination in the cgroups of its source is counted together with it. Where both do not fit the kernel kills one of
/// them, and that may be the one with the guest.
pub fn memory_room(room: Option<&MemoryRoom>, resident_bytes: u64) -> Option<Blocker> {
    let room = room.filter(|room| room.bytes < resident_bytes)?;
    let limit = room.limit.display();
    Some(Blocker::new(
        Code::CgroupMemory,
        format!(
            "the destination needs as much memory as its source has, {}, and their cgroup has room for {} ({limit})",
            show_bytes(resident_bytes),
            show_bytes(room.bytes)
        ),
        format!("raise the limit for as long as the guest is moved: echo BYTES > {limit}"),
    ))
}

/// A guest whose memory is locked, or used by a device of the host's, needs a limit that allows it; where it is too low
/// QEMU ends as it starts, or as a device is plugged in.
pub fn locked_memory(line: &CommandLine, wanted: Limit, most: u64) -> Option<Blocker> {
    (wanted.soft > most && locks_memory(line)).then(|| {
        Blocker::new(
            Code::LockedMemory,
            format!(
                "this guest's memory is locked, and its destination could not be given the source's limit on that: {} \
                 are more than {}, the most that this user may give",
                shown(wanted.soft),
                shown(most)
            ),
            "run qmigrate as root, or from a shell whose limit is as high (ulimit -H -l)",
        )
    })
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "unlimited bytes".to_owned() } else { show_bytes(limit) }
}

/// Whether a guest's memory stays where it is: by an option, or by a device that reaches it around QEMU.
fn locks_memory(line: &CommandLine) -> bool {
    let is_locked = |names: &[&str], key: &str| line.merged(names, key).is_some_and(|value| value != "off");
    let reaches = line.options.iter().any(|option| match option.name.as_str() {
        "device" => option.get("driver").is_some_and(|driver| driver.starts_with("vfio-")),
        "netdev" => option.get("type").as_deref() == Some("vhost-vdpa"),
        _ => false,
    });
    is_locked(&["overcommit"], "mem-lock") || is_locked(&["realtime"], "mlock") || reaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_do_not_fit_into_one_cgroup_are_refused() {
        let room = MemoryRoom { bytes: 1 << 30, limit: "/sys/fs/cgroup/vm/memory.max".into() };
        assert_eq!(memory_room(None, u64::MAX), None);
        assert_eq!(memory_room(Some(&room), 1 << 30), None);
        let blocker = memory_room(Some(&room), (1 << 30) + 1).unwrap();
        assert_eq!(blocker.code, Code::CgroupMemory);
        assert!(blocker.hint.unwrap().contains("> /sys/fs/cgroup/vm/memory.max"));
    }

    #[test]
    fn a_limit_on_locked_memory_matters_where_memory_is_locked() {
        for (words, matters) in [
            ("-overcommit mem-lock=on", true),
            ("-overcommit mem-lock=on-fault", true),
            ("-overcommit cpu-pm=on,mem-lock=off", false),
            ("-realtime mlock=on", true),
            ("-device vfio-pci,host=01:00.0", true),
            (r#"-device {"driver":"vfio-pci"}"#, true),
            ("-netdev vhost-vdpa,id=n", true),
            ("-device virtio-net-pci", false),
        ] {
            let words = ["qemu-system-x86_64"].into_iter().chain(words.split(' ')).map(Into::into);
            let line = CommandLine::parse(&words.collect::<Vec<_>>()).unwrap();
            let wanted = Limit { soft: u64::MAX, hard: u64::MAX };
            assert_eq!(locked_memory(&line, wanted, 1 << 20).is_some(), matters, "{line:?}");
            assert_eq!(locked_memory(&line, wanted, u64::MAX), None);
        }
    }
}
