//! Lists the processes, sockets and files that name a guest's directory or a migration.
//!
//! `cargo run --example audit -- DIRECTORY [ID]`: before a migration what is the guest's own, after it what is there now.
//! The record of a migration that has ended stays on purpose and is not listed. Exit 1 if there is anything.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "it is a tool of the tests")]

use std::path::Path;
use std::process::ExitCode;

use qmigrate::host::state_directory;
use qmigrate::record::MigrationId;

/// The audit that the tests use.
#[path = "../it/audit.rs"]
#[allow(dead_code, reason = "the tests look twice")]
mod audit;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (directory, id) = match words.as_slice() {
        [directory] => (directory, None),
        [directory, id] => {
            (directory, Some(id.parse::<MigrationId>().expect("the second word is a migration's id")))
        }
        _ => {
            eprintln!("usage: audit DIRECTORY [ID]");
            return ExitCode::from(2);
        }
    };
    let state = state_directory().unwrap();
    let found = audit::things(Path::new(directory), id.as_ref().map(|id| (id, state.as_path())));
    for thing in found.iter().filter(|thing| !is_this(thing)) {
        println!("{thing}");
    }
    ExitCode::from(u8::from(found.iter().any(|thing| !is_this(thing))))
}

/// This very process names them too.
fn is_this(thing: &audit::Thing) -> bool {
    *thing == audit::Thing::Process(std::process::id().try_into().unwrap())
}
