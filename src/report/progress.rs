//! The line that is redrawn on a terminal, and the lines elsewhere.

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::migrate::history::Witness;
use crate::qmp::wire::printable;
use crate::record::{Entry, PhaseName, Record, Sample};
use crate::units::{show_bytes, show_duration};

/// Shows people how far a migration is, on standard error.
#[derive(Debug)]
pub struct Progress {
    face: Face,
}

#[derive(Debug)]
enum Face {
    /// One line, redrawn.
    Terminal(ProgressBar),
    /// One line per pass and per phase that matters.
    Lines,
}

impl Progress {
    /// A redrawn line where standard error is a terminal, else lines.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr_with_hz(10));
        if bar.is_hidden() {
            return Self { face: Face::Lines };
        }
        // A template that does not parse is a mistake of this line, which the tests draw.
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {percent:>3} %  {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { face: Face::Terminal(bar) }
    }

    /// A line, in which whatever others have said cannot speak to the terminal.
    fn say(&self, text: &str) {
        let text = printable(text);
        match &self.face {
            Face::Terminal(bar) => bar.println(text),
            Face::Lines => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Witness for Progress {
    fn told(&mut self, record: &Record, entry: &Entry) {
        match entry {
            Entry::Phase(change) => match &self.face {
                Face::Terminal(bar) if change.phase == PhaseName::Ended => bar.finish_and_clear(),
                Face::Terminal(bar) => bar.set_message(change.phase.as_str()),
                Face::Lines => {}
            },
            Entry::Sample(sample) => {
                if let Face::Terminal(bar) = &self.face {
                    bar.set_position(percent(sample));
                    bar.set_message(sample_line(sample));
                }
            }
            Entry::Pass(_) => {
                // The sample that shows it follows; elsewhere than on a terminal the pass is the line.
                if let (Face::Lines, Entry::Pass(pass)) = (&self.face, entry) {
                    let rate = record.samples.last().map_or(0, |sample| sample.stream_bytes_per_second);
                    let rate = if rate == 0 { String::new() } else { format!(", {}/s", show_bytes(rate)) };
                    let throttle = record.samples.last().and_then(throttle_text);
                    let throttle = throttle.map_or_else(String::new, |text| format!(", {text}"));
                    self.say(&format!(
                        "{}: pass {}: {} left{rate}{throttle}",
                        record.id,
                        pass.number,
                        show_bytes(pass.remaining_bytes)
                    ));
                }
            }
            Entry::Decision(decision) => match &decision.policy {
                Some(policy) => self.say(&format!("{}: {policy} would: {}", record.id, decision.reason)),
                None => self.say(&format!("{}: {}", record.id, decision.reason)),
            },
            Entry::Warning(warning) => {
                self.say(&format!("warning: {}", warning.message));
                if let Some(hint) = &warning.hint {
                    self.say(&format!("hint: {hint}"));
                }
            }
            Entry::Source(_)
            | Entry::Destination(_)
            | Entry::DirtyWindow(_)
            | Entry::Blocker(_)
            | Entry::Result(_) => {}
        }
    }
}

/// How much of the guest's memory is on the destination, as far as is known, in per cent.
fn percent(sample: &Sample) -> u64 {
    let there = sample.total_bytes.saturating_sub(sample.remaining_bytes);
    (u128::from(there) * 100).checked_div(u128::from(sample.total_bytes)).map_or(0, |percent| {
        // At most 100.
        u64::try_from(percent).unwrap_or(100)
    })
}

/// `throttle 60 %`, where there is one. 1 % is a throttle by hand that is released.
fn throttle_text(sample: &Sample) -> Option<String> {
    (sample.throttle_percent > 1).then(|| format!("throttle {} %", sample.throttle_percent))
}

/// `pass 2, 812.0 MiB/s, dirty 51.0 MiB/s, 3 s left`.
pub(super) fn sample_line(sample: &Sample) -> String {
    let mut parts = vec![format!("pass {}", sample.passes.max(1))];
    if sample.stream_bytes_per_second > 0 {
        parts.push(format!("{}/s", show_bytes(sample.stream_bytes_per_second)));
    }
    if sample.dirty_bytes_per_second > 0 {
        parts.push(format!("dirty {}/s", show_bytes(sample.dirty_bytes_per_second)));
    }
    parts.extend(throttle_text(sample));
    // A guest that dirties as fast as the stream has no time left to speak of.
    let shrinking = sample.stream_bytes_per_second.saturating_sub(sample.dirty_bytes_per_second);
    if let Some(left) = sample.remaining_bytes.saturating_mul(1000).checked_div(shrinking) {
        parts.push(format!("{} left", show_duration(Duration::from_millis(left))));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_one_line_that_fits_a_terminal() {
        let sample = Sample {
            at_ms: 0.0,
            transferred_bytes: 0,
            remaining_bytes: 300 << 20,
            total_bytes: 400 << 20,
            passes: 2,
            dirty_bytes_per_second: 50 << 20,
            stream_bytes_per_second: 150 << 20,
            downtime_limit_ms: 2,
            throttle_percent: 0,
        };
        assert_eq!(sample_line(&sample), "pass 2, 150.0 MiB/s, dirty 50.0 MiB/s, 3 s left");
        let throttled = |throttle_percent| sample_line(&Sample { throttle_percent, ..sample });
        assert_eq!(throttled(60), "pass 2, 150.0 MiB/s, dirty 50.0 MiB/s, throttle 60 %, 3 s left");
        assert_eq!(throttled(1), sample_line(&sample), "a throttle by hand that is released");
        assert_eq!(percent(&sample), 25);
        assert!("==================== 100 %  ".len() + sample_line(&sample).len() <= 80);
    }
}
