//! Which end each fault has at each moment: what is promised, not what was seen.

use std::fmt;

/// When a fault strikes: where the engine is held meanwhile. The QEMUs go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moment {
    /// The destination is there and waits; nothing has been set.
    Destination,
    /// Both sides are set up; `migrate` has not been sent.
    Prepared,
    /// Memory is sent.
    Streaming,
    /// The source sends the rest: for as long as the fault is made the destination is stopped, so that it cannot end.
    Switchover,
    /// Both have completed; the destination is about to be asked for a sign of life.
    Armed,
    /// `cont` is about to be sent: the point of no return, decided.
    Committed,
    /// The destination runs the guest.
    Arrived,
}

impl Moment {
    pub(super) const ALL: [Self; 7] = [
        Self::Destination,
        Self::Prepared,
        Self::Streaming,
        Self::Switchover,
        Self::Armed,
        Self::Committed,
        Self::Arrived,
    ];

    /// The engine's hold point.
    pub(super) fn hold(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Prepared => "prepared",
            Self::Streaming => "streaming",
            Self::Switchover => "switchover",
            Self::Armed => "armed",
            Self::Committed => "committed",
            Self::Arrived => "arrived",
        }
    }

    /// As the table's heads say it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Destination => "destination starting",
            Self::Prepared => "prepared",
            Self::Streaming => "streaming",
            Self::Switchover => "switchover",
            Self::Armed => "both completed, `cont` not decided yet",
            Self::Committed => "both completed, `cont` written down and not sent yet",
            Self::Arrived => "after `cont`",
        }
    }
}

/// What the guest does before anything goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Before {
    /// It runs.
    Running,
    /// Somebody has paused it.
    Paused,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL to the destination.
    DestinationKilled,
    /// SIGSTOP to the destination, for good; whatever is left of it goes on after the engine's end.
    DestinationStopped,
    /// The destination has other devices, or less memory.
    DestinationRefuses,
    /// A third process locks the guest's writable disk, for six seconds: the destination cannot take it over.
    DiskLocked,
    /// SIGKILL to the source.
    SourceKilled,
    /// The source's main loop hangs for 3.5 s: it writes to a pipe that nobody reads.
    SourceHung,
    /// SIGSTOP to the source, for 3.5 s.
    SourceStopped,
    /// SIGKILL to the engine; then `recover` from another process, whose end it is.
    EngineKilled,
    /// SIGTERM to the engine.
    Sigterm,
    /// SIGINT to the engine.
    Sigint,
    /// The stream is broken: another client's `yank`.
    StreamCut,
    /// The engine's connection to the source's monitor is broken; the monitor is free.
    SourceControlCut,
    /// The same, and somebody else takes the monitor.
    SourceControlTaken,
    /// The engine's connection to the destination's monitor is broken; the monitor is free.
    DestinationControlCut,
    /// Something else takes all the room in the file system of the state directory.
    StateFull,
    /// Nothing in the state directory can be written or removed any more, the open journal included.
    StateReadOnly,
    /// The guest resets (`system_reset` on the source).
    GuestResets,
    /// The guest powers itself off, by the word that its ACPI would write to a port of the source.
    GuestPowersOff,
    /// The guest's machine goes away (`quit` on the source).
    GuestQuits,
    /// The guest panics, by the word that it would write to its pvpanic device; it is then to be stopped and kept
    /// (`-action panic=pause`). On the source, and after `cont` where it runs then.
    GuestPanics,
    /// Another client stops the guest on the source.
    SomebodyStops,
    /// Another client cancels the migration.
    SomebodyCancels,
    /// Another client changes the limits.
    SomebodySetsLimits,
}

impl Fault {
    /// What a reader knows it by.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::DestinationKilled => "destination killed",
            Self::DestinationStopped => "destination stopped (SIGSTOP)",
            Self::DestinationRefuses => "destination refuses device state",
            Self::DiskLocked => "disk lock held",
            Self::SourceKilled => "source killed",
            Self::SourceHung => "source QMP hung",
            Self::SourceStopped => "source stopped (SIGSTOP)",
            Self::EngineKilled => "engine killed -9, then recover",
            Self::Sigterm => "engine SIGTERM",
            Self::Sigint => "engine SIGINT",
            Self::StreamCut => "stream cut",
            Self::SourceControlCut => "source's control lost",
            Self::SourceControlTaken => "source's control lost to another",
            Self::DestinationControlCut => "destination's control lost",
            Self::StateFull => "state directory full",
            Self::StateReadOnly => "state directory read-only",
            Self::GuestResets => "guest resets",
            Self::GuestPowersOff => "guest powers off",
            Self::GuestQuits => "guest's machine quits",
            Self::GuestPanics => "guest panics",
            Self::SomebodyStops => "another client stops",
            Self::SomebodyCancels => "another client cancels",
            Self::SomebodySetsLimits => "another client changes limits",
        }
    }
}

/// How a migration ends, and where the guest then is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Exit 2: nothing was changed, the guest runs on its source.
    Refused,
    /// Exit 1: the guest runs on its source.
    Back,
    /// Exit 1: the guest is on its source and stands still, as before.
    BackPaused,
    /// Exit 0: the guest runs on the destination, and the source has gone.
    There,
    /// Exit 0: the guest stands still on the destination, and the source has gone.
    TherePaused,
    /// Exit 0: the guest is on the destination as it stopped when it panicked, and the source has gone.
    TherePanicked,
    /// Exit 5: the guest runs on the destination, and the source could not be ended.
    Remainder,
    /// Exit 4: the guest is gone.
    Lost,
    /// Exit 4: the guest has panicked where it had arrived, and is kept there; so is the source, as it was at the switch.
    Crashed,
    /// Exit 3: the engine cannot tell; in truth it is here.
    Undecided(Where),
}

/// Where a guest is of which the engine cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// It runs on the source.
    Source,
    /// It runs on the destination, or stands still there and must be continued.
    Destination,
    /// It stands still on the source, which somebody must continue.
    Nowhere,
}

impl End {
    pub(super) fn exit_code(self) -> i32 {
        match self {
            Self::There | Self::TherePaused | Self::TherePanicked => 0,
            Self::Back | Self::BackPaused => 1,
            Self::Refused => 2,
            Self::Undecided(_) => 3,
            Self::Lost | Self::Crashed => 4,
            Self::Remainder => 5,
        }
    }

    /// What the record says of the guest.
    pub(super) fn guest(self) -> &'static [&'static str] {
        match self {
            Self::Refused => &["unchanged"],
            Self::Back => &["running_on_source", "unchanged"],
            Self::BackPaused => &["paused_on_source", "unchanged"],
            Self::There | Self::Remainder => &["running_on_destination"],
            Self::TherePaused | Self::TherePanicked => &["paused_on_destination"],
            Self::Lost | Self::Crashed => &["lost"],
            Self::Undecided(_) => &["unknown"],
        }
    }
}

/// One cell.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected {
    /// One of these ends. More than one where the fault and the end of the switchover race, which nobody decides.
    Ends(&'static [End]),
    /// It makes no sense, because.
    Senseless(&'static str),
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Refused => "refused",
            Self::Back => "back",
            Self::There => "there",
            Self::BackPaused => "back, paused",
            Self::TherePaused => "there, paused",
            Self::TherePanicked => "there, panicked",
            Self::Remainder => "there, rest",
            Self::Lost => "lost",
            Self::Crashed => "crashed",
            Self::Undecided(_) => "undecided",
        })
    }
}

const REFUSED: Expected = Expected::Ends(&[End::Refused]);
const BACK: Expected = Expected::Ends(&[End::Back]);
const THERE: Expected = Expected::Ends(&[End::There]);
const THERE_PAUSED: Expected = Expected::Ends(&[End::TherePaused]);
const BACK_PAUSED: Expected = Expected::Ends(&[End::BackPaused]);
const THERE_PANICKED: Expected = Expected::Ends(&[End::TherePanicked]);
const CRASHED: Expected = Expected::Ends(&[End::Crashed]);
const REMAINDER: Expected = Expected::Ends(&[End::Remainder]);
const LOST: Expected = Expected::Ends(&[End::Lost]);
/// What is asked for in the blackout is answered after it, or breaks it off.
const BACK_OR_THERE: Expected = Expected::Ends(&[End::Back, End::There]);
/// Whether `cont` was certainly not sent depends on when the engine sees that the connection has ended.
const BACK_OR_OPEN: Expected = Expected::Ends(&[End::Back, End::Undecided(Where::Nowhere)]);
/// A connection that breaks under the very last question is not made anew: the rest is told.
const THERE_OR_REST: Expected = Expected::Ends(&[End::There, End::Remainder]);
const NO_STREAM: Expected = Expected::Senseless("there is no stream to cut");
const AT_LOAD_ONLY: Expected = Expected::Senseless("a destination refuses what it is sent, and nothing else");

/// The machine is gone, or was already the destination's, or had ended its migration before it went.
const LOST_OR_NOT: Expected = Expected::Ends(&[End::Lost, End::There, End::Back]);

/// A row: one fault at each moment.
const TABLE: [(Fault, [Expected; 7]); 23] = [
    (Fault::DestinationKilled, [REFUSED, BACK, BACK, BACK, BACK, BACK_OR_OPEN, LOST]),
    (
        Fault::DestinationStopped,
        [
            REFUSED,
            BACK,
            BACK,
            BACK,
            BACK,
            // `cont` is in its socket.
            Expected::Ends(&[End::Undecided(Where::Destination)]),
            REMAINDER,
        ],
    ),
    (
        Fault::DestinationRefuses,
        // Less memory is refused at once, a missing device at the end.
        [AT_LOAD_ONLY, AT_LOAD_ONLY, BACK, BACK, AT_LOAD_ONLY, AT_LOAD_ONLY, AT_LOAD_ONLY],
    ),
    // Only `cont` takes the disk: before it the lock strikes there, after it nowhere.
    (Fault::DiskLocked, [BACK, BACK, BACK, BACK, BACK, BACK, THERE]),
    (Fault::SourceKilled, [LOST, LOST, LOST, Expected::Ends(&[End::Lost, End::There]), THERE, THERE, THERE]),
    // 3.5 s are less than an answer is waited for before the stream runs, and more than a blackout may last.
    (Fault::SourceHung, [THERE, THERE, BACK, BACK_OR_THERE, THERE, THERE, THERE]),
    (Fault::SourceStopped, [THERE, THERE, BACK, BACK_OR_THERE, THERE, THERE, THERE]),
    // Before `migrate` it is undone; from then on QEMU goes on alone, and the guest waits where it has arrived for its
    // `cont`, which `recover` gives.
    (Fault::EngineKilled, [BACK, BACK, THERE, THERE, THERE, THERE, THERE]),
    (Fault::Sigterm, [BACK, BACK, BACK, BACK, BACK, THERE, THERE]),
    (Fault::Sigint, [BACK, BACK, BACK, BACK, BACK, THERE, THERE]),
    // The final copy may be over before the destination is stopped in it; above all where the guest was stopped first, and
    // hardly anything is left for it (seen on 7.2).
    (Fault::StreamCut, [NO_STREAM, NO_STREAM, BACK, BACK_OR_THERE, NO_STREAM, NO_STREAM, NO_STREAM]),
    (Fault::SourceControlCut, [REFUSED, BACK_OR_THERE, THERE, THERE, THERE, THERE, THERE_OR_REST]),
    (
        Fault::SourceControlTaken,
        [
            REFUSED,
            Expected::Ends(&[End::Undecided(Where::Source)]),
            Expected::Ends(&[End::Undecided(Where::Source)]),
            // The source may have completed, and must not run again before the destination has ended.
            Expected::Ends(&[End::Undecided(Where::Source), End::Undecided(Where::Nowhere), End::Remainder]),
            REMAINDER,
            REMAINDER,
            REMAINDER,
        ],
    ),
    // A `cont` that was certainly not sent is none; on a connection made anew it is sent again. In the switchover the
    // destination must let somebody in and is not stopped, so that it too may have completed before the cut.
    (Fault::DestinationControlCut, [REFUSED, BACK, BACK, BACK_OR_THERE, BACK, BACK_OR_THERE, THERE_OR_REST]),
    // The room for the journal was taken at the start; only the record is not kept, which is told.
    (Fault::StateFull, [THERE, THERE, THERE, THERE, THERE, THERE, THERE]),
    // What cannot be written down is not begun, and no `cont` is sent for it; one that was written down is. What the
    // journal still says is settled by `recover`.
    (Fault::StateReadOnly, [REFUSED, BACK, BACK, BACK, BACK, THERE, THERE]),
    (Fault::GuestResets, [THERE, THERE, THERE, THERE, THERE, THERE, THERE]),
    (Fault::GuestPowersOff, [LOST, LOST, LOST, LOST_OR_NOT, THERE, THERE, THERE]),
    (Fault::GuestQuits, [LOST, LOST, LOST, LOST_OR_NOT, THERE, THERE, THERE]),
    // From the switchover on what is written on the source changes nothing: the guest is not there any more.
    (Fault::GuestPanics, [THERE_PANICKED, THERE_PANICKED, THERE_PANICKED, THERE, THERE, THERE, CRASHED]),
    (Fault::SomebodyStops, [THERE_PAUSED, THERE_PAUSED, THERE_PAUSED, THERE, THERE, THERE, THERE]),
    (Fault::SomebodyCancels, [THERE, THERE, BACK, BACK_OR_THERE, THERE, THERE, THERE]),
    (Fault::SomebodySetsLimits, [THERE, THERE, THERE, THERE, THERE, THERE, THERE]),
];

/// The same for a guest that was paused before, which stands still wherever it ends up. It gets no `cont`, so that it is
/// never armed; and nothing is left for its final copy, which is over before a fault can be made in it.
const PAUSED: [(Fault, Moment, Expected); 11] = [
    (Fault::DestinationKilled, Moment::Prepared, BACK_PAUSED),
    (Fault::DestinationKilled, Moment::Streaming, BACK_PAUSED),
    (Fault::DestinationRefuses, Moment::Switchover, BACK_PAUSED),
    (Fault::EngineKilled, Moment::Prepared, BACK_PAUSED),
    (Fault::EngineKilled, Moment::Streaming, THERE_PAUSED),
    (Fault::EngineKilled, Moment::Arrived, THERE_PAUSED),
    (Fault::Sigterm, Moment::Destination, BACK_PAUSED),
    (Fault::Sigterm, Moment::Streaming, BACK_PAUSED),
    (Fault::StreamCut, Moment::Streaming, BACK_PAUSED),
    (Fault::StateReadOnly, Moment::Prepared, BACK_PAUSED),
    (Fault::SomebodyCancels, Moment::Streaming, BACK_PAUSED),
];

/// What also runs on the oldest and the newest QEMU, each time.
pub(super) const DECISIVE: [(Fault, Moment); 16] = [
    (Fault::DestinationKilled, Moment::Streaming),
    (Fault::DestinationKilled, Moment::Arrived),
    (Fault::DestinationStopped, Moment::Switchover),
    (Fault::DestinationStopped, Moment::Armed),
    (Fault::DestinationRefuses, Moment::Switchover),
    (Fault::DiskLocked, Moment::Armed),
    (Fault::SourceKilled, Moment::Streaming),
    (Fault::SourceKilled, Moment::Armed),
    (Fault::SourceHung, Moment::Streaming),
    (Fault::EngineKilled, Moment::Streaming),
    (Fault::EngineKilled, Moment::Armed),
    (Fault::Sigterm, Moment::Armed),
    (Fault::StreamCut, Moment::Streaming),
    (Fault::SourceControlCut, Moment::Streaming),
    (Fault::SomebodyStops, Moment::Streaming),
    (Fault::SomebodyCancels, Moment::Streaming),
];

/// The table, cell by cell.
pub(super) fn expected(non_live: bool) -> impl Iterator<Item = (Before, Fault, Moment, Expected)> {
    let cells = |(fault, row): (Fault, [Expected; 7])| {
        Moment::ALL.into_iter().zip(row).map(move |(moment, expected)| (fault, moment, expected))
    };
    let running = TABLE.into_iter().flat_map(cells).map(move |(fault, moment, expected)| {
        (
            Before::Running,
            fault,
            moment,
            if non_live { stopped_first(fault, moment, expected) } else { expected },
        )
    });
    running.chain(PAUSED.map(|(fault, moment, expected)| (Before::Paused, fault, moment, expected)))
}

/// What is different for a guest that is not moved live.
fn stopped_first(fault: Fault, moment: Moment, expected: Expected) -> Expected {
    match (fault, moment) {
        // It stands still while it is sent, which neither changes.
        (Fault::SomebodyStops | Fault::GuestPanics, Moment::Streaming) => THERE,
        // A guest that was stopped for the move, and cannot be told to go on: the text says so.
        (Fault::SourceControlTaken, Moment::Prepared | Moment::Streaming) => {
            Expected::Ends(&[End::Undecided(Where::Source), End::Undecided(Where::Nowhere)])
        }
        _ => expected,
    }
}
