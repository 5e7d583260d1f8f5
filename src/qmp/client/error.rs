//! What may go wrong with a command, a connection and a listener, and what may be assumed then.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::qmp::Leg;
use crate::qmp::wire::{WireError, printable};
use crate::units::show_duration;

/// Why a command has no answer of use.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// QEMU said no.
    #[error("the {leg} refused {command}: {desc}")]
    Refused {
        /// Who.
        leg: Leg,
        /// What was asked.
        command: &'static str,
        /// QEMU's class of error; only `CommandNotFound` says more than `GenericError`.
        class: String,
        /// QEMU's sentence, safe to print.
        desc: String,
    },
    /// The connection ended first. QMP has no way to know whether a command that was written took effect: ask again
    /// on a new connection.
    #[error("the connection to the {leg} ended before {command} was {}", if *written { "answered" } else { "sent" })]
    Interrupted {
        /// Who.
        leg: Leg,
        /// What was asked.
        command: &'static str,
        /// Whether the command was given to the socket.
        written: bool,
        /// Why the connection ended.
        #[source]
        cause: Closed,
    },
    /// No answer before the deadline. A command that was written may still take effect, now or later.
    #[error(
        "the {leg} did not answer {command} within {}{}",
        show_duration(*after),
        if *written { "" } else { "; it was still waiting to be sent and is not sent any more" }
    )]
    Late {
        /// Who.
        leg: Leg,
        /// What was asked.
        command: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// Whether the command was given to the socket.
        written: bool,
    },
    /// QEMU did it, and its answer has a shape that is not known.
    #[error("the {leg} answered {command} with what cannot be read: {reason}")]
    Unreadable {
        /// Who.
        leg: Leg,
        /// What was asked.
        command: &'static str,
        /// What is wrong with the answer, safe to print.
        reason: String,
    },
    /// The monitor takes nothing out of band: QEMU is older than 2.12, or the monitor shares its character device.
    #[error("{command} was not sent: this monitor of the {leg} takes no commands out of band")]
    NoOutOfBand {
        /// Who.
        leg: Leg,
        /// What was asked.
        command: &'static str,
    },
    /// The arguments cannot be written as JSON.
    #[error("{command} was not sent to the {leg}: its arguments cannot be written: {reason}")]
    Unwritable {
        /// Who.
        leg: Leg,
        /// What was asked.
        command: &'static str,
        /// What is wrong with them.
        reason: String,
    },
}

impl CallError {
    /// Whether the command may have taken effect, or may yet. If not, it certainly did not and will not.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Interrupted { written, .. } | Self::Late { written, .. } => *written,
            Self::Unreadable { .. } => true,
            Self::Refused { .. } | Self::NoOutOfBand { .. } | Self::Unwritable { .. } => false,
        }
    }

    /// Whether QEMU does not know the command at all.
    pub fn is_command_not_found(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "CommandNotFound")
    }

    pub(super) fn unreadable(leg: Leg, command: &'static str, error: &serde_json::Error) -> Self {
        Self::Unreadable { leg, command, reason: printable(&error.to_string()) }
    }

    pub(super) fn unwritable(leg: Leg, command: &'static str, error: &serde_json::Error) -> Self {
        Self::Unwritable { leg, command, reason: printable(&error.to_string()) }
    }
}

/// Why a connection has ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// The last [`Client`](super::Client) was dropped.
    #[error("this side let go of the connection")]
    LetGo,
    /// The other side closed it, as a QEMU does that ends.
    #[error("QEMU closed the connection")]
    ByPeer,
    /// The other side closed it in the middle of a line.
    #[error("QEMU closed the connection in the middle of a line")]
    InsideLine,
    /// Reading or writing failed.
    #[error("the connection broke")]
    Broken(#[source] Arc<io::Error>),
    /// What came is not QMP.
    #[error("the conversation went wrong")]
    NotUnderstood(#[source] WireError),
    /// An error without an id: QEMU could not read a command, and cannot say which one.
    #[error("QEMU could not read what was sent: {desc}")]
    CommandNotRead {
        /// QEMU's class of error.
        class: String,
        /// QEMU's sentence, safe to print.
        desc: String,
    },
    /// The task that serves the connection is gone, with the runtime it ran on or by a panic of the tap.
    #[error("the task that serves the connection is gone")]
    Stopped,
}

/// Why a listener hears no more.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// The connection ended; all events before that were delivered.
    #[error("no more events from the {leg}: the connection ended")]
    Closed {
        /// Who.
        leg: Leg,
        /// Why.
        #[source]
        cause: Closed,
    },
    /// The listener did not keep up, and events after those delivered are lost to it.
    #[error("{limit} events from the {leg} were not fetched in time, later ones are lost")]
    Overflow {
        /// Who.
        leg: Leg,
        /// How many events a listener's queue holds.
        limit: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::error::Error;

    #[test]
    fn all_texts_differ_and_none_repeats_its_source() {
        let (leg, command, after) = (Leg::Source, "cont", Duration::from_secs(2));
        let io = Arc::new(io::Error::other("cable cut"));
        let closed = [
            Closed::LetGo,
            Closed::ByPeer,
            Closed::InsideLine,
            Closed::Broken(io),
            Closed::NotUnderstood(WireError::LineTooLong { limit_bytes: 5 }),
            Closed::CommandNotRead { class: "c".into(), desc: "d".into() },
            Closed::Stopped,
        ];
        let mut errors: Vec<Box<dyn Error>> = Vec::new();
        for written in [true, false] {
            let cause = Closed::Broken(Arc::new(io::Error::other("cable cut")));
            errors.push(Box::new(CallError::Interrupted { leg, command, written, cause }));
            errors.push(Box::new(CallError::Late { leg, command, after, written }));
        }
        errors.push(Box::new(CallError::Refused { leg, command, class: "c".into(), desc: "d".into() }));
        errors.push(Box::new(CallError::Unreadable { leg, command, reason: "r".into() }));
        errors.push(Box::new(CallError::NoOutOfBand { leg, command }));
        errors.push(Box::new(CallError::Unwritable { leg, command, reason: "r".into() }));
        errors.push(Box::new(EventsError::Closed { leg, cause: Closed::ByPeer }));
        errors.push(Box::new(EventsError::Overflow { leg, limit: 5 }));
        errors.extend(closed.into_iter().map(|closed| Box::new(closed) as Box<dyn Error>));
        let mut texts = HashSet::new();
        for error in &errors {
            let text = error.to_string();
            if let Some(source) = error.source() {
                assert!(!text.contains(&source.to_string()), "{text}");
            }
            assert!(!text.is_empty() && texts.insert(text.clone()), "{text}");
        }
    }

    #[test]
    fn only_what_was_written_may_have_happened() {
        let (leg, command) = (Leg::Destination, "cont");
        for written in [true, false] {
            let late = CallError::Late { leg, command, after: Duration::ZERO, written };
            let interrupted = CallError::Interrupted { leg, command, written, cause: Closed::ByPeer };
            assert_eq!((late.may_have_happened(), interrupted.may_have_happened()), (written, written));
        }
        let refused =
            CallError::Refused { leg, command, class: "CommandNotFound".into(), desc: String::new() };
        assert!(!refused.may_have_happened() && refused.is_command_not_found());
        assert!(CallError::Unreadable { leg, command, reason: String::new() }.may_have_happened());
    }
}
