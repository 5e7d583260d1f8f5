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
    // `nbd:...` and `fat:...` are no paths; neither is what stands for no image at all.
    let is_relative =
        |path: &String| !path.is_empty() && !path.starts_with('/') && !path.contains([':', '{']);
    line.images().into_iter().chain(named).filter(is_relative).collect()
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
