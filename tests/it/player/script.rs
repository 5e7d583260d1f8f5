//! A conversation as a script: what is played, in which order, and what it waits for.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use qmigrate::qmp::Leg;
use serde_json::Value;

use super::world::World;
use crate::conversation::{Conversation, Said};

/// Commands that change something. Each is an anchor: what follows it in a record is played once the engine has given
/// the same command. All others are queries and settings, answered at any time.
pub(crate) const ACTS: [&str; 7] =
    ["migrate", "stop", "cont", "migrate_cancel", "yank", "migrate-start-postcopy", "quit"];

/// Random numbers that a seed repeats.
#[derive(Debug)]
pub(crate) struct Dice(TestRng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    /// Less than `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound.max(1)
    }

    /// A place in a list of so many.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.below(u64::try_from(count).unwrap())).unwrap()
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// What is played.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The engine gave this command then, with this id; it is awaited.
    Anchor { command: String, id: u64 },
    /// Somebody else gives a command: nothing is awaited, and what follows it does not come before.
    ByOthers,
    /// An event is told.
    Event(Value),
    /// The recorded answer to an anchor, by its id then.
    Answer { id: u64, answer: Value },
    /// What a query was answered then: no line is played, but from here on it is the answer.
    Known { query: String, answer: Value },
    /// The process ends.
    End,
}

/// One step.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) leg: Leg,
    /// How long after the one before it.
    pub(crate) after: Duration,
    pub(crate) step: Step,
}

impl Item {
    /// Whether a connection can be cut before it: it is a line, or waits for one.
    fn is_place(&self) -> bool {
        !matches!(self.step, Step::Known { .. } | Step::ByOthers)
    }
}

/// What is played, and the world before that.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) items: VecDeque<Item>,
    pub(crate) before: World,
}

impl Script {
    /// The part of a conversation that the driver takes part in.
    pub(crate) fn new(conversation: &Conversation) -> Self {
        let mut before = World::new(conversation.version.0);
        let mut items = VecDeque::new();
        let mut by_others = Vec::new();
        let mut last_ms = None;
        for entry in &conversation.entries {
            let leg = entry.leg;
            let step = match &entry.said {
                // Who drives a migration has ended when its source is told to.
                Said::Command { name, .. } if name == "quit" => break,
                Said::Command { name, .. } if !ACTS.contains(&name.as_str()) => continue,
                Said::Command { name, id, .. } if conversation.course.by_others.contains(&name.as_str()) => {
                    by_others.push((leg, *id));
                    Step::ByOthers
                }
                Said::Command { name, id, .. } => Step::Anchor { command: name.clone(), id: *id },
                Said::Answer { id, .. } if by_others.contains(&(leg, *id)) => continue,
                Said::Answer { to, id, answer } if ACTS.contains(&to.as_str()) => {
                    Step::Answer { id: *id, answer: answer.clone() }
                }
                Said::Answer { to, answer, .. } => Step::Known { query: to.clone(), answer: answer.clone() },
                Said::Event(event) => Step::Event(event.clone()),
                Said::Greeting(_) => continue,
                Said::End => Step::End,
            };
            if last_ms.is_none() && !matches!(step, Step::Anchor { .. }) {
                match step {
                    Step::Event(event) => before.happens(leg, &event),
                    Step::Known { query, answer } => before.is_known(leg, &query, &answer),
                    _ => {}
                }
                continue;
            }
            let after =
                Duration::from_secs_f64((entry.at_ms - last_ms.unwrap_or(entry.at_ms)).max(0.0) / 1e3);
            last_ms = Some(entry.at_ms);
            items.push_back(Item { leg, after, step });
        }
        Self { items, before }
    }

    /// At how many places it can be cut; the last one is behind everything.
    pub(crate) fn places(&self) -> usize {
        self.items.iter().filter(|item| item.is_place()).count() + 1
    }

    /// The next item; says whether it is a place.
    pub(crate) fn next(&mut self) -> Option<(Item, bool)> {
        let item = self.items.pop_front()?;
        let is_place = item.is_place();
        Some((item, is_place))
    }

    /// The same with other delays: up to `most_ms` more before each line.
    pub(crate) fn delay(&mut self, dice: &mut Dice, most_ms: u64) {
        for item in &mut self.items {
            item.after += Duration::from_millis(dice.below(most_ms + 1));
        }
    }

    /// The same in another order that could have been: between two anchors the legs are merged anew, and an answer may
    /// change places with an event beside it. Each leg's events stay in their order.
    pub(crate) fn reorder(&mut self, dice: &mut Dice) {
        let mut segment = [VecDeque::new(), VecDeque::new()];
        let mut items = VecDeque::new();
        for item in std::mem::take(&mut self.items) {
            if matches!(item.step, Step::Anchor { .. } | Step::ByOthers) {
                merge(&mut segment, &mut items, dice);
                items.push_back(item);
            } else {
                segment[usize::from(item.leg == Leg::Destination)].push_back(item);
            }
        }
        merge(&mut segment, &mut items, dice);
        for place in 1..items.len() {
            let is_pair = matches!(
                (&items[place - 1].step, &items[place].step),
                (Step::Event(_), Step::Answer { .. }) | (Step::Answer { .. }, Step::Event(_))
            );
            if is_pair && items[place - 1].leg == items[place].leg && dice.coin() {
                items.swap(place - 1, place);
            }
        }
        self.items = items;
    }

    /// The next command that is awaited, and its id then.
    pub(crate) fn anchor(&self) -> Option<(Leg, String, u64)> {
        self.items.iter().find_map(|item| match &item.step {
            Step::Anchor { command, id } => Some((item.leg, command.clone(), *id)),
            _ => None,
        })
    }

    /// Whether the answer to this command of the record is still to come.
    pub(crate) fn answers(&self, leg: Leg, command: u64) -> bool {
        let is_answer = |item: &Item| matches!(item.step, Step::Answer { id, .. } if id == command);
        self.items.iter().any(|item| item.leg == leg && is_answer(item))
    }

    /// The event that comes next, if one does.
    pub(crate) fn event(&self) -> Option<(Leg, Value)> {
        match self.items.front()? {
            Item { leg, step: Step::Event(event), .. } => Some((*leg, event.clone())),
            _ => None,
        }
    }

    /// Replaces what is left of one leg. A `migrate` that has not been given yet is given and answered first.
    pub(crate) fn replace(&mut self, leg: Leg, steps: impl IntoIterator<Item = Step>) {
        let is_migrate = |item: &Item| match &item.step {
            Step::Anchor { command, id } if leg == Leg::Source && command == "migrate" => Some(*id),
            _ => None,
        };
        let migrate = self.items.iter().find_map(is_migrate);
        let is_answer = |item: &Item| matches!(item.step, Step::Answer { id, .. } if Some(id) == migrate);
        let kept = self.items.iter().position(is_answer).map_or(0, |place| place + 1);
        let mut place = 0;
        self.items.retain(|item| {
            place += 1;
            item.leg != leg || place <= kept
        });
        let from = self.items.iter().position(is_answer).map_or(0, |place| place + 1);
        // What waits for a command of the engine's must not hold it up.
        for (place, step) in (from..).zip(steps) {
            self.items.insert(place, Item { leg, after: Duration::from_millis(1), step });
        }
    }
}

/// Merges two legs' steps, each in its own order.
fn merge(legs: &mut [VecDeque<Item>; 2], into: &mut VecDeque<Item>, dice: &mut Dice) {
    while legs.iter().any(|leg| !leg.is_empty()) {
        let first = legs[1].is_empty() || (!legs[0].is_empty() && dice.coin());
        into.extend(legs[usize::from(!first)].pop_front());
    }
}
