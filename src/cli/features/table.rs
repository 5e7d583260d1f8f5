//! The table of features as text, as Markdown, and as JSON.

use qmigrate::qemu::dialect::features::{FOOTNOTE, Features, ROWS, Row};
use qmigrate::qmp::wire::printable;
use qmigrate::record::SCHEMA;
use serde_json::{Map, Value, json};

/// One QEMU.
pub(super) struct Column {
    /// As it was typed.
    pub(super) typed: String,
    /// What it says.
    pub(super) features: Features,
}

impl Column {
    fn version(&self) -> String {
        let version = &self.features.version;
        format!("{}.{}.{}", version.major, version.minor, version.micro)
    }

    /// What it has that has no row.
    fn also(&self) -> Option<String> {
        let unknown = self.features.unknown();
        let kinds = unknown.iter().map(|unknown| format!("{} {}", unknown.kind, unknown.names.join(", ")));
        let kinds = kinds.collect::<Vec<_>>();
        (!kinds.is_empty()).then(|| printable(&format!("also in {}: {}", self.version(), kinds.join("; "))))
    }
}

/// A row that is shown, with what each QEMU says to it.
struct Line {
    row: &'static Row,
    cells: Vec<String>,
}

impl Line {
    fn label(&self) -> String {
        format!("{}{}", self.row.name, if self.row.has_footnote() { " *" } else { "" })
    }
}

/// The rows to be shown, group by group. A row of something that none of them knows says nothing.
fn groups(columns: &[Column], differences: bool) -> Vec<Vec<Line>> {
    let line = |row: &'static Row| {
        let cells = columns.iter().map(|column| printable(column.features.cell(row).text()));
        Line { row, cells: cells.collect() }
    };
    let differs = |line: &Line| line.cells.windows(2).any(|pair| pair[0] != pair[1]);
    let is_somewhere = |line: &Line| line.cells.iter().any(|cell| cell != "-");
    let groups = ROWS.chunk_by(|one, next| one.group == next.group);
    let shown = groups.map(|rows| {
        rows.iter()
            .map(line)
            .filter(|line| if differences { differs(line) } else { is_somewhere(line) })
            .collect()
    });
    shown.filter(|lines: &Vec<Line>| !lines.is_empty()).collect()
}

/// For people: columns under their versions, the QEMUs by name below.
pub(super) fn text(columns: &[Column], differences: bool) -> Vec<String> {
    let groups = groups(columns, differences);
    let labels = groups.iter().flatten().map(|line| line.label().chars().count());
    let label_width = labels.max().unwrap_or(0);
    let width_of = |number: usize| {
        let cells = groups.iter().flatten().map(|line| line.cells[number].chars().count());
        cells.chain([columns[number].version().len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width_of).collect();
    let format = |label: &str, cells: &[String]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$}"));
        format!("{label:<0$} {1}", label_width + 1, cells.collect::<String>()).trim_end().to_owned()
    };
    let versions = columns.iter().map(Column::version).collect::<Vec<_>>();
    let mut lines = vec![format("", &versions)];
    for group in &groups {
        lines.extend(group.first().map(|line| line.row.group.to_owned()));
        lines.extend(group.iter().map(|line| format(&format!(" {}", line.label()), &line.cells)));
    }
    lines.push(String::new());
    lines.extend(columns.iter().map(|column| format!("{}: {}", column.features.version, column.typed)));
    lines.extend(columns.iter().filter_map(Column::also));
    lines.extend(footnote(&groups));
    lines
}

/// For a README.
pub(super) fn markdown(columns: &[Column], differences: bool) -> Vec<String> {
    let groups = groups(columns, differences);
    let row = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let with_label = |label: String, cells: Vec<String>| row([vec![label], cells].concat());
    let head = with_label(String::new(), columns.iter().map(Column::version).collect());
    let mut lines = vec![head, row(vec!["---".to_owned(); columns.len() + 1])];
    for group in &groups {
        let empty = vec![String::new(); columns.len()];
        lines.extend(group.first().map(|line| with_label(format!("**{}**", line.row.group), empty)));
        lines.extend(group.iter().map(|line| with_label(line.label(), line.cells.clone())));
    }
    for line in columns.iter().filter_map(Column::also).chain(footnote(&groups)) {
        // Else it would begin a list.
        lines.extend([String::new(), line.replacen("* ", "\\* ", 1)]);
    }
    lines
}

fn footnote(groups: &[Vec<Line>]) -> Option<String> {
    let is_needed = groups.iter().flatten().any(|line| line.row.has_footnote());
    is_needed.then(|| format!("* {FOOTNOTE}"))
}

/// For programs: all rows, whatever the others say.
pub(super) fn json(column: &Column) -> Value {
    let Column { typed, features } = column;
    let mut groups = Map::new();
    for rows in ROWS.chunk_by(|one, next| one.group == next.group) {
        let cells = rows.iter().map(|row| (row.name.to_owned(), features.cell(row).json()));
        groups.extend(
            rows.first().map(|row| (row.group.replace(' ', "_"), cells.collect::<Map<_, _>>().into())),
        );
    }
    let unknown = features.unknown().into_iter();
    let unknown = unknown.map(|unknown| (unknown.kind.replace(' ', "_"), json!(unknown.names)));
    json!({
        "schema": SCHEMA,
        "type": "features",
        "qemu": typed,
        "version": column.version(),
        "package": features.version.package,
        "features": groups,
        "unknown": unknown.collect::<Map<_, _>>(),
    })
}
