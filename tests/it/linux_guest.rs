//! A Linux guest whose writer checks its own memory, and what it says on its serial line wherever it runs.
//!
//! The serial line is a socket on which this test listens: each QEMU connects to it, a destination too, and the kernel
//! tells who it is. What the guest writes in one QEMU and then in the next is one text: a line may begin in the first
//! and end in the second.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::debugger::Debugger;
use crate::lab::SOON;
use crate::serial_line::{Beat, SerialLine};
use crate::small_qemu::{Monitor, Place};
use crate::support::{Process, skip};

/// From word to word of a page, as the writer writes it.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A guest that says nothing for so long is dead: it beats ten times a second.
const SILENCE: Duration = Duration::from_secs(15);

/// Enough for a working set of 96 MiB.
const MEMORY_BYTES: u64 = 192 << 20;

/// Empty disks in the directory of a guest.
const DISKS: [&str; 3] = ["disk", "other-disk", "iso"];

/// What there is to see of a guest that has lost writes.
#[derive(Debug)]
pub(crate) enum Loss {
    /// The writer or the kernel says so.
    Said(String),
    /// Nothing comes any more.
    Silence,
}

/// A Linux guest in a directory of its own; all QEMUs that ever ran it end with it.
pub(crate) struct LinuxGuest {
    // Fields are dropped in this order.
    process: Process,
    serial: SerialLine,
    place: Place,
}

impl LinuxGuest {
    /// A guest under TCG that rewrites so many mebibytes, at so many per second. `None` where there is no kernel.
    pub(crate) fn start(test: &str, qemu: &Path, mebibytes: u32, mebibytes_per_second: u32) -> Option<Self> {
        Self::start_with(test, qemu, (mebibytes, mebibytes_per_second), &[])
    }

    /// The same with more options; `DIR` in them is the guest's directory.
    pub(crate) fn start_with(
        test: &str,
        qemu: &Path,
        (mebibytes, mebibytes_per_second): (u32, u32),
        options: &[&str],
    ) -> Option<Self> {
        let [kernel, initrd] = parts(test)?;
        let place = Place::new();
        let serial = SerialLine::listen(&place.at("serial"));
        let line = format!(
            "console=ttyS0 quiet oops=panic writer.mib={mebibytes} writer.rate={mebibytes_per_second}"
        );
        let mut words = ["-nodefaults", "-display", "none", "-machine", "pc", "-accel", "tcg"]
            .map(OsString::from)
            .to_vec();
        words.extend(["-m".into(), format!("{MEMORY_BYTES}b").into()]);
        words.extend(["-kernel".into(), kernel.into(), "-initrd".into(), initrd.into()]);
        words.extend(["-append".into(), line.into()]);
        let chardev = format!("socket,id=serial,path={}", place.at("serial").display());
        words.extend(["-chardev", &chardev, "-serial", "chardev:serial"].map(OsString::from));
        let qmp = format!("unix:{},server=on,wait=off", place.at("qmp").display());
        words.extend(["-qmp", &qmp].map(OsString::from));
        let directory = place.path().to_str().unwrap();
        words.extend(options.iter().map(|word| OsString::from(word.replace("DIR", directory))));
        for name in DISKS {
            std::fs::File::create(place.at(name)).unwrap().set_len(1 << 20).unwrap();
        }
        let process = Process::start(qemu, &words, place.at("source.log"));
        let guest = Self { process, serial, place };
        let began = guest.serial.wait(SOON, |heard| heard.beats.first().map(drop));
        assert!(began.is_some(), "the writer did not begin: {}{}", guest.process.log(), guest.story());
        Some(guest)
    }

    /// Its QMP socket, wherever it runs.
    pub(crate) fn monitor(&self) -> PathBuf {
        self.place.at("qmp")
    }

    /// A file in its directory.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.place.at(name)
    }

    /// The QEMU that it was started in.
    pub(crate) fn source(&self) -> i32 {
        self.process.pid()
    }

    /// Proves that the guest goes on in this QEMU, with every beat once and in its turn, until it has ended so many
    /// passes more: each of them but the first has found all memory as it was written.
    pub(crate) fn proves_itself(&self, pid: i32, passes: u64) {
        if let Some(loss) = self.loses(pid, passes) {
            panic!("{loss:?} in {pid}: {}", self.story());
        }
    }

    /// Waits until it has ended so many passes more in this QEMU, or shows that it is no longer well.
    pub(crate) fn loses(&self, pid: i32, passes: u64) -> Option<Loss> {
        let (start, before) = (Instant::now(), self.serial.heard().beats.len());
        let result = self.serial.wait(SOON, |heard| {
            if let Some(finding) = heard.findings.first() {
                return Some(Some(Loss::Said(finding.clone())));
            }
            if has_ended_passes(&heard.beats[before..], pid, passes) {
                return Some(None);
            }
            (heard.last.max(Some(start))?.elapsed() > SILENCE).then_some(Some(Loss::Silence))
        });
        result.unwrap_or_else(|| panic!("not within {SOON:?}: {passes} passes in {pid}: {}", self.story()))
    }

    /// Changes this word of two pages of the working set behind the guest's back. It may be about to write one of them,
    /// after it has checked it; but not both.
    pub(crate) fn spoil(&self, word: usize) {
        let mut monitor = Monitor::connect(&self.monitor());
        let mut debugger = Debugger::attach(&mut monitor, &self.place.at("debugger"));
        let filename = self.place.at("memory");
        monitor.execute("pmemsave", &json!({ "val": 0, "size": MEMORY_BYTES, "filename": filename }));
        let memory = std::fs::read(&filename).unwrap();
        let pages: Vec<_> =
            memory.chunks_exact(4096).enumerate().filter(|(_, page)| is_written(page)).collect();
        for (page, contents) in [pages.first().unwrap(), pages.last().unwrap()] {
            let address = u64::try_from(page * 4096 + word * 8).unwrap();
            debugger.write(address, value(contents, word) ^ 1);
        }
        debugger.detach();
    }

    /// What it said last, for a message.
    pub(crate) fn story(&self) -> String {
        let heard = self.serial.heard();
        let mut story = String::new();
        for beat in heard.beats.iter().rev().take(3).rev() {
            write!(story, "\n{beat:?}").unwrap();
        }
        write!(story, "\n{}", heard.end()).unwrap();
        story
    }
}

/// Whether the guest has ended so many passes between the first and the last of these beats in this QEMU.
fn has_ended_passes(beats: &[Beat], pid: i32, passes: u64) -> bool {
    let mut there = beats.iter().filter(|beat| beat.pid == pid);
    let first = there.next();
    first.zip(there.next_back()).is_some_and(|(first, last)| last.pass >= first.pass + passes)
}

fn value(page: &[u8], word: usize) -> u64 {
    u64::from_le_bytes(page[word * 8..][..8].try_into().unwrap())
}

/// Whether the writer has written this page to its end: each word is the one before it and a step.
fn is_written(page: &[u8]) -> bool {
    (1..512).all(|word| value(page, word) == value(page, word - 1).wrapping_add(STEP))
}

/// Kernel and initramfs, or a loud skip.
fn parts(test: &str) -> Option<[PathBuf; 2]> {
    let root = std::env::var_os("QMIGRATE_LINUX").filter(|root| !root.is_empty()).map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/linux"));
    let parts = ["vmlinuz", "initrd"].map(|name| root.join(name));
    if parts.iter().all(|part| part.is_file()) {
        return Some(parts);
    }
    skip(test, "there is no Linux guest; `tests/linux` makes it");
    None
}
