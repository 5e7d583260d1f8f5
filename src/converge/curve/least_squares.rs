//! Least squares without negative parts (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23).

/// A column is worth taking in while it would still explain so much of what was wanted.
const WORTH: f64 = 1e-6;
/// Added to the diagonal, so that columns that look alike have a solution; as a share of it.
const RIDGE: f64 = 1e-10;

/// The nearest of few columns: one, two, or as many as come nearest of all, where each more has to take off so much of
/// what is left over (the sum of its squares). What was measured has errors, and a sum of many columns follows these.
pub(super) fn simplest(columns: &[Vec<f64>], wanted: &[f64], worth: f64) -> Vec<f64> {
    let left_over = |parts: &[f64]| {
        let rest = rest(columns, parts, wanted);
        dot(&rest, &rest)
    };
    let one = nearest_one(columns, wanted);
    let with_one = left_over(&one);
    if with_one <= worth {
        return one;
    }
    let two = nearest_two(columns, wanted);
    let many = without_negative_parts(columns, wanted);
    let taken = many.iter().filter(|part| **part > 0.0).map(|_| worth).sum::<f64>();
    let options =
        [(with_one + worth, one), (left_over(&two) + 2.0 * worth, two), (left_over(&many) + taken, many)];
    options.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or_else(Vec::new, |(_, parts)| parts)
}

fn nearest_one(columns: &[Vec<f64>], wanted: &[f64]) -> Vec<f64> {
    let mut parts = vec![0.0; columns.len()];
    let mut most = 0.0;
    for (index, column) in columns.iter().enumerate() {
        let (square, common) = (dot(column, column), dot(column, wanted));
        if square > 0.0 && common * common / square > most * (1.0 + WORTH) {
            most = common * common / square;
            parts.fill(0.0);
            parts[index] = common / square;
        }
    }
    parts
}

/// No two that are nearer where one of them would be negative.
fn nearest_two(columns: &[Vec<f64>], wanted: &[f64]) -> Vec<f64> {
    let common: Vec<f64> = columns.iter().map(|column| dot(column, wanted)).collect();
    let squares: Vec<f64> = columns.iter().map(|column| dot(column, column)).collect();
    let mut parts = vec![0.0; columns.len()];
    let mut best = (0.0, None);
    for second in 1..columns.len() {
        for first in 0..second {
            let both = dot(&columns[first], &columns[second]);
            let apart = squares[first] * squares[second] - both * both;
            if apart <= squares[first] * squares[second] * WORTH {
                continue;
            }
            let of_first = (common[first] * squares[second] - common[second] * both) / apart;
            let of_second = (common[second] * squares[first] - common[first] * both) / apart;
            let explained = of_first * common[first] + of_second * common[second];
            if of_first > 0.0 && of_second > 0.0 && explained > best.0 * (1.0 + WORTH) {
                best = (explained, Some(((first, of_first), (second, of_second))));
            }
        }
    }
    if let Some(((first, of_first), (second, of_second))) = best.1 {
        parts[first] = of_first;
        parts[second] = of_second;
    }
    parts
}

/// So much of each column, none of it negative, comes nearest to what is wanted. Of columns that do as well the first
/// one is taken.
pub(super) fn without_negative_parts(columns: &[Vec<f64>], wanted: &[f64]) -> Vec<f64> {
    let norms: Vec<f64> = columns.iter().map(|column| dot(column, column).sqrt()).collect();
    let mut parts = vec![0.0; columns.len()];
    let mut taken: Vec<usize> = Vec::new();
    let enough = WORTH * dot(wanted, wanted).sqrt();
    for _ in 0..3 * columns.len() {
        let rest = rest(columns, &parts, wanted);
        let pull = |index: usize| dot(&columns[index], &rest) / norms[index];
        let candidates = (0..columns.len()).filter(|index| norms[*index] > 0.0 && !taken.contains(index));
        let best = candidates.map(|index| (index, pull(index))).fold(None, |best, next| match best {
            Some((_, most)) if next.1 <= most + enough => best,
            _ => Some(next),
        });
        let Some((index, _)) = best.filter(|(_, pull)| *pull > enough) else { break };
        taken.push(index);
        settle(columns, wanted, &mut taken, &mut parts);
    }
    parts
}

/// Solves for the columns that are taken, and lets those go that would be negative.
fn settle(columns: &[Vec<f64>], wanted: &[f64], taken: &mut Vec<usize>, parts: &mut [f64]) {
    while !taken.is_empty() {
        let solved = solve(columns, wanted, taken);
        // As far towards the solution as nothing becomes negative: whoever is first to be nothing goes.
        let steps = taken.iter().zip(&solved).filter(|(_, value)| **value <= 0.0);
        let steps = steps.map(|(&index, value)| (index, parts[index] / (parts[index] - value)));
        let Some((gone, step)) = steps.min_by(|a, b| a.1.total_cmp(&b.1)) else {
            for (&index, value) in taken.iter().zip(solved) {
                parts[index] = value;
            }
            return;
        };
        for (&index, value) in taken.iter().zip(solved) {
            parts[index] = (parts[index] + step * (value - parts[index])).max(0.0);
        }
        parts[gone] = 0.0;
        taken.retain(|&index| parts[index] > 0.0);
    }
}

/// The normal equations of some columns, by elimination.
fn solve(columns: &[Vec<f64>], wanted: &[f64], taken: &[usize]) -> Vec<f64> {
    let mut rows: Vec<Vec<f64>> = taken
        .iter()
        .map(|&row| {
            let mut entries: Vec<f64> =
                taken.iter().map(|&column| dot(&columns[row], &columns[column])).collect();
            entries.push(dot(&columns[row], wanted));
            entries
        })
        .collect();
    let size = rows.len();
    for (index, row) in rows.iter_mut().enumerate() {
        row[index] *= 1.0 + RIDGE;
    }
    for pivot in 0..size {
        let (above, below) = rows.split_at_mut(pivot + 1);
        let head = &above[pivot];
        for row in below {
            let factor = row[pivot] / head[pivot];
            row.iter_mut().zip(head).skip(pivot).for_each(|(entry, of_head)| *entry -= factor * of_head);
        }
    }
    let mut solved = vec![0.0; size];
    for index in (0..size).rev() {
        let known: f64 = (index + 1..size).map(|later| rows[index][later] * solved[later]).sum();
        solved[index] = (rows[index][size] - known) / rows[index][index];
    }
    solved
}

fn rest(columns: &[Vec<f64>], parts: &[f64], wanted: &[f64]) -> Vec<f64> {
    let mut rest = wanted.to_vec();
    for (column, part) in columns.iter().zip(parts).filter(|(_, part)| **part > 0.0) {
        rest.iter_mut().zip(column).for_each(|(rest, entry)| *rest -= entry * part);
    }
    rest
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_parts_of_a_sum_are_found_and_none_is_negative() {
        let columns = [vec![1.0, 0.0, 0.0], vec![1.0, 1.0, 0.0], vec![1.0, 1.0, 1.0]];
        let parts = without_negative_parts(&columns, &[6.0, 5.0, 3.0]);
        assert!(
            parts.iter().zip([1.0, 2.0, 3.0]).all(|(part, exact)| (part - exact).abs() < 1e-6),
            "{parts:?}"
        );
        let parts = without_negative_parts(&columns, &[1.0, 2.0, 1.0]);
        assert!(parts.iter().all(|part| *part >= 0.0), "{parts:?}");
        assert_eq!(without_negative_parts(&columns, &[0.0, 0.0, 0.0]), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn of_columns_that_do_as_well_the_first_is_taken() {
        let parts = without_negative_parts(&[vec![2.0], vec![1.0]], &[4.0]);
        assert!((parts[0] - 2.0).abs() < 1e-6 && parts[1].abs() < 1e-6, "{parts:?}");
    }

    #[test]
    fn another_column_is_taken_only_where_it_is_worth_it() {
        let columns = [vec![1.0, 1.0, 1.0], vec![0.0, 1.0, 0.0], vec![0.0, 0.0, 1.0]];
        let taken =
            |wanted: &[f64]| simplest(&columns, wanted, 0.01).iter().filter(|part| **part > 0.0).count();
        assert_eq!(taken(&[1.0, 1.05, 1.0]), 1);
        assert_eq!(taken(&[1.0, 1.5, 1.0]), 2);
        assert_eq!(taken(&[1.0, 1.5, 1.5]), 3);
        assert_eq!(taken(&[0.0, 0.0, 0.0]), 0);
    }

    proptest! {
        /// No part can be moved to a better place.
        #[test]
        fn it_is_the_nearest_there_is(
            columns in proptest::collection::vec(proptest::collection::vec(0.0..1.0_f64, 6), 1..12),
            wanted in proptest::collection::vec(0.0..1.0_f64, 6),
        ) {
            let parts = without_negative_parts(&columns, &wanted);
            let left = rest(&columns, &parts, &wanted);
            for (column, part) in columns.iter().zip(parts) {
                let pull = dot(column, &left);
                prop_assert!(part >= 0.0 && pull < 1e-4, "{} {}", part, pull);
                prop_assert!(part == 0.0 || pull.abs() < 1e-4, "{} {}", part, pull);
            }
        }
    }
}
