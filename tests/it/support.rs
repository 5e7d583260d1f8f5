//! What the tests share: QEMU, skips, processes that end with their owner.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Says loudly that a test did not run, and why; nothing passes silently.
pub(crate) fn skip(test: &str, reason: &str) {
    let line = format!("skipped: {test}: {reason}\n");
    // Straight to the stream: what goes through `eprint!` is captured by the test harness.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(path) = std::env::var_os("QMIGRATE_SKIPS") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// The QEMU to test with: `QMIGRATE_QEMU`, or the one in the path.
pub(crate) fn qemu() -> Option<PathBuf> {
    if let Some(qemu) = std::env::var_os("QMIGRATE_QEMU").filter(|qemu| !qemu.is_empty()) {
        return Some(qemu.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join("qemu-system-x86_64")).find(|qemu| qemu.is_file())
}

/// The QEMU of one version, as `tests/qemu VERSION` unpacks it; a loud skip where it is not to be had.
pub(crate) fn qemu_version(test: &str, version: &str) -> Option<PathBuf> {
    let root = std::env::var_os("QMIGRATE_QEMUS").filter(|root| !root.is_empty()).map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/qemu"));
    let qemu = root.join(version).join("qemu-system-x86_64");
    if qemu.is_file() {
        return Some(qemu);
    }
    skip(
        &format!("{test}, QEMU {version}"),
        &format!("there is no QEMU {version}; `tests/qemu {version}` gets it"),
    );
    None
}

/// A process that is killed when its owner goes, with what it says kept in a file.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(program: &Path, arguments: &[OsString], log: PathBuf) -> Self {
        Self::start_with_input(program, arguments, log, Stdio::null())
    }

    pub(crate) fn start_with_input(
        program: &Path,
        arguments: &[OsString],
        log: PathBuf,
        input: Stdio,
    ) -> Self {
        let file = std::fs::File::create(&log).unwrap();
        let child = Command::new::<&OsStr>(program.as_ref())
            .args(arguments)
            .stdin(input)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
