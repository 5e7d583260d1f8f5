//! The player at work: hears commands, plays lines, cuts connections, and notes what must never be.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use qmigrate::migrate::order::{Commander, Request};
use qmigrate::qmp::Leg::{self, Destination, Source};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::script::{ACTS, Dice, Script, Step};
use super::stand_in::StandIn;
use super::world::{Continued, World};
use super::{Book, Cut, Kind, Luck, Peer, peer};
use crate::scripted_peer::Asked;

/// How often it is looked whether the driver has ended a process.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A QEMU that has closed its monitor as it ends has ended after this.
const LAST_BREATH: Duration = Duration::from_millis(1);

/// Plays one script.
pub(super) struct Player {
    pub(super) links: [Option<Peer>; 2],
    pub(super) addresses: [PathBuf; 2],
    pub(super) stand_ins: [StandIn; 2],
    pub(super) world: World,
    pub(super) script: Script,
    pub(super) greeting: Value,
    /// Still to be done.
    pub(super) cut: Option<Cut>,
    pub(super) luck: Luck,
    pub(super) late_answers: Option<Dice>,
    /// Asked to cancel where the record has a cancel, once.
    pub(super) commander: Option<Commander>,
    /// The driver has ended the destination.
    pub(super) is_killed: bool,
    /// What must never be.
    pub(super) faults: Vec<String>,
    /// What the driver told a QEMU to do.
    pub(super) sent: Vec<(Leg, String)>,
    pub(super) log: Vec<String>,
    /// What the driver writes down.
    book: Book,
    /// A monitor that can be connected to from then on.
    to_be_served: Option<(Instant, Leg)>,
    /// When the last step was played; none before the driver is there.
    pub(super) last: Option<Instant>,
    listeners: [Option<UnixListener>; 2],
    place: usize,
    /// Commands of the driver's whose anchor has not been reached.
    given: Vec<(Leg, Asked)>,
    /// Those that have been reached.
    stands_for: Vec<Standing>,
    /// Not answered while the main loop is busy.
    held: Vec<(Leg, Asked)>,
    /// Answers on their way.
    late: [VecDeque<(Instant, Value)>; 2],
    /// Processes that will have ended by then, and whether the record says so.
    doomed: VecDeque<(Instant, Leg, Death)>,
}

/// A command of the driver's that stands for one of the record's.
#[derive(Debug)]
struct Standing {
    leg: Leg,
    /// The record's.
    id: u64,
    asked: Asked,
}

/// Why a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// It did so in the record, which also says what followed.
    Recorded,
    /// The test or the driver ends it.
    Violent,
}

enum Word {
    Asked(Leg, Option<Asked>),
    Connected(Leg, UnixStream),
    Play,
    Doom,
    Serve,
    Late,
    Look,
}

fn says(status: &str) -> Step {
    Step::Event(json!({"event": "MIGRATION", "data": {"status": status}}))
}

fn index(leg: Leg) -> usize {
    usize::from(leg == Destination)
}

async fn next(link: &mut Option<Peer>) -> Option<Asked> {
    match link {
        Some(peer) => peer.next().await,
        None => std::future::pending().await,
    }
}

async fn accept(listener: Option<&UnixListener>) -> UnixStream {
    match listener {
        Some(listener) => listener.accept().await.unwrap().0,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Player {
    pub(super) fn new(
        far: [tokio::io::DuplexStream; 2],
        addresses: [PathBuf; 2],
        stand_ins: [StandIn; 2],
        script: Script,
        greeting: Value,
        commander: Commander,
        book: Book,
    ) -> Self {
        Self {
            links: far.map(|stream| Some(peer(stream))),
            addresses,
            stand_ins,
            world: script.before.clone(),
            script,
            greeting,
            cut: None,
            luck: Luck::Good,
            late_answers: None,
            commander: Some(commander),
            is_killed: false,
            faults: Vec::new(),
            sent: Vec::new(),
            log: Vec::new(),
            book,
            to_be_served: None,
            last: None,
            listeners: [None, None],
            place: 0,
            given: Vec::new(),
            stands_for: Vec::new(),
            held: Vec::new(),
            late: [VecDeque::new(), VecDeque::new()],
            doomed: VecDeque::new(),
        }
    }

    /// Greets on both legs.
    pub(super) async fn greet(&mut self) {
        for leg in [Source, Destination] {
            let greeting = self.greeting.clone();
            self.write(leg, &greeting).await;
        }
    }

    /// Plays; to be dropped when the driver has ended.
    pub(super) async fn run(&mut self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            self.go_on().await;
            let play = self.due();
            let doom = self.doomed.front().map(|(time, ..)| *time);
            let serve = self.to_be_served.map(|(time, _)| time);
            let late = self.late.iter().filter_map(|late| Some(late.front()?.0)).min();
            let [source, destination] = &mut self.links;
            let [source_listener, destination_listener] = &self.listeners;
            let word = tokio::select! {
                biased;
                asked = next(source) => Word::Asked(Source, asked),
                asked = next(destination) => Word::Asked(Destination, asked),
                stream = accept(source_listener.as_ref()) => Word::Connected(Source, stream),
                stream = accept(destination_listener.as_ref()) => Word::Connected(Destination, stream),
                () = at(doom) => Word::Doom,
                () = at(serve) => Word::Serve,
                () = at(late) => Word::Late,
                () = at(play) => Word::Play,
                _ = look.tick() => Word::Look,
            };
            match word {
                Word::Asked(leg, Some(asked)) => self.asked(leg, asked).await,
                Word::Asked(leg, None) => self.close(leg),
                Word::Connected(leg, stream) => self.connected(leg, stream).await,
                Word::Play => self.play().await,
                Word::Doom => {
                    if let Some((_, leg, death)) = self.doomed.pop_front() {
                        self.die(leg, death);
                    }
                }
                Word::Serve => {
                    if let Some((_, leg)) = self.to_be_served.take() {
                        self.serve(leg);
                    }
                }
                Word::Late => self.send_late().await,
                Word::Look => self.look_at(Destination),
            }
        }
    }

    /// Reads what the driver sent last and nobody heard.
    pub(super) async fn drain(&mut self) {
        for leg in [Source, Destination] {
            while let Ok(Some(asked)) = timeout(LAST_BREATH, next(&mut self.links[index(leg)])).await {
                self.log.push(format!("{leg} is asked {} at the end", asked.name));
                if ACTS.contains(&asked.name.as_str()) {
                    self.told(leg, &asked.name);
                }
            }
        }
    }

    fn fault(&mut self, fault: &str) {
        self.log.push(format!("FAULT: {fault}"));
        self.faults.push(fault.to_owned());
    }

    /// When the next step is to be played; never, where it waits for the driver.
    fn due(&self) -> Option<Instant> {
        let item = self.script.items.front()?;
        if matches!(item.step, Step::Anchor { .. }) { None } else { Some(self.last? + item.after) }
    }

    /// Does what waits for nothing: the cut, anchors that have been reached, commands that were held.
    async fn go_on(&mut self) {
        if self.last.is_none() {
            return;
        }
        loop {
            if self.cut.is_some_and(|cut| cut.place == self.place)
                && let Some(cut) = self.cut.take()
            {
                self.cut(cut).await;
            }
            let Some((leg, command, id)) = self.script.anchor().filter(|_| self.due().is_none()) else {
                break;
            };
            let given = self.given.iter().position(|(of, asked)| *of == leg && asked.name == command);
            let Some(given) = given else {
                if command == "migrate_cancel"
                    && let Some(commander) = self.commander.take()
                {
                    tokio::spawn(
                        async move { commander.give(Request::Cancel("asked for".to_owned())).await },
                    );
                }
                break;
            };
            self.world.is_told(leg, &command);
            let (_, asked) = self.given.remove(given);
            self.stands_for.push(Standing { leg, id, asked });
            self.step();
        }
        while let Some(place) = self.held.iter().position(|(leg, _)| !self.is_busy(*leg)) {
            let (leg, asked) = self.held.remove(place);
            if ACTS.contains(&asked.name.as_str()) {
                self.improvise(leg, &asked).await;
            } else {
                self.answer(leg, &asked).await;
            }
        }
    }

    fn step(&mut self) -> Option<(Leg, Step)> {
        let (item, is_place) = self.script.next()?;
        self.place += usize::from(is_place);
        self.last = Some(Instant::now());
        Some((item.leg, item.step))
    }

    async fn play(&mut self) {
        let Some((leg, step)) = self.step() else { return };
        match step {
            Step::Event(event) => self.tell(leg, &event).await,
            Step::Answer { id, mut answer } => {
                let is_it = |standing: &&Standing| standing.leg == leg && standing.id == id;
                if let Some(now) = self.stands_for.iter().find(is_it) {
                    answer["id"] = now.asked.id.clone();
                    self.reply(leg, answer).await;
                }
            }
            Step::ByOthers => {}
            Step::Known { query, answer } => self.world.is_known(leg, &query, &answer),
            Step::End => {
                self.close(leg);
                self.doomed.push_back((Instant::now() + LAST_BREATH, leg, Death::Recorded));
            }
            Step::Anchor { .. } => unreachable!("it is awaited"),
        }
    }

    /// Something happens on one side, and is told if anybody listens.
    async fn tell(&mut self, leg: Leg, event: &Value) {
        self.world.happens(leg, event);
        if self.world.source.runs && self.world.destination.runs {
            self.fault("both run");
        }
        self.write(leg, event).await;
        if leg == Destination && self.world.starts_itself() {
            let resume = json!({"event": "RESUME"});
            self.world.happens(leg, &resume);
            self.write(leg, &resume).await;
        }
    }

    /// Sends a line, if there is a connection.
    async fn write(&mut self, leg: Leg, value: &Value) {
        let mut value = value.clone();
        if value.get("event").is_some() && value.get("timestamp").is_none() {
            value["timestamp"] = json!({"seconds": 1_700_000_000, "microseconds": 25});
        }
        let mut line = format!("{value}\r\n");
        let is_heard = match &mut self.links[index(leg)] {
            Some(peer) => peer.offer(line.as_bytes()).await,
            None => false,
        };
        line.insert_str(0, if is_heard { " says " } else { " says to nobody " });
        line.insert_str(0, if leg == Source { "source" } else { "destination" });
        self.log.push(line.trim_end().to_owned());
    }

    async fn answer(&mut self, leg: Leg, asked: &Asked) {
        let answer = json!({"return": self.world.answer(leg, &asked.name), "id": asked.id});
        self.reply(leg, answer).await;
    }

    /// Answers, now or a little late, but never before what was asked first.
    async fn reply(&mut self, leg: Leg, answer: Value) {
        if let Some(dice) = &mut self.late_answers {
            let late = &mut self.late[index(leg)];
            let due = Instant::now() + Duration::from_millis(dice.below(4));
            let due = late.back().map_or(due, |(before, _)| due.max(*before));
            late.push_back((due, answer));
        } else {
            self.write(leg, &answer).await;
        }
    }

    async fn send_late(&mut self) {
        for leg in [Source, Destination] {
            while self.late[index(leg)].front().is_some_and(|(due, _)| *due <= Instant::now())
                && let Some((_, answer)) = self.late[index(leg)].pop_front()
            {
                self.write(leg, &answer).await;
            }
        }
    }

    async fn asked(&mut self, leg: Leg, asked: Asked) {
        self.log.push(format!("{leg} is asked {} {}", asked.name, asked.arguments));
        let is_act = ACTS.contains(&asked.name.as_str());
        if is_act {
            self.told(leg, &asked.name);
            let is_next = |(of, command, _): (Leg, String, u64)| of == leg && command == asked.name;
            let is_awaited = self.script.anchor().is_some_and(is_next);
            if is_awaited && !self.given.iter().any(|(of, given)| *of == leg && given.name == asked.name) {
                return self.given.push((leg, asked));
            }
        }
        let is_behind = self.held.iter().any(|(of, _)| *of == leg);
        if !asked.out_of_band && (is_behind || self.is_busy(leg)) {
            self.held.push((leg, asked));
        } else if is_act {
            self.improvise(leg, &asked).await;
        } else {
            self.answer(leg, &asked).await;
        }
    }

    /// Whether what is asked in band has to wait: for the main loop, or for what was asked before.
    fn is_busy(&self, leg: Leg) -> bool {
        let is_given = self.given.iter().any(|(of, asked)| *of == leg && !asked.out_of_band);
        let is_open = |standing: &Standing| {
            standing.leg == leg && !standing.asked.out_of_band && self.script.answers(leg, standing.id)
        };
        (leg == Source && self.world.source.is_silent()) || is_given || self.stands_for.iter().any(is_open)
    }

    /// Notes what the driver says, and whether it may say it now.
    fn told(&mut self, leg: Leg, command: &str) {
        self.look_at(Destination);
        if command == "cont" {
            self.judge_cont(leg);
        }
        self.judge_written(leg, command);
        self.sent.push((leg, command.to_owned()));
    }

    /// What is not written down is not done.
    fn judge_written(&mut self, leg: Leg, deed: &str) {
        if !self.book.permits(leg, deed) {
            self.fault(&format!("{deed} to the {leg} is not written down"));
        }
    }

    fn judge_cont(&mut self, leg: Leg) {
        let was_sent = |leg: Leg| self.sent.iter().any(|(of, name)| *of == leg && name == "cont");
        let World { source, destination, .. } = &self.world;
        let has_all = destination.has_completed() && (source.has_completed() || !source.is_alive);
        let fault = match leg {
            Source if was_sent(Destination) && destination.is_alive => {
                "cont to the source after the destination's"
            }
            Source if source.has_completed() && destination.is_alive => {
                "cont to a source that has completed while the destination lives"
            }
            Destination if was_sent(Source) => "cont to the destination after the source's",
            Destination if !has_all => "cont to a destination that does not have all of the guest",
            _ => return,
        };
        self.fault(fault);
    }

    /// Does what the record does not have at this place, as QEMU would.
    async fn improvise(&mut self, leg: Leg, asked: &Asked) {
        let is_under_way = self.world.source.is_under_way();
        let answer = match asked.name.as_str() {
            "cont" => match self.world.cont(leg) {
                Continued::Runs => {
                    self.script.replace(leg, []);
                    self.tell(leg, &json!({"event": "RESUME"})).await;
                    Ok(())
                }
                Continued::Nothing => Ok(()),
                Continued::Refused(desc) => Err(("GenericError", desc)),
            },
            "migrate_cancel" if self.world.refuses_cancel() => {
                Err(("GenericError", "Postcopy migration in progress, cannot be cancelled"))
            }
            "migrate_cancel" => {
                if is_under_way && self.luck == Luck::Good {
                    self.stream_ends("cancelled");
                }
                Ok(())
            }
            "yank" if !self.world.knows_yank() => {
                Err(("CommandNotFound", "The command yank has not been found"))
            }
            "yank" => {
                if is_under_way && self.luck == Luck::Good {
                    self.stream_ends("failed");
                }
                Ok(())
            }
            other => panic!("the driver was not to say {other}: {:#?}", self.log),
        };
        let answer = match answer {
            Ok(()) => json!({"return": {}, "id": asked.id}),
            Err((class, desc)) => json!({"error": {"class": class, "desc": desc}, "id": asked.id}),
        };
        self.reply(leg, answer).await;
    }

    /// The source gives up the stream, and a destination that had not all of it ends. In postcopy both wait for a new
    /// link.
    fn stream_ends(&mut self, status: &str) {
        if self.world.source.is_in_postcopy() {
            let status = if status == "cancelled" { "cancelling" } else { "postcopy-paused" };
            self.script.replace(Source, [says(status)]);
            return self.destination_reads_no_more();
        }
        self.script.replace(Source, self.world.fails(status).into_iter().map(Step::Event));
        self.destination_reads_no_more();
    }

    fn destination_reads_no_more(&mut self) {
        let steps = if self.world.destination.is_in_postcopy() {
            vec![says("postcopy-paused")]
        } else if self.world.destination.is_reading() {
            vec![says("failed"), Step::End]
        } else {
            Vec::new()
        };
        self.script.replace(Destination, steps);
    }

    async fn cut(&mut self, cut: Cut) {
        let Cut { leg, kind, place } = cut;
        self.log.push(format!("{leg}'s connection is cut at {place}: {kind:?}"));
        match kind {
            Kind::Unreachable => {
                if let Some((_, event)) = self.script.event().filter(|(of, _)| *of == leg)
                    && let Some(peer) = &mut self.links[index(leg)]
                {
                    let line = event.to_string();
                    peer.offer(&line.as_bytes()[..line.len() / 2]).await;
                }
                self.close(leg);
            }
            Kind::ServedAgain => {
                self.serve(leg);
                self.close(leg);
            }
            Kind::ServedLater(time) => {
                self.close(leg);
                self.to_be_served = Some((Instant::now() + time, leg));
            }
            Kind::Killed => self.die(leg, Death::Violent),
            Kind::ClosedFirst(time) => {
                self.close(leg);
                self.doomed.push_back((Instant::now() + time, leg, Death::Violent));
            }
        }
    }

    /// Opens a monitor to whoever comes.
    fn serve(&mut self, leg: Leg) {
        self.listeners[index(leg)] = Some(UnixListener::bind(&self.addresses[index(leg)]).unwrap());
    }

    /// Ends a connection. What came by it and was not done yet never will be.
    fn close(&mut self, leg: Leg) {
        self.links[index(leg)] = None;
        self.late[index(leg)].clear();
        self.held.retain(|(of, _)| *of != leg);
        self.stands_for.retain(|standing| standing.leg != leg);
    }

    async fn connected(&mut self, leg: Leg, stream: UnixStream) {
        if self.world.on(leg).is_alive {
            self.log.push(format!("{leg} is connected to anew"));
            self.links[index(leg)] = Some(peer(stream));
            let greeting = self.greeting.clone();
            self.write(leg, &greeting).await;
        }
    }

    fn die(&mut self, leg: Leg, death: Death) {
        if !self.world.on(leg).is_alive {
            return;
        }
        self.log.push(format!("{leg} ends"));
        let all_is_sent = self.world.source.has_completed()
            || (self.luck == Luck::Late && self.world.source.is_switching());
        self.stand_ins[index(leg)].end();
        self.world.dies(leg);
        self.close(leg);
        self.listeners[index(leg)] = None;
        if death == Death::Recorded {
            return;
        }
        match leg {
            Source => {
                self.script.replace(Source, []);
                if !all_is_sent {
                    self.destination_reads_no_more();
                }
            }
            Destination => {
                self.script.replace(Destination, []);
                if self.world.source.is_in_postcopy() {
                    self.script.replace(Source, [says("postcopy-paused")]);
                } else if !self.world.destination.has_completed() && !self.world.source.is_over() {
                    self.script.replace(Source, self.world.fails("failed").into_iter().map(Step::Event));
                }
            }
        }
    }

    /// Looks whether the driver has ended a process.
    pub(super) fn look_at(&mut self, leg: Leg) {
        if self.world.on(leg).is_alive && self.stand_ins[index(leg)].was_ended() {
            if leg == Source {
                self.fault("the driver has ended the source");
            }
            self.judge_written(leg, "kill");
            self.is_killed = true;
            self.die(leg, Death::Violent);
        }
    }

    pub(super) fn came_to_no_end(&mut self) {
        self.fault("the driver came to no end");
    }
}
