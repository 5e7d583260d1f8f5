//! The QMP transport against a scripted peer: the window, answers and events, the end.

use std::collections::HashSet;
use std::error::Error;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qapi::qmp::{YankInstance, query_migrate, query_status, yank};
use qmigrate::qmp::client::{EVENTS_PER_LISTENER, IN_BAND_COMMANDS};
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus, Notice, StatusInfo};
use qmigrate::qmp::{CallError, Client, Closed, Deadlines, Direction, EventsError, Leg, Load, WireError};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::scripted_peer::{Asked, ScriptedPeer, soon};

/// Longer than any answer of a scripted peer takes.
const LONG: Duration = Duration::from_secs(20);

/// A command that only scripted peers know: it returns its number.
#[derive(Debug, Serialize)]
struct Echo {
    number: u64,
}

impl qapi::Command for Echo {
    type Ok = Value;

    const NAME: &'static str = "echo";
    const ALLOW_OOB: bool = false;
}

fn echo(number: u64) -> Echo {
    Echo { number }
}

fn yank_migration() -> yank {
    yank { instances: vec![YankInstance::migration] }
}

/// A small generator of numbers, the same ones in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

// ---- the window

/// Answers echoes in any order and late, and sees that never more than six are open; returns all numbers it saw.
async fn scrambling_peer(mut peer: ScriptedPeer) -> HashSet<u64> {
    let mut dice = Dice(7);
    let mut open: Vec<Asked> = Vec::new();
    let mut seen = HashSet::new();
    loop {
        // The clock is stopped: this sleep ends when nothing else moves, so that the window really fills.
        let pause = async {
            if dice.below(3) == 0 {
                sleep(Duration::from_millis(1)).await;
            } else {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            asked = peer.next() => {
                let Some(asked) = asked else { return seen };
                assert!(seen.insert(asked.arguments["number"].as_u64().unwrap()), "written once only");
                open.push(asked);
                assert!(open.len() <= IN_BAND_COMMANDS, "{} commands are open", open.len());
            }
            () = pause, if !open.is_empty() => {
                let count = u64::try_from(open.len()).unwrap();
                let asked = open.swap_remove(usize::try_from(dice.below(count)).unwrap());
                let number = asked.arguments["number"].clone();
                if dice.below(5) == 0 {
                    peer.refuse(&asked, "GenericError", &number.to_string()).await;
                } else {
                    peer.answer(&asked, number).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_commands_get_their_own_answers_whoever_gives_up() {
    let (written, given_up) = soon(storm(10_000)).await;
    println!("{written} commands written, {given_up} given up before that");
    assert!(given_up > 100, "the window was full for long enough to tell");
}

/// As above, with threads that race; the clock runs, so there is less of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_on_many_threads_get_their_own_answers() {
    soon(storm(2000)).await;
}

/// Many callers, some of whom give up, and a peer that scrambles its answers. Returns how many commands the peer saw,
/// and how many callers were told that it never will.
async fn storm(commands: u64) -> (usize, usize) {
    let (client, peer) = ScriptedPeer::connected().await;
    let peer = tokio::spawn(scrambling_peer(peer));
    let mut dice = Dice(1);
    let mut callers = JoinSet::new();
    for number in 0..commands {
        let client = client.clone();
        let (start, fate, patience) = (dice.below(1000), dice.below(4), dice.below(300));
        callers.spawn(async move {
            sleep(Duration::from_millis(start)).await;
            match fate {
                0 => drop(client.send(&echo(number))),
                1 => drop(
                    tokio::time::timeout(Duration::from_millis(patience), client.send(&echo(number))).await,
                ),
                2 => match client.call(&echo(number), Duration::from_millis(patience)).await {
                    Err(CallError::Late { written: false, .. }) => return Some(number),
                    Err(CallError::Late { .. }) => (),
                    outcome => is_own_answer(number, outcome),
                },
                _ => is_own_answer(number, client.send(&echo(number)).await),
            }
            None
        });
    }
    let mut never_written = Vec::new();
    while let Some(outcome) = callers.join_next().await {
        never_written.extend(outcome.unwrap());
    }
    while client.load() != Load::default() {
        sleep(Duration::from_millis(1)).await;
    }
    drop(client);
    let seen = soon(peer).await.unwrap();
    assert!(never_written.iter().all(|number| !seen.contains(number)));
    (seen.len(), never_written.len())
}

fn is_own_answer(number: u64, outcome: Result<Value, CallError>) {
    match outcome {
        Ok(value) => assert_eq!(value, json!(number)),
        Err(CallError::Refused { desc, .. }) => assert_eq!(desc, number.to_string()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn yank_is_answered_while_the_in_band_queue_is_full() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let replies: Vec<_> = (0..20).map(|number| client.send(&echo(number))).collect();
    for _ in 0..IN_BAND_COMMANDS {
        assert_eq!(peer.asked().await.name, "echo");
    }
    peer.hears_nothing().await;
    let escape = client.send_out_of_band(&yank_migration());
    let asked = peer.asked().await;
    assert_eq!((asked.name.as_str(), asked.out_of_band), ("yank", true));
    assert_eq!(asked.arguments, json!({"instances": [{"type": "migration"}]}));
    peer.answer(&asked, json!({})).await;
    assert_eq!(soon(escape).await.unwrap(), json!({}));
    assert_eq!(client.load(), Load { in_flight: 6, waiting: 14 });
    drop(replies);
    assert_eq!(client.load(), Load { in_flight: 6, waiting: 0 });
}

#[tokio::test]
async fn nothing_goes_out_of_band_where_that_was_not_negotiated() {
    let (stream, mut peer) = ScriptedPeer::pair();
    let (client, ()) =
        tokio::join!(Client::over(stream, Leg::Source, Deadlines::default(), None), peer.greet(&["novel"]));
    let client = client.unwrap();
    assert!(!client.supports_out_of_band());
    assert_eq!(client.greeting().capabilities, ["novel"]);
    let error = client.call_out_of_band(&yank_migration(), LONG).await.unwrap_err();
    assert!(matches!(error, CallError::NoOutOfBand { .. }) && !error.may_have_happened());
}

#[tokio::test]
async fn what_waits_together_is_written_together_and_in_order() {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let client = tokio::spawn(Client::over(near, Leg::Source, Deadlines::default(), None));
    let mut peer = ScriptedPeer::over(&mut far);
    soon(peer.greet(&["oob"])).await;
    drop(peer);
    let client = soon(client).await.unwrap().unwrap();
    let _replies: Vec<_> = (0..4).map(|number| client.send(&echo(number))).collect();
    let mut bytes = vec![0; 1 << 16];
    let count = soon(far.read(&mut bytes)).await.unwrap();
    let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
    let mut expected = String::new();
    for number in 0..4 {
        let id = number + 1;
        writeln!(expected, "{{\"execute\":\"echo\",\"arguments\":{{\"number\":{number}}},\"id\":{id}}}")
            .unwrap();
    }
    assert_eq!(text, expected);
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_to_a_dropped_call_harms_nobody() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let error = soon(client.call(&echo(1), Duration::from_millis(100))).await.unwrap_err();
    assert!(matches!(error, CallError::Late { written: true, .. }) && error.may_have_happened(), "{error}");
    assert_eq!(error.to_string(), "the source did not answer echo within 100 ms");
    let first = peer.asked().await;
    let second = client.send(&echo(2));
    let asked = peer.asked().await;
    assert_eq!(client.load().in_flight, 2);
    peer.answer(&first, json!("late")).await;
    peer.answer(&first, json!("twice")).await;
    peer.send(&json!({"return": "without id"})).await;
    peer.send(&json!({"return": "foreign", "id": "libvirt-1"})).await;
    peer.answer(&asked, json!(2)).await;
    assert_eq!(soon(second).await.unwrap(), json!(2));
    assert_eq!(client.load(), Load::default());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_still_heard() {
    let (near, far) = tokio::io::duplex(64);
    let mut peer = ScriptedPeer::over(far);
    let (client, ()) =
        tokio::join!(Client::over(near, Leg::Source, Deadlines::default(), None), peer.greet(&["oob"]));
    let client = client.unwrap();
    let mut events = client.events();
    let replies: Vec<_> = (0..6).map(|number| client.send(&echo(number))).collect();
    sleep(Duration::from_millis(1)).await;
    for number in 0..10 {
        peer.event("NOISE", json!(number)).await;
        assert_eq!(soon(events.next()).await.unwrap().event.data, json!(number));
    }
    for (number, reply) in (0..).zip(replies) {
        let asked = peer.asked().await;
        peer.answer(&asked, json!(number)).await;
        assert_eq!(soon(reply).await.unwrap(), json!(number));
    }
}

// ---- answers and events

#[tokio::test]
async fn a_refusal_and_an_answer_of_an_unknown_shape_are_told_apart() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let refused = client.send(&echo(1));
    let asked = peer.asked().await;
    peer.refuse(&asked, "NovelClass", "no\u{1b}[31m").await;
    let error = soon(refused).await.unwrap_err();
    assert!(!error.may_have_happened());
    assert_eq!(error.to_string(), r"the source refused echo: no\u{1b}[31m");
    let (unreadable, ()) = soon(async {
        tokio::join!(client.call_as::<StatusInfo, _>(&query_status {}, LONG), async {
            let asked = peer.asked().await;
            peer.answer(&asked, json!({"running": "\u{1b}"})).await;
        })
    })
    .await;
    let error = unreadable.unwrap_err();
    assert!(matches!(error, CallError::Unreadable { .. }) && error.may_have_happened());
    assert!(!error.to_string().contains('\u{1b}'));
}

#[tokio::test]
async fn an_unknown_event_and_an_unknown_status_are_data() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let mut events = client.events();
    peer.event("NOVEL_THING", json!({"x": 1})).await;
    peer.event("MIGRATION", json!({"status": "novel"})).await;
    peer.send(&json!({"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}, "novel": 1})).await;
    let first = soon(events.next()).await.unwrap();
    assert_eq!((first.event.name.as_str(), Notice::from(&first.event)), ("NOVEL_THING", Notice::Other));
    assert_eq!(first.event.timestamp_microseconds, Some(1_700_000_000_000_025));
    let second = soon(events.next()).await.unwrap();
    let novel = MigrationStatus::Other("novel".into());
    assert_eq!(Notice::from(&second.event), Notice::Migration(novel.clone()));
    let third = soon(events.next()).await.unwrap();
    assert_eq!((Notice::from(&third.event), third.event.timestamp_microseconds), (Notice::Stop, None));
    let (info, ()) = soon(async {
        tokio::join!(client.call_as::<MigrationInfo, _>(&query_migrate {}, LONG), async {
            let asked = peer.asked().await;
            peer.answer(&asked, json!({"status": "novel"})).await;
        })
    })
    .await;
    assert_eq!(info.unwrap().status, Some(novel));
}

#[tokio::test]
async fn a_flood_that_nobody_reads_ends_that_listener_and_nothing_else() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let mut lazy = client.events();
    for number in 0..EVENTS_PER_LISTENER + 1000 {
        peer.send_bytes(format!("{{\"event\": \"NOISE\", \"data\": {number}}}\n").as_bytes()).await;
    }
    let reply = client.send(&echo(1));
    let asked = peer.asked().await;
    peer.answer(&asked, json!(1)).await;
    assert_eq!(soon(reply).await.unwrap(), json!(1));
    for number in 0..EVENTS_PER_LISTENER {
        assert_eq!(soon(lazy.next()).await.unwrap().event.data, json!(number));
    }
    assert!(matches!(soon(lazy.next()).await, Err(EventsError::Overflow { .. })));
    let mut fresh = client.events();
    peer.event("STOP", Value::Null).await;
    assert_eq!(soon(fresh.next()).await.unwrap().event.name, "STOP");
}

#[tokio::test(start_paused = true)]
async fn bytes_of_any_kind_are_a_proof_of_life() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let before = client.last_heard();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(client.last_heard(), before);
    let mut events = client.events();
    peer.event("STOP", Value::Null).await;
    let heard = soon(events.next()).await.unwrap();
    assert_eq!((client.last_heard(), heard.at), (Instant::now().into_std(), Instant::now().into_std()));
    sleep(Duration::from_secs(1)).await;
    peer.send_bytes(b"{\"half").await;
    sleep(Duration::from_millis(1)).await;
    assert!(client.last_heard() > heard.at);
}

#[tokio::test]
async fn the_tap_sees_the_whole_conversation() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let (stream, mut peer) = ScriptedPeer::pair();
    let tap = {
        let lines = Arc::clone(&lines);
        Arc::new(move |direction, line: &str| lines.lock().unwrap().push((direction, line.to_owned())))
    };
    let (client, ()) = tokio::join!(
        Client::over(stream, Leg::Source, Deadlines::default(), Some(tap)),
        peer.greet(&["oob"])
    );
    let reply = client.unwrap().send(&echo(1));
    drop(reply);
    peer.hears_the_end().await;
    let lines = lines.lock().unwrap();
    let directions: Vec<_> = lines.iter().map(|(direction, _)| *direction).collect();
    assert_eq!(directions, [Direction::Received, Direction::Sent, Direction::Received]);
    assert!(lines[0].1.starts_with("{\"QMP\"") && lines[2].1.ends_with('}'));
    assert_eq!(lines[1].1, r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]},"id":0}"#);
}

// ---- the end

#[tokio::test]
async fn the_end_in_the_middle_of_a_line_ends_everything_pending() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let replies: Vec<_> = (0..8).map(|number| client.send(&echo(number))).collect();
    let mut events = client.events();
    for _ in 0..6 {
        peer.asked().await;
    }
    peer.event("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"})).await;
    peer.send_bytes(b"{\"return\": {}, \"id\"").await;
    drop(peer);
    assert!(matches!(soon(client.closed()).await, Closed::InsideLine));
    assert!(client.is_closed());
    let mut written = 0;
    for reply in replies {
        let error = soon(reply).await.unwrap_err();
        assert!(matches!(error, CallError::Interrupted { cause: Closed::InsideLine, .. }), "{error}");
        written += usize::from(error.may_have_happened());
    }
    assert_eq!(written, 6);
    assert_eq!(soon(events.next()).await.unwrap().event.name, "SHUTDOWN");
    assert!(matches!(soon(events.next()).await, Err(EventsError::Closed { cause: Closed::InsideLine, .. })));
    let error = soon(client.call(&echo(9), LONG)).await.unwrap_err();
    assert!(!error.may_have_happened());
    assert_eq!(error.to_string(), "the connection to the source ended before echo was sent");
    assert_eq!(error.source().unwrap().to_string(), "QEMU closed the connection in the middle of a line");
}

#[tokio::test]
async fn an_error_without_an_id_ends_the_connection() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let reply = client.send(&echo(1));
    peer.asked().await;
    peer.send(&json!({"error": {"class": "GenericError", "desc": "JSON parse error"}})).await;
    assert!(soon(reply).await.unwrap_err().may_have_happened());
    assert!(
        matches!(soon(client.closed()).await, Closed::CommandNotRead { desc, .. } if desc == "JSON parse error")
    );
    peer.hears_the_end().await;
}

#[tokio::test]
async fn junk_in_the_middle_of_a_conversation_ends_it() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    peer.send_bytes(b"Segmentation fault\n").await;
    let closed = soon(client.closed()).await;
    assert!(matches!(closed, Closed::NotUnderstood(WireError::NotQmp { .. })), "{closed:?}");
}

#[tokio::test]
async fn an_answer_before_the_end_is_not_lost_to_a_write_that_fails() {
    for _ in 0..200 {
        let (client, mut peer) = ScriptedPeer::connected().await;
        let quit = client.send(&echo(1));
        let asked = peer.asked().await;
        peer.event("SHUTDOWN", Value::Null).await;
        peer.answer(&asked, json!({})).await;
        drop(peer);
        let too_late = client.send(&echo(2));
        assert_eq!(soon(quit).await.unwrap(), json!({}));
        assert!(soon(too_late).await.is_err());
    }
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_task_and_all_that_waits() {
    let (client, mut peer) = ScriptedPeer::connected().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), 1);
    let clone = client.clone();
    let reply = client.send(&echo(1));
    let mut events = client.events();
    drop(client);
    let asked = peer.asked().await;
    peer.answer(&asked, json!(1)).await;
    assert_eq!(soon(reply).await.unwrap(), json!(1));
    let reply = clone.send(&echo(2));
    drop(clone);
    let error = soon(reply).await.unwrap_err();
    assert!(matches!(error, CallError::Interrupted { cause: Closed::LetGo, .. }), "{error}");
    assert!(matches!(soon(events.next()).await, Err(EventsError::Closed { cause: Closed::LetGo, .. })));
    peer.hears_the_end().await;
    soon(async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_tap_that_panics_leaves_no_caller_waiting() {
    let (stream, mut peer) = ScriptedPeer::pair();
    let tap = Arc::new(|_, line: &str| assert!(!line.contains("echo"), "on purpose"));
    let (client, ()) = tokio::join!(
        Client::over(stream, Leg::Source, Deadlines::default(), Some(tap)),
        peer.greet(&["oob"])
    );
    let client = client.unwrap();
    let error = soon(client.send(&echo(1))).await.unwrap_err();
    assert!(matches!(error, CallError::Interrupted { cause: Closed::Stopped, .. }), "{error}");
    assert!(matches!(soon(client.closed()).await, Closed::Stopped));
}
