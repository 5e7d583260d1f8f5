//! The memory of a guest that is in use: pages that it never wrote are sent as a few bytes each.

use crate::check::Memory;

/// So much of a guest's memory its process holds, in bytes: a first pass sends no more. A page that was written with
/// zeros is counted, and sent as a few bytes all the same.
pub fn in_use_bytes(pid: i32, memory_bytes: u64) -> u64 {
    let mappings = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let held =
        held_bytes(&mappings, memory_bytes).unwrap_or_else(|| Memory::of(pid, memory_bytes).held_bytes);
    // What cannot be told, such as memory in huge pages, may be in use whole.
    if held == 0 { memory_bytes } else { held.min(memory_bytes) }
}

/// What is held of the mappings that have just the size of the guest's memory; nothing where none has.
fn held_bytes(mappings: &str, memory_bytes: u64) -> Option<u64> {
    let kilobytes = |line: &str, name: &str| -> Option<u64> {
        line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let (mut held, mut is_memory) = (None, false);
    for line in mappings.lines() {
        if let Some(size) = kilobytes(line, "Size:") {
            is_memory = size << 10 == memory_bytes;
        } else if let Some(part) = kilobytes(line, "Rss:").or_else(|| kilobytes(line, "Swap:"))
            && is_memory
        {
            held = Some(held.unwrap_or(0) + (part << 10));
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_of_the_guests_memory_is_known_by_its_size() {
        let mappings = "7f00-7f10 rw-p 0 00:00 0\nSize:               4096 kB\nRss:                  12 kB\n\
                        7f20-7f30 rw-p 0 00:00 0\nSize:              65536 kB\nRss:                1024 kB\n\
                        Pss:                1024 kB\nSwap:                  8 kB\n";
        assert_eq!(held_bytes(mappings, 64 << 20), Some(1032 << 10));
        assert_eq!(held_bytes(mappings, 128 << 20), None);
        assert_eq!(in_use_bytes(-1, 7), 7, "what cannot be told may be in use whole");
    }
}
