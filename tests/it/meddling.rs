//! People and programs that meddle while a guest is moved: what they wanted of the guest is what it does in the end.

use std::io::Read;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, fcntl};
use qapi_qmp as words;
use qmigrate::qmp::words::{MigrationInfo, RunState};

use crate::lab::{Lab, SOON, command, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_somebody_pauses_on_the_way_stays_paused() {
    let Some(lab) = Lab::start("somebody_pauses_it", 32, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("streaming", &["--max-bandwidth", "20MiB/s"]);
    let hold = engine.wait();
    lab.somebody().await.call(&words::stop {}, SOON).await.unwrap();
    drop(hold);
    let ended = engine.end();
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"paused_on_destination".into()), "{ended:?}");
    assert_eq!(lab.state().await, RunState::Paused);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_somebody_stops_and_starts_all_the_time_runs_in_the_end() {
    let Some(lab) = Lab::start("somebody_stops_and_starts_it", 32, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("streaming", &["--max-bandwidth", "20MiB/s"]);
    let hold = engine.wait();
    let somebody = lab.somebody().await;
    drop(hold);
    for _ in 0..25 {
        let (stopped, started) = (somebody.send(&words::stop {}), somebody.send(&words::cont {}));
        let both = tokio::join!(stopped.within(SOON), started.within(SOON));
        // Its own migration may have ended meanwhile.
        if both.1.is_err() {
            break;
        }
    }
    drop(somebody);
    let ended = engine.end();
    assert_eq!((ended.code, &ended.result()["guest"]), (0, &"running_on_destination".into()), "{ended:?}");
    assert_eq!(lab.state().await, RunState::Running);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_by_somebody_else_is_told_as_one_and_the_next_attempt_works() {
    let Some(lab) = Lab::start("a_cancel_by_somebody_else", 32, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("streaming", &["--max-bandwidth", "5MiB/s"]);
    drop(engine.wait());
    let somebody = lab.somebody().await;
    // A cancel that comes as the stream begins is told by QEMU 10.0 as a failure.
    until("the stream runs", async || {
        let info: MigrationInfo = somebody.call_as(&words::query_migrate {}, SOON).await.unwrap();
        info.ram.is_some_and(|ram| ram.transferred_bytes > 1 << 20)
    })
    .await;
    somebody.call(&words::migrate_cancel {}, SOON).await.unwrap();
    let ended = engine.end();
    assert_eq!((ended.code, &ended.result()["guest"]), (1, &"running_on_source".into()), "{ended:?}");
    assert!(ended.result()["message"].as_str().unwrap().contains("another client"), "{ended:?}");
    lab.beats_on(lab.source());
    assert_eq!(lab.migrate(&[]).code, 0);
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_reading_holds_the_guest_up_in_nothing() {
    let Some(lab) = Lab::start("a_reader_that_stops", 48, Some("2MiB/s")).await else { return };
    let monitor = lab.monitor();
    let mut command = command(&["migrate", &monitor, "--json", "--max-bandwidth", "10MiB/s"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    // A page is the least that a pipe holds: about ten lines.
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let source = lab.source();
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let status = tokio::time::timeout(SOON, status).await.expect("the engine ends").unwrap();
    assert_eq!(status.code(), Some(0));
    // A line that did not fit whole was not begun.
    let mut read = Vec::new();
    output.read_to_end(&mut read).unwrap();
    assert!(
        read.len() > 3000 && !String::from_utf8_lossy(&read).contains(r#""type":"result""#),
        "it was full"
    );
    let gap = lab.never_two(source, lab.destination()).gap;
    assert!(gap < std::time::Duration::from_secs(1), "the guest stood still for {gap:?}");
    lab.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_shuts_down_on_the_way_is_told_as_one() {
    let Some(lab) = Lab::start("a_guest_that_shuts_down", 32, Some("10MiB/s")).await else { return };
    let mut engine = lab.migrate_held("streaming", &["--max-bandwidth", "5MiB/s"]);
    drop(engine.wait());
    let destination = lab.destination();
    let quit = lab.somebody().await.call(&words::quit {}, SOON).await;
    drop(quit);
    let ended = engine.end();
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(ended.result()["message"].as_str().unwrap().contains("host-qmp-quit"), "{ended:?}");
    until("the destination has ended", async || !crate::lab::lives(destination)).await;
}
