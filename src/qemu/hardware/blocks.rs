//! Blocks of memory, from `info ramblock`.
//!
//! QEMU's stream names each block with its length, before any page of it: a block that the destination lacks ends it
//! (`Unknown ramblock`), and so does another length (`Size mismatch`), unless the block can be resized, as the tables
//! of ACPI can, up to its total (`migration/ram.c`, 5.2 to 11.1).

use std::collections::BTreeMap;

use super::Difference;
use crate::units::show_bytes;

/// One block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its length now.
    pub used_bytes: u64,
    /// How long it can become.
    pub total_bytes: u64,
}

/// All blocks, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks(BTreeMap<String, Block>);

impl Blocks {
    /// Reads the answer; a line of another form is left out.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(block).collect())
    }

    pub(super) fn differences(&self, destination: &Self) -> Vec<Difference> {
        if self.0.is_empty() || destination.0.is_empty() {
            return Vec::new();
        }
        let different = |(name, source): (&String, &Block)| match destination.0.get(name) {
            None => Some(Difference::Missing(format!(
                "memory called \"{name}\" ({})",
                show_bytes(source.used_bytes)
            ))),
            Some(there) if source.fits(*there) => None,
            Some(there) => Some(Difference::Value {
                what: format!("the size of the memory called \"{name}\""),
                source: show_bytes(source.used_bytes),
                destination: show_bytes(there.used_bytes),
            }),
        };
        self.0.iter().filter_map(different).collect()
    }
}

impl Block {
    /// Whether this length can be had there.
    fn fits(self, there: Self) -> bool {
        let can_be_resized = there.used_bytes != there.total_bytes;
        self.used_bytes == there.used_bytes || (can_be_resized && self.used_bytes <= there.total_bytes)
    }
}

/// `pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000`, and from 7.1 on more behind it. The
/// name may have blanks.
fn block(line: &str) -> Option<(String, Block)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let offset = words.iter().position(|word| word.starts_with("0x"))?;
    let name = words.get(..offset.checked_sub(2)?)?.join(" ");
    let number = |at: usize| u64::from_str_radix(words.get(at)?.strip_prefix("0x")?, 16).ok();
    let block = Block { used_bytes: number(offset + 1)?, total_bytes: number(offset + 2)? };
    (!name.is_empty()).then_some((name, block))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_5_2: &str =
        "              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000
    /rom@etc/acpi/tables    4 KiB  0x0000000009140000 0x0000000000020000 0x0000000000200000
0000:00:03.0/virtio-net-pci.rom    4 KiB  0x00000000090c0000 0x0000000000040000 0x0000000000040000
";

    fn but(from: &str, to: &str) -> Vec<String> {
        let (source, destination) = (Blocks::parse(OF_5_2), Blocks::parse(&OF_5_2.replacen(from, to, 1)));
        source.differences(&destination).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_newer_qemu_says_more_of_the_same_blocks() {
        let line = "                  pc.ram    4 KiB  0x0 0x8000000 0x8000000 0x00007ff807e00000  rw";
        assert_eq!(block(line), block(OF_5_2.lines().nth(1).unwrap()));
        assert_eq!(Blocks::parse(OF_5_2).0.len(), 3);
    }

    #[test]
    fn what_the_stream_would_stumble_over_is_found() {
        assert_eq!(but("x", "x"), [] as [&str; 0]);
        assert_eq!(
            but("pc.ram    4 KiB  0x0000000000000000 0x0000000008000000", "pc.ram    4 KiB  0x0 0x4000000"),
            [] as [&str; 0],
            "it can be resized"
        );
        assert_eq!(
            but(
                "0x0000000000000000 0x0000000008000000 0x0000000008000000",
                "0x0000000000000000 0x0000000004000000 0x0000000004000000"
            ),
            [
                "the size of the memory called \"pc.ram\" is 128.0 MiB on the source and 64.0 MiB on the destination"
            ]
        );
        assert_eq!(
            but("0000:00:03.0/", "0000:00:04.0/"),
            ["the destination has no memory called \"0000:00:03.0/virtio-net-pci.rom\" (256.0 KiB)"]
        );
        assert_eq!(Blocks::parse(OF_5_2).differences(&Blocks::default()), [], "one that does not tell");
    }
}
