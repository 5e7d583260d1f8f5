//! What is done once per message, per sample or per page.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use qapi::{Execute, qmp};
use qmigrate::converge::{Budget, Consents, Controller, Policy as _};
use qmigrate::guest::page::{WORDS, expected};
use qmigrate::guest::{Content, GuestState, Pattern, Status, Verifier, Workload};
use qmigrate::migrate::phase::{AtDestination, AtSource, Guest, Input, Phase, Seen};
use qmigrate::qmp::Message;
use qmigrate::qmp::wire::Decoder;
use qmigrate::qmp::words::{MigrationInfo, MigrationStatus, RunState};
use qmigrate::record::Sample;
use qmigrate::units::{DowntimeMs, Size};

/// What QEMU 10.0 says while a migration runs: an event or two, and answers to `query-migrate` and `query-status`.
const CONVERSATION: &str = concat!(
    r#"{"timestamp": {"seconds": 1763671225, "microseconds": 402113}, "event": "MIGRATION", "data": {"status": "setup"}}"#,
    "\r\n",
    r#"{"return": {}, "id": 11}"#,
    "\r\n",
    r#"{"timestamp": {"seconds": 1763671225, "microseconds": 406421}, "event": "MIGRATION_PASS", "data": {"pass": 1}}"#,
    "\r\n",
    r#"{"timestamp": {"seconds": 1763671225, "microseconds": 406502}, "event": "MIGRATION", "data": {"status": "active"}}"#,
    "\r\n",
    r#"{"return": {"expected-downtime": 2, "status": "active", "setup-time": 4, "total-time": 105, "ram": {"total": 336072704, "postcopy-requests": 0, "dirty-sync-count": 1, "multifd-bytes": 0, "pages-per-second": 210331, "downtime-bytes": 0, "page-size": 4096, "remaining": 243998720, "postcopy-bytes": 0, "mbps": 5523.81, "transferred": 73011243, "dirty-sync-missed-zero-copy": 0, "precopy-bytes": 73011243, "duplicate": 4711, "dirty-pages-rate": 0, "normal-bytes": 72769536, "normal": 17766}}, "id": 12}"#,
    "\r\n",
    r#"{"return": {"status": "running", "running": true}, "id": 13}"#,
    "\r\n",
    r#"{"timestamp": {"seconds": 1763671226, "microseconds": 116}, "event": "STOP"}"#,
    "\r\n",
);

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    protocol(&mut criterion);
    decisions(&mut criterion);
    if let Some(workload) = workload() {
        verifier(&mut criterion, &workload);
    }
    criterion.final_summary();
}

fn protocol(criterion: &mut Criterion) {
    let conversation = CONVERSATION.repeat(64).into_bytes();
    let mut group = criterion.benchmark_group("protocol");
    group.throughput(Throughput::Bytes(conversation.len() as u64));
    group.bench_function("decode a conversation", |bencher| {
        bencher.iter(|| {
            let mut decoder = Decoder::default();
            let mut messages = 0_u32;
            // As they come from a socket.
            for piece in conversation.chunks(16 << 10) {
                decoder.buffer().extend_from_slice(piece);
                while let Ok(Some(message)) = decoder.next_message() {
                    black_box(message);
                    messages += 1;
                }
            }
            messages
        });
    });
    group.finish();

    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(CONVERSATION.as_bytes());
    let mut answer = None;
    while let Ok(Some(message)) = decoder.next_message() {
        match message {
            Message::Success { value, .. } if value.get("ram").is_some() => answer = Some(value),
            _ => {}
        }
    }
    let mut group = criterion.benchmark_group("words");
    group.bench_function("read an answer to query-migrate", |bencher| {
        bencher.iter_batched(
            || answer.clone().unwrap_or_default(),
            |answer| serde_json::from_value::<MigrationInfo>(answer).ok(),
            BatchSize::SmallInput,
        );
    });
    let command = qmp::migrate {
        uri: Some("unix:/run/qmigrate/k3f9x2ab/stream".to_owned()),
        channels: None,
        detach: None,
        resume: None,
    };
    group.bench_function("write migrate", |bencher| {
        bencher.iter(|| serde_json::to_vec(&Execute::with_id(black_box(&command), 17_u64)).ok());
    });
    group.finish();
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decisions");
    let guest = Guest { at_source: AtSource::Running, at_destination: AtDestination::AsBefore };
    let status = |status| Seen::Status(status);
    let inputs = [
        Input::Source(status(MigrationStatus::Setup)),
        Input::Source(status(MigrationStatus::Active)),
        Input::Source(Seen::Stopped),
        Input::Source(status(MigrationStatus::Device)),
        Input::Destination(status(MigrationStatus::Completed)),
        Input::Source(status(MigrationStatus::Completed)),
        Input::DestinationAlive,
        Input::Destination(Seen::State(RunState::Running)),
        Input::Destination(Seen::Resumed),
    ];
    let migrate = || {
        inputs.iter().fold(Phase::Streaming(guest), |phase, input| {
            let (phase, action) = black_box(phase).next(black_box(input));
            black_box(action);
            phase
        })
    };
    assert!(matches!(migrate(), Phase::Arrived(_)), "these are the inputs of a whole migration");
    group.bench_function("phases of one migration", |bencher| bencher.iter(migrate));
    if let Some(max_downtime) = DowntimeMs::new(300) {
        let budget = Budget { max_downtime, max_time: None };
        group.bench_function("controller, 100 samples in 25 passes", |bencher| {
            bencher.iter_batched(
                || Controller::new(budget, Consents::default()),
                |mut controller| {
                    for number in 0..100_u32 {
                        let at_ms = f64::from(number) * 100.0;
                        black_box(controller.observe(&sample(number, at_ms), at_ms));
                    }
                    controller
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A guest whose passes do not get smaller: the controller has something to decide.
fn sample(number: u32, at_ms: f64) -> Sample {
    Sample {
        at_ms,
        transferred_bytes: u64::from(number) * 10_000_000,
        remaining_bytes: 1_000_000,
        total_bytes: 1 << 30,
        passes: u64::from(number / 4) + 1,
        dirty_bytes_per_second: 0,
        stream_bytes_per_second: 0,
        downtime_limit_ms: 2,
        throttle_percent: 0,
    }
}

fn workload() -> Option<Workload> {
    let (memory, working_set) = (Size::from_mebibytes(128)?, Size::from_mebibytes(64)?);
    Workload::new(memory, working_set, None, Pattern::Sweep, Content::Incompressible).ok()
}

/// The memory of a guest that has been filled and not written to since.
fn verifier(criterion: &mut Criterion, workload: &Workload) {
    let mut memory = Vec::new();
    let mut page = [0; WORDS];
    for index in 0..workload.pages() {
        expected(&mut page, index, 0, workload.content());
        memory.extend(page.iter().flat_map(|word| word.to_le_bytes()));
    }
    let state = GuestState {
        status: Status::Writing,
        ticks: 1000,
        started: 100,
        credited: 1000,
        owed: 0,
        writes: 0,
        dropped: 0,
        passes: 0,
        lost: 0,
        first_lost: None,
    };
    let verify = || {
        let mut verifier = Verifier::new(workload, &state).ok()?;
        verifier.feed(&memory);
        verifier.finish().ok()
    };
    assert!(verify().is_some(), "the memory of this benchmark is that of a guest");
    let mut group = criterion.benchmark_group("verifier");
    group.sample_size(10).throughput(Throughput::Bytes(memory.len() as u64));
    group.bench_function("64 MiB", |bencher| bencher.iter(verify));
    group.finish();
}
