//! What a process has from its host besides its user: limits, priorities, processors, cgroups.
//!
//! A second process takes all of it that it is permitted to take, between fork and exec, so that what it allocates is
//! counted where it belongs from its first page on. What was not permitted is found by looking at what it has then
//! ([`Standing::lacking`]), which is also true where the kernel has cut something off without a word.

use std::ffi::CString;
use std::fmt;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::write;

use super::proc::{ProcError, proc_error, read};
use super::supervisor::{Unit, UnitName};

/// The cgroups that a process is in.
mod cgroup;
/// On which processors a thread may run.
mod processors;

pub use cgroup::{Cgroup, MemoryRoom};
use processors::Processors;

/// All limits that Linux has, as /proc calls them.
const LIMITS: [(&str, Resource); 16] = [
    ("Max cpu time", Resource::RLIMIT_CPU),
    ("Max file size", Resource::RLIMIT_FSIZE),
    ("Max data size", Resource::RLIMIT_DATA),
    ("Max stack size", Resource::RLIMIT_STACK),
    ("Max core file size", Resource::RLIMIT_CORE),
    ("Max resident set", Resource::RLIMIT_RSS),
    ("Max processes", Resource::RLIMIT_NPROC),
    ("Max open files", Resource::RLIMIT_NOFILE),
    ("Max locked memory", Resource::RLIMIT_MEMLOCK),
    ("Max address space", Resource::RLIMIT_AS),
    ("Max file locks", Resource::RLIMIT_LOCKS),
    ("Max pending signals", Resource::RLIMIT_SIGPENDING),
    ("Max msgqueue size", Resource::RLIMIT_MSGQUEUE),
    ("Max nice priority", Resource::RLIMIT_NICE),
    ("Max realtime priority", Resource::RLIMIT_RTPRIO),
    ("Max realtime timeout", Resource::RLIMIT_RTTIME),
];

/// The place of the limit on locked memory among them.
const MEMLOCK: usize = 8;

/// A soft and a hard limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What counts now.
    pub soft: libc::rlim_t,
    /// As far as the process may raise it.
    pub hard: libc::rlim_t,
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |limit| if limit == RLIM_INFINITY { "unlimited".to_owned() } else { format!("{limit}") };
        write!(formatter, "{}:{}", word(self.soft), word(self.hard))
    }
}

/// When a thread gets a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheduling {
    /// Of the ordinary policies.
    nice: i32,
    /// A number of `sched(7)`.
    policy: i32,
    /// Of the realtime policies.
    priority: i32,
}

impl fmt::Display for Scheduling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = match self.policy {
            libc::SCHED_OTHER => return write!(formatter, "nice {}", self.nice),
            libc::SCHED_FIFO => return write!(formatter, "SCHED_FIFO {}", self.priority),
            libc::SCHED_RR => return write!(formatter, "SCHED_RR {}", self.priority),
            libc::SCHED_BATCH => "SCHED_BATCH".to_owned(),
            libc::SCHED_IDLE => "SCHED_IDLE".to_owned(),
            other => format!("scheduling policy {other}"),
        };
        write!(formatter, "{policy}, nice {}", self.nice)
    }
}

/// What one thread has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadStanding {
    /// When it gets a processor.
    scheduling: Scheduling,
    /// And which.
    processors: Processors,
}

/// What a process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    limits: [Limit; LIMITS.len()],
    /// That of its first thread, and of those that it starts.
    thread: ThreadStanding,
    io_priority: i32,
    oom_score_adj: i32,
    umask: Mode,
    no_new_privileges: bool,
    /// Where there is no bit no program that it runs has that capability.
    capability_bounds: u64,
    /// The cgroups that it is in.
    pub cgroups: Vec<Cgroup>,
}

impl ThreadStanding {
    /// That of a thread of a process.
    pub fn of(pid: i32, thread: i32) -> Result<Self, ProcError> {
        const STAT: &str = "stat";
        let path = format!("/proc/{pid}/task/{thread}/{STAT}");
        let stat = std::fs::read_to_string(path).map_err(|error| proc_error(pid, STAT, error))?;
        let malformed = ProcError::Malformed { pid, what: STAT };
        let scheduling = scheduling(&stat).ok_or(malformed)?;
        let processors = Processors::of(thread).map_err(|error| proc_error(pid, "affinity", error))?;
        Ok(Self { scheduling, processors })
    }

    /// Gives as much of it as is permitted to a thread; 0 is the calling one. Makes system calls only.
    pub fn give(&self, thread: i32) {
        let Scheduling { nice, policy, priority } = self.scheduling;
        let parameter = libc::sched_param { sched_priority: priority };
        // SAFETY: `sched_setscheduler` reads one structure, which lives; `setpriority` takes numbers only. The first is
        // called as it is, since musl's function does nothing.
        unsafe {
            libc::syscall(libc::SYS_sched_setscheduler, thread, policy, &raw const parameter);
            libc::setpriority(libc::PRIO_PROCESS, thread.cast_unsigned(), nice);
        }
        let _ = self.processors.give(thread);
    }

    /// In words, what another one has instead.
    pub fn lacking(&self, other: &Self) -> Vec<String> {
        let mut lacking = Vec::new();
        if other.scheduling != self.scheduling {
            lacking.push(format!("{} instead of {}", other.scheduling, self.scheduling));
        }
        if other.processors != self.processors {
            lacking.push(format!("processors {} instead of {}", other.processors, self.processors));
        }
        lacking
    }
}

impl Standing {
    /// That of a process.
    pub fn of(pid: i32) -> Result<Self, ProcError> {
        let text = |what| Ok(String::from_utf8_lossy(&read(pid, what)?).into_owned());
        let malformed = |what| ProcError::Malformed { pid, what };
        let status = text("status")?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let umask = field("Umask:").and_then(|mask| libc::mode_t::from_str_radix(mask, 8).ok());
        let bounds = field("CapBnd:").and_then(|bits| u64::from_str_radix(bits, 16).ok());
        let (Some(umask), Some(capability_bounds)) = (umask, bounds) else {
            return Err(malformed("status"));
        };
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let oom = text("oom_score_adj")?.trim().parse().map_err(|_| malformed("oom_score_adj"))?;
        Ok(Self {
            limits: limits(&text("limits")?).ok_or(malformed("limits"))?,
            thread: ThreadStanding::of(pid, pid)?,
            io_priority: io_priority(pid),
            oom_score_adj: oom,
            umask: Mode::from_bits_truncate(umask),
            no_new_privileges: field("NoNewPrivs:") == Some("1"),
            capability_bounds,
            // A kernel may have been built without any.
            cgroups: Cgroup::read(&text("cgroup").unwrap_or_default(), &mounts),
        })
    }

    /// The service of systemd's that it belongs to, if the other does not: what is in its cgroup ends with it.
    pub fn service_apart_from(&self, other: &Self) -> Option<UnitName> {
        let service = Unit::among(&self.cgroups)?;
        (Unit::among(&other.cgroups).as_ref() != Some(&service)).then_some(service.name)
    }

    /// How much memory it may lock.
    pub fn locked_memory(&self) -> Limit {
        self.limits[MEMLOCK]
    }

    /// How much memory one process more may have in these cgroups, where one of them limits that and this process may
    /// put it there.
    pub fn memory_room(&self) -> Option<MemoryRoom> {
        let others = self.cgroups_of_others();
        let counted =
            self.cgroups.iter().filter(|cgroup| !others.contains(cgroup) || cgroup.may_be_entered());
        counted.filter_map(Cgroup::memory_room).min_by_key(|room| room.bytes)
    }

    /// The cgroups in which this process is not, where whatever it starts is.
    fn cgroups_of_others(&self) -> Vec<&Cgroup> {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = Cgroup::read(&own, "");
        let is_own = |cgroup: &Cgroup| {
            own.iter().any(|own| (&own.hierarchy, &own.path) == (&cgroup.hierarchy, &cgroup.path))
        };
        self.cgroups.iter().filter(|cgroup| !is_own(cgroup)).collect()
    }

    /// In words, what another one has instead.
    pub fn lacking(&self, other: &Self) -> Vec<String> {
        let mut lacking = Vec::new();
        let mut hold = |is_same: bool, what: &str, has: &dyn fmt::Display, wanted: &dyn fmt::Display| {
            if !is_same {
                lacking.push(format!("{what} {has} instead of {wanted}"));
            }
        };
        for ((name, _), (wanted, has)) in LIMITS.iter().zip(self.limits.iter().zip(&other.limits)) {
            // A process may raise what counts by itself, as QEMU 9.0 and later do with open files.
            let is_enough = wanted.hard == has.hard && wanted.soft <= has.soft;
            hold(is_enough, &name.to_lowercase(), has, wanted);
        }
        let (wanted, has) = (self.io_priority, other.io_priority);
        hold(wanted == has, "I/O priority", &IoPriority(has), &IoPriority(wanted));
        let (wanted, has) = (self.oom_score_adj, other.oom_score_adj);
        hold(wanted == has, "oom_score_adj", &has, &wanted);
        for wanted in &self.cgroups {
            let same = |has: &&Cgroup| has.hierarchy == wanted.hierarchy;
            let has = other.cgroups.iter().find(same).map_or("none", |has| has.path.as_str());
            let name = if wanted.hierarchy.is_empty() { "2" } else { &wanted.hierarchy };
            hold(has == wanted.path, &format!("cgroup ({name})"), &has, &wanted.path);
        }
        lacking.splice(0..0, self.thread.lacking(&other.thread));
        lacking
    }

    /// All that has to be thought of before a process takes it.
    pub(super) fn ready(&self) -> Ready {
        // To enter a cgroup takes the kernel some milliseconds, also where the process is in it already.
        let entrances = self.cgroups_of_others().into_iter().filter_map(Cgroup::entrance).collect();
        Ready {
            entrances,
            oom_score_adj: self.oom_score_adj.to_string().into_bytes(),
            standing: self.clone(),
        }
    }
}

/// A standing that can be taken between fork and exec.
#[derive(Debug)]
pub(super) struct Ready {
    standing: Standing,
    entrances: Vec<CString>,
    oom_score_adj: Vec<u8>,
}

impl Ready {
    /// Gives the calling process all that it may have, before it becomes another user's: what root alone may do is done
    /// by then. Makes system calls only, and allocates nothing.
    pub(super) fn take(&self) {
        // First the cgroups: a cpuset takes processors away, and gives those of its own.
        for entrance in &self.entrances {
            let _ = cgroup::enter(entrance);
        }
        let standing = &self.standing;
        for ((_, resource), limit) in LIMITS.iter().zip(&standing.limits) {
            if setrlimit(*resource, limit.soft, limit.hard).is_err()
                && let Ok((_, most)) = getrlimit(*resource)
            {
                let _ = setrlimit(*resource, limit.soft.min(most), limit.hard.min(most));
            }
        }
        standing.thread.give(0);
        // SAFETY: numbers only.
        unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, standing.io_priority) };
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        if let Ok(file) = open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
            let _ = write(&file, &self.oom_score_adj);
        }
        umask(standing.umask);
        for capability in 0..u64::BITS {
            if standing.capability_bounds >> capability & 1 == 0 {
                // SAFETY: numbers only. One that the kernel does not know is refused.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
            }
        }
        if standing.no_new_privileges {
            let _ = set_no_new_privs();
        }
    }
}

/// The highest limit on locked memory that this process may give another one.
pub fn lockable_memory() -> u64 {
    const CAP_SYS_RESOURCE: u32 = 24;
    if own_capabilities() >> CAP_SYS_RESOURCE & 1 == 1 {
        return RLIM_INFINITY;
    }
    getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(_, hard)| hard)
}

/// What this process may do that others may not: a bit for each capability.
pub(super) fn own_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// How much memory of its own a process has: what another one like it will be counted with. Huge pages are not counted.
pub fn resident_bytes(pid: i32) -> Result<u64, ProcError> {
    let status = read(pid, "status")?;
    let status = String::from_utf8_lossy(&status);
    let kibibytes = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
    };
    let own = ["RssAnon:", "RssShmem:"].into_iter().filter_map(kibibytes).sum::<u64>();
    Ok(own * 1024)
}

/// `ioprio_set(2)`: one thread, by its number.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// Above this the class stands, below it the level.
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// None where a kernel does not have them.
fn io_priority(pid: i32) -> i32 {
    // SAFETY: numbers only.
    let value = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, pid) };
    i32::try_from(value).unwrap_or(0).max(0)
}

struct IoPriority(i32);

impl fmt::Display for IoPriority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, level) = (self.0 >> IOPRIO_CLASS_SHIFT, self.0 & ((1 << IOPRIO_CLASS_SHIFT) - 1));
        match class {
            0 => write!(formatter, "none"),
            1 => write!(formatter, "realtime {level}"),
            2 => write!(formatter, "best-effort {level}"),
            3 => write!(formatter, "idle"),
            other => write!(formatter, "class {other}, {level}"),
        }
    }
}

/// All limits, from /proc/PID/limits, which every user may read, as `prlimit(2)` cannot. `None` if one is missing.
fn limits(text: &str) -> Option<[Limit; LIMITS.len()]> {
    let mut limits = [Limit { soft: RLIM_INFINITY, hard: RLIM_INFINITY }; LIMITS.len()];
    for ((name, _), limit) in LIMITS.iter().zip(&mut limits) {
        let values = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut values = values.split_ascii_whitespace().map(|value| match value {
            "unlimited" => Some(RLIM_INFINITY),
            number => number.parse().ok(),
        });
        *limit = Limit { soft: values.next()??, hard: values.next()?? };
    }
    Some(limits)
}

/// From `stat` (`proc(5)`, fields 19, 40 and 41); the second field is the program's name in parentheses, and may itself
/// hold blanks and parentheses.
fn scheduling(stat: &str) -> Option<Scheduling> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse().ok();
    Some(Scheduling { nice: number(19)?, priority: number(40)?, policy: number(41)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_as_it_stands_and_lacks_nothing_of_itself() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = Standing::of(pid).unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(own.limits[7], Limit { soft, hard });
        assert_eq!(LIMITS[MEMLOCK].1, Resource::RLIMIT_MEMLOCK);
        assert_eq!(own.lacking(&own), [] as [&str; 0]);
        assert_eq!(own.cgroups_of_others(), [] as [&Cgroup; 0]);
        assert!(matches!(Standing::of(i32::MAX), Err(ProcError::Gone(_))));
    }

    #[test]
    fn what_another_one_has_instead_is_told_with_both_values() {
        let own = Standing::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let mut wanted = own.clone();
        wanted.limits[MEMLOCK] = Limit { soft: 65536, hard: RLIM_INFINITY };
        wanted.thread.scheduling = Scheduling { nice: 0, policy: libc::SCHED_FIFO, priority: 7 };
        wanted.io_priority = (2 << IOPRIO_CLASS_SHIFT) + 7;
        wanted.oom_score_adj = own.oom_score_adj + 1;
        wanted.cgroups =
            vec![Cgroup::read("0::/machine/vm", "").remove(0), Cgroup::read("2:x:/y", "").remove(0)];
        let lacking = wanted.lacking(&own).join("; ");
        for part in [
            "instead of SCHED_FIFO 7",
            "max locked memory",
            "instead of 65536:unlimited",
            "instead of best-effort 7",
            "oom_score_adj",
            "cgroup (2)",
            "instead of /machine/vm",
            "cgroup (x) none instead of /y",
        ] {
            assert!(lacking.contains(part), "{part}: {lacking}");
        }
    }

    #[test]
    fn a_limit_that_a_process_has_raised_itself_is_none_that_it_lacks() {
        let own = Standing::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let (mut lower, mut higher) = (own.clone(), own);
        lower.limits[MEMLOCK] = Limit { soft: 1, hard: 9 };
        higher.limits[MEMLOCK] = Limit { soft: 9, hard: 9 };
        assert_eq!(lower.lacking(&higher), [] as [&str; 0]);
        assert_eq!(higher.lacking(&lower), ["max locked memory 1:9 instead of 9:9"]);
    }

    #[test]
    fn a_service_is_known_by_its_cgroup_unless_the_other_is_in_it_too() {
        let mut own = Standing::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let mut other = own.clone();
        for (cgroup, others, service) in [
            ("0::/system.slice/vm.service", "0::/", Some("vm.service")),
            ("0::/system.slice/vm.service/qemu", "0::/system.slice/ssh.service", Some("vm.service")),
            ("0::/system.slice/vm.service/qemu", "0::/system.slice/vm.service/.control", None),
            ("4:memory:/x\n1:name=systemd:/system.slice/vm@1.service\n0::/", "", Some("vm@1.service")),
            ("0::/user.slice/user-0.slice/user@0.service/app.slice/run-1.scope", "", None),
            ("0::/user.slice/user-0.slice/session-1.scope", "", None),
            ("4:memory:/vm.service\n0::/", "", None),
            ("", "", None),
        ] {
            own.cgroups = Cgroup::read(cgroup, "");
            other.cgroups = Cgroup::read(others, "");
            let found = own.service_apart_from(&other).map(|name| name.to_string());
            assert_eq!(found.as_deref(), service, "{cgroup} and {others}");
        }
    }

    #[test]
    fn the_name_of_a_program_does_not_lead_astray() {
        let stat = format!("7 (a) 1 (b) S {} 20 -5{} 9 1 0", "0 ".repeat(14).trim(), " 0".repeat(20));
        assert_eq!(scheduling(&stat), Some(Scheduling { nice: -5, policy: 1, priority: 9 }));
    }
}
