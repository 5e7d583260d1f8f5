//! What the host has for a second QEMU: memory, huge pages, KVM, userfaultfd.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Blocker, Code};
use crate::host::{Credentials, as_user};
use crate::units::show_bytes;

/// Memory that a second copy of the guest may need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the guest has been given.
    pub given_bytes: u64,
    /// What its process has of the host's memory now, in swap too. Pages that the guest never wrote are not sent, and
    /// take nothing on the destination either.
    pub held_bytes: u64,
}

impl Memory {
    /// Of a guest with so much memory, in this process.
    pub fn of(pid: i32, given_bytes: u64) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let held = ["RssAnon", "RssShmem", "VmSwap"].iter().filter_map(|name| kilobytes(&status, name)).sum();
        Self { given_bytes, held_bytes: held }
    }
}

/// What is found where memory is short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Short {
    /// Not even what the guest holds now fits: the kernel would kill one of the two, or another process.
    Certainly(Blocker),
    /// What it holds fits, and all that it has been given does not.
    Perhaps(Blocker),
}

/// Whether the host has memory for a second copy, by its `/proc/meminfo`.
pub fn memory(need: Memory, meminfo: &str) -> Option<Short> {
    let available = kilobytes(meminfo, "MemAvailable")?;
    let with_swap = available.saturating_add(kilobytes(meminfo, "SwapFree").unwrap_or(0));
    let blocker = |message: String| Blocker::new(Code::LittleMemory, message, MAKE_ROOM);
    if need.held_bytes > with_swap {
        return Some(Short::Certainly(blocker(format!(
            "the guest holds {} of this host's memory, and only {} is free for a second copy (swap counted)",
            show_bytes(need.held_bytes),
            show_bytes(with_swap)
        ))));
    }
    (need.given_bytes > available).then(|| {
        Short::Perhaps(blocker(format!(
            "the guest has {} of memory (it uses {} now), and {} is free on this host for a second copy",
            show_bytes(need.given_bytes),
            show_bytes(need.held_bytes),
            show_bytes(available)
        )))
    })
}

const MAKE_ROOM: &str = "make room, or take memory from the guest first (the monitor's `balloon`)";

/// Huge pages that a second copy needs, by their size, from the answer to `info ramblock`. A block on ordinary pages has
/// those of 4 KiB, transparent huge pages or not.
pub fn huge_pages_of(ramblock: &str) -> BTreeMap<u64, u64> {
    let mut need = BTreeMap::new();
    for line in ramblock.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let Some(at) = words.iter().position(|word| word.starts_with("0x")) else { continue };
        let page = || {
            let number: u64 = words.get(at.checked_sub(2)?)?.parse().ok()?;
            let unit = match *words.get(at.checked_sub(1)?)? {
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                _ => return None,
            };
            number.checked_mul(unit)
        };
        let total = words.get(at + 2).and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
        if let (Some(page), Some(total)) = (page(), total)
            && page > BIGGEST_ORDINARY_PAGE
        {
            *need.entry(page).or_default() += total;
        }
    }
    need
}

/// No machine has ordinary pages above 64 KiB.
const BIGGEST_ORDINARY_PAGE: u64 = 64 << 10;

/// The huge pages of one size that a host can still give out.
pub fn free_huge_pages(page_bytes: u64) -> u64 {
    let directory = Path::new("/sys/kernel/mm/hugepages").join(format!("hugepages-{}kB", page_bytes >> 10));
    let number = |name: &str| -> u64 {
        std::fs::read_to_string(directory.join(name))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    // Pages that others have reserved and not touched yet count as free there; beyond the pool the kernel may make
    // more.
    let pool = number("free_hugepages").saturating_sub(number("resv_hugepages"));
    pool.saturating_add(number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages")))
}

/// Whether there are enough of them: what cannot be reserved fails as the destination starts.
pub fn huge_pages(need: &BTreeMap<u64, u64>, free: impl Fn(u64) -> u64) -> Vec<Blocker> {
    let short = |(&page, &bytes): (&u64, &u64)| {
        let (needed, free) = (bytes.div_ceil(page), free(page));
        (needed > free).then(|| {
            Blocker::new(
                Code::HugePages,
                format!(
                    "the guest's memory is in huge pages of {}: a second copy needs {needed} of them, and {free} are free",
                    show_bytes(page)
                ),
                format!("echo +N > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages makes more", page >> 10),
            )
        })
    };
    need.iter().filter_map(short).collect()
}

/// Whether the source's user can open KVM for a second QEMU.
pub fn kvm(user: &Credentials) -> Option<Blocker> {
    let open = || std::fs::File::options().read(true).write(true).open("/dev/kvm");
    as_user(user, open).err().map(|error| {
        Blocker::new(
            Code::NoKvm,
            format!("the guest runs under KVM, and its user cannot open /dev/kvm for a second QEMU: {error}"),
            "add the user to the group of /dev/kvm (ls -l /dev/kvm), or mend its mode",
        )
    })
}

/// Whether a destination of this user could take a guest in by postcopy: it asks for the faults of the kernel too.
pub fn userfaultfd(user: &Credentials) -> Option<Blocker> {
    if user.user.is_root() {
        return None;
    }
    let open = || std::fs::File::options().read(true).write(true).open("/dev/userfaultfd");
    let has_device = as_user(user, open).is_ok();
    let switch = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").ok();
    userfaultfd_by(has_device, switch.as_deref())
}

/// QEMU from 8.0 on takes the device (Linux 6.1), every one the system call, which the switch forbids (Linux 5.2).
fn userfaultfd_by(has_device: bool, switch: Option<&str>) -> Option<Blocker> {
    let is_forbidden = switch.is_some_and(|switch| switch.trim() == "0") && !has_device;
    is_forbidden.then(|| {
        Blocker::new(
            Code::NoUserfaultfd,
            "a destination of this user cannot use postcopy: vm.unprivileged_userfaultfd is 0, and /dev/userfaultfd is not \
             open to it",
            "only postcopy needs it: sysctl vm.unprivileged_userfaultfd=1, or give the user /dev/userfaultfd (QEMU 8.0 on)",
        )
    })
}

/// A value of a file such as `/proc/meminfo`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MEMINFO: &str = "MemTotal: 8388608 kB\nMemAvailable:    2097152 kB\nSwapFree:  1048576 kB\n";

    #[test]
    fn what_the_guest_holds_must_fit_and_what_it_may_hold_should() {
        let short = |given, held| memory(Memory { given_bytes: given, held_bytes: held }, MEMINFO);
        assert_eq!(short(2 * GIB, GIB), None);
        assert!(matches!(short(4 * GIB, GIB), Some(Short::Perhaps(_))));
        assert!(matches!(short(4 * GIB, 3 * GIB), Some(Short::Perhaps(_))), "with swap it fits");
        assert!(matches!(short(4 * GIB, 3 * GIB + 1), Some(Short::Certainly(_))));
        assert_eq!(
            memory(Memory { given_bytes: GIB, held_bytes: GIB }, ""),
            None,
            "a host that does not tell"
        );
    }

    #[test]
    fn a_process_holds_memory() {
        let own = Memory::of(i32::try_from(std::process::id()).unwrap(), GIB);
        assert!(own.held_bytes > 0 && own.given_bytes == GIB, "{own:?}");
    }

    #[test]
    fn huge_pages_are_counted_by_their_size() {
        let need = huge_pages_of(
            "              Block Name    PSize              Offset               Used              Total
                 /a b   2 MiB  0x0000000000000000 0x0000000008000000 0x0000000008000000
                 m1   2 MiB  0x0 0x100000 0x300000 0x00007ff807e00000  rw
                 big   1 GiB  0x0 0x40000000 0x40000000
                 pc.rom    4 KiB  0x0 0x20000 0x20000
",
        );
        assert_eq!(need, BTreeMap::from([(2 << 20, (128 << 20) + (3 << 20)), (GIB, GIB)]));
        let codes = |free: u64| huge_pages(&need, |_| free).len();
        assert_eq!((codes(0), codes(1), codes(65), codes(66)), (2, 1, 1, 0));
    }

    #[test]
    fn whoever_forbids_userfaultfd_is_named() {
        assert_eq!(userfaultfd_by(false, None), None, "an old kernel forbids nothing");
        assert_eq!(userfaultfd_by(false, Some("1\n")), None);
        assert_eq!(userfaultfd_by(true, Some("0\n")), None);
        assert!(userfaultfd_by(false, Some("0\n")).unwrap().message.contains("vm.unprivileged_userfaultfd"));
    }
}
