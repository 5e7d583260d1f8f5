//! What a copied command line would do to its source, and that a rewritten one does not.
//!
//! Each test shows first, on a real QEMU, the harm of a second QEMU with the source's own words; then another guest of the
//! same kind is moved, and nothing of that comes to it. Rows that no real QEMU can show here (`vfio-*`, TPM backends,
//! windows) are in the tables of `qemu::rewrite`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use qmigrate::host::{ProcessView, command_line, listening_process};
use qmigrate::qemu::rewrite::{Protocol, Surroundings, ThisHost};

use crate::lab::lives;
use crate::small_qemu::{Monitor, Place, Said, Source, migrate, qemu_or_skip, wait_for};
use crate::support::{Process, qemu_version, skip};

/// What belongs to one process: interfaces, descriptors, programs that serve one guest.
mod devices;
/// Files that QEMU cuts, locks or looks for.
mod files;
/// Guest memory in a file that both map.
mod memory;
/// Sockets and ports on which both would listen.
mod sockets;
/// How a QEMU starts, stays and ends.
mod start;

/// Starts a second QEMU with the source's own words but for the monitor in its place, as one would by hand.
fn copy(source: &Source) -> Process {
    // A monitor accepts before the later sockets are there; once it answers the source has all that it is to have.
    source.monitor().ask("query-status");
    let own = |word: &OsString| {
        let monitor = |name: &str| format!("unix:{},", source.place.at(name).display());
        word.to_string_lossy().replace(&monitor("qmp"), &monitor("copy")).into()
    };
    let words: Vec<OsString> = command_line(source.process.pid()).unwrap().iter().map(own).collect();
    start_as(source, words)
}

/// The same with its monitor too.
fn exact_copy(source: &Source) -> Process {
    start_as(source, command_line(source.process.pid()).unwrap())
}

fn start_as(source: &Source, mut words: Vec<OsString>) -> Process {
    words.extend(["-S", "-incoming", "defer"].map(OsString::from));
    // A QEMU that stands somewhere else than it was built for finds its parts by its environment.
    let view = ProcessView::read(source.process.pid()).unwrap();
    let variable = |(name, value): &(OsString, OsString)| [name.as_os_str(), value].join(OsStr::new("="));
    words.splice(0..0, view.environment.iter().map(variable));
    Process::start(Path::new("/usr/bin/env"), &words, source.place.at("copy.log"))
}

/// A copy ends as it starts, and says this.
#[track_caller]
fn copy_dies(source: &Source, saying: &str) {
    let copy = copy(source);
    wait_for("the end of the copy", || (!lives(copy.pid())).then_some(()));
    assert!(copy.log().contains(saying), "'{saying}' is not in: {}", copy.log());
}

/// A copy that waits for a guest.
fn copy_waits(source: &Source) -> Process {
    let copy = copy(source);
    drop(Monitor::connect(&source.place.at("copy")));
    copy
}

/// Moves the guest; gives what was said and its new process.
#[track_caller]
fn moved(source: &Source, arguments: &[&str]) -> (Said, i32) {
    let before = listening_process(&source.qmp()).unwrap();
    let said = migrate(source.qmp().to_str().unwrap(), arguments);
    assert_eq!(said.code, Some(0), "{said:?}");
    let after = listening_process(&source.qmp()).unwrap();
    assert_ne!(before, after, "{said:?}");
    (said, after)
}

/// Moves the guest and keeps its source; gives its new process.
#[track_caller]
fn moved_beside(source: &Source) -> i32 {
    let said = migrate(source.qmp().to_str().unwrap(), &["--keep-source"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let other = source.place.qemus().into_iter().rfind(|&pid| pid != source.process.pid());
    other.unwrap_or_else(|| panic!("there is no destination: {said:?}"))
}

/// The words of a process.
fn words(pid: i32) -> Vec<String> {
    command_line(pid).unwrap().iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// A port that nobody has, below those that the kernel gives away by itself.
fn port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let above = start + NEXT.fetch_add(20, std::sync::atomic::Ordering::Relaxed);
    let user = qmigrate::host::Credentials::own().unwrap();
    let host = ThisHost { source: 1, user, open_files: Vec::new() };
    host.free_port(Protocol::Tcp, "", above).unwrap()
}
