//! What is said on the socket.

use serde::{Deserialize, Serialize};

use crate::migrate::order::NewLimits;
use crate::record::{Entry, Record};

/// What a client asks, once per connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Question {
    /// The record as it is now.
    Status,
    /// The record as it is now, and each entry from now on.
    Watch,
    /// Stop the guest now; it runs on the destination.
    Pause,
    /// The guest goes back to its source.
    Cancel,
    /// New limits.
    Set(NewLimits),
}

/// What an engine says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The record as it is now.
    Record(Box<Record>),
    /// What was written.
    Entry(Entry),
    /// It was done.
    Done(String),
    /// It was not done.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_read_as_the_module_says() {
        let read = |text: &str| serde_json::from_str::<Question>(text).unwrap();
        assert_eq!(read(r#"{"verb":"status"}"#), Question::Status);
        let limits =
            NewLimits { max_downtime_ms: crate::units::DowntimeMs::new(200), ..NewLimits::default() };
        assert_eq!(read(r#"{"verb":"set","max_downtime_ms":200}"#), Question::Set(limits));
        assert!(serde_json::from_str::<Question>(r#"{"verb":"explode"}"#).is_err());
        assert!(serde_json::from_str::<Question>(r#"{"verb":"set","max_downtime_ms":0}"#).is_err());
    }
}
