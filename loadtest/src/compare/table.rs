//! The comparison as Markdown tables: a row each, and a column for each peer.

use super::comparison::{Cell, Comparison, Goal, Row};
use crate::report::{Spread, number};

/// All lines: what failed first, then the conditions, the ratios to the floor and the medians.
pub(super) fn lines(comparison: &Comparison) -> Vec<String> {
    let failures = comparison.failures();
    let incomplete = failures
        .iter()
        .map(|failure| format!("INCOMPLETE: {failure}"));
    let left_out = comparison
        .left_out
        .iter()
        .map(|left_out| format!("left out: {} ({})", left_out.peer, left_out.reason));
    let servers = (0..).zip(&comparison.peers).flat_map(|(index, column)| {
        // Columns with the same configuration show it once.
        let before = comparison.peers.iter().take(index);
        let is_new = before
            .into_iter()
            .all(|other| other.settings != column.settings);
        let settings = column.settings.iter().filter(move |_| is_new);
        [format!("{}: {}", column.name, column.server)]
            .into_iter()
            .chain(settings.map(|setting| format!("  {setting}")))
    });
    let token = comparison
        .token_check
        .map(|check| format!("a token check adds {} µs to a connect", with_spread(check)));
    incomplete
        .chain(comparison.conditions.iter().cloned())
        .chain(servers)
        .chain(left_out)
        .chain([
            String::new(),
            "Times the floor's: the median of the pairwise ratios, and its 95 % interval; with fewer than six pairs [smallest–largest]."
                .to_owned(),
            String::new(),
        ])
        .chain(table(comparison, ratio))
        .chain([
            String::new(),
            "Medians, and (smallest–largest).".to_owned(),
            String::new(),
        ])
        .chain(table(comparison, |_, cell| with_spread(cell.value)))
        .chain(token)
        .collect()
}

fn table(comparison: &Comparison, text: fn(&Row, &Cell) -> String) -> Vec<String> {
    let head = ["row", "unit", "floor", "goal"]
        .into_iter()
        .map(str::to_owned)
        .chain(
            comparison
                .peers
                .iter()
                .map(|column| column.name.to_string()),
        )
        .collect();
    let cells: Vec<Vec<String>> = [head]
        .into_iter()
        .chain(
            comparison
                .rows
                .iter()
                .map(|row| texts(comparison, row, text)),
        )
        .collect();
    let columns = 4 + comparison.peers.len();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let widths = cells.iter().map(|row| row[column].chars().count());
            widths.max().unwrap_or(0)
        })
        .collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut lines: Vec<String> = cells.iter().map(|row| line(row, &widths)).collect();
    lines.insert(1, line(&rule, &widths));
    lines
}

fn texts(comparison: &Comparison, row: &Row, text: fn(&Row, &Cell) -> String) -> Vec<String> {
    let cell = |peer| {
        if row.failures.iter().any(|failure| failure.peer == peer) {
            return "failed".to_owned();
        }
        row.cell(peer)
            .map_or_else(String::new, |cell| text(row, cell))
    };
    let goal = |goal: Goal| {
        let reached = comparison
            .peers
            .first()
            .and_then(|first| row.cell(first.name))
            .is_some_and(|cell| goal.is_reached(cell));
        format!(
            "{goal}{}",
            if reached { " reached" } else { " not reached" }
        )
    };
    let head = [
        row.name.to_owned(),
        row.unit.to_owned(),
        row.floor.to_string(),
        row.goal.map_or_else(String::new, goal),
    ];
    head.into_iter()
        .chain(comparison.peers.iter().map(|column| cell(column.name)))
        .collect()
}

fn ratio(row: &Row, cell: &Cell) -> String {
    let Some(times) = cell.times_floor.filter(|_| cell.peer != row.floor) else {
        return "–".to_owned();
    };
    match times.interval {
        Some(interval) => format!(
            "{:.2} ({:.2}–{:.2})",
            times.median, interval.low, interval.high
        ),
        None => format!("{:.2} [{:.2}–{:.2}]", times.median, times.min, times.max),
    }
}

/// The median, and the ends in parentheses.
fn with_spread(spread: Spread) -> String {
    format!(
        "{} ({}–{})",
        number(spread.median),
        number(spread.min),
        number(spread.max)
    )
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded: Vec<String> = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:<width$}"))
        .collect();
    format!("| {} |", padded.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::super::comparison::example;
    use super::*;

    #[test]
    fn the_tables_are_markdown_with_even_columns() {
        let lines = lines(&example());
        let rows: Vec<&String> = lines.iter().filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), 8, "{lines:#?}");
        for table in rows.chunks(4) {
            let widths: Vec<usize> = table.iter().map(|line| line.chars().count()).collect();
            assert!(
                widths.windows(2).all(|pair| pair[0] == pair[1]),
                "{table:#?}"
            );
        }
        let cells: Vec<&str> = rows[2].split('|').map(str::trim).collect();
        let expected = [
            "whole",
            "µs",
            "floor",
            "≤ 1.15 × reached",
            "1.20 (1.10–1.30)",
            "–",
            "3.00 [2.00–4.00]",
        ];
        assert_eq!(cells[1..8], expected);
        assert!(rows[6].contains("| 3.00 (2.00–4.00) "), "{}", rows[6]);
    }

    #[test]
    fn what_is_missing_or_failed_is_told() {
        let lines = lines(&example());
        assert_eq!(
            lines[0],
            "INCOMPLETE: part against plain failed: the server died"
        );
        for told in [
            "left out: bun (not set up)",
            "a token check adds 2.50 (2.50–2.50) µs to a connect",
        ] {
            assert!(lines.iter().any(|line| line == told), "{told}: {lines:#?}");
        }
        let part = lines
            .iter()
            .find(|line| line.starts_with("| part"))
            .unwrap();
        assert!(
            part.contains("not reached") && part.contains("| failed"),
            "{part}"
        );
        let settings = lines.iter().filter(|line| line.contains("setting = 1"));
        assert_eq!(settings.count(), 1);
    }
}
