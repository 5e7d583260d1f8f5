//! Medians, and Markdown.

use std::fmt;

/// A series of figures of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<f64>);

impl FromIterator<f64> for Figures {
    fn from_iter<T: IntoIterator<Item = f64>>(figures: T) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_unstable_by(f64::total_cmp);
        Self(figures)
    }
}

impl Figures {
    pub(crate) fn median(&self) -> f64 {
        let (lower, upper) = (self.0.len().saturating_sub(1) / 2, self.0.len() / 2);
        match (self.0.get(lower), self.0.get(upper)) {
            (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
            _ => f64::NAN,
        }
    }

    pub(crate) fn smallest(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn largest(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// How many lie within, and how many there are.
    pub(crate) fn share(&self, within: std::ops::RangeInclusive<f64>) -> String {
        format!("{} of {}", self.0.iter().filter(|figure| within.contains(figure)).count(), self.0.len())
    }
}

/// `median (smallest - largest)`.
impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("-");
        }
        let digits = if self.median() < 10.0 { 2 } else { 1 };
        let (median, smallest, largest) = (self.median(), self.smallest(), self.largest());
        write!(formatter, "{median:.digits$} ({smallest:.digits$} - {largest:.digits$})")
    }
}

/// Prints a table with a heading; the first column is words, the others are figures.
pub(crate) fn print(heading: &str, columns: &[&str], rows: &[Vec<String>]) {
    println!("#### {heading}\n");
    println!("| {} |", columns.join(" | "));
    let rules = columns.iter().enumerate().map(|(index, _)| if index == 0 { "---" } else { "---:" });
    println!("|{}|", rules.collect::<Vec<_>>().join("|"));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
    println!();
}

/// Prints what was hoped for beside what was measured.
pub(crate) fn goal(what: &str, goal: f64, measured: f64, unit: &str) {
    let verdict =
        if measured <= goal { "held".to_owned() } else { format!("missed by {:.2} {unit}", measured - goal) };
    println!("{what}: goal <= {goal:.2} {unit}, measured {measured:.2} {unit}: {verdict}.\n");
}
