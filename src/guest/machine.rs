//! A QEMU that runs the guest: its command line, and whether KVM really can.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::image::{HEARTBEAT_PORT, ImageError, memfd};
use super::pattern::{Content, Pattern};
use super::workload::{Workload, WorkloadError};
use crate::observe::heartbeat::{Observer, ObserverError};
use crate::units::{Size, show_duration};

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's own translator, which every machine can run.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl FromStr for Accelerator {
    type Err = UnknownAccelerator;

    fn from_str(text: &str) -> Result<Self, UnknownAccelerator> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(UnknownAccelerator { text: text.to_owned() }),
        }
    }
}

/// A word that is no accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an accelerator: there are kvm and tcg")]
pub struct UnknownAccelerator {
    text: String,
}

/// A machine with the test guest in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The machine type. The guest's memory must be in one piece up to the end of its working set, which
    /// [`Workload`] knows of `pc`; on another type the guest looks, and refuses ([`Status`](super::Status)).
    pub machine: String,
    /// Who executes it.
    pub accelerator: Accelerator,
    /// The guest's memory.
    pub memory: Size,
    /// The image to boot, from [`memfd`]; a destination needs none.
    pub kernel: Option<PathBuf>,
    /// Where QEMU listens for QMP.
    pub qmp: PathBuf,
    /// Where it listens for QMP once more, if it should: a monitor serves one client, and a person may want one while
    /// an engine has the other.
    pub second_qmp: Option<PathBuf>,
    /// Where the heartbeat's observer listens. It must listen already, and the source's and the destination's are the same.
    pub heartbeat: PathBuf,
    /// Further options and their values: devices that the guest takes no notice of.
    pub more: Vec<String>,
}

impl Machine {
    /// QEMU's arguments, without its own name.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["-nodefaults", "-no-user-config", "-display", "none", "-machine"].map(OsString::from).into();
        let mut argument = |text: OsString| arguments.push(text);
        argument(format!("{},accel={}", self.machine, self.accelerator).into());
        argument("-m".into());
        argument(format!("{}M", self.memory.bytes() >> 20).into());
        if let Some(kernel) = &self.kernel {
            argument("-kernel".into());
            argument(kernel.into());
        }
        for qmp in std::iter::once(&self.qmp).chain(&self.second_qmp) {
            argument("-qmp".into());
            argument(option(&["unix:".as_ref(), &value(qmp), ",server=on,wait=off".as_ref()]));
        }
        argument("-chardev".into());
        argument(option(&["socket,id=heartbeat,path=".as_ref(), &value(&self.heartbeat)]));
        argument("-device".into());
        argument(format!("isa-debugcon,iobase={HEARTBEAT_PORT:#x},chardev=heartbeat").into());
        arguments.extend(self.more.iter().map(OsString::from));
        arguments
    }
}

/// A path within an option: QEMU reads a doubled comma as one.
fn value(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let doubled = bytes.iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    OsString::from_vec(doubled.collect())
}

fn option(parts: &[&OsStr]) -> OsString {
    parts.iter().copied().collect()
}

/// Why KVM does not run the guest here.
#[derive(Debug, thiserror::Error)]
pub enum KvmUnusable {
    /// There is none, or not for us.
    #[error("/dev/kvm cannot be opened")]
    Device(#[source] io::Error),
    /// QEMU was not started.
    #[error("{} cannot be started", qemu.display())]
    Start {
        /// The QEMU.
        qemu: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// QEMU ended.
    #[error("QEMU ended before the guest beat: {said}")]
    Ended {
        /// The end of what it said.
        said: String,
    },
    /// QEMU runs and the guest does not.
    #[error("its heart beat {beats} times within {}, so that TCG is the faster one", show_duration(*most))]
    Silent {
        /// Beats seen.
        beats: u64,
        /// How long it was waited for.
        most: Duration,
    },
    /// The guest could not be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Nobody could listen.
    #[error(transparent)]
    Observer(#[from] ObserverError),
    /// A file of the probe's could not be written.
    #[error("cannot write into {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The probe's own workload is wrong.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
}

/// The beats that a guest must do: one that dies in its first interrupt has beaten once.
const PROBE_BEATS: u64 = 50;

/// Whether KVM really runs the guest: a `/dev/kvm` may exist and be of no use. Starts a small one in a private
/// directory, waits for its heartbeat at most so long, and says how long that took. Where KVM itself is emulated the
/// first beat takes 1.5 s instead of 0.1 s.
pub fn probe_kvm(qemu: &Path, directory: &Path, most: Duration) -> Result<Duration, KvmUnusable> {
    let start = Instant::now();
    File::options().read(true).write(true).open("/dev/kvm").map_err(KvmUnusable::Device)?;
    let (memory, working_set) = (Size::from_mebibytes(64), Size::from_mebibytes(1));
    let sizes =
        memory.zip(working_set).ok_or_else(|| unwritable(directory, io::ErrorKind::InvalidInput.into()))?;
    let workload = Workload::new(sizes.0, sizes.1, None, Pattern::Sweep, Content::Compressible)?;
    let image = memfd(&workload)?;
    let observer = Observer::listen(&directory.join("probe-heartbeat"))?;
    let said = directory.join("probe-log");
    let log = File::create(&said).map_err(|source| unwritable(directory, source))?;
    let machine = Machine {
        machine: "pc".to_owned(),
        accelerator: Accelerator::Kvm,
        memory: workload.memory(),
        kernel: Some(image.path()),
        qmp: directory.join("probe-qmp"),
        second_qmp: None,
        heartbeat: observer.path().to_owned(),
        more: Vec::new(),
    };
    let _files = Files([said.clone(), machine.qmp.clone()]);
    let child = Command::new(qemu)
        .args(machine.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|source| KvmUnusable::Start { qemu: qemu.to_owned(), source })?;
    let mut probe = Probe(child);
    let pid = i32::try_from(probe.0.id()).unwrap_or(0);
    while start.elapsed() < most {
        if observer.wait_for_beats(pid, PROBE_BEATS, Duration::from_millis(100)) {
            return Ok(start.elapsed());
        }
        if matches!(probe.0.try_wait(), Ok(Some(_))) {
            return Err(KvmUnusable::Ended { said: last_words(&said) });
        }
    }
    let beats = observer.heart(pid).map_or(0, |heart| heart.beats);
    Err(KvmUnusable::Silent { beats, most })
}

fn unwritable(directory: &Path, source: io::Error) -> KvmUnusable {
    KvmUnusable::Directory { directory: directory.to_owned(), source }
}

/// A QEMU that ends with its owner.
struct Probe(Child);

impl Drop for Probe {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Files that go with their owner.
struct Files([PathBuf; 2]);

impl Drop for Files {
    fn drop(&mut self) {
        for file in &self.0 {
            // QEMU removes its socket when it ends by itself.
            drop(std::fs::remove_file(file));
        }
    }
}

/// The first line that QEMU said: the registers that follow an emulation failure help nobody here.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing")
        .trim()
        .chars()
        .take(300)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_complete() {
        let machine = Machine {
            machine: "pc".to_owned(),
            accelerator: Accelerator::Tcg,
            memory: Size::from_mebibytes(256).unwrap(),
            kernel: Some("/proc/1/fd/5".into()),
            qmp: "/run/a,b/qmp".into(),
            second_qmp: None,
            heartbeat: "/run/a,b/heartbeat".into(),
            more: vec!["-device".to_owned(), "VGA".to_owned()],
        };
        let expected = "-nodefaults -no-user-config -display none -machine pc,accel=tcg -m 256M -kernel /proc/1/fd/5 \
                        -qmp unix:/run/a,,b/qmp,server=on,wait=off \
                        -chardev socket,id=heartbeat,path=/run/a,,b/heartbeat \
                        -device isa-debugcon,iobase=0xe9,chardev=heartbeat -device VGA";
        assert_eq!(machine.arguments().join(" ".as_ref()), expected);
    }

    #[test]
    fn accelerators_are_read() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            assert_eq!(accelerator.to_string().parse(), Ok(accelerator));
        }
        assert!("xen".parse::<Accelerator>().is_err());
    }

    #[test]
    fn a_qemu_that_is_none_is_said_so() {
        let directory = tempfile::tempdir().unwrap();
        let second = Duration::from_secs(1);
        match probe_kvm("/nonexistent/qemu".as_ref(), directory.path(), second) {
            Err(KvmUnusable::Start { .. } | KvmUnusable::Device(_)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
