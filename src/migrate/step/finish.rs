//! Ends what is over, and gives the guest its names.

use std::io;
use std::path::Path;
use std::time::Duration;

use qapi_qmp as words;

use crate::check::chain;
use crate::host::{Credentials, ProcessHandle, Unit, UnitError, UnitName, as_user};
use crate::migrate::side::LAST_BREATH;
use crate::qemu::ANSWER_WITHIN;
use crate::qemu::rewrite::Rename;
use crate::qmp::words::{MigrationInfo, RunState, StatusInfo};
use crate::qmp::{CallError, Client};
use crate::record::Moved;

/// A QEMU whose guest has left closes its images and ends; on a slow disk that takes a while.
const QUIT_WITHIN: Duration = Duration::from_secs(20);

/// What a unit does as it stops takes no longer, or its own `TimeoutStopSec=` (90 s) ends it.
const STOP_WITHIN: Duration = Duration::from_secs(100);

/// A source says completed 0.4 to 2.1 ms before its run state says so (measured on four versions).
const FINAL_WITHIN: Duration = Duration::from_secs(2);

/// The source does not end.
#[derive(Debug, thiserror::Error)]
pub enum QuitError {
    /// It is not in the state in which a source may be ended.
    #[error(
        "the source was in the state '{0}' and not 'postmigrate'; it was stopped if it ran, and not ended"
    )]
    NotOver(RunState),
    /// It does not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It was told to quit and is still there.
    #[error("the source (process {pid}) was told to quit and has not ended within {} s", QUIT_WITHIN.as_secs())]
    StillThere {
        /// Its process.
        pid: i32,
    },
    /// The destination lives in the source's unit, and would end with it.
    #[error("the destination is in the unit {0} too, which was not stopped: the guest would end with it")]
    SharedUnit(UnitName),
    /// Its unit cannot be stopped.
    #[error("the source's unit {unit} could not be stopped: {}", chain(error))]
    Unit {
        /// Which.
        unit: UnitName,
        /// Why.
        error: UnitError,
    },
}

/// Waits until the source is through with the migration: it says completed before its run state does. A source that has
/// ended is. One that has hung for a while has its time from its first answer on.
pub async fn over(client: &Client, process: &ProcessHandle) -> Result<(), QuitError> {
    let mut deadline = None;
    loop {
        match state(client).await {
            // A reset after the switch takes it back to before its first instruction (run on 10.0).
            Ok(RunState::PostMigrate | RunState::PreLaunch) => return Ok(()),
            // Another client has told it to run, while the guest is on the destination: two must not.
            Ok(state @ RunState::Running) => {
                client.call(&words::stop {}, ANSWER_WITHIN).await?;
                return Err(QuitError::NotOver(state));
            }
            Ok(state) => {
                let now = tokio::time::Instant::now();
                if now > *deadline.get_or_insert(now + FINAL_WITHIN) {
                    return Err(QuitError::NotOver(state));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // A QEMU that somebody told to quit closes its monitor first.
            Err(_) if process.ended_within(LAST_BREATH).await => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends the source, whose guest is on the destination, once it is [`over`].
pub async fn quit(client: &Client, process: &ProcessHandle) -> Result<(), QuitError> {
    match client.call(&words::quit {}, ANSWER_WITHIN).await {
        // It may close the connection before its answer is read.
        Ok(_) | Err(CallError::Interrupted { written: true, .. }) => {}
        Err(_) if process.has_ended() => {}
        Err(error) => return Err(error.into()),
    }
    if process.ended_within(QUIT_WITHIN).await {
        Ok(())
    } else {
        Err(QuitError::StillThere { pid: process.pid() })
    }
}

/// The same by its unit of systemd, which would start it anew if it ended by itself.
pub async fn stop_unit(
    name: &UnitName,
    source: &ProcessHandle,
    destination: &ProcessHandle,
) -> Result<(), QuitError> {
    if Unit::named(name, source.pid()).holds(destination.pid()) {
        return Err(QuitError::SharedUnit(name.clone()));
    }
    let stopped = Unit::named(name, source.pid()).stop(STOP_WITHIN).await;
    stopped.map_err(|error| QuitError::Unit { unit: name.clone(), error })?;
    if source.ended_within(QUIT_WITHIN).await {
        Ok(())
    } else {
        Err(QuitError::StillThere { pid: source.pid() })
    }
}

/// What the source says of the migration when it is over. QEMU before 9.0 may say completed before its figures are
/// there (run on 5.2); by the time that the guest runs on the destination they are.
pub async fn figures(client: &Client) -> Option<MigrationInfo> {
    client.call_as(&words::query_migrate {}, ANSWER_WITHIN).await.ok()
}

/// Whether the guest runs where it has arrived. A guest that cannot run there (an instruction that the other host does
/// not have, say) has left `running` by now.
pub async fn state(client: &Client) -> Result<RunState, CallError> {
    let status: StatusInfo = client.call_as(&words::query_status {}, ANSWER_WITHIN).await?;
    Ok(status.status)
}

/// What has another name now, and what could not be given its own back.
#[derive(Debug, Default)]
pub struct Names {
    /// What has another name now.
    pub moved: Vec<Moved>,
    /// Why, where that was not meant to be.
    pub failures: Vec<(Rename, io::Error)>,
}

/// Gives the guest the names that its users know. Only after the source has gone: a QEMU that exits unlinks its
/// sockets by name, whoever is bound to them by then (run on 7.2 to 11.1).
pub fn take_names(renames: &[Rename], owner: &Credentials) -> Names {
    let mut names = Names::default();
    for rename in renames {
        match as_user(owner, || take_name(rename)) {
            Ok(()) => {}
            Err(error) => {
                names.moved.push(moved(rename));
                names.failures.push((rename.clone(), error));
            }
        }
    }
    names
}

/// What has another name as long as the source keeps its own.
pub fn kept_names(renames: &[Rename]) -> Names {
    Names { moved: renames.iter().map(moved).collect(), failures: Vec::new() }
}

fn moved(rename: &Rename) -> Moved {
    Moved {
        what: rename.what.clone(),
        from: rename.public.display().to_string(),
        to: rename.temporary.display().to_string(),
    }
}

fn take_name(rename: &Rename) -> io::Result<()> {
    // What stands there is the source's own left-over, or nothing; a directory is neither and stops the rename.
    std::fs::rename(&rename.temporary, &rename.public)?;
    if let Some(directory) = rename.temporary.parent() {
        remove_if_empty(directory);
    }
    Ok(())
}

/// Several names may share a private directory; the last one out closes the door.
fn remove_if_empty(directory: &Path) {
    let _ = std::fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_over_and_the_private_directory_goes() {
        let base = tempfile::tempdir().unwrap();
        let private = base.path().join(".qmigrate-k3f9x2ab");
        std::fs::create_dir(&private).unwrap();
        let rename = |name: &str| Rename {
            what: name.to_owned(),
            temporary: private.join(name),
            public: base.path().join(name),
        };
        let renames = [rename("qmp"), rename("pid")];
        for rename in &renames {
            std::fs::write(&rename.temporary, "new").unwrap();
        }
        std::fs::write(&renames[0].public, "old").unwrap();
        let names = take_names(&renames, &Credentials::own().unwrap());
        assert!(names.moved.is_empty() && names.failures.is_empty());
        assert_eq!(std::fs::read_to_string(&renames[0].public).unwrap(), "new");
        assert!(!private.exists());
    }

    #[test]
    fn a_name_that_cannot_be_taken_is_told_with_the_one_it_has() {
        let base = tempfile::tempdir().unwrap();
        let rename = Rename {
            what: "qmp".to_owned(),
            temporary: base.path().join("missing"),
            public: base.path().join("public"),
        };
        let names = take_names(std::slice::from_ref(&rename), &Credentials::own().unwrap());
        assert_eq!(names.failures.len(), 1);
        assert_eq!(names.moved[0].to, rename.temporary.display().to_string());
    }
}
