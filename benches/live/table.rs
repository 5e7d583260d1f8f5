//! Tables and goals, printed.

use qmigrate::lab::figures;

/// Prints a table with a heading; the first column is words, the others are figures.
pub(crate) fn print(heading: &str, columns: &[&str], rows: &[Vec<String>]) {
    println!("{}", figures::table(heading, columns, 1, rows));
}

/// Prints what was hoped for beside what was measured.
pub(crate) fn goal(what: &str, goal: f64, measured: f64, unit: &str) {
    let verdict =
        if measured <= goal { "held".to_owned() } else { format!("missed by {:.2} {unit}", measured - goal) };
    println!("{what}: goal <= {goal:.2} {unit}, measured {measured:.2} {unit}: {verdict}.\n");
}
