//! Listeners: who is told of events, each through a queue of its own.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::error::{Closed, EventsError};
use crate::qmp::{Event, Leg};

/// So many events wait for a listener at most.
pub const EVENTS_PER_LISTENER: usize = 1 << 16;

/// An event, and when it was heard here.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// What happened.
    pub event: Event,
    /// When its bytes came, by the clock of [`Client::last_heard`](super::Client::last_heard).
    pub at: Instant,
}

/// A listener: all events since it was made, in order.
///
/// Dropping it is how to stop listening. One that is not read holds [`EVENTS_PER_LISTENER`] events and then ends with
/// an error, rather than lose some without a word.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Heard>,
    end: Arc<OnceLock<EventsError>>,
    leg: Leg,
}

impl Events {
    /// The next event; an error when there will be no more. Safe to drop while it waits: no event is lost by that.
    pub async fn next(&mut self) -> Result<Heard, EventsError> {
        match self.queue.recv().await {
            Some(heard) => Ok(heard),
            None => Err(self.end()),
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Result<Option<Heard>, EventsError> {
        match self.queue.try_recv() {
            Ok(heard) => Ok(Some(heard)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(self.end()),
        }
    }

    fn end(&self) -> EventsError {
        let stopped = || EventsError::Closed { leg: self.leg, cause: Closed::Stopped };
        self.end.get().cloned().unwrap_or_else(stopped)
    }
}

/// All who listen on one connection.
#[derive(Debug)]
pub(super) struct Listeners {
    leg: Leg,
    queues: Vec<(mpsc::Sender<Heard>, Arc<OnceLock<EventsError>>)>,
    closed: Option<Closed>,
}

impl Listeners {
    pub(super) fn new(leg: Leg) -> Self {
        Self { leg, queues: Vec::new(), closed: None }
    }

    pub(super) fn add(&mut self) -> Events {
        let (sender, queue) = mpsc::channel(EVENTS_PER_LISTENER);
        let end = Arc::new(OnceLock::new());
        let events = Events { queue, end: Arc::clone(&end), leg: self.leg };
        if let Some(cause) = self.closed.clone() {
            end.get_or_init(|| EventsError::Closed { leg: self.leg, cause });
        } else {
            self.queues.push((sender, end));
        }
        events
    }

    pub(super) fn tell(&mut self, heard: &Heard) {
        let leg = self.leg;
        self.queues.retain(|(sender, end)| match sender.try_send(heard.clone()) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(_)) => {
                end.get_or_init(|| EventsError::Overflow { leg, limit: EVENTS_PER_LISTENER });
                false
            }
        });
    }

    pub(super) fn close(&mut self, cause: &Closed) {
        self.closed = Some(cause.clone());
        for (_, end) in self.queues.drain(..) {
            end.get_or_init(|| EventsError::Closed { leg: self.leg, cause: cause.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn heard(number: usize) -> Heard {
        let event = Event { name: number.to_string(), data: Value::Null, timestamp_microseconds: None };
        Heard { event, at: Instant::now() }
    }

    #[test]
    fn a_listener_that_is_not_read_ends_with_an_error_and_harms_no_other() {
        let mut listeners = Listeners::new(Leg::Source);
        let (mut lazy, mut eager) = (listeners.add(), listeners.add());
        for number in 0..EVENTS_PER_LISTENER + 10 {
            listeners.tell(&heard(number));
            assert_eq!(eager.try_next().unwrap().unwrap().event.name, number.to_string());
        }
        for number in 0..EVENTS_PER_LISTENER {
            assert_eq!(lazy.try_next().unwrap().unwrap().event.name, number.to_string());
        }
        assert!(matches!(lazy.try_next(), Err(EventsError::Overflow { .. })));
        assert!(eager.try_next().unwrap().is_none());
    }

    #[test]
    fn events_before_the_end_are_delivered_and_then_the_cause() {
        let mut listeners = Listeners::new(Leg::Source);
        let mut early = listeners.add();
        listeners.tell(&heard(1));
        listeners.close(&Closed::ByPeer);
        let mut late = listeners.add();
        assert_eq!(early.try_next().unwrap().unwrap().event.name, "1");
        for events in [&mut early, &mut late] {
            assert!(matches!(events.try_next(), Err(EventsError::Closed { cause: Closed::ByPeer, .. })));
        }
    }

    #[test]
    fn a_dropped_listener_is_forgotten() {
        let mut listeners = Listeners::new(Leg::Source);
        drop(listeners.add());
        listeners.tell(&heard(1));
        assert!(listeners.queues.is_empty());
    }
}
