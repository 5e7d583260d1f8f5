//! The cgroups that a process is in: one in each hierarchy, of version 1 and of version 2.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access, write};

/// The file that a process is written into to be in a cgroup.
const PROCESSES: &str = "cgroup.procs";

/// One cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Which hierarchy: its controllers, `name=systemd`, or nothing for the one of version 2.
    pub hierarchy: String,
    /// Its path in the hierarchy, as this process sees it.
    pub path: String,
    /// Where it is, if its hierarchy is mounted.
    pub directory: Option<PathBuf>,
    /// Where its hierarchy is.
    mount: PathBuf,
}

/// What a cgroup, or one above it, lets its processes still have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRoom {
    /// So much.
    pub bytes: u64,
    /// The file with the limit.
    pub limit: PathBuf,
}

impl Cgroup {
    /// Those that /proc/PID/cgroup tells of, with where they are by /proc/self/mountinfo.
    pub(in crate::host) fn read(cgroup: &str, mountinfo: &str) -> Vec<Self> {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::read).collect();
        let read = |line: &str| {
            // `4:memory:/machine/guest`, and `0::/machine/guest` in version 2; a path may have colons.
            let mut parts = line.splitn(3, ':').skip(1);
            let (hierarchy, path) = (parts.next()?, parts.next()?);
            let found = mounts.iter().find_map(|mount| Some((mount, mount.directory(hierarchy, path)?)));
            Some(Self {
                hierarchy: hierarchy.to_owned(),
                path: path.to_owned(),
                mount: found.as_ref().map(|(mount, _)| mount.point.to_owned()).unwrap_or_default(),
                directory: found.map(|(_, directory)| directory),
            })
        };
        cgroup.lines().filter_map(read).collect()
    }

    /// Where a process is written to be in it.
    pub(super) fn entrance(&self) -> Option<CString> {
        CString::new(self.directory.as_ref()?.join(PROCESSES).as_os_str().as_bytes()).ok()
    }

    /// Whether this process may put others into it.
    pub(super) fn may_be_entered(&self) -> bool {
        let may = |directory: &PathBuf| access(&directory.join(PROCESSES), AccessFlags::W_OK).is_ok();
        self.directory.as_ref().is_some_and(may)
    }

    /// How much memory its processes may still have, where its hierarchy counts that: by its own limit and by those of
    /// all above it. What is cached of files counts as free.
    pub(super) fn memory_room(&self) -> Option<MemoryRoom> {
        let directory = self.directory.as_ref()?;
        let up = directory.ancestors().take_while(|above| above.starts_with(&self.mount));
        up.filter_map(room_in).min_by_key(|room| room.bytes)
    }
}

/// Puts the calling process into a cgroup. Makes system calls only, and allocates nothing.
pub(super) fn enter(entrance: &CString) -> nix::Result<()> {
    let file = open(entrance.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, b"0").map(drop)
}

/// One that counts memory has these files, in version 2 or in version 1.
fn room_in(directory: &Path) -> Option<MemoryRoom> {
    let [limit, used] =
        [["memory.max", "memory.current"], ["memory.limit_in_bytes", "memory.usage_in_bytes"]]
            .into_iter()
            .find(|[limit, _]| directory.join(limit).exists())?;
    let number = |file| std::fs::read_to_string(directory.join(file)).ok()?.trim().parse::<u64>().ok();
    // `max` is no number.
    let (bytes, used) = (number(limit)?, number(used)?);
    let statistics = std::fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let in_use = used.saturating_sub(cached(&statistics));
    Some(MemoryRoom { bytes: bytes.saturating_sub(in_use), limit: directory.join(limit) })
}

/// What the kernel takes back before it lets a process go without. The lines of version 1 that count those below too
/// begin with `total_`.
fn cached(statistics: &str) -> u64 {
    let value = |name: &str| -> Option<u64> {
        statistics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    let file = |name: &str| value(&format!("total_{name}")).or_else(|| value(name)).unwrap_or(0);
    file("inactive_file") + file("active_file")
}

/// A hierarchy that is mounted.
struct Mount<'a> {
    /// What of it is mounted.
    root: &'a str,
    point: &'a Path,
    kind: &'a str,
    /// With the controllers, in version 1.
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// A line of `mountinfo`: `35 31 0:32 ROOT POINT OPTIONS [FIELDS] - KIND SOURCE OPTIONS` (`proc(5)`).
    fn read(line: &'a str) -> Option<Self> {
        let (own, kind) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(3);
        let mut kind = kind.split(' ');
        Some(Self {
            root: own.next()?,
            point: Path::new(own.next()?),
            kind: kind.next()?,
            options: kind.nth(1)?,
        })
    }

    /// Where a path of a hierarchy is below it, if it is that hierarchy and shows that path.
    fn directory(&self, hierarchy: &str, path: &str) -> Option<PathBuf> {
        let is_it = match (hierarchy, self.kind) {
            ("", kind) => kind == "cgroup2",
            (_, "cgroup") => {
                hierarchy.split(',').all(|one| self.options.split(',').any(|other| other == one))
            }
            _ => false,
        };
        let below = Path::new(path).strip_prefix(self.root).ok().filter(|_| is_it)?;
        // A path that leads out of this process's cgroup namespace begins with `/..`.
        let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        is_plain.then(|| self.point.join(below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/a /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn each_cgroup_is_found_where_its_hierarchy_is_mounted() {
        let own = "9:name=systemd:/a.scope\n5:cpuset:/x\n4:memory:/docker/a/b\n3:memory:/elsewhere\n2:cpu,cpuacct:/c:d\n\
            1:cpu:/../up\n0::/machine.slice/vm\n";
        let found = Cgroup::read(own, MOUNTS);
        let found: Vec<_> = found
            .iter()
            .map(|cgroup| {
                (cgroup.hierarchy.as_str(), cgroup.directory.as_ref().and_then(|path| path.to_str()))
            })
            .collect();
        assert_eq!(
            found,
            [
                ("name=systemd", Some("/sys/fs/cgroup/systemd/a.scope")),
                ("cpuset", None),
                ("memory", Some("/sys/fs/cgroup/memory/b")),
                ("memory", None),
                ("cpu,cpuacct", Some("/sys/fs/cgroup/cpu,cpuacct/c:d")),
                ("cpu", None),
                ("", Some("/sys/fs/cgroup/unified/machine.slice/vm")),
            ]
        );
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_is_the_room() {
        let mount = tempfile::tempdir().unwrap();
        let leaf = mount.path().join("a/b");
        std::fs::create_dir_all(&leaf).unwrap();
        let cgroup = Cgroup {
            hierarchy: String::new(),
            path: "/a/b".to_owned(),
            directory: Some(leaf.clone()),
            mount: mount.path().to_owned(),
        };
        assert_eq!(cgroup.memory_room(), None);
        let write = |directory: &Path, files: [(&str, &str); 3]| {
            for (name, text) in files {
                std::fs::write(directory.join(name), text).unwrap();
            }
        };
        let statistics = "anon 500\ninactive_file 60\nactive_file 40\n";
        write(&leaf, [("memory.max", "max\n"), ("memory.current", "600\n"), ("memory.stat", statistics)]);
        assert_eq!(cgroup.memory_room(), None);
        let above = mount.path().join("a");
        write(&above, [("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", statistics)]);
        assert_eq!(cgroup.memory_room(), Some(MemoryRoom { bytes: 400, limit: above.join("memory.max") }));
        let statistics = "inactive_file 1\ntotal_inactive_file 60\ntotal_active_file 40\n";
        std::fs::remove_file(leaf.join("memory.max")).unwrap();
        write(
            &leaf,
            [("memory.limit_in_bytes", "700"), ("memory.usage_in_bytes", "600"), ("memory.stat", statistics)],
        );
        assert_eq!(cgroup.memory_room().map(|room| room.bytes), Some(200));
    }
}
