//! Records the passes of real migrations, for the simulator of QEMU's migration loop to be held against.
//!
//! `cargo run --release --example record-passes -- QEMU [COURSE...]` writes `src/converge/simulator/recorded/COURSE.json`
//! for each course, or for those named. It drives the two QEMUs by hand: what is recorded is QEMU's own behaviour under
//! commands at known moments, and not a controller's. A course whose link is shaped runs over TCP and is left out
//! unless `shaped` is the first word after the QEMU; its link is whatever the loopback of the namespace has:
//!
//! ```sh
//! unshare -n sh -c 'ip link set lo up; tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 20ms; exec "$@"' \
//!     sh target/release/examples/record-passes QEMU shaped
//! ```

/// What is done with which guest.
mod courses;
/// One migration, followed.
mod run;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use courses::{COURSES, Link};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let qemu = PathBuf::from(arguments.next().context("usage: record-passes QEMU [shaped] [COURSE...]")?);
    let mut wanted: Vec<_> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let shaped = wanted.first().is_some_and(|word| word == "shaped");
    if shaped {
        wanted.remove(0);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/converge/simulator/recorded");
    for course in COURSES {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|name| name == course.name);
        if !is_wanted || matches!(course.link, Link::Shaped { .. }) != shaped {
            continue;
        }
        let recorded = runtime.block_on(run::run(&qemu, course)).with_context(|| course.name.to_owned())?;
        let path = directory.join(format!("{}.json", course.name));
        std::fs::write(&path, format!("{recorded}\n")).with_context(|| path.display().to_string())?;
        eprintln!("{}", path.display());
    }
    Ok(())
}
