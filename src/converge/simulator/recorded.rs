//! The simulator against recorded migrations.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::units::Size;

/// What socket buffers and the queue of the shaped link hold, as its blackouts show.
const SHAPED_ROOM_BYTES: u64 = 3_000_000;

/// A file of `recorded/`, as `cargo run --example record-passes` writes it.
#[derive(Debug, Deserialize)]
struct Recorded {
    guest: RecordedGuest,
    link: RecordedLink,
    auto_converge: Option<RecordedThrottle>,
    said: Vec<Said>,
    passes: Vec<RecordedPass>,
    throttle: Vec<RecordedStep>,
    outcome: RecordedOutcome,
}

#[derive(Debug, Deserialize)]
struct RecordedGuest {
    memory_bytes: u64,
    working_set_bytes: u64,
    write_bytes_per_second: Option<Rate>,
    writes_per_second_before: f64,
    pattern: String,
    ticks_at_start: u32,
    ticks_kept: f64,
}

#[derive(Debug, Deserialize)]
struct RecordedLink {
    shaped_bytes_per_second: Option<Rate>,
    max_bandwidth_bytes_per_second: Option<Rate>,
}

#[derive(Debug, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the unit is part of a name")]
struct RecordedThrottle {
    initial_percent: u64,
    increment_percent: u64,
    maximum_percent: u64,
    threshold_percent: u64,
}

#[derive(Debug, Deserialize)]
struct Said {
    at_ms: f64,
    say: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct RecordedPass {
    number: u64,
    began_at_ms: f64,
    remaining_bytes: u64,
    transferred_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct RecordedStep {
    at_ms: f64,
    percent: u64,
}

#[derive(Debug, Deserialize)]
struct RecordedOutcome {
    stopped_at_ms: f64,
    resumed_at_ms: f64,
    transferred_bytes: u64,
    downtime_bytes: u64,
    zero_pages: u64,
    total_bytes: u64,
    passes: u64,
}

fn rate(bytes_per_second: f64) -> Rate {
    Rate::from_bytes_per_second(numbers::whole(bytes_per_second)).unwrap()
}

impl Recorded {
    fn guest(&self) -> Guest {
        let RecordedGuest { memory_bytes, working_set_bytes, write_bytes_per_second, .. } = &self.guest;
        let guest = Guest::idle(Size::from_bytes(*memory_bytes).unwrap());
        let working_set = Size::from_bytes(*working_set_bytes).unwrap();
        let paced = write_bytes_per_second.is_some();
        let asked = write_bytes_per_second
            .map_or(self.guest.writes_per_second_before * 4096.0, |rate| as_f64(rate.bytes_per_second()));
        let pace = rate(asked * self.ticks_kept());
        let (name, numbers) = self.guest.pattern.split_once(':').unwrap_or((&self.guest.pattern, ""));
        let numbers: Vec<f64> = numbers.split('/').filter_map(|number| number.parse().ok()).collect();
        let guest = match (name, &numbers[..]) {
            ("uniform", _) => guest.writes(Order::Uniform, working_set, pace),
            ("hot-and-cold", [writes, pages]) => {
                let share =
                    |of: u64, percent: f64| numbers::whole(as_f64(of) * percent / 100.0) / 4096 * 4096;
                let size = |percent| Size::from_bytes(share(*working_set_bytes, percent)).unwrap();
                let part = |percent| rate(as_f64(pace.bytes_per_second()) * percent / 100.0);
                guest.writes(Order::Sweep, size(*pages), part(*writes)).writes(
                    Order::Sweep,
                    size(100.0 - pages),
                    part(100.0 - writes),
                )
            }
            ("phased", [on_ms, off_ms]) => guest.writes(Order::Sweep, working_set, pace).in_phases(
                *on_ms / self.ticks_kept(),
                *off_ms / self.ticks_kept(),
                f64::from(self.guest.ticks_at_start) % (on_ms + off_ms) / self.ticks_kept(),
            ),
            _ => guest.writes(Order::Sweep, working_set, pace),
        };
        if paced { guest.paced_by_ticks_of(1.0) } else { guest }
    }

    /// How many of its ticks the guest has seen: under TCG it misses some while its host is busy, and does less. Where
    /// there was a throttle, that took them.
    fn ticks_kept(&self) -> f64 {
        if self.auto_converge.is_some() || self.guest.write_bytes_per_second.is_none() {
            return 1.0;
        }
        self.guest.ticks_kept
    }

    /// A window of a stream that QEMU itself bounds, in milliseconds; and in mebibytes what the guest dirties in two, by
    /// which a pass is off when it and the one before end a window sooner or later, or what is sent in one, when the
    /// answer came late. A link knows no windows.
    fn window(&self) -> (f64, f64) {
        match (self.link.max_bandwidth_bytes_per_second, self.guest.write_bytes_per_second) {
            (Some(_), Some(rate)) => (100.0, mib(rate.bytes_per_second() / 5).max(2.0)),
            (Some(rate), None) => (100.0, mib(rate.bytes_per_second() / 10)),
            (None, _) => (50.0, 2.0),
        }
    }

    /// What was sent of the memory as it was at the start.
    fn first_pass_mib(&self) -> f64 {
        let whole_pages = self.outcome.total_bytes / 4096 - self.outcome.zero_pages;
        mib(whole_pages * 4104 + self.outcome.zero_pages * 9)
    }

    fn link(&self) -> Link {
        match self.link.shaped_bytes_per_second {
            Some(rate) => Link::steady(rate).with_room_for(SHAPED_ROOM_BYTES),
            // A socket within the machine is as fast as the sender.
            None => Link::steady(rate(1e12)),
        }
    }

    fn qemu(&self) -> Qemu {
        let auto_converge = self.auto_converge.as_ref().map(|throttle| AutoConverge {
            initial_percent: throttle.initial_percent,
            increment_percent: throttle.increment_percent,
            maximum_percent: throttle.maximum_percent,
            threshold_percent: throttle.threshold_percent,
        });
        Qemu { max_bandwidth: self.link.max_bandwidth_bytes_per_second, auto_converge, ..Qemu::default() }
    }

    fn commands(&self) -> Vec<(f64, Command)> {
        let command = |(name, value): (&String, &serde_json::Value)| {
            let number = value.as_u64();
            match (name.as_str(), number) {
                ("downtime-limit", Some(ms)) => Command::DowntimeLimit { ms },
                ("max-bandwidth", Some(rate)) => Command::MaxBandwidth(Rate::from_bytes_per_second(rate)),
                ("max-cpu-throttle", Some(percent)) => Command::MaxThrottle { percent },
                _ => Command::Stop,
            }
        };
        self.said.iter().flat_map(|said| said.say.iter().map(move |say| (said.at_ms, command(say)))).collect()
    }

    fn simulated(&self) -> (Vec<Sample>, Outcome) {
        let mut simulator = Simulator::new(self.guest(), self.link(), self.qemu());
        let mut commands = self.commands().into_iter().peekable();
        let mut samples = Vec::new();
        loop {
            while let Some((_, command)) = commands.next_if(|(at_ms, _)| *at_ms <= simulator.now_ms()) {
                simulator.command(command);
            }
            match simulator.step() {
                Event::Sample(sample) => {
                    let latest_ms = 2.0 * self.outcome.resumed_at_ms;
                    assert!(sample.at_ms < latest_ms, "it should have ended: {sample:?}");
                    samples.push(sample);
                }
                Event::Ended(outcome) => return (samples, outcome),
            }
        }
    }
}

/// All courses, by name.
fn all() -> BTreeMap<String, Recorded> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/converge/simulator/recorded");
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().display().to_string();
        let recorded = serde_json::from_slice(&std::fs::read(&path).unwrap());
        (name.clone(), recorded.unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    entries.map(read).collect()
}

/// Figures that are further apart than they may be, in words.
#[derive(Debug, Default)]
struct Apart(Vec<String>);

impl Apart {
    fn compare(&mut self, what: &str, (recorded, simulated): (f64, f64), share: f64, least: f64) {
        if (recorded - simulated).abs() > (recorded.abs() * share).max(least) {
            self.0.push(format!("{what}: {recorded:.1} was recorded, {simulated:.1} simulated"));
        }
    }
}

fn mib(bytes: u64) -> f64 {
    as_f64(bytes) / 1_048_576.0
}

/// The guest alone, looked at when it was looked at in the recorded migration, with as much sent in between. What a
/// look finds is a point of its curve D(t), less what was still to be sent anyway.
#[test]
fn a_look_finds_what_the_recorded_one_found() {
    let mut apart = Apart::default();
    for (name, recorded) in all() {
        let (guest, mut throttle) = (recorded.guest(), throttle::Throttle::default());
        let (mut dirty, mut writer, mut sent) = (guest.first_pass(), guest::Writer::new(guest), 0);
        let mut steps = recorded.throttle.iter().peekable();
        let mut level = None;
        // How much of a sleep lies before a look is not recorded.
        let (share, least_mib) = if recorded.auto_converge.is_some() { (0.15, 2.0) } else { (0.1, 1.0) };
        for pass in recorded.passes.iter().filter(|pass| pass.number > 1) {
            let allowance = dirty::Allowance {
                bytes: pass.transferred_bytes.saturating_sub(sent),
                ms: f64::MAX,
                whole_page_ms: 0.0,
                zero_page_ms: 0.0,
            };
            sent += dirty.send(allowance).bytes;
            writer.run_until(pass.began_at_ms, &mut throttle);
            let found = mib(writer.look(&mut dirty) * 4096);
            let now = mib(pass.remaining_bytes) + mib(pass.transferred_bytes);
            // What was dirty at first, and zeroes besides, was not found by a look.
            let before = level.replace(now).unwrap_or_else(|| recorded.first_pass_mib());
            apart.compare(
                &format!("{name}, pass {}, MiB", pass.number),
                (now - before, found),
                share,
                least_mib,
            );
            // A change is known to the next sample after the look that made it.
            while let Some(step) = steps.next_if(|step| step.at_ms <= pass.began_at_ms + 110.0) {
                throttle.set(step.percent, pass.began_at_ms);
            }
        }
    }
    assert!(apart.0.is_empty(), "{:#?}", apart.0);
}

/// The whole migration. Whether a pass ends in this window or in the next can hang on a millisecond.
#[test]
fn a_migration_goes_as_the_recorded_one_went() {
    let mut apart = Apart::default();
    for (name, recorded) in all() {
        let (samples, outcome) = recorded.simulated();
        let (window_ms, window_mib) = recorded.window();
        // The first pass has all of memory to send, whatever it is.
        for pass in recorded.passes.iter().filter(|pass| pass.number > 1) {
            let Some(sample) = samples.iter().find(|sample| sample.passes == pass.number) else { continue };
            let what = format!("{name}, pass {}", pass.number);
            apart.compare(&format!("{what}, begun, ms"), (pass.began_at_ms, sample.at_ms), 0.1, window_ms);
            let left = (mib(pass.remaining_bytes), mib(sample.remaining_bytes));
            apart.compare(&format!("{what}, left, MiB"), left, 0.1, window_mib);
        }
        let recorded = &recorded.outcome;
        apart.compare(
            &format!("{name}, total, ms"),
            (recorded.resumed_at_ms, outcome.total_ms),
            0.05,
            window_ms,
        );
        let sent = (mib(recorded.transferred_bytes), mib(outcome.transferred_bytes));
        apart.compare(&format!("{name}, sent, MiB"), sent, 0.05, 0.0);
        apart.compare(
            &format!("{name}, passes"),
            (as_f64(recorded.passes), as_f64(outcome.passes)),
            0.1,
            2.0,
        );
    }
    assert!(apart.0.is_empty(), "{:#?}", apart.0);
}

/// A blackout by what was copied in it. Which state QEMU takes is luck within the limit; and a copy that no link bounds
/// is as fast as the host happens to copy memory (1.6 to 4.6 GB/s here), so that only small ones are held against it.
#[test]
fn a_blackout_costs_what_the_recorded_one_cost() {
    let mut apart = Apart::default();
    for (name, recorded) in all() {
        let (costs, outcome) = (Costs::default(), &recorded.outcome);
        let mut link = recorded.link();
        link.put(SHAPED_ROOM_BYTES, 0.0);
        let copy_ms = match recorded.link.shaped_bytes_per_second {
            Some(_) => link.drained_in_ms(outcome.downtime_bytes),
            None if outcome.downtime_bytes < 4 << 20 => {
                as_f64(outcome.downtime_bytes) / costs.send_bytes_per_ms
            }
            None => continue,
        };
        // A guest that was stopped before stands still for as long as the rest takes.
        if recorded.said.iter().all(|said| !said.say.contains_key("stop")) {
            let blackout_ms = outcome.resumed_at_ms - outcome.stopped_at_ms;
            apart.compare(&name, (blackout_ms, copy_ms + costs.switch_ms), 0.2, 5.0);
        }
    }
    assert!(apart.0.is_empty(), "{:#?}", apart.0);
}

#[test]
fn the_throttle_moves_when_the_recorded_one_moved() {
    let mut apart = Apart::default();
    for (name, recorded) in all() {
        let (samples, _) = recorded.simulated();
        let steps = samples.windows(2).filter(|pair| pair[0].throttle_percent != pair[1].throttle_percent);
        let simulated: Vec<_> = steps.map(|pair| (pair[1].throttle_percent, pair[1].at_ms)).collect();
        let percents: Vec<_> = simulated.iter().map(|(percent, _)| *percent).collect();
        assert_eq!(percents, recorded.throttle.iter().map(|step| step.percent).collect::<Vec<_>>(), "{name}");
        for (step, (_, at_ms)) in recorded.throttle.iter().zip(simulated) {
            apart.compare(&format!("{name}, {} %, ms", step.percent), (step.at_ms, at_ms), 0.1, 100.0);
        }
    }
    assert!(apart.0.is_empty(), "{:#?}", apart.0);
}
