//! The embedded guest on real QEMUs: does it boot, beat, write as asked, and verify?

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use qmigrate::guest::image::MemoryFile;
use qmigrate::guest::schedule::Schedule;
use qmigrate::guest::{
    Accelerator, Content, Corruption, GuestState, Machine, Pattern, Proof, Status, Verifier, Workload, memfd,
    probe_kvm,
};
use qmigrate::observe::heartbeat::{Heart, Observer};
use qmigrate::units::{Rate, Size};
use serde_json::{Value, json};

use crate::support::{Process, qemu, skip};

/// No wait is longer, and none is expected to come near.
const MOST: Duration = Duration::from_secs(60);
const NO_QEMU: &str = "no QEMU: neither QMIGRATE_QEMU nor qemu-system-x86_64 in the path";

/// As little of a QMP client as will do.
struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(path: &Path) -> Self {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < MOST, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_read_timeout(Some(MOST)).unwrap();
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.line();
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{line}").unwrap();
        loop {
            let mut reply = self.line();
            if reply.get("event").is_none() {
                assert!(reply.get("error").is_none(), "{command}: {reply}");
                return reply["return"].take();
            }
        }
    }
}

/// A guest that runs, with somebody who listens to its heart.
struct Guest {
    workload: Workload,
    process: Process,
    qmp: Qmp,
    observer: Observer,
    directory: tempfile::TempDir,
    _image: MemoryFile,
}

impl Guest {
    fn start(qemu: &Path, accelerator: Accelerator, workload: Workload) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let observer = Observer::listen(&at("heartbeat")).unwrap();
        let image = memfd(&workload).unwrap();
        let machine = Machine {
            machine: "pc".to_owned(),
            accelerator,
            memory: workload.memory(),
            kernel: Some(image.path()),
            qmp: at("qmp"),
            second_qmp: None,
            heartbeat: at("heartbeat"),
            more: Vec::new(),
        };
        let process = Process::start(qemu, &machine.arguments(), at("log"));
        let qmp = Qmp::connect(&machine.qmp);
        let guest = Self { workload, process, qmp, observer, directory, _image: image };
        let first = guest.observer.wait_for_first_beat(guest.process.pid(), MOST);
        assert!(first.is_some(), "no heartbeat of {:?}: {}", guest.workload, guest.process.log());
        guest
    }

    fn save(&mut self, address: u64, length: u64) -> Vec<u8> {
        let file = self.directory.path().join("memory");
        self.qmp.execute("pmemsave", &json!({ "val": address, "size": length, "filename": file }));
        std::fs::read(file).unwrap()
    }

    fn state(&mut self) -> GuestState {
        let block = self.save(GuestState::ADDRESS, GuestState::LENGTH as u64);
        GuestState::read(&block).unwrap()
    }

    /// Waits until the guest has filled its working set and then done so many writes.
    fn wait_for_writes(&mut self, writes: u64) {
        let start = Instant::now();
        loop {
            let state = self.state();
            if state.filled() && state.writes >= writes {
                return;
            }
            assert!(matches!(state.status, Status::Filling | Status::Writing), "{state:?}");
            assert!(start.elapsed() < MOST, "{state:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn heart(&self) -> Heart {
        self.observer.heart(self.process.pid()).unwrap()
    }

    /// Stops the guest and compares each byte of its working set.
    fn stop_and_verify(&mut self) -> (GuestState, Proof) {
        self.qmp.execute("stop", &json!({}));
        let state = self.state();
        let proof = self.verify(&state).unwrap_or_else(|corruption| panic!("{corruption}: {state:?}"));
        (state, proof)
    }

    fn verify(&mut self, state: &GuestState) -> Result<Proof, Corruption> {
        let mut verifier = Verifier::new(&self.workload, state).unwrap();
        let working_set = self.save(self.workload.working_set_address(), self.workload.working_set().bytes());
        verifier.feed(&working_set);
        verifier.finish()
    }

    /// Changes the memory of a stopped guest, through the debugger's door.
    fn poke(&mut self, address: u64, hexadecimal: &str) {
        let path = self.directory.path().join("debugger");
        let server = format!("gdbserver unix:{},server=on,wait=off", path.display());
        self.qmp.execute("human-monitor-command", &json!({ "command-line": server }));
        let mut debugger = UnixStream::connect(path).unwrap();
        debugger.set_read_timeout(Some(MOST)).unwrap();
        let packet = format!("M{address:x},{:x}:{hexadecimal}", hexadecimal.len() / 2);
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        write!(debugger, "${packet}#{sum:02x}").unwrap();
        let mut answer = [0; 7];
        debugger.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+$OK#9a");
        self.qmp.execute("human-monitor-command", &json!({ "command-line": "gdbserver none" }));
    }
}

fn mebibytes(number: u64) -> Size {
    Size::from_mebibytes(number).unwrap()
}

fn small(rate: Option<&str>, pattern: Pattern, content: Content) -> Workload {
    let rate = rate.map(|rate| rate.parse::<Rate>().unwrap());
    Workload::new(mebibytes(64), mebibytes(2), rate, pattern, content).unwrap()
}

/// Whether KVM runs the guest on this machine; found out once.
fn kvm(qemu: &Path) -> Result<(), String> {
    static KVM: OnceLock<Result<(), String>> = OnceLock::new();
    let probe = || {
        let directory = tempfile::tempdir().unwrap();
        probe_kvm(qemu, directory.path(), Duration::from_secs(15))
            .map(drop)
            .map_err(|error| error.to_string())
    };
    KVM.get_or_init(probe).clone()
}

/// Runs a test under each accelerator that there is, and says of the others why not.
fn under_each_accelerator(test: &str, run: impl Fn(&Path, Accelerator)) {
    let Some(qemu): Option<PathBuf> = qemu() else {
        return skip(test, NO_QEMU);
    };
    run(&qemu, Accelerator::Tcg);
    match kvm(&qemu) {
        Ok(()) => run(&qemu, Accelerator::Kvm),
        Err(reason) => skip(&format!("{test} (kvm)"), &reason),
    }
}

#[test]
fn the_guest_beats_a_thousand_times_a_second() {
    under_each_accelerator("the_guest_beats_a_thousand_times_a_second", |qemu, accelerator| {
        let mut guest =
            Guest::start(qemu, accelerator, small(Some("5MiB/s"), Pattern::Sweep, Content::Incompressible));
        assert!(guest.observer.wait_for_beats(guest.process.pid(), 2000, MOST), "{}", guest.process.log());
        let heart = guest.heart();
        let rate = heart.beats_per_second().unwrap();
        // Wide bounds: TCG loses ticks on a busy machine, and KVM makes up for what it lost before.
        assert!((100.0..2000.0).contains(&rate), "{accelerator}: {rate} beats per second");
        assert_eq!(heart.breaks, 0, "{accelerator}: {:?}", heart.first_break);
        guest.wait_for_writes(1);
        let (state, _) = guest.stop_and_verify();
        // Every tick beat once, but for one that the stop came in between.
        let ticks = u64::from(state.ticks);
        assert!(
            guest.observer.wait_for_beats(guest.process.pid(), ticks - 1, MOST),
            "{accelerator}: {state:?}"
        );
        assert!((ticks - 1..=ticks).contains(&guest.heart().beats), "{accelerator}: {state:?}");
    });
}

#[test]
fn every_pattern_and_content_verifies() {
    under_each_accelerator("every_pattern_and_content_verifies", |qemu, accelerator| {
        let phased = Pattern::Phased { on_ticks: 30, off_ticks: 20 };
        let contents = [Content::Incompressible, Content::Compressible];
        for pattern in [Pattern::Sweep, Pattern::Uniform, Pattern::HOT_AND_COLD, phased] {
            for (content, rate) in
                contents.iter().flat_map(|content| [(*content, Some("40MiB/s")), (*content, None)])
            {
                // A KVM that emulates needs seconds to start: there the contents take turns.
                let turn =
                    matches!(pattern, Pattern::Sweep | Pattern::HOT_AND_COLD) == (content == contents[0]);
                if accelerator == Accelerator::Kvm && (rate.is_none() || !turn) {
                    continue;
                }
                let mut guest = Guest::start(qemu, accelerator, small(rate, pattern, content));
                guest.wait_for_writes(4000);
                let (state, proof) = guest.stop_and_verify();
                assert_eq!((proof.pages, state.lost), (512, 0));
                // It goes on where it was stopped.
                guest.qmp.execute("cont", &json!({}));
                guest.wait_for_writes(state.writes + 2000);
                guest.stop_and_verify();
            }
        }
    });
}

/// The writes are those that the rate asks for, but for the ones that the guest still owes or was kept from doing.
#[test]
fn the_dirty_rate_is_exact() {
    under_each_accelerator("the_dirty_rate_is_exact", |qemu, accelerator| {
        let phased = Pattern::Phased { on_ticks: 7, off_ticks: 5 };
        for (rate, pattern) in
            [("333kB/s", Pattern::Sweep), ("21MiB/s", Pattern::Uniform), ("50MB/s", phased)]
        {
            let mut guest =
                Guest::start(qemu, accelerator, small(Some(rate), pattern, Content::Compressible));
            guest.wait_for_writes(100);
            let (state, _) = guest.stop_and_verify();
            let asked = guest.workload.writes_asked(state.working_ticks()).unwrap();
            let accounted = state.writes + state.dropped + u64::from(state.owed);
            // A write is counted before it is taken off what is owed; it may be stopped between the two.
            assert!(accounted == asked || accounted == asked + 1, "{asked} asked for: {state:?}");
        }
    });
}

#[test]
fn memories_from_64_mebibytes_to_4_gibibytes_start() {
    under_each_accelerator("memories_from_64_mebibytes_to_4_gibibytes_start", |qemu, accelerator| {
        for (memory, working_set) in [(64, 47), (1024, 64), (3583, 64), (3584, 64), (4096, 64)] {
            let rate = "20MiB/s".parse().ok();
            let working_set = if accelerator == Accelerator::Kvm { 1 } else { working_set };
            let (memory, set) = (mebibytes(memory), mebibytes(working_set));
            let workload = Workload::new(memory, set, rate, Pattern::Sweep, Content::Compressible).unwrap();
            let mut guest = Guest::start(qemu, accelerator, workload);
            guest.wait_for_writes(1);
            guest.stop_and_verify();
        }
    });
}

/// The guest's own check of what it overwrites, and the verifier, on memory that was really changed.
#[test]
fn a_page_that_changed_behind_the_guests_back_is_found_twice() {
    let test = "a_page_that_changed_behind_the_guests_back_is_found_twice";
    let Some(qemu) = qemu() else { return skip(test, NO_QEMU) };
    for pattern in [Pattern::Sweep, Pattern::HotAndCold { hot_pages_percent: 50, hot_writes_percent: 50 }] {
        let mut guest =
            Guest::start(&qemu, Accelerator::Tcg, small(Some("4MiB/s"), pattern, Content::Incompressible));
        guest.wait_for_writes(1000);
        let (state, _) = guest.stop_and_verify();
        let page = Schedule::new(&guest.workload).page(state.writes + 200);
        let address = guest.workload.working_set_address() + u64::from(page) * 4096;
        guest.poke(address, "00000000");
        assert!(matches!(guest.verify(&state), Err(Corruption::Pages { bad: 1, .. })), "{pattern}");
        guest.qmp.execute("cont", &json!({}));
        guest.wait_for_writes(state.writes + 300);
        guest.qmp.execute("stop", &json!({}));
        let state = guest.state();
        let first = state.first_lost.map(|lost| (lost.page, lost.found));
        assert_eq!((state.lost, first), (1, Some((page, 0))), "{pattern}");
        assert!(matches!(guest.verify(&state), Err(Corruption::LostWrites { lost: 1, .. })), "{pattern}");
    }
}

/// On a machine type with less memory below the hole the guest refuses, instead of writing where no memory is.
#[test]
fn a_working_set_beyond_the_memory_is_refused_by_the_guest() {
    let test = "a_working_set_beyond_the_memory_is_refused_by_the_guest";
    let Some(qemu) = qemu() else { return skip(test, NO_QEMU) };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let observer = Observer::listen(&at("heartbeat")).unwrap();
    let (memory, set) = (mebibytes(3072), mebibytes(2560));
    let workload = Workload::new(memory, set, None, Pattern::Sweep, Content::Compressible).unwrap();
    let image = memfd(&workload).unwrap();
    let machine = Machine {
        machine: "q35".to_owned(),
        accelerator: Accelerator::Tcg,
        memory,
        kernel: Some(image.path()),
        qmp: at("qmp"),
        second_qmp: None,
        heartbeat: observer.path().to_owned(),
        more: Vec::new(),
    };
    let process = Process::start(&qemu, &machine.arguments(), at("log"));
    let mut qmp = Qmp::connect(&machine.qmp);
    let start = Instant::now();
    let state = loop {
        let length = GuestState::LENGTH;
        qmp.execute(
            "pmemsave",
            &json!({ "val": GuestState::ADDRESS, "size": length, "filename": at("state") }),
        );
        if let Ok(state) = GuestState::read(&std::fs::read(at("state")).unwrap()) {
            break state;
        }
        assert!(start.elapsed() < MOST, "{}", process.log());
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(state.status, Status::Refused);
    assert_eq!(observer.heart(process.pid()).map_or(0, |heart| heart.beats), 0);
}
