//! Recorded conversations with real QEMUs: what they say is understood, and leads where it led then.

use bytes::BufMut;
use qmigrate::migrate::phase::{Action, AtDestination, AtSource, Guest, Input, Phase, Rest, Seen};
use qmigrate::qmp::Message;
use qmigrate::qmp::wire::Decoder;
use qmigrate::qmp::words::{MigrationStatus, Notice};
use serde_json::Value;

/// What the QEMUs of a conversation said, as messages with their leg.
fn messages(conversation: &str) -> Vec<(String, Message)> {
    let lines = conversation.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said = lines.filter(|line| line["from"] == "qemu");
    let read = |line: Value| {
        let mut decoder = Decoder::default();
        decoder.buffer().put_slice(line["line"].as_str().unwrap().as_bytes());
        decoder.buffer().put_slice(b"\r\n");
        (line["leg"].as_str().unwrap().to_owned(), decoder.next_message().unwrap().unwrap())
    };
    said.map(read).collect()
}

#[test]
fn a_recorded_precopy_of_10_0_leads_to_one_cont_and_arrives() {
    let conversation = include_str!("../../qmp-fixtures/10.0.2-precopy-completed.jsonl");
    let guest = Guest { at_source: AtSource::Running, at_destination: AtDestination::AsBefore };
    let (mut phase, mut actions) = (Phase::Streaming(guest), Vec::new());
    for (leg, message) in messages(conversation) {
        let event = match message {
            Message::Event(event) => event,
            Message::Greeting { .. } | Message::Success { .. } => continue,
            other => panic!("nothing in it is a failure or unknown: {other:?}"),
        };
        let seen = match Notice::from(&event) {
            Notice::Migration(status) => {
                assert!(!matches!(status, MigrationStatus::Other(_)), "{status}");
                Seen::Status(status)
            }
            Notice::Stop => Seen::Stopped,
            Notice::Resume => Seen::Resumed,
            Notice::Pass(_) | Notice::Shutdown { .. } => continue,
            other => panic!("{}: {other:?}", event.name),
        };
        let mut next = Some(if leg == "source" { Input::Source(seen) } else { Input::Destination(seen) });
        while let Some(input) = next.take() {
            let (after, action) = phase.next(&input);
            phase = after;
            actions.extend(action);
            next = (action == Some(Action::ProveDestination)).then_some(Input::DestinationAlive);
        }
    }
    assert_eq!(phase, Phase::Arrived(Rest::Running));
    assert_eq!(actions, [Action::AskSource, Action::ProveDestination, Action::ContinueDestination]);
}
