//! What QEMU's log of dirty pages misses under TCG, by where the blocks of memory lie.
//!
//! From 9.0 on a look at the dirty pages of a block makes the processors tell of their next write to each page, so that
//! none is lost. But it tells them of the addresses from 0 to the length of the block, wherever the block lies
//! (`physical_memory_dirty_bits_cleared(start, length)` without the block's offset, `migration/ram.c`; still so in 11.1).
//! That is right for one block, the one at 0, which is the guest's memory where it has only one. Of the others:
//!
//! * *Writes are lost*, as before 9.0. A Linux guest on two nodes of 96 MiB, whose writer is in the second, crashed on its
//!   destination in 5 of 5 live moves (10.0 and 11.1).
//! * *The source crashes* as soon as a block is found dirty that is longer than the one at 0, or if nothing is there: the
//!   addresses are then not those of one block (`tlb_reset_dirty_range_all`, an assertion; exit code 134, and 139 at
//!   times). Nodes of 64 and 128 MiB: 2 of 2. With a leftover `-object memory-backend-ram,size=1M`, which gets the address
//!   0, and a guest that hardly writes: 5 of 20; with that object taken away again: 4 of 8.
//!
//! A block that does not begin and end at a multiple of 64 pages is looked at page by page, in its right place. A guest
//! that stands still writes nothing: none of 25 crashed.

use serde_json::Value;

use super::{people, told};
use crate::qmp::Client;

/// A look takes in 64 pages at a time.
const STEP_BYTES: u64 = 64 * 4096;

/// The blocks of which a live migration under TCG loses track.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Untracked {
    /// Memory of the guest whose writes are lost.
    pub loses: Vec<String>,
    /// What makes the source crash when it is dirty.
    pub crashes: Vec<String>,
}

/// Where a block lies among the others.
struct Place<'a> {
    name: &'a str,
    offset: u64,
    used_bytes: u64,
    total_bytes: u64,
}

impl Untracked {
    /// By the answers to `info ramblock` and `query-memdev`.
    pub fn of(ramblock: &str, backends: &Value) -> Self {
        let places: Vec<Place<'_>> = ramblock.lines().filter_map(place).collect();
        if places.is_empty() {
            return Self::default();
        }
        let first_bytes = places.iter().find(|place| place.offset == 0).map_or(0, |first| first.total_bytes);
        let names = |untracked: &dyn Fn(&Place<'_>) -> bool| {
            let chosen = places.iter().filter(|place| place.is_looked_at_in_steps() && untracked(place));
            chosen.map(|place| place.name.trim_start_matches("/objects/").to_owned()).collect()
        };
        Self {
            loses: names(&|place| place.offset != 0 && place.is_one_of(backends)),
            crashes: names(&|place| place.used_bytes > first_bytes),
        }
    }
}

impl Untracked {
    /// Leaves out memory of which the guest makes no use; asks only where there is any. What the QEMU does not tell is
    /// taken for used.
    pub async fn but_unused(mut self, client: &Client) -> Self {
        if self.loses.is_empty() {
            return self;
        }
        let (spaces, devices) = tokio::join!(people(client, "info mtree"), people(client, "info qtree"));
        if let (Ok(Some(spaces)), Ok(Some(devices))) = (told(spaces), told(devices)) {
            self.loses.retain(|id| is_used(id, &spaces, &devices));
        }
        self
    }
}

/// Whether a backend is in an address space, or a device's.
fn is_used(id: &str, spaces: &str, devices: &str) -> bool {
    let path = format!("/objects/{id}");
    let mut regions = spaces.lines().filter_map(|line| line.rsplit_once("): ")).map(|(_, region)| region);
    regions.any(|region| region.split([' ', '@']).any(|word| word == id || word == path))
        || devices.contains(&format!("\"{path}\""))
}

impl Place<'_> {
    fn is_looked_at_in_steps(&self) -> bool {
        self.offset.is_multiple_of(STEP_BYTES) && self.used_bytes.is_multiple_of(STEP_BYTES)
    }

    /// Whether it is memory of the guest, and not of a device.
    fn is_one_of(&self, backends: &Value) -> bool {
        let mut ids =
            backends.as_array().into_iter().flatten().filter_map(|backend| backend.get("id")?.as_str());
        ids.any(|id| self.name.strip_prefix("/objects/").unwrap_or(self.name) == id)
    }
}

/// `pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000`: offset, used, total. A name with
/// blanks is that of no backend.
fn place(line: &str) -> Option<Place<'_>> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("0x"))?;
    let number = |at: usize| u64::from_str_radix(words.get(at)?.strip_prefix("0x")?, 16).ok();
    Some(Place {
        name: words.first()?,
        offset: number(at)?,
        used_bytes: number(at + 1)?,
        total_bytes: number(at + 2)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(blocks: &[(&str, u64, u64)], backends: &[&str]) -> (Vec<String>, Vec<String>) {
        let line = |&(name, offset, length): &(&str, u64, u64)| {
            format!("{name:>24}    4 KiB  0x{offset:016x} 0x{length:016x} 0x{length:016x}\n")
        };
        let text =
            "              Block Name    PSize              Offset               Used              Total\n"
                .to_owned()
                + &blocks.iter().map(line).collect::<String>();
        let backends: Vec<Value> = backends.iter().map(|id| json!({ "id": id })).collect();
        let Untracked { loses, crashes } = Untracked::of(&text, &backends.into());
        (loses, crashes)
    }

    const MIB: u64 = 1 << 20;

    /// As 10.0 says it.
    #[test]
    fn what_is_in_an_address_space_or_a_devices_is_used() {
        let spaces = "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n    \
            0000000000000000-0000000003ffffff (prio 0, ram): alias ram-below-4g @ram 0000000000000000-0000000003ffffff\n    \
            0000000100000000-0000000100ffffff (prio 0, ram): /objects/dimm\n";
        let devices = "dev: ivshmem-plain, id \"\"\n  memdev = \"/objects/window\"\n";
        let used = ["ram", "dimm", "window", "left"].map(|id| is_used(id, spaces, devices));
        assert_eq!(used, [true, true, true, false]);
    }

    #[test]
    fn one_block_at_the_begin_that_is_the_longest_is_all_that_is_tracked() {
        let alone =
            [("pc.ram", 0, 128 * MIB), ("vga.vram", 128 * MIB, 16 * MIB), ("pc.rom", 144 * MIB, MIB / 8)];
        assert_eq!(of(&alone, &["pc.ram"]), (vec![], vec![]));
        let nodes = [("a", 0, 96 * MIB), ("/objects/b", 96 * MIB, 96 * MIB)];
        assert_eq!(of(&nodes, &["a", "b"]), (vec!["b".to_owned()], vec![]));
        let longer = [("a", 0, 64 * MIB), ("b", 64 * MIB, 128 * MIB)];
        assert_eq!(of(&longer, &["a", "b"]), (vec!["b".to_owned()], vec!["b".to_owned()]));
    }

    #[test]
    fn memory_of_no_use_at_the_begin_is_in_the_way_and_so_is_the_place_that_it_has_left() {
        let ram = || vec!["pc.ram".to_owned()];
        assert_eq!(of(&[("m", 0, MIB), ("pc.ram", MIB, 128 * MIB)], &["m", "pc.ram"]), (ram(), ram()));
        assert_eq!(of(&[("pc.ram", MIB, 128 * MIB)], &["pc.ram"]), (ram(), ram()));
    }

    #[test]
    fn a_screen_with_more_memory_than_the_guest_makes_it_crash() {
        let small = [("pc.ram", 0, 8 * MIB), ("0000:00:02.0/vga.vram", 8 * MIB, 16 * MIB)];
        assert_eq!(of(&small, &["pc.ram"]), (vec![], vec!["0000:00:02.0/vga.vram".to_owned()]));
    }

    #[test]
    fn what_is_looked_at_page_by_page_is_tracked_and_nothing_is_said_of_a_qemu_that_tells_nothing() {
        assert_eq!(of(&[("a", 0, MIB), ("b", MIB, 2 * MIB + 4096)], &["a", "b"]), (vec![], vec![]));
        assert_eq!(of(&[], &[]), (vec![], vec![]));
    }
}
