//! The courses: a guest, a link, and what is said to QEMU at which moment.

use qmigrate::guest::Pattern;
use serde_json::{Value, json};

/// What bounds the stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Link {
    /// QEMU itself: `max-bandwidth`, in mebibytes per second.
    Capped { mebibytes: u64 },
    /// The loopback has been shaped to so many bytes of payload per second.
    Shaped { bytes: u64 },
}

/// What is said to the source, and how long after `migrate`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Say {
    Limit(u64),
    Bandwidth(u64),
    Throttle(u64),
    Stop,
}

/// One course.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Course {
    pub(crate) name: &'static str,
    pub(crate) memory_mib: u64,
    pub(crate) working_set_mib: u64,
    /// As fast as it can, if there is none.
    pub(crate) rate: Option<&'static str>,
    pub(crate) pattern: Pattern,
    pub(crate) link: Link,
    /// In milliseconds; what is said at 0 is said before `migrate`.
    pub(crate) says: &'static [(u64, Say)],
    /// The throttle's initial, increment, maximum and trigger threshold, in per cent.
    pub(crate) auto_converge: Option<[u64; 4]>,
}

impl Say {
    /// As it stands in the file, and in `migrate-set-parameters` but for `stop`.
    pub(crate) fn parameters(self) -> Value {
        match self {
            Self::Limit(milliseconds) => json!({"downtime-limit": milliseconds}),
            Self::Bandwidth(mebibytes) => json!({"max-bandwidth": mebibytes << 20}),
            Self::Throttle(percent) => json!({"max-cpu-throttle": percent}),
            Self::Stop => json!({"stop": true}),
        }
    }
}

const PLAIN: Course = Course {
    name: "",
    memory_mib: 320,
    working_set_mib: 256,
    rate: None,
    pattern: Pattern::Sweep,
    link: Link::Capped { mebibytes: 100 },
    says: &[(0, Say::Limit(20))],
    auto_converge: None,
};
/// The loopback's gigabit, less the headers of its frames of 64 KiB.
const GIGABIT: Link = Link::Shaped { bytes: 124_900_000 };
/// Throttled by hand: inert until the maximum is raised.
const BY_HAND: Option<[u64; 4]> = Some([1, 99, 1, 1]);

/// All of them.
pub(crate) const COURSES: &[Course] = &[
    Course { name: "sweep-half-the-link", rate: Some("50MiB/s"), ..PLAIN },
    Course { name: "few-passes", memory_mib: 192, working_set_mib: 128, rate: Some("10MiB/s"), ..PLAIN },
    Course {
        name: "saturated-small",
        memory_mib: 96,
        working_set_mib: 32,
        says: &[(0, Say::Limit(20)), (5000, Say::Limit(1000))],
        ..PLAIN
    },
    Course { name: "saturated-large", says: &[(0, Say::Limit(20)), (12_000, Say::Limit(4000))], ..PLAIN },
    Course {
        name: "uniform",
        memory_mib: 192,
        working_set_mib: 128,
        rate: Some("80MiB/s"),
        pattern: Pattern::Uniform,
        says: &[(0, Say::Limit(20)), (8000, Say::Limit(2000))],
        ..PLAIN
    },
    Course {
        name: "hot-and-cold",
        rate: Some("60MiB/s"),
        pattern: Pattern::HOT_AND_COLD,
        says: &[(0, Say::Limit(20)), (10_000, Say::Limit(2000))],
        ..PLAIN
    },
    Course {
        name: "phased",
        memory_mib: 192,
        working_set_mib: 128,
        rate: Some("200MiB/s"),
        pattern: Pattern::Phased { on_ticks: 3000, off_ticks: 3000 },
        says: &[(0, Say::Limit(5))],
        ..PLAIN
    },
    Course {
        name: "mostly-zero-pages",
        memory_mib: 768,
        working_set_mib: 64,
        rate: Some("30MiB/s"),
        ..PLAIN
    },
    Course {
        name: "limit-of-300",
        memory_mib: 128,
        working_set_mib: 64,
        rate: Some("50MiB/s"),
        says: &[(0, Say::Limit(300))],
        ..PLAIN
    },
    Course {
        name: "auto-converge",
        memory_mib: 128,
        working_set_mib: 64,
        rate: Some("400MiB/s"),
        link: Link::Capped { mebibytes: 60 },
        says: &[(0, Say::Limit(300))],
        auto_converge: Some([20, 10, 99, 50]),
        ..PLAIN
    },
    Course {
        name: "throttled-until-it-converges",
        memory_mib: 128,
        working_set_mib: 64,
        rate: Some("300MiB/s"),
        says: &[(0, Say::Limit(20)), (4000, Say::Throttle(80))],
        auto_converge: BY_HAND,
        ..PLAIN
    },
    Course {
        name: "throttled-and-released",
        memory_mib: 128,
        working_set_mib: 64,
        rate: Some("400MiB/s"),
        says: &[
            (0, Say::Limit(20)),
            (4000, Say::Throttle(70)),
            (9000, Say::Throttle(30)),
            (13_000, Say::Throttle(1)),
            (17_000, Say::Limit(1000)),
        ],
        auto_converge: BY_HAND,
        ..PLAIN
    },
    Course {
        name: "stopped",
        memory_mib: 128,
        working_set_mib: 64,
        rate: Some("300MiB/s"),
        says: &[(0, Say::Limit(20)), (3050, Say::Stop)],
        ..PLAIN
    },
    Course {
        name: "bandwidth-stepped",
        memory_mib: 192,
        working_set_mib: 128,
        rate: Some("150MiB/s"),
        pattern: Pattern::Uniform,
        says: &[
            (0, Say::Limit(20)),
            (3000, Say::Bandwidth(25)),
            (9000, Say::Bandwidth(100)),
            (12_000, Say::Limit(2000)),
        ],
        ..PLAIN
    },
    Course { name: "shaped-sweep", rate: Some("50MiB/s"), link: GIGABIT, ..PLAIN },
    Course {
        name: "shaped-saturated",
        memory_mib: 128,
        working_set_mib: 64,
        link: GIGABIT,
        says: &[(0, Say::Limit(20)), (5000, Say::Limit(1000))],
        ..PLAIN
    },
    Course {
        name: "shaped-uniform",
        memory_mib: 192,
        working_set_mib: 128,
        rate: Some("100MiB/s"),
        pattern: Pattern::Uniform,
        link: GIGABIT,
        says: &[(0, Say::Limit(20)), (6000, Say::Limit(2000))],
        ..PLAIN
    },
];
