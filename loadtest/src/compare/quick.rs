//! `compare --quick`: one line for each figure, to be read by people and by scripts.

use super::comparison::{Comparison, Row, pairs};
use crate::peer::PeerName;
use crate::report::{Spread, number, ratios};

/// Whom the first column is compared with besides the floor: the cheapest of these that was measured.
pub(super) const PEERS: [PeerName; 2] = [PeerName::BUN, PeerName::PLAIN];

/// Comments with what was left out or failed, the header, and the rows that are whole.
pub(super) fn lines(comparison: &Comparison) -> Vec<String> {
    let comment = |text: &String| format!("# {text}");
    let left_out = comparison
        .left_out
        .iter()
        .map(|left_out| format!("# left out: {} ({})", left_out.peer, left_out.reason));
    let failures = comparison.failures();
    let incomplete = failures
        .iter()
        .map(|failure| format!("# INCOMPLETE: {failure}"));
    let rows = comparison
        .rows
        .iter()
        .filter(|row| row.failures.is_empty())
        .filter_map(|row| line(row, comparison.peers.first()?.name));
    incomplete
        .chain(comparison.conditions.iter().map(comment))
        .chain(left_out)
        .chain(["# name value unit ratio_to_floor ratio_to_best_peer".to_owned()])
        .chain(rows)
        .collect()
}

/// `-` stands where there is nothing to divide by.
fn line(row: &Row, subject: PeerName) -> Option<String> {
    let cell = row.cell(subject)?;
    let of_peer = |peer| {
        let peer = row.cell(peer).filter(|peer| peer.peer != subject)?;
        let (values, others) = pairs(&cell.runs, &peer.runs);
        let ratio = Spread::of(&ratios(&values, &others)).median;
        ratio.is_finite().then_some(ratio)
    };
    // The cheapest peer is the one that leaves the largest ratio.
    let best = PEERS.into_iter().filter_map(of_peer).reduce(f64::max);
    let times_floor = cell.times_floor.map(|times| times.median);
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |it| format!("{it:.2}"));
    Some(format!(
        "{} {} {} {} {}",
        row.name,
        number(cell.value.median),
        row.unit,
        ratio(times_floor),
        ratio(best)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::comparison::example;
    use super::*;

    #[test]
    fn a_line_has_the_ratios_to_the_floor_and_to_the_best_peer_and_a_failed_row_has_none() {
        let lines = lines(&example());
        let bare: Vec<&String> = lines.iter().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(bare, ["whole 3.00 µs 1.20 0.50"]);
        assert_eq!(
            lines[0],
            "# INCOMPLETE: part against plain failed: the server died"
        );
        assert!(
            lines.contains(&"# left out: bun (not set up)".to_owned()),
            "{lines:#?}"
        );
    }
}
