//! Which commands wait, which are in flight, and who awaits them: a plain structure without I/O.

use std::collections::VecDeque;

use bytes::BytesMut;
use serde_json::Value;
use tokio::sync::oneshot;

use super::error::{CallError, Closed};
use crate::qmp::Leg;

/// So many in-band commands are in flight at most. QEMU's own queue holds 8, and while it is full nothing more is read
/// from the connection, out-of-band commands included.
pub const IN_BAND_COMMANDS: usize = 6;

/// What comes of a command in the end.
pub(super) type Answer = Result<Value, CallError>;

/// How many commands there are on a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Written and not answered, in band and out of band, awaited or not.
    pub in_flight: usize,
    /// Not written yet.
    pub waiting: usize,
}

/// Behind the other commands, or past them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Band {
    In,
    OutOf,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    band: Band,
    command: &'static str,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
pub(super) struct Window {
    leg: Leg,
    /// Out of band, to be written before all else.
    urgent: VecDeque<(Entry, Vec<u8>)>,
    /// In band, to be written when there is room.
    waiting: VecDeque<(Entry, Vec<u8>)>,
    /// Written and not answered; a handful, so searching beats hashing.
    in_flight: Vec<Entry>,
    closed: Option<Closed>,
}

impl Window {
    pub(super) fn new(leg: Leg) -> Self {
        Self {
            leg,
            urgent: VecDeque::new(),
            waiting: VecDeque::new(),
            in_flight: Vec::with_capacity(IN_BAND_COMMANDS + 2),
            closed: None,
        }
    }

    pub(super) fn load(&self) -> Load {
        Load { in_flight: self.in_flight.len(), waiting: self.urgent.len() + self.waiting.len() }
    }

    pub(super) fn submit(
        &mut self,
        band: Band,
        id: u64,
        command: &'static str,
        line: Vec<u8>,
    ) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let entry = Entry { id, band, command, answer };
        if let Some(cause) = self.closed.clone() {
            entry.interrupt(self.leg, false, cause);
        } else {
            match band {
                Band::In => self.waiting.push_back((entry, line)),
                Band::OutOf => self.urgent.push_back((entry, line)),
            }
        }
        receiver
    }

    /// Takes back a command that was not written; says whether it was so. One that was written keeps its place until
    /// its answer comes, since it keeps its place in QEMU's queue too.
    pub(super) fn withdraw(&mut self, id: u64) -> bool {
        for queue in [&mut self.urgent, &mut self.waiting] {
            if let Some(index) = queue.iter().position(|(entry, _)| entry.id == id) {
                queue.remove(index);
                return true;
            }
        }
        false
    }

    /// Moves what may be written now to the end of `out`.
    pub(super) fn take(&mut self, out: &mut BytesMut) {
        let in_band = self.in_flight.iter().filter(|entry| entry.band == Band::In).count();
        let room = IN_BAND_COMMANDS.saturating_sub(in_band).min(self.waiting.len());
        for (entry, line) in self.urgent.drain(..).chain(self.waiting.drain(..room)) {
            out.extend_from_slice(&line);
            self.in_flight.push(entry);
        }
    }

    /// Hands an answer to whoever awaits it; says whether anybody does.
    pub(super) fn answer(&mut self, id: u64, outcome: Result<Value, (String, String)>) -> bool {
        let Some(index) = self.in_flight.iter().position(|entry| entry.id == id) else { return false };
        let Entry { command, answer, .. } = self.in_flight.swap_remove(index);
        let leg = self.leg;
        let outcome = outcome.map_err(|(class, desc)| CallError::Refused { leg, command, class, desc });
        answer.send(outcome).is_ok()
    }

    /// Ends everything pending; what is submitted from now on ends at once.
    pub(super) fn close(&mut self, cause: &Closed) {
        self.closed = Some(cause.clone());
        for entry in self.in_flight.drain(..) {
            entry.interrupt(self.leg, true, cause.clone());
        }
        for (entry, _) in self.urgent.drain(..).chain(self.waiting.drain(..)) {
            entry.interrupt(self.leg, false, cause.clone());
        }
    }
}

impl Entry {
    fn interrupt(self, leg: Leg, written: bool, cause: Closed) {
        let error = CallError::Interrupted { leg, command: self.command, written, cause };
        // Nobody awaits a dropped reply.
        let _ = self.answer.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submit(window: &mut Window, band: Band, id: u64) -> oneshot::Receiver<Answer> {
        window.submit(band, id, "test", format!("{id}\n").into_bytes())
    }

    fn taken(window: &mut Window) -> String {
        let mut out = BytesMut::new();
        window.take(&mut out);
        String::from_utf8_lossy(&out).replace('\n', " ").trim_end().to_owned()
    }

    #[test]
    fn six_go_out_at_once_and_each_answer_makes_room_for_one() {
        let mut window = Window::new(Leg::Source);
        let receivers: Vec<_> = (1..=8).map(|id| submit(&mut window, Band::In, id)).collect();
        assert_eq!(taken(&mut window), "1 2 3 4 5 6");
        assert_eq!(taken(&mut window), "");
        assert!(window.answer(3, Ok(Value::Null)));
        assert_eq!(taken(&mut window), "7");
        assert_eq!(window.load(), Load { in_flight: 6, waiting: 1 });
        drop(receivers);
        assert!(!window.answer(8, Ok(Value::Null)), "not written, so nothing answers it");
        assert!(!window.answer(7, Ok(Value::Null)), "nobody awaits it");
        assert_eq!(taken(&mut window), "8");
    }

    #[test]
    fn out_of_band_goes_first_and_is_not_counted() {
        let mut window = Window::new(Leg::Source);
        let _receivers: Vec<_> = (1..=7).map(|id| submit(&mut window, Band::In, id)).collect();
        let _urgent: Vec<_> = (8..=9).map(|id| submit(&mut window, Band::OutOf, id)).collect();
        assert_eq!(taken(&mut window), "8 9 1 2 3 4 5 6");
        let _more = submit(&mut window, Band::OutOf, 10);
        assert_eq!(taken(&mut window), "10");
    }

    #[test]
    fn only_what_was_not_written_can_be_withdrawn() {
        let mut window = Window::new(Leg::Source);
        let _receivers: Vec<_> = (1..=8).map(|id| submit(&mut window, Band::In, id)).collect();
        assert!(window.withdraw(2));
        assert_eq!(taken(&mut window), "1 3 4 5 6 7");
        assert!(!window.withdraw(1));
        assert!(window.withdraw(8));
        assert_eq!(window.load(), Load { in_flight: 6, waiting: 0 });
    }

    #[test]
    fn closing_tells_what_was_written_from_what_was_not() {
        let mut window = Window::new(Leg::Source);
        let mut receivers: Vec<_> = (1..=7).map(|id| submit(&mut window, Band::In, id)).collect();
        taken(&mut window);
        window.close(&Closed::ByPeer);
        receivers.push(submit(&mut window, Band::In, 8));
        let written: Vec<_> = receivers
            .iter_mut()
            .map(|receiver| receiver.try_recv().unwrap().unwrap_err().may_have_happened())
            .collect();
        assert_eq!(written, [true, true, true, true, true, true, false, false]);
        assert_eq!(window.load(), Load::default());
    }
}
