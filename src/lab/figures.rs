//! Medians, shares and Markdown tables.

use std::fmt;

/// A series of figures of one kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures(Vec<f64>);

impl FromIterator<f64> for Figures {
    fn from_iter<T: IntoIterator<Item = f64>>(figures: T) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_unstable_by(f64::total_cmp);
        Self(figures)
    }
}

impl Figures {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The median; not a number if there are none.
    pub fn median(&self) -> f64 {
        let (lower, upper) = (self.0.len().saturating_sub(1) / 2, self.0.len() / 2);
        match (self.0.get(lower), self.0.get(upper)) {
            (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
            _ => f64::NAN,
        }
    }

    /// The smallest figure that at least so many per cent of them do not exceed; not a number if there are none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let at = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The smallest; not a number if there are none.
    pub fn smallest(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The largest; not a number if there are none.
    pub fn largest(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// How many lie within, and how many there are.
    pub fn share(&self, within: std::ops::RangeInclusive<f64>) -> String {
        format!("{} of {}", self.0.iter().filter(|figure| within.contains(figure)).count(), self.0.len())
    }
}

/// `median (smallest - largest)`.
impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.pad("-");
        }
        let digits = if self.median() < 10.0 { 2 } else { 1 };
        let (median, smallest, largest) = (self.median(), self.smallest(), self.largest());
        formatter.pad(&format!("{median:.digits$} ({smallest:.digits$} - {largest:.digits$})"))
    }
}

/// A Markdown table with a heading; the first columns are words, those from `first_figure` on are figures.
pub fn table(heading: &str, columns: &[&str], first_figure: usize, rows: &[Vec<String>]) -> String {
    let rule = |at| if at < first_figure { "---" } else { "---:" };
    let rules: Vec<_> = (0..columns.len()).map(rule).collect();
    let mut lines = vec![format!("#### {heading}\n"), format!("| {} |", columns.join(" | "))];
    lines.push(format!("|{}|", rules.join("|")));
    lines.extend(rows.iter().map(|row| format!("| {} |", row.join(" | "))));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_the_sorted_figures() {
        let of = |figures: &[f64]| figures.iter().copied().collect::<Figures>();
        let ten: Figures = (1..=10).rev().map(f64::from).collect();
        assert_eq!((ten.median(), ten.percentile(90), ten.percentile(100)), (5.5, 9.0, 10.0));
        assert_eq!((of(&[3.0]).median(), of(&[3.0]).percentile(90)), (3.0, 3.0));
        assert!(of(&[]).median().is_nan() && of(&[]).percentile(90).is_nan());
        assert_eq!(of(&[1.0, 2.0, 12.0]).to_string(), "2.00 (1.00 - 12.00)");
        assert_eq!(ten.share(2.0..=4.0), "3 of 10");
    }

    #[test]
    fn a_table_is_markdown() {
        let text = table("H", &["a", "b"], 1, &[vec!["x".to_owned(), "1".to_owned()]]);
        assert_eq!(text, "#### H\n\n| a | b |\n|---|---:|\n| x | 1 |\n");
    }
}
