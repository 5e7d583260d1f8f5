//! What a Linux guest writes on its serial line, in whichever QEMU it runs.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// What a kernel or a shell says when memory is not what it was.
const SIGNS: [&str; 8] = [
    "LOST ",
    "BUG:",
    "Oops",
    "Kernel panic",
    "general protection",
    "segfault",
    "Segmentation fault",
    "writer: ended",
];

/// The writer beats ten times a second.
const BEAT: Duration = Duration::from_millis(100);

/// One heartbeat of the writer: `beat 12 pass 3 lost 0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beat {
    /// The QEMU in which the line ended.
    pub(crate) pid: i32,
    /// Counted by the guest, from 1.
    pub(crate) number: u64,
    /// Passes done.
    pub(crate) pass: u64,
    /// Words that were not as written.
    pub(crate) lost: u64,
}

impl Beat {
    fn read(pid: i32, line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let mut count = |key| (words.next()? == key).then(|| words.next()?.parse().ok())?;
        let beat = Self { pid, number: count("beat")?, pass: count("pass")?, lost: count("lost")? };
        words.next().is_none().then_some(beat)
    }
}

/// All that was heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// The beats, in the order in which they came.
    pub(crate) beats: Vec<Beat>,
    /// What a guest that is well, and runs in one QEMU at a time, does not say.
    pub(crate) findings: Vec<String>,
    /// When anything was heard last.
    pub(crate) last: Option<Instant>,
    /// The QEMUs that have spoken, each once.
    speakers: Vec<i32>,
    text: String,
    line: Vec<u8>,
}

impl Heard {
    /// The guest in this QEMU has written more.
    fn hear(&mut self, pid: i32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.last = Some(Instant::now());
        if self.speakers.last() != Some(&pid) {
            if self.speakers.contains(&pid) {
                self.findings.push(format!("the guest writes in {pid} after it wrote in another QEMU"));
            }
            self.speakers.push(pid);
        }
        for &byte in bytes {
            match byte {
                b'\r' => {}
                b'\n' => self.end_line(pid),
                _ => self.line.push(byte),
            }
        }
    }

    fn end_line(&mut self, pid: i32) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if let Some(beat) = Beat::read(pid, &line) {
            let expected = self.beats.last().map_or(1, |last| last.number + 1);
            if beat.number != expected {
                self.findings.push(format!("beat {} where beat {expected} is due", beat.number));
            }
            if beat.lost > 0 {
                self.findings.push(line);
            }
            self.beats.push(beat);
            return;
        }
        if SIGNS.iter().any(|sign| line.contains(sign)) {
            self.findings.push(line.clone());
        }
        self.text.push_str(&line);
        self.text.push('\n');
    }

    /// The last lines that are not beats.
    pub(crate) fn end(&self) -> String {
        let lines: Vec<_> = self.text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    more: Condvar,
}

/// A socket to which each QEMU connects its guest's serial port.
#[derive(Debug)]
pub(crate) struct SerialLine {
    shared: Arc<Shared>,
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl SerialLine {
    pub(crate) fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let shared = Arc::<Shared>::default();
        let ears = Ears { listener, stopped, connections: Vec::new(), shared: Arc::clone(&shared) };
        let thread = std::thread::spawn(move || ears.run());
        Self { shared, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.shared.heard.lock().unwrap()
    }

    /// Waits until `ready` finds something, at most so long. It looks again also where nothing was heard.
    pub(crate) fn wait<T>(&self, most: Duration, mut ready: impl FnMut(&Heard) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut heard = self.heard();
        loop {
            if let Some(found) = ready(&heard) {
                return Some(found);
            }
            let left = most.checked_sub(start.elapsed())?;
            heard = self.shared.more.wait_timeout(heard, left.min(BEAT)).unwrap().0;
        }
    }
}

impl Drop for SerialLine {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What the thread owns.
struct Ears {
    listener: UnixListener,
    stopped: UnixStream,
    connections: Vec<Connection>,
    shared: Arc<Shared>,
}

struct Connection {
    pid: i32,
    stream: UnixStream,
    read: Vec<u8>,
    open: bool,
}

impl Ears {
    fn run(mut self) {
        loop {
            let streams = self.connections.iter().map(|connection| connection.stream.as_fd());
            let mut waiting: Vec<PollFd<'_>> = [self.stopped.as_fd(), self.listener.as_fd()]
                .into_iter()
                .chain(streams)
                .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
                .collect();
            poll(&mut waiting, PollTimeout::NONE).unwrap();
            if waiting[0].any() == Some(true) {
                return;
            }
            self.listen();
            while let Ok((stream, _)) = self.listener.accept() {
                stream.set_nonblocking(true).unwrap();
                let pid = getsockopt(&stream, PeerCredentials).unwrap().pid();
                self.connections.push(Connection { pid, stream, read: Vec::new(), open: true });
            }
        }
    }

    /// Reads the newest connection first, and hears the oldest first: by the time that a destination has said anything
    /// its source has said its last, so that this is read in the same round, and heard before it.
    fn listen(&mut self) {
        for connection in self.connections.iter_mut().rev() {
            connection.read();
        }
        let mut heard = self.shared.heard.lock().unwrap();
        for connection in &mut self.connections {
            heard.hear(connection.pid, &connection.read);
            connection.read.clear();
        }
        drop(heard);
        self.connections.retain(|connection| connection.open);
        self.shared.more.notify_all();
    }
}

impl Connection {
    /// Reads what is there, to the end where that has come.
    fn read(&mut self) {
        let end = self.stream.read_to_end(&mut self.read);
        self.open = end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(parts: &[(i32, &str)]) -> Heard {
        let mut heard = Heard::default();
        for (pid, text) in parts {
            heard.hear(*pid, text.as_bytes());
        }
        heard
    }

    #[test]
    fn a_line_may_begin_in_one_qemu_and_end_in_the_next() {
        let heard =
            heard(&[(1, "writer: 1 MiB\r\nbeat 1 pass 0 lost 0\r\nbeat 2 pa"), (2, "ss 1 lost 0\r\n")]);
        assert_eq!(heard.findings, [] as [&str; 0]);
        assert_eq!(heard.beats[1], Beat { pid: 2, number: 2, pass: 1, lost: 0 });
    }

    #[test]
    fn whatever_is_not_one_sound_guest_is_found() {
        let one = "beat 1 pass 0 lost 0\n";
        for (parts, finding) in [
            (&[(1, one), (2, one)][..], "beat 1 where beat 2 is due"),
            (&[(1, one), (1, "beat 3 pass 0 lost 0\n")], "beat 3 where beat 2 is due"),
            (&[(1, one), (2, "beat"), (1, "beat")], "the guest writes in 1 after it wrote in another QEMU"),
            (&[(1, one), (1, "beat 2 pass 0 lost 9\n")], "beat 2 pass 0 lost 9"),
            (&[(1, "LOST own variables\n")], "LOST own variables"),
            (&[(1, "beat 1 [ 6.59] BUG: unable\n")], "beat 1 [ 6.59] BUG: unable"),
        ] {
            assert_eq!(heard(parts).findings, [finding]);
        }
    }
}
