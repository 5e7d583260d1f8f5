//! A connection that has ended is made anew beside the loop: the other side, orders and times go on being heard.
//!
//! | which | in | given up |
//! |---|---|---|
//! | the source's | the stream, the switchover, a retreat from there | once the guest may have stood still for too long |
//! | the source's | both completed | never: it is not needed |
//! | the source's | a retreat from there, in which it needs `cont` | with the retreat |
//! | the destination's | before `cont` | at once: it gets no `cont` as long as there is a way back |
//! | the destination's | after `cont`, or without a way back | with the hand-over: it is the guest's only chance |
//! | either | postcopy | after as long as a blackout may last |
//!
//! Given up is undecided. A guest that is the source's then still runs there: the destination is ended, whereupon the
//! source fails.

use super::{Answer, Driver, LAST_CALL, now};
use crate::migrate::phase::{Input, Phase, Retreat, SourceEnd};
use crate::migrate::side::{Contact, LAST_BREATH, connect_anew};
use crate::qmp::{Client, Leg};

impl Driver<'_> {
    /// A connection has ended. A process that is on its way out closes its monitor first, and is seen to end.
    pub(super) fn deaf(&mut self, leg: Leg) {
        let side = self.side(leg);
        side.contact = Contact::Lost;
        let (address, peer) = (side.address.clone(), side.peer());
        let answers = self.answers.clone();
        if leg == Leg::Source {
            self.watchdog.lost_sight();
        }
        let now = now();
        let latest = now + self.longest_blackout();
        let over = self.watchdog.blackout_over_at().unwrap_or(latest);
        let reach_by = over.min(latest).max(now + LAST_CALL);
        let both_are_lost = self.is_lost(Leg::Source) && self.is_lost(Leg::Destination);
        self.reach_by = self.reach_by.filter(|_| both_are_lost).or(Some(reach_by));
        tokio::spawn(async move {
            let connect = async {
                if leg == Leg::Destination {
                    tokio::time::sleep(LAST_BREATH).await;
                    let _ = answers.send(Answer::Unheard);
                }
                connect_anew(&address, leg, peer).await
            };
            let client = tokio::select! {
                client = connect => client,
                // The driver has ended meanwhile.
                () = answers.closed() => return,
            };
            let _ = answers.send(Answer::Connected(leg, client));
        });
    }

    /// The destination's process has not ended with its connection.
    pub(super) async fn unheard(&mut self) {
        if self.destination.contact == Contact::Lost && self.phase.can_retreat() {
            self.explain("the connection to the destination's monitor was lost");
            self.take(Input::Retreat).await;
        }
    }

    /// A side can be heard again. Events of the meantime are lost; what they told is asked for.
    pub(super) fn connected(&mut self, leg: Leg, client: Client) {
        let side = self.side(leg);
        if side.contact != Contact::Lost {
            return;
        }
        side.meet(client);
        tracing::info!(%leg, "connected anew");
        if leg == Leg::Source {
            self.source_changes += 1;
            self.watchdog.answered(now());
            self.set_anew();
        }
        if !self.is_lost(Leg::Source) && !self.is_lost(Leg::Destination) {
            self.reach_by = None;
        }
        self.ask_state(leg);
    }

    /// Gives up a side that is needed and has not been reached for too long.
    pub(super) async fn give_up_reaching(&mut self) {
        self.reach_by = None;
        let legs = [Leg::Source, Leg::Destination];
        let lost = legs.into_iter().find(|&leg| self.is_lost(leg) && self.needs(leg));
        if let Some(leg) = lost {
            self.explain(&format!("the connection to the {leg}'s monitor was lost"));
            self.take(Input::GiveUp).await;
        }
    }

    /// Whether nothing can be told to the source, and the blackout has to wait for that.
    pub(super) fn waits_for_source(&self) -> bool {
        self.reach_by.is_some() && self.is_lost(Leg::Source) && self.needs(Leg::Source)
    }

    /// Whether the migration goes nowhere as long as this side cannot be reached.
    fn needs(&self, leg: Leg) -> bool {
        match self.phase {
            Phase::Switchover { source: SourceEnd::Postcopy, .. } => true,
            Phase::Streaming(_)
            | Phase::Switchover { source: SourceEnd::Sending, .. }
            | Phase::Retreating(_, Retreat::Stopping | Retreat::Settling) => leg == Leg::Source,
            _ => false,
        }
    }

    /// Takes a connection that has come as the driver ended, and waits for no other.
    pub(super) fn take_last_connection(&mut self) {
        self.answered.close();
        while let Ok(answer) = self.answered.try_recv() {
            if let Answer::Connected(leg, client) = answer {
                self.connected(leg, client);
            }
        }
    }

    fn is_lost(&self, leg: Leg) -> bool {
        let side = match leg {
            Leg::Source => &self.source,
            Leg::Destination => &self.destination,
        };
        side.contact == Contact::Lost
    }
}
