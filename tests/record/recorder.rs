//! Records conversations with two real QEMUs, as they stand on the sockets.
//!
//! `cargo run --example record -- QEMU [COURSE...]` writes `qmp-fixtures/VERSION-COURSE.jsonl` for each course, or for
//! those named. It speaks raw lines: a record that came through this crate's own client would say what that client
//! believes. `qmp-fixtures/README.md` tells the format and the courses.

/// Two QEMUs and every line that goes between them and here.
mod pair;
/// What is done with them.
mod courses;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use courses::COURSES;
use pair::Pair;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let qemu = PathBuf::from(arguments.next().context("usage: record QEMU [COURSE...]")?);
    let wanted: Vec<_> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(unknown) = wanted.iter().find(|&name| COURSES.iter().all(|course| course.name != name)) {
        let names: Vec<_> = COURSES.iter().map(|course| course.name).collect();
        bail!("there is no course '{unknown}', only {}", names.join(", "));
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("qmp-fixtures");
    for course in COURSES {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == course.name) {
            continue;
        }
        let mut pair = Pair::start(&qemu, course.source, course.destination)?;
        let version = pair.version();
        if !course.exists_in(version) {
            eprintln!("{}: not with {version:?}", course.name);
            continue;
        }
        (course.run)(&mut pair).with_context(|| format!("{}: {:?}", course.name, pair.last_lines()))?;
        let [major, minor, micro] = version;
        let path = directory.join(format!("{major}.{minor}.{micro}-{}.jsonl", course.name));
        std::fs::write(&path, pair.into_text()?).with_context(|| path.display().to_string())?;
        eprintln!("{}", path.display());
    }
    Ok(())
}
