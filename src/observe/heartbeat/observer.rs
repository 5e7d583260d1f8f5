//! The thread that listens.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::time::{ClockId, clock_gettime};

use super::heart::{Beat, Handover, Heart, NoHandover, handover};

/// More connections than any experiment has; further ones are closed.
const MOST_CONNECTIONS: usize = 256;

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
pub enum ObserverError {
    /// The socket could not be made.
    #[error("cannot listen for heartbeats on {}", path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("cannot start the thread that listens for heartbeats")]
    Thread(#[source] io::Error),
}

/// Listens on a unix socket for the heartbeats of any number of QEMUs, until it is dropped.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    path: PathBuf,
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// In the order in which they connected: pids wrap.
    hearts: Mutex<Vec<Heart>>,
    beaten: Condvar,
}

impl Shared {
    /// A heart is whole after each call on it, so that a panic elsewhere leaves nothing half done.
    fn hearts(&self) -> MutexGuard<'_, Vec<Heart>> {
        self.hearts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer {
    /// Listens on this path, which must be free and is removed at the end.
    pub fn listen(path: &Path) -> Result<Self, ObserverError> {
        let failed = |source| ObserverError::Listen { path: path.to_owned(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let ears = Ears { listener, stopped, connections: Vec::new(), round: 0, shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("heartbeats".to_owned())
            .spawn(move || ears.run())
            .map_err(ObserverError::Thread)?;
        Ok(Self { shared, path: path.to_owned(), stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pids of all QEMUs that ever connected, in the order in which they did.
    pub fn pids(&self) -> Vec<i32> {
        self.shared.hearts().iter().map(|heart| heart.pid).collect()
    }

    /// What was recorded of a QEMU so far.
    pub fn heart(&self, pid: i32) -> Option<Heart> {
        find(&self.shared.hearts(), pid).cloned()
    }

    /// Forgets a QEMU that is gone: long series of experiments need not remember each of them.
    pub fn forget(&self, pid: i32) {
        self.shared.hearts().retain(|heart| heart.pid != pid || heart.connected);
    }

    /// How the guest went from one QEMU to another.
    pub fn handover(&self, source: i32, destination: i32) -> Result<Handover, NoHandover> {
        let hearts = self.shared.hearts();
        let find = |pid| find(&hearts, pid).ok_or(NoHandover::NoBeat { pid });
        handover(find(source)?, find(destination)?)
    }

    /// Waits for the first beat of a QEMU, at most so long. A KVM that emulates takes 1.5 s to get there.
    pub fn wait_for_first_beat(&self, pid: i32, most: Duration) -> Option<Beat> {
        self.wait(most, |hearts| find(hearts, pid)?.first)
    }

    /// Waits until a QEMU has beaten so often in all, at most so long.
    pub fn wait_for_beats(&self, pid: i32, beats: u64, most: Duration) -> bool {
        self.wait(most, |hearts| (find(hearts, pid)?.beats >= beats).then_some(())).is_some()
    }

    fn wait<T>(&self, most: Duration, mut ready: impl FnMut(&[Heart]) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut hearts = self.shared.hearts();
        loop {
            if let Some(found) = ready(&hearts) {
                return Some(found);
            }
            let left = most.checked_sub(start.elapsed())?;
            hearts = self.shared.beaten.wait_timeout(hearts, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; there is nothing to do about it here.
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.path));
    }
}

/// What the thread owns.
struct Ears {
    listener: UnixListener,
    stopped: UnixStream,
    connections: Vec<Connection>,
    round: u64,
    shared: Arc<Shared>,
}

/// What was recorded of a QEMU.
fn find(hearts: &[Heart], pid: i32) -> Option<&Heart> {
    hearts.iter().find(|heart| heart.pid == pid)
}

/// The same, and a new heart for one that was not known.
fn find_or_begin(hearts: &mut Vec<Heart>, pid: i32) -> &mut Heart {
    let known = hearts.iter().position(|heart| heart.pid == pid);
    let at = known.unwrap_or_else(|| {
        hearts.push(Heart::new(pid));
        hearts.len() - 1
    });
    &mut hearts[at]
}

struct Connection {
    pid: i32,
    stream: UnixStream,
    heard: Vec<u8>,
    open: bool,
}

impl Ears {
    fn run(mut self) {
        loop {
            let mut waiting: Vec<PollFd<'_>> = [self.stopped.as_fd(), self.listener.as_fd()]
                .into_iter()
                .chain(self.connections.iter().map(|connection| connection.stream.as_fd()))
                .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
                .collect();
            if poll(&mut waiting, PollTimeout::NONE).is_err() {
                // A signal, or no memory: try again, but never at full speed.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let ready = |index: usize| waiting.get(index).and_then(PollFd::any).unwrap_or(false);
            let (stop, accept) = (ready(0), ready(1));
            if stop {
                return;
            }
            self.listen();
            if accept {
                self.accept();
            }
        }
    }

    /// One round: see the module's words on order.
    fn listen(&mut self) {
        let (monotonic, wall) = (now(), SystemTime::now());
        self.round += 1;
        for connection in self.connections.iter_mut().rev() {
            connection.drain();
        }
        let mut hearts = self.shared.hearts();
        for connection in &mut self.connections {
            let heart = find_or_begin(&mut hearts, connection.pid);
            heart.record(self.round, monotonic, wall, &connection.heard);
            connection.heard.clear();
            if !connection.open {
                heart.disconnect();
            }
        }
        drop(hearts);
        self.connections.retain(|connection| connection.open);
        self.shared.beaten.notify_all();
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let Ok(peer) = getsockopt(&stream, PeerCredentials) else { continue };
            if self.connections.len() >= MOST_CONNECTIONS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let pid = peer.pid();
            find_or_begin(&mut self.shared.hearts(), pid).connected = true;
            self.connections.push(Connection { pid, stream, heard: Vec::new(), open: true });
        }
    }
}

impl Connection {
    /// Reads what is there, and no more than a few pages of it: who floods waits.
    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..4 {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.open = false,
                Ok(length) => {
                    self.heard.extend_from_slice(&buffer[..length]);
                    if length == buffer.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.open = false,
            }
            return;
        }
    }
}

/// `CLOCK_MONOTONIC`.
fn now() -> Duration {
    // It cannot fail: the clock exists on every Linux and the kernel writes into our own stack.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn beats_are_told_apart_by_the_peers_pid() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("heartbeat");
        let observer = Observer::listen(&path).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut heart = UnixStream::connect(&path).unwrap();
        heart.write_all(&[7, 8, 9]).unwrap();
        assert_eq!(observer.wait_for_first_beat(pid, SOON).unwrap().tick, 7);
        heart.write_all(&[10]).unwrap();
        assert!(observer.wait_for_beats(pid, 4, SOON));
        assert!(!observer.wait_for_beats(pid, 5, Duration::from_millis(5)));
        assert_eq!((observer.pids(), observer.heart(pid).unwrap().breaks), (vec![pid], 0));
        assert_eq!(observer.handover(pid, 1), Err(NoHandover::NoBeat { pid: 1 }));
        drop(heart);
        let start = Instant::now();
        while observer.heart(pid).unwrap().connected {
            assert!(start.elapsed() < SOON);
            std::thread::yield_now();
        }
        observer.forget(pid);
        assert_eq!(observer.pids(), Vec::<i32>::new());
        drop(observer);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_in_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("heartbeat");
        let observer = Observer::listen(&path).unwrap();
        assert!(matches!(Observer::listen(&path), Err(ObserverError::Listen { .. })));
        assert!(observer.path().exists());
    }
}
