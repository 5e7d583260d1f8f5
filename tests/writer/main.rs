//! The program of the Linux guest: it rewrites its memory at a rate, holds every word of it against what it wrote last,
//! and says on its standard output how it goes.
//!
//! `tests/linux` builds it with rustc alone and puts it into an initramfs; as part of the package it is only tested.
//!
//! The working set is so many pages. Each word of a page follows from the page's index, the number of the pass and the
//! word's index, so that each is known and no two are likely to be the same. A pass goes over all pages; before a page is
//! written for a pass, every word of it must be what the pass before wrote. A write that is lost on the way to another QEMU
//! is found by the next pass, one working set later at the most.
//!
//! | line | says |
//! |---|---|
//! | `writer: 96 MiB, 50 MiB/s` | it begins; every page has been written once |
//! | `beat N pass P lost L` | ten times a second: the Nth of these; P passes are done; L words were not as written |
//! | `LOST page I pass P word W found F expected E` | a word is not what pass P wrote; at most 8 of them per pass |
//! | `LOST own variables` | what it counts by was changed by somebody else |

use std::io::Write;
use std::time::{Duration, Instant};

/// A page has so many words.
const WORDS: usize = 512;
const BYTES_PER_MIB: u64 = 1 << 20;
const PAGES_PER_MIB: usize = 256;
/// Ten beats a second.
const BEAT: Duration = Duration::from_millis(100);
/// More lines of this kind would say no more, and take their time on a serial line.
const MOST_LINES_PER_PASS: u64 = 8;

/// Where it is in the guest's memory, it is one page there too.
#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page([u64; WORDS]);

/// What the kernel was told about this program: `writer.mib=96 writer.rate=50`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Workload {
    mebibytes: usize,
    /// Mebibytes that are rewritten per second.
    rate: u32,
}

impl Workload {
    fn read(kernel_command_line: &str) -> Option<Self> {
        let value = |key: &str| {
            kernel_command_line
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        let workload =
            Self { mebibytes: value("writer.mib")?.parse().ok()?, rate: value("writer.rate")?.parse().ok()? };
        (workload.mebibytes > 0 && workload.rate > 0).then_some(workload)
    }

    /// How long one page takes at this rate.
    fn page_time(self) -> Duration {
        let page_bytes = u64::try_from(size_of::<Page>()).unwrap_or(u64::MAX);
        Duration::from_nanos(page_bytes * 1_000_000_000 / (u64::from(self.rate) * BYTES_PER_MIB))
    }
}

/// The finaliser of `SplitMix64`: every bit of the input changes half of the output's.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a pass writes into a page: an arithmetic sequence, cheap, that starts anywhere.
fn words(page: u64, pass: u64) -> impl Iterator<Item = u64> {
    let start = mix((page << 40) ^ pass);
    (0..).map(move |word: u64| start.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// A word that is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lost {
    word: usize,
    found: u64,
    expected: u64,
}

fn fill(contents: &mut Page, page: u64, pass: u64) {
    for (word, value) in contents.0.iter_mut().zip(words(page, pass)) {
        *word = value;
    }
}

/// Every word of a page that is not what this pass wrote.
fn check(contents: &Page, page: u64, pass: u64) -> impl Iterator<Item = Lost> {
    let pairs = contents.0.iter().zip(words(page, pass)).enumerate();
    pairs.filter_map(|(word, (&found, expected))| {
        (found != expected).then_some(Lost { word, found, expected })
    })
}

/// What the writer counts by. Its own memory can lose writes as well.
#[derive(Debug)]
struct Counts {
    /// Passes done.
    pass: u64,
    beat: u64,
    lost: u64,
    lines: u64,
    seal: u64,
}

impl Counts {
    fn new() -> Self {
        let mut counts = Self { pass: 0, beat: 0, lost: 0, lines: 0, seal: 0 };
        counts.seal = counts.right_seal();
        counts
    }

    fn right_seal(&self) -> u64 {
        [self.pass, self.beat, self.lost, self.lines].iter().fold(1, |seal, &count| mix(seal ^ count))
    }

    /// Changes them, if they are still as they were left. Somebody else's change is said once, and lived with.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        if self.seal != self.right_seal() {
            self.lost += 1;
            say("LOST own variables");
        }
        change(self);
        self.seal = self.right_seal();
    }

    fn lose(&mut self, page: usize, lost: Lost) {
        self.change(|counts| {
            counts.lost += 1;
            counts.lines += 1;
        });
        if self.lines <= MOST_LINES_PER_PASS {
            let Lost { word, found, expected } = lost;
            let pass = self.pass;
            say(&format!(
                "LOST page {page} pass {pass} word {word} found {found:#018x} expected {expected:#018x}"
            ));
        }
    }

    fn beat(&mut self) {
        self.change(|counts| counts.beat += 1);
        say(&format!("beat {} pass {} lost {}", self.beat, self.pass, self.lost));
    }
}

/// One line in one write. There is nobody to tell when that fails.
fn say(line: &str) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

/// Holds the writer to its rate, and to ten beats a second.
struct Pace {
    page_time: Duration,
    page_due: Instant,
    beat_due: Instant,
}

impl Pace {
    /// Waits until the next page may be written, and beats meanwhile. What a standstill has cost is not made up for.
    fn keep(&mut self, counts: &mut Counts) {
        self.page_due =
            (self.page_due + self.page_time).max(Instant::now().checked_sub(BEAT).unwrap_or(self.page_due));
        loop {
            let now = Instant::now();
            if now >= self.beat_due {
                counts.beat();
                self.beat_due = now + BEAT;
            }
            if now >= self.page_due {
                return;
            }
            // Not for each page: a sleep costs more than a page.
            let ahead = self.page_due - now;
            if ahead < BEAT / 10 {
                return;
            }
            std::thread::sleep(ahead.min(self.beat_due - now));
        }
    }
}

fn write(workload: Workload) -> ! {
    let mut memory = vec![Page([0; WORDS]); workload.mebibytes * PAGES_PER_MIB];
    for (page, contents) in (0..).zip(&mut memory) {
        fill(contents, page, 0);
    }
    say(&format!("writer: {} MiB, {} MiB/s", workload.mebibytes, workload.rate));
    let mut counts = Counts::new();
    let now = Instant::now();
    let mut pace = Pace { page_time: workload.page_time(), page_due: now, beat_due: now };
    loop {
        for (page, contents) in memory.iter_mut().enumerate() {
            // The compiler must not know what the memory holds: it may have changed under the program.
            let contents = std::hint::black_box(contents);
            let index = u64::try_from(page).unwrap_or(u64::MAX);
            for lost in check(contents, index, counts.pass) {
                counts.lose(page, lost);
            }
            fill(contents, index, counts.pass + 1);
            pace.keep(&mut counts);
        }
        counts.change(|counts| {
            counts.pass += 1;
            counts.lines = 0;
        });
    }
}

fn main() {
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    match Workload::read(&command_line) {
        Some(workload) => write(workload),
        None => say("writer: the kernel command line has no writer.mib and writer.rate"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_command_line_says_what_to_do() {
        let workload = Workload::read("console=ttyS0 writer.mib=96 writer.rate=50\n").unwrap();
        assert_eq!(workload, Workload { mebibytes: 96, rate: 50 });
        assert_eq!(workload.page_time(), Duration::from_nanos(78_125));
        for line in ["", "writer.mib=96", "writer.mib=96 writer.rate=0", "writer.mib=x writer.rate=1"] {
            assert_eq!(Workload::read(line), None, "{line}");
        }
    }

    #[test]
    fn a_page_is_what_its_pass_wrote_and_nothing_else() {
        let mut contents = Page([0; WORDS]);
        fill(&mut contents, 7, 3);
        assert_eq!(check(&contents, 7, 3).count(), 0);
        for (page, pass) in [(7, 2), (7, 4), (6, 3), (8, 3), (3, 7)] {
            assert_eq!(check(&contents, page, pass).count(), WORDS, "page {page}, pass {pass}");
        }
    }

    #[test]
    fn each_word_that_was_lost_is_found() {
        let (mut old, mut contents) = (Page([0; WORDS]), Page([0; WORDS]));
        fill(&mut old, 5, 1);
        fill(&mut contents, 5, 2);
        for word in [0, 1, 255, WORDS - 1] {
            let mut contents = contents;
            contents.0[word] = old.0[word];
            let lost = Lost { word, found: old.0[word], expected: words(5, 2).nth(word).unwrap() };
            assert_eq!(check(&contents, 5, 2).collect::<Vec<_>>(), [lost]);
        }
    }

    #[test]
    fn counts_that_somebody_else_has_changed_are_noticed_once() {
        let mut counts = Counts::new();
        counts.change(|counts| counts.pass += 1);
        counts.pass = 0;
        counts.change(|_| ());
        counts.change(|_| ());
        assert_eq!((counts.lost, counts.pass), (1, 0));
    }
}
