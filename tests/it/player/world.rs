//! Two QEMUs as a player plays them: what they are doing, and what they answer.
//!
//! A record says what its two QEMUs did. Where a test takes it off its course (a connection is cut, a process ends, an
//! engine decides otherwise), this says how QEMU goes on, as seen in the records of such courses.

use qmigrate::qmp::Leg;
use serde_json::{Value, json};

/// One QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) is_alive: bool,
    /// The processors run.
    pub(crate) runs: bool,
    /// They have run, at any time.
    pub(crate) has_run: bool,
    run_state: String,
    status: Option<String>,
    /// The last recorded answer to `query-migrate`.
    info: Value,
    /// What it was told last, and goes by.
    told: Option<Told>,
}

impl Machine {
    fn new(run_state: &str) -> Self {
        Self {
            is_alive: true,
            runs: run_state == "running",
            has_run: run_state == "running",
            run_state: run_state.to_owned(),
            status: None,
            info: json!({}),
            told: None,
        }
    }

    fn is(&self, status: &str) -> bool {
        self.status.as_deref() == Some(status)
    }

    pub(crate) fn has_completed(&self) -> bool {
        self.is("completed")
    }

    pub(crate) fn has_given_up(&self) -> bool {
        self.is("failed") || self.is("cancelled")
    }

    pub(crate) fn is_over(&self) -> bool {
        self.has_completed() || self.has_given_up()
    }

    /// Part of a migration that goes on.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.is_over() && !matches!(self.status.as_deref(), None | Some("none"))
    }

    /// Takes a stream in. One that only listens is in `setup`.
    pub(crate) fn is_reading(&self) -> bool {
        self.is_alive && self.is_under_way() && !self.is("setup")
    }

    /// Stopped by the switchover, and not started again.
    pub(crate) fn is_switching(&self) -> bool {
        !self.runs && self.run_state == "finish-migrate"
    }

    /// Past the point from which a source can run the guest again.
    pub(crate) fn is_in_postcopy(&self) -> bool {
        self.is("postcopy-active") || self.is("postcopy-paused")
    }

    /// Answers nothing in band: the main loop is busy with the last copy.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_switching() && !self.is_over() && !self.is_in_postcopy()
    }

    fn set(&mut self, run_state: &str) {
        run_state.clone_into(&mut self.run_state);
        self.runs = run_state == "running";
        self.has_run |= self.runs;
    }

    /// What `query-status` is answered.
    fn state(&self) -> Value {
        json!({"status": self.run_state, "running": self.runs})
    }

    /// What `query-migrate` is answered.
    fn migration(&self) -> Value {
        let mut info = self.info.clone();
        if let Some(status) = &self.status {
            info["status"] = json!(status);
        }
        info
    }
}

/// A command that has its effect later too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// `stop`: the guest stands still also after a migration that failed.
    Stop,
    /// `cont`, before the guest was there.
    Run,
}

/// Both.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) source: Machine,
    pub(crate) destination: Machine,
    major: u64,
}

/// What `cont` is answered, and whether the processors run now that did not.
pub(crate) enum Continued {
    Runs,
    Nothing,
    Refused(&'static str),
}

impl World {
    /// Before anything; `major` is the version's.
    pub(crate) fn new(major: u64) -> Self {
        Self { source: Machine::new("running"), destination: Machine::new("inmigrate"), major }
    }

    pub(crate) fn on(&self, leg: Leg) -> &Machine {
        match leg {
            Leg::Source => &self.source,
            Leg::Destination => &self.destination,
        }
    }

    pub(crate) fn on_mut(&mut self, leg: Leg) -> &mut Machine {
        match leg {
            Leg::Source => &mut self.source,
            Leg::Destination => &mut self.destination,
        }
    }

    /// Takes in a command that the record has at this place.
    pub(crate) fn is_told(&mut self, leg: Leg, command: &str) {
        let machine = self.on_mut(leg);
        match command {
            "migrate" => machine.status = Some("setup".to_owned()),
            "stop" => machine.told = Some(Told::Stop),
            _ => {}
        }
    }

    /// Takes in what an event says of its QEMU.
    pub(crate) fn happens(&mut self, leg: Leg, event: &Value) {
        let major = self.major;
        let machine = self.on_mut(leg);
        match event["event"].as_str().unwrap() {
            "STOP" => {
                let by_command = machine.told == Some(Told::Stop);
                machine.set(if by_command { "paused" } else { "finish-migrate" });
            }
            "RESUME" => {
                machine.told = None;
                machine.set("running");
            }
            "MIGRATION" => {
                let status = event["data"]["status"].as_str().unwrap();
                machine.status = Some(status.to_owned());
                match (leg, status) {
                    (Leg::Source, "completed") => machine.set("postmigrate"),
                    (Leg::Source, "failed" | "cancelled") if machine.told == Some(Told::Stop) => {
                        // Run on 7.2 and 11.1.
                        machine.set(if major <= 7 && status == "failed" { "postmigrate" } else { "paused" });
                    }
                    (Leg::Source, "device") if !machine.runs => machine.set("finish-migrate"),
                    // Up to 7.2 it says so 0.2 ms before `STOP`, and has made up its mind.
                    (Leg::Source, "postcopy-active") => machine.set("finish-migrate"),
                    (Leg::Destination, "completed" | "postcopy-active") if !machine.runs => {
                        machine.set("paused");
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Takes in what a recorded answer says.
    pub(crate) fn is_known(&mut self, leg: Leg, query: &str, answer: &Value) {
        let machine = self.on_mut(leg);
        let value = &answer["return"];
        match query {
            "query-status" => {
                machine.set(value["status"].as_str().unwrap());
                machine.runs = value["running"].as_bool().unwrap();
            }
            "query-migrate" => {
                machine.info = value.clone();
                machine.status = value["status"].as_str().map(str::to_owned).or(machine.status.take());
            }
            _ => {}
        }
    }

    /// The answer to a query or to a setting.
    pub(crate) fn answer(&self, leg: Leg, command: &str) -> Value {
        match command {
            "query-status" => self.on(leg).state(),
            "query-migrate" => self.on(leg).migration(),
            // Negotiation, and settings that QEMU takes at any time.
            "qmp_capabilities" | "migrate-set-parameters" | "migrate_set_downtime" | "migrate_set_speed" => {
                json!({})
            }
            // What the guest dirties, sampled beside the stream.
            "query-memory-size-summary" => json!({"base-memory": 64 << 20, "plugged-memory": 0}),
            "calc-dirty-rate" => json!({}),
            "query-dirty-rate" => {
                json!({"status": "measured", "dirty-rate": 20, "start-time": 0, "calc-time": 50})
            }
            other => panic!("what does QEMU answer to {other}?"),
        }
    }

    /// `cont`, as QEMU takes it.
    pub(crate) fn cont(&mut self, leg: Leg) -> Continued {
        let machine = self.on_mut(leg);
        match machine.run_state.as_str() {
            "finish-migrate" => Continued::Refused("Migration is not finalized yet"),
            "inmigrate" => {
                machine.told = Some(Told::Run);
                Continued::Nothing
            }
            _ if machine.runs => Continued::Nothing,
            _ => Continued::Runs,
        }
    }

    /// Whether the destination runs the guest without being told once more.
    pub(crate) fn starts_itself(&self) -> bool {
        self.destination.told == Some(Told::Run) && self.destination.has_completed() && !self.destination.runs
    }

    pub(crate) fn dies(&mut self, leg: Leg) {
        let machine = self.on_mut(leg);
        machine.is_alive = false;
        machine.runs = false;
    }

    /// What a source says whose stream has broken, or was cancelled: QEMU 11 runs the guest before it says so.
    pub(crate) fn fails(&self, status: &str) -> Vec<Value> {
        let says = |status: &str| json!({"event": "MIGRATION", "data": {"status": status}});
        let is_to_run = self.source.is_switching() && self.source.told != Some(Told::Stop);
        let resumes = is_to_run.then(|| json!({"event": "RESUME"}));
        let (first, last) = if status == "cancelled" {
            (Some(says("cancelling")), says(status))
        } else {
            ((self.major >= 11).then(|| says("failing")), says(status))
        };
        if self.major >= 11 {
            first.into_iter().chain(resumes).chain([last]).collect()
        } else {
            first.into_iter().chain([last]).chain(resumes).collect()
        }
    }

    /// Whether `migrate_cancel` is refused in postcopy; up to 9.x it wedges the source.
    pub(crate) fn refuses_cancel(&self) -> bool {
        self.source.is_in_postcopy() && self.major >= 10
    }

    /// Whether out-of-band `yank` is there.
    pub(crate) fn knows_yank(&self) -> bool {
        self.major >= 6
    }
}
