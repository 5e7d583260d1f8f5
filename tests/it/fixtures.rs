//! Recorded conversations with real QEMUs: what they say is understood, and leads where it led then.

use bytes::BufMut;
use qmigrate::migrate::phase::{Action, AtDestination, AtSource, Guest, Input, Phase, Seen};
use qmigrate::migrate::plan::Mode;
use qmigrate::qmp::wire::Decoder;
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus, Notice, RunState, StatusInfo};
use qmigrate::qmp::{Leg, Message};
use serde_json::{Value, from_value};

use crate::conversation::{Conversation, Ending, Entry, Said, conversations};

/// Reads a line as the client does.
fn message(entry: &Entry) -> Message {
    let mut decoder = Decoder::default();
    decoder.buffer().put_slice(entry.line.as_bytes());
    decoder.buffer().put_slice(b"\r\n");
    decoder.next_message().unwrap().unwrap()
}

/// What an event means.
fn notice(entry: &Entry) -> Notice {
    match message(entry) {
        Message::Event(event) => Notice::from(&event),
        other => panic!("no event: {other:?}"),
    }
}

/// What one line shows the phase machine, as the driver would show it.
fn seen(entry: &Entry) -> Option<Seen> {
    match &entry.said {
        Said::Event(_) => match notice(entry) {
            Notice::Migration(status) => Some(Seen::Status(status)),
            Notice::Stop => Some(Seen::Stopped),
            Notice::Resume => Some(Seen::Resumed),
            _ => None,
        },
        Said::Answer { to, .. } => {
            let Message::Success { value, .. } = message(entry) else { return None };
            match to.as_str() {
                "query-migrate" => from_value::<MigrationInfo>(value).unwrap().status.map(Seen::Status),
                "query-status" => Some(Seen::State(from_value::<StatusInfo>(value).unwrap().status)),
                _ => None,
            }
        }
        Said::End => Some(Seen::Gone),
        Said::Command { .. } | Said::Greeting(_) => None,
    }
}

#[test]
fn every_line_that_a_qemu_said_is_understood() {
    let said = |conversation: &Conversation| {
        let is_qemu = |entry: &&Entry| !matches!(entry.said, Said::Command { .. } | Said::End);
        conversation.entries.iter().filter(is_qemu).cloned().collect::<Vec<_>>()
    };
    for conversation in conversations() {
        for entry in said(&conversation) {
            let message = message(&entry);
            let fits = match (&entry.said, &message) {
                (Said::Greeting(_), Message::Greeting(_)) | (Said::Event(_), Message::Event(_)) => true,
                (
                    Said::Answer { id, .. },
                    Message::Success { id: heard, .. } | Message::Failure { id: heard, .. },
                ) => heard.as_ref().and_then(Value::as_u64) == Some(*id),
                _ => false,
            };
            assert!(fits, "{}: {message:?}", conversation.name);
        }
    }
}

#[test]
fn every_word_of_a_real_qemu_is_known() {
    for conversation in conversations().iter().filter(|conversation| conversation.is_real) {
        for entry in &conversation.entries {
            let is_known = match seen(entry) {
                Some(Seen::Status(MigrationStatus::Other(_)) | Seen::State(RunState::Other(_))) => false,
                // What the phases do not need is known all the same.
                None if matches!(entry.said, Said::Event(_)) => {
                    matches!(notice(entry), Notice::Pass(_) | Notice::Shutdown { .. })
                }
                _ => true,
            };
            assert!(is_known, "{}: {}", conversation.name, entry.line);
        }
    }
}

/// What an engine's own command is to the phase machine.
fn decided(name: &str) -> Option<Input> {
    match name {
        "stop" => Some(Input::StoppedByConsent),
        "migrate_cancel" => Some(Input::Retreat),
        "yank" => Some(Input::BlackoutOver),
        _ => None,
    }
}

/// Shows the phase machine all of a conversation; gives the last phase and all that was to be done.
fn course_of(conversation: &Conversation) -> (Phase, Vec<Action>) {
    let at_source = AtSource::Running;
    let mut phase = Phase::Streaming(Guest { at_source, at_destination: AtDestination::AsBefore });
    let mut actions = Vec::new();
    let is_start = |entry: &Entry| matches!(&entry.said, Said::Command { name, .. } if name == "migrate" || name == "stop");
    for entry in conversation.entries.iter().skip_while(|entry| !is_start(entry)) {
        let input = match &entry.said {
            Said::Command { name, .. } if name == "quit" => break,
            Said::Command { name, .. } => decided(name),
            _ => seen(entry).map(|seen| on(entry.leg, seen)),
        };
        let mut next = input;
        while let Some(input) = next.take() {
            let (after, action) = phase.next(&input);
            phase = after;
            actions.extend(action);
            next = (action == Some(Action::ProveDestination)).then_some(Input::DestinationAlive);
        }
    }
    (phase, actions)
}

fn on(leg: Leg, seen: Seen) -> Input {
    match leg {
        Leg::Source => Input::Source(seen),
        Leg::Destination => Input::Destination(seen),
    }
}

#[test]
fn every_conversation_leads_the_phases_where_it_led_then() {
    for conversation in conversations() {
        let Ending::At(expected, conts) = conversation.course.ending else { continue };
        let (phase, actions) = course_of(&conversation);
        assert_eq!(phase, expected, "{}: {actions:?}", conversation.name);
        let told = |wanted| actions.iter().filter(|&&action| action == wanted).count();
        assert_eq!(told(Action::ContinueDestination), conts, "{}: {actions:?}", conversation.name);
        assert_eq!(told(Action::ContinueSource), 0, "{}: {actions:?}", conversation.name);
    }
}

#[test]
fn every_version_has_every_course_that_it_knows() {
    let conversations = conversations();
    let of = |version| {
        let of_version = conversations.iter().filter(|known| known.is_real && known.version == version);
        of_version.map(|known| known.course.name).collect::<Vec<_>>()
    };
    let (newest, oldest) = (of((11, 1)), of((5, 2)));
    assert_eq!(of((7, 2)), newest);
    assert_eq!(of((10, 0)), newest);
    let more: Vec<_> = oldest.iter().filter(|&name| !newest.contains(name)).collect();
    assert_eq!(more, [&"limits-legacy"], "these commands are gone since 6.0");
    assert_eq!(oldest.len(), newest.len() + 1);
    assert!(conversations.iter().any(|known| known.course.mode == Mode::NonLive));
}
