//! Bytes to lines to messages, without any I/O.
//!
//! QMP is one JSON object per line. Nothing that a QEMU of any version may add is an error here: an unknown event is
//! an [`Event`], an unknown error class is a text, an unknown kind of message is [`Message::Unknown`]. An error means
//! that the peer does not speak QMP, and that no byte after it can be trusted.

use std::fmt::Write as _;

use bytes::{Buf, BytesMut};
use serde_json::{Map, Value};

/// The longest line that is taken. The longest of QEMU, the answer to `query-qmp-schema`, has less than 1 MiB.
pub const LONGEST_LINE_BYTES: usize = 64 << 20;

/// How much room is made before each read.
const READ_BYTES: usize = 16 << 10;

/// How much of a foreign text is kept for people.
const LONGEST_TEXT_CHARACTERS: usize = 4096;

/// One message from the peer.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first message of a monitor: the object behind `QMP`.
    Greeting(Value),
    /// A command succeeded.
    Success {
        /// The id that came with the command.
        id: Option<Value>,
        /// What it returned.
        value: Value,
    },
    /// A command failed.
    Failure {
        /// The id that came with the command; none if QEMU could not even read it.
        id: Option<Value>,
        /// The class: `GenericError`, `CommandNotFound` ... Safe to print.
        class: String,
        /// The sentence for people. Safe to print.
        desc: String,
    },
    /// Something happened.
    Event(Event),
    /// JSON, but none of the above.
    Unknown(Value),
}

/// Something that happened in QEMU, as it was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The name, such as `MIGRATION`; any text if the peer likes, so escape it before it is printed.
    pub name: String,
    /// The details; `Null` if the event has none.
    pub data: Value,
    /// Microseconds since 1970 by the clock of QEMU's host, stamped when the event was emitted, which may be seconds
    /// before it is delivered. QEMU says -1 when it does not know.
    pub timestamp_microseconds: Option<u64>,
}

/// Why the peer cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A line that is not JSON.
    #[error("this is not QMP: a line starts with \"{start}\"")]
    NotQmp {
        /// The first bytes of the line, escaped.
        start: String,
    },
    /// The banner of the monitor for people (`-monitor`, `mon:stdio`).
    #[error("this is QEMU's human monitor (\"{banner}\"), not QMP")]
    HumanMonitor {
        /// The banner, escaped.
        banner: String,
    },
    /// JSON, but not the greeting that every QMP monitor begins with.
    #[error("the first message is not the greeting of a QEMU: {start}")]
    NoGreeting {
        /// How it starts, escaped.
        start: String,
    },
    /// A line that does not end.
    #[error("a line is longer than {limit_bytes} bytes")]
    LineTooLong {
        /// What would have been taken.
        limit_bytes: usize,
    },
}

/// Cuts bytes into messages: fill [`Decoder::buffer`], then call [`Decoder::next_message`] until there is none.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// So many bytes at the start of the buffer hold no end of line, which keeps a long line from being searched again
    /// with each read.
    searched: usize,
    limit_bytes: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::with_limit(LONGEST_LINE_BYTES)
    }
}

impl Decoder {
    /// A decoder that takes lines of at most `limit_bytes`, the end of line not counted.
    pub fn with_limit(limit_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, limit_bytes }
    }

    /// Where bytes go when they are read, with room for a good number of them.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(READ_BYTES);
        &mut self.buffer
    }

    /// Whether the bytes so far end in the middle of a line.
    pub fn is_inside_line(&self) -> bool {
        !self.buffer.iter().all(u8::is_ascii_whitespace)
    }

    /// The next whole message, `None` until more bytes come. After an error the decoder is of no more use.
    pub fn next_message(&mut self) -> Result<Option<Message>, WireError> {
        self.next_message_with(|_| ())
    }

    /// As [`Decoder::next_message`], and shows each line to `look` before it is read.
    pub fn next_message_with(&mut self, mut look: impl FnMut(&[u8])) -> Result<Option<Message>, WireError> {
        let too_long = WireError::LineTooLong { limit_bytes: self.limit_bytes };
        while let Some(offset) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            let end = self.searched + offset;
            if end > self.limit_bytes {
                return Err(too_long);
            }
            let line = self.buffer[..end].trim_ascii();
            let message = if line.is_empty() {
                None
            } else {
                look(line);
                Some(read_line(line)?)
            };
            self.buffer.advance(end + 1);
            self.searched = 0;
            if message.is_some() {
                return Ok(message);
            }
        }
        self.searched = self.buffer.len();
        if self.searched > self.limit_bytes { Err(too_long) } else { Ok(None) }
    }
}

/// Reads one line that is not empty.
fn read_line(line: &[u8]) -> Result<Message, WireError> {
    let Ok(value) = serde_json::from_slice(line) else {
        let start = String::from_utf8_lossy(&line[..line.len().min(80)]);
        let human = start.starts_with("QEMU ") && start.contains(" monitor - type 'help'");
        let start = line[..line.len().min(80)].escape_ascii().to_string();
        return Err(if human {
            WireError::HumanMonitor { banner: start }
        } else {
            WireError::NotQmp { start }
        });
    };
    Ok(match value {
        Value::Object(object) => classify(object),
        other => Message::Unknown(other),
    })
}

fn classify(mut object: Map<String, Value>) -> Message {
    if let Some(greeting) = object.remove("QMP") {
        return Message::Greeting(greeting);
    }
    if let Some(Value::String(name)) = object.get("event") {
        let name = name.clone();
        let timestamp_microseconds = object.get("timestamp").and_then(microseconds);
        let data = object.remove("data").unwrap_or_default();
        return Message::Event(Event { name, data, timestamp_microseconds });
    }
    if let Some(error) = object.get("error") {
        let text = |key| match error.get(key) {
            Some(Value::String(text)) => printable(text),
            Some(other) => printable(&other.to_string()),
            None => String::new(),
        };
        let (class, desc) = (text("class"), text("desc"));
        return Message::Failure { id: object.remove("id"), class, desc };
    }
    match object.remove("return") {
        Some(value) => Message::Success { id: object.remove("id"), value },
        None => Message::Unknown(Value::Object(object)),
    }
}

fn microseconds(timestamp: &Value) -> Option<u64> {
    let part = |key| timestamp.get(key)?.as_u64();
    part("seconds")?.checked_mul(1_000_000)?.checked_add(part("microseconds")?)
}

/// The text with everything escaped that could move the cursor, colour the terminal or turn the direction of writing,
/// and cut where it is long enough for people.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(LONGEST_TEXT_CHARACTERS));
    for (index, character) in text.chars().enumerate() {
        if index == LONGEST_TEXT_CHARACTERS {
            safe.push('…');
            break;
        }
        let turns = matches!(character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || turns {
            // Writing to a string cannot fail.
            let _ = write!(safe, "{}", character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What comes out when all of `bytes` come at once.
    fn read(bytes: &[u8]) -> (Vec<Message>, Option<WireError>) {
        let mut decoder = Decoder::with_limit(1000);
        decoder.buffer().extend_from_slice(bytes);
        let mut messages = Vec::new();
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, None),
                Err(error) => return (messages, Some(error)),
            }
        }
    }

    fn read_one(text: &str) -> Message {
        let (mut messages, error) = read(format!("{text}\r\n").as_bytes());
        assert_eq!((messages.len(), error), (1, None), "{text}");
        messages.remove(0)
    }

    #[test]
    fn each_kind_of_message_is_told_apart() {
        assert_eq!(
            read_one(r#"{"QMP": {"capabilities": ["oob"]}}"#),
            Message::Greeting(json!({"capabilities": ["oob"]}))
        );
        assert_eq!(
            read_one(r#"{"return": {"a": 1}, "id": 7}"#),
            Message::Success { id: Some(json!(7)), value: json!({"a": 1}) }
        );
        assert_eq!(
            read_one(r#"{"error": {"class": "NewClass", "desc": "no", "x": 1}}"#),
            Message::Failure { id: None, class: "NewClass".into(), desc: "no".into() }
        );
        assert_eq!(
            read_one(
                r#"{"event": "NEW", "data": {"x": 1}, "timestamp": {"seconds": 2, "microseconds": 5}, "y": 1}"#
            ),
            Message::Event(Event {
                name: "NEW".into(),
                data: json!({"x": 1}),
                timestamp_microseconds: Some(2_000_005)
            })
        );
        assert_eq!(
            read_one(r#"{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}"#),
            Message::Event(Event { name: "STOP".into(), data: Value::Null, timestamp_microseconds: None })
        );
    }

    #[test]
    fn json_of_an_unknown_kind_is_kept() {
        for text in ["{}", "5", "[1]", "null", r#"{"event": 5}"#, r#"{"novel": {"x": 1}}"#] {
            assert_eq!(read_one(text), Message::Unknown(serde_json::from_str(text).unwrap()));
        }
    }

    #[test]
    fn an_error_of_a_strange_shape_is_still_an_error() {
        for text in [r#"{"error": "boo"}"#, r#"{"error": {"desc": 5}}"#, r#"{"error": null, "id": 1}"#] {
            assert!(matches!(read_one(text), Message::Failure { .. }), "{text}");
        }
    }

    #[test]
    fn blank_lines_are_nothing() {
        assert_eq!(read(b"\n\r\n  \n\t\r\n"), (vec![], None));
    }

    #[test]
    fn the_human_monitor_is_recognised_and_other_junk_is_shown_escaped() {
        let (_, error) = read(b"QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ");
        assert!(matches!(error, Some(WireError::HumanMonitor { .. })), "{error:?}");
        let (_, error) = read(b"\xff\xfb\x01\x1b[31mSSH-2.0\r\n");
        assert_eq!(error, Some(WireError::NotQmp { start: r"\xff\xfb\x01\x1b[31mSSH-2.0".into() }));
    }

    #[test]
    fn a_foreign_text_cannot_touch_the_terminal() {
        let Message::Failure { desc, .. } =
            read_one(r#"{"error": {"class": "c", "desc": "a\u001b[2J\u0007\nb\u202ec é"}}"#)
        else {
            panic!("an error")
        };
        assert_eq!(desc, r"a\u{1b}[2J\u{7}\nb\u{202e}c é");
        assert_eq!(printable(&"x".repeat(5000)).chars().count(), LONGEST_TEXT_CHARACTERS + 1);
    }

    #[test]
    fn a_line_of_the_limit_is_taken_and_one_byte_more_is_refused() {
        let mut line = vec![b' '; 1000];
        line[0] = b'1';
        line.push(b'\n');
        assert_eq!(read(&line), (vec![Message::Unknown(json!(1))], None));
        line.insert(1, b' ');
        assert_eq!(read(&line), (vec![], Some(WireError::LineTooLong { limit_bytes: 1000 })));
        assert_eq!(read(&line[..1001]), (vec![], Some(WireError::LineTooLong { limit_bytes: 1000 })));
    }

    #[test]
    fn the_end_of_the_bytes_in_the_middle_of_a_line_is_seen() {
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(b"1\r\n  ");
        assert_eq!(decoder.next_message(), Ok(Some(Message::Unknown(json!(1)))));
        assert!(!decoder.is_inside_line());
        decoder.buffer().extend_from_slice(b"{\"ret");
        assert_eq!(decoder.next_message(), Ok(None));
        assert!(decoder.is_inside_line());
    }
}
