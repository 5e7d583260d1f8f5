//! As little of a debugger as changes a guest's memory behind its back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::json;

use crate::small_qemu::{MOST, Monitor, wait_for};

/// QEMU's own server for debuggers. The guest stands still while this lives.
pub(crate) struct Debugger(UnixStream);

impl Debugger {
    /// Has QEMU listen on this path, and stops the guest.
    pub(crate) fn attach(monitor: &mut Monitor, path: &Path) -> Self {
        let line = format!("gdbserver unix:{},server=on,wait=off", path.display());
        monitor.execute("human-monitor-command", &json!({ "command-line": line }));
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(MOST)).unwrap();
        let mut debugger = Self(stream);
        debugger.ask("Qqemu.PhyMemMode:1");
        wait_for("a standstill", || (monitor.ask("query-status")["running"] == false).then_some(()));
        debugger
    }

    /// Writes a word to the guest's physical memory.
    pub(crate) fn write(&mut self, address: u64, word: u64) {
        self.ask(&format!("M{address:x},8:{:016x}", word.swap_bytes()));
    }

    /// The guest goes on.
    pub(crate) fn detach(mut self) {
        self.ask("D");
    }

    fn ask(&mut self, words: &str) {
        let sum = words.bytes().fold(0_u8, u8::wrapping_add);
        write!(self.0, "${words}#{sum:02x}").unwrap();
        let mut answer = [0; "+$OK#9a".len()];
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+$OK#9a", "{words}: {}", String::from_utf8_lossy(&answer));
        self.0.write_all(b"+").unwrap();
    }
}
