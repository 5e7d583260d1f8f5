//! What relative paths count from, where QEMU has left its directory.
//!
//! After `-daemonize` a QEMU is in `/`. What it has open still has whole names: an image `disk.img` that is open as
//! `/srv/vm/disk.img` was found in `/srv/vm`, and so were all others.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::qemu::argv::{CommandLine, CommandOption};

/// Options whose value is a path, of those that QEMU looks for nowhere else.
const PATHS: [&str; 8] = ["pidfile", "D", "kernel", "initrd", "dtb", "mem-path", "readconfig", "writeconfig"];
/// Properties that are paths.
const PATH_PROPERTIES: [&str; 4] = ["path", "mem-path", "logfile", "local.path"];
/// Options with such properties.
const WITH_PROPERTIES: [&str; 13] = [
    "chardev",
    "qmp",
    "qmp-pretty",
    "monitor",
    "serial",
    "parallel",
    "debugcon",
    "gdb",
    "object",
    "netdev",
    "fsdev",
    "virtfs",
    "nic",
];

/// The directory from which all relative paths count, if what is open says so beyond doubt.
pub(super) fn found(line: &CommandLine, open: &[PathBuf]) -> Option<PathBuf> {
    let mut bases: Option<BTreeSet<PathBuf>> = None;
    for path in relative_paths(line) {
        let parts: PathBuf =
            Path::new(&path).components().filter(|part| *part != Component::CurDir).collect();
        let base = |open: &PathBuf| {
            let above = open.ancestors().nth(parts.components().count())?;
            open.ends_with(&parts).then(|| above.to_owned())
        };
        let here: BTreeSet<PathBuf> = open.iter().filter_map(base).collect();
        if !here.is_empty() {
            bases = Some(bases.map_or(here.clone(), |bases| bases.intersection(&here).cloned().collect()));
        }
    }
    let mut bases = bases?.into_iter();
    bases.next().filter(|_| bases.next().is_none())
}

/// All relative paths of a command line.
pub(super) fn relative_paths(line: &CommandLine) -> Vec<String> {
    let named = line.options.iter().flat_map(paths);
    line.images().into_iter().chain(named).filter(|path| is_relative(path)).collect()
}

/// Images by relative paths that QEMU cannot let go of any more. As it hands over it opens anew, read-only and by name,
/// what it may (`auto-read-only`, which `-drive` always has), and looks for that in `/` (run: 7.2, 10.0 and 11.1 fail there,
/// 5.2 does not).
pub(super) fn held_images(line: &CommandLine) -> Vec<String> {
    let is_reopened = |option: &&CommandOption| {
        let has = |key: &str, value: &str| option.get(key).as_deref() == Some(value);
        match option.name.as_str() {
            "cdrom" => false,
            "drive" => !has("readonly", "on") && !has("media", "cdrom") && !has("auto-read-only", "off"),
            "blockdev" => option.properties().is_some_and(|properties| {
                properties.keys().iter().any(|key| key.ends_with("auto-read-only") && properties.is_on(key))
            }),
            _ => true,
        }
    };
    let reopened = line.options.iter().filter(is_reopened).cloned().collect();
    let images = CommandLine { options: reopened, ..line.clone() }.images();
    images.into_iter().filter(|path| is_relative(path)).collect()
}

/// `nbd:...` and `fat:...` are no paths; neither is what stands for no image at all.
fn is_relative(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('/') && !path.contains([':', '{'])
}

fn paths(option: &CommandOption) -> Vec<String> {
    let name = option.name.as_str();
    if PATHS.contains(&name) {
        return option.value.iter().cloned().collect();
    }
    if name == "vnc" {
        let place = option.get("vnc").unwrap_or_default();
        return place.strip_prefix("unix:").map(str::to_owned).into_iter().collect();
    }
    if !WITH_PROPERTIES.contains(&name) {
        return Vec::new();
    }
    if let Some(properties) = option.properties() {
        return PATH_PROPERTIES.iter().filter_map(|key| properties.get(key).map(str::to_owned)).collect();
    }
    let device = option.value.as_deref().unwrap_or_default();
    let device = device.strip_prefix("mon:").unwrap_or(device);
    ["file:", "pipe:"].iter().filter_map(|kind| device.strip_prefix(kind).map(str::to_owned)).collect()
}
