//! What the server counts of its journal, from its metrics.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Batches and what was in them, up to a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Counts {
    /// Batches that were written and synced.
    pub(super) commits: f64,
    /// Records in them.
    pub(super) records: f64,
    /// Their bytes.
    pub(super) bytes: f64,
    /// Seconds from the first command of a batch to its sync.
    pub(super) commit_s: f64,
}

const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Counts {
    /// Now.
    ///
    /// # Errors
    /// The server doesn't answer, or doesn't count that.
    pub(super) fn of(server: SocketAddr) -> Result<Self> {
        let text = metrics(server).context("the server's metrics")?;
        Self::read(&text)
    }

    /// From an earlier moment to this one.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            commits: self.commits - earlier.commits,
            records: self.records - earlier.records,
            bytes: self.bytes - earlier.bytes,
            commit_s: self.commit_s - earlier.commit_s,
        }
    }

    fn read(text: &str) -> Result<Self> {
        Ok(Self {
            commits: sum(text, "roomful_journal_commits_total")?,
            records: sum(text, "roomful_journal_records_total")?,
            bytes: sum(text, "roomful_journal_written_bytes_total")?,
            commit_s: sum(text, "roomful_journal_commit_seconds_sum")?,
        })
    }
}

fn metrics(server: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or("");
    ensure!(status.contains(" 200 "), "{status}");
    Ok(answer)
}

/// Over all labels.
fn sum(text: &str, name: &str) -> Result<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.split_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.trim().parse::<f64>().ok()
    });
    values
        .reduce(|sum, value| sum + value)
        .with_context(|| format!("the server counts no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_sums_over_labels_of_exactly_that_name() {
        let text = "# HELP a_total x\na_total{shard=\"0\"} 3\na_total{shard=\"1\"} 4\na_total_more 9\nb 1.5\n";
        assert!((sum(text, "a_total").unwrap() - 7.0).abs() < 1e-9);
        assert!((sum(text, "b").unwrap() - 1.5).abs() < 1e-9);
        let text = format!("{:#}", sum(text, "c").unwrap_err());
        assert!(text.contains("counts no c"), "{text}");
    }
}
