//! Forecasts held against what came.

use super::figures::{Figures, table};
use super::results::Line;

/// What is said of the forecasts of all runs in which a guest was moved over a steady link.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Runs in which a guest was moved over a steady link.
    pub moved: usize,
    /// Of these, the ones for which something was foretold at pass 2 or later.
    pub foretold: usize,
    /// What is held against what.
    pub goals: Vec<Goal>,
}

/// One goal: so many of the forecasts are as near as this.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// What is foretold, and how near it is to be.
    pub what: String,
    /// The share that is to be as near, in per cent.
    pub wanted_percent: usize,
    /// Forecasts that are.
    pub near: usize,
    /// The errors of all, in the unit that `what` names.
    pub errors: Figures,
}

impl Goal {
    /// Whether enough forecasts are as near. Without any there is nothing to be held.
    pub fn held(&self) -> bool {
        self.near * 100 >= self.wanted_percent * self.errors.count()
    }
}

/// A forecast, what came, and the run's.
type Pair = (f64, f64);

/// Holds the forecasts against what came. Runs whose link was stepped are left out: no forecast knows of a step.
///
/// A median error of at most `max(5 ms, 10 %)` is read as: at least half of the forecasts are that near, each measured by
/// its own outcome; the 90th percentile likewise.
pub fn score(lines: &[Line]) -> Score {
    let moved: Vec<_> = lines
        .iter()
        .filter_map(Line::figures)
        .filter(|figures| figures.has_moved() && figures.link_steps_ms.is_empty())
        .collect();
    let foretold: Vec<_> =
        moved.iter().filter_map(|figures| Some((figures.foretold?, figures.came?, *figures))).collect();
    let blackouts: Vec<Pair> = foretold
        .iter()
        .filter_map(|(told, _, figures)| Some((told.blackout_ms, figures.blackout_ms()?)))
        .collect();
    let times: Vec<Pair> =
        foretold.iter().filter_map(|(told, came, _)| Some((told.total_ms?, came.total_ms))).collect();
    let bytes: Vec<Pair> = foretold
        .iter()
        .filter_map(|(told, came, _)| Some((as_f64(told.total_bytes?), as_f64(came.total_bytes))))
        .collect();
    let percent =
        |pairs: &[Pair]| pairs.iter().map(|(told, came)| (told - came).abs() / came * 100.0).collect();
    let milliseconds: Figures = blackouts.iter().map(|(told, came)| (told - came).abs()).collect();
    let goal = |what: &str, wanted_percent, pairs: &[Pair], least, errors| Goal {
        what: what.to_owned(),
        wanted_percent,
        near: pairs.iter().filter(|(told, came)| (told - came).abs() <= f64::max(least, came * 0.1)).count(),
        errors,
    };
    Score {
        moved: moved.len(),
        foretold: foretold.len(),
        goals: vec![
            goal("blackout within max(5 ms, 10 %), ms", 50, &blackouts, 5.0, milliseconds.clone()),
            goal("blackout within max(30 ms, 10 %), ms", 90, &blackouts, 30.0, milliseconds),
            goal("total time within 10 %, %", 95, &times, 0.0, percent(&times)),
            goal("bytes within 10 %, %", 95, &bytes, 0.0, percent(&bytes)),
        ],
    }
}

impl Score {
    /// Whether every goal is held, by forecasts of all runs.
    pub fn held(&self) -> bool {
        self.goals.iter().all(Goal::held)
    }

    /// As people read it.
    pub fn markdown(&self) -> String {
        let row = |goal: &Goal| {
            let of = goal.errors.count();
            vec![
                goal.what.clone(),
                format!("{} of {of}", goal.near),
                format!("{} %", goal.wanted_percent),
                figure(goal.errors.median()),
                figure(goal.errors.percentile(90)),
                figure(goal.errors.largest()),
                if of == 0 {
                    "-"
                } else if goal.held() {
                    "held"
                } else {
                    "missed"
                }
                .to_owned(),
            ]
        };
        let rows: Vec<_> = self.goals.iter().map(row).collect();
        let heading = format!(
            "Forecasts at pass 2: {} of {} guests that were moved over a steady link",
            self.foretold, self.moved
        );
        let columns = ["forecast", "as near", "wanted", "median error", "90th percentile", "largest", "goal"];
        table(&heading, &columns, 1, &rows)
    }
}

fn figure(figure: f64) -> String {
    if figure.is_nan() { "-".to_owned() } else { format!("{figure:.1}") }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are 9 PB")]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::foretold::Foretold;
    use crate::lab::results;
    use crate::lab::results::tests::{figures, line};
    use crate::record::End;

    /// A run with a blackout of 100 ms that was foretold with this error, and its time and bytes with that, in per cent.
    fn run(blackout_error_ms: f64, error_percent: u64) -> Line {
        let told = Foretold {
            blackout_ms: 100.0 + blackout_error_ms,
            total_ms: Some(2000.0 + as_f64(error_percent) * 20.0),
            total_bytes: Some(200_000_000 - error_percent * 2_000_000),
            ..figures().foretold.unwrap()
        };
        line("a", "ours", 1, results::Figures { foretold: Some(told), ..figures() })
    }

    fn held(lines: &[Line]) -> Vec<bool> {
        score(lines).goals.iter().map(Goal::held).collect()
    }

    #[test]
    fn forecasts_are_held_against_what_came() {
        assert_eq!(held(&[run(0.0, 0), run(-10.0, 10)]), [true; 4]);
        // Two of three are nearer than 10 ms, which is less than nine of ten nearer than 30 ms.
        assert_eq!(held(&[run(0.0, 0), run(10.0, 0), run(31.0, 11)]), [true, false, false, false]);
        assert_eq!(held(&[run(11.0, 0), run(11.0, 0), run(5.0, 0)]), [false, true, true, true]);
        let mut nineteen_of_twenty = vec![run(0.0, 10); 19];
        nineteen_of_twenty.push(run(0.0, 50));
        assert_eq!(held(&nineteen_of_twenty), [true; 4]);
    }

    #[test]
    fn a_guest_that_was_not_moved_has_no_outcome_to_be_held_against() {
        let stayed = results::Figures { end: End::NotMigrated, ..figures() };
        let silent = results::Figures { foretold: None, ..figures() };
        let lines = [run(1.0, 1), line("a", "ours", 2, stayed), line("a", "ours", 3, silent)];
        let score = score(&lines);
        assert_eq!((score.moved, score.foretold, score.goals[0].errors.count()), (2, 1, 1));
        let text = score.markdown();
        assert!(
            text.contains("1 of 2 guests")
                && text.contains("| blackout within max(5 ms, 10 %), ms | 1 of 1 | 50 % |"),
            "{text}"
        );
    }
}
