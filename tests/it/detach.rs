//! `migrate --detach`: the engine runs on without its terminal, and what the terminal says until then is meant for it.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;

use crate::lab::{Lab, command, ended, lives, run, signal, until};

/// A detached engine that is held once its destination is there, with whoever follows it.
struct Detached {
    follower: Child,
    hold: UnixStream,
    socket: PathBuf,
}

fn detached(lab: &Lab) -> Detached {
    let socket = lab.directory.path().join("hold-destination");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut follower = command(&["migrate", &lab.monitor(), "--detach"]);
    follower.env("QMIGRATE_HOLD", format!("destination={}", socket.display()));
    let follower = follower.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (hold, _) = listener.accept().unwrap();
    Detached { follower, hold, socket }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_and_leaves_nothing_when_whoever_started_it_is_killed() {
    let Some(lab) = Lab::start("whoever_started_it_is_killed", 16, Some("10MiB/s")).await else { return };
    let Detached { mut follower, hold, socket } = detached(&lab);
    follower.kill().unwrap();
    follower.wait().unwrap();
    drop(hold);
    lab.never_two(lab.source(), lab.destination());
    until("the engine has ended", async || {
        run(command(&["status", &lab.monitor(), "--json"])).lines[0]["outcome"]["end"] == "migrated"
    })
    .await;
    std::fs::remove_file(socket).unwrap();
    let runtime = std::fs::read_dir(qmigrate::host::runtime_directory().unwrap()).unwrap();
    let logs: Vec<_> = runtime
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    assert_eq!(logs, [] as [std::path::PathBuf; 0]);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_before_the_stream_runs_cancels_the_migration_and_not_only_whoever_follows_it() {
    let Some(lab) = Lab::start("ctrl_c_before_the_stream", 16, Some("10MiB/s")).await else { return };
    let Detached { follower, hold, socket } = detached(&lab);
    let destination = lab.destination();
    // It hangs, so that nothing but the cancel brings the engine on.
    signal(destination, Signal::SIGSTOP);
    signal(follower.id().try_into().unwrap(), Signal::SIGINT);
    drop(hold);
    let output = follower.wait_with_output().unwrap();
    let ended = ended(output.status, &output.stdout, &output.stderr);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("cancelled by Ctrl-C; nothing had been moved yet"), "{ended:?}");
    std::fs::remove_file(socket).unwrap();
    assert!(!lives(destination));
    assert_eq!(lab.left_behind(), [] as [PathBuf; 0]);
    lab.beats_on(lab.source());
    assert_eq!(lab.migrate(&["--max-downtime", "20s"]).code, 0);
    lab.never_two(lab.source(), lab.destination());
    lab.prove().await;
}
