//! What `/metrics` says, as a map.

use std::collections::BTreeMap;

/// One scrape: series, as written with their labels, to values.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the Prometheus text format.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Self(series.collect())
    }

    /// The sum of all series of a name.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn value(&self, name: &str) -> f64 {
        let values: Vec<f64> = self.named(name).map(|(_, value)| value).collect();
        assert!(
            !values.is_empty(),
            "no metric {name}; there are:\n{}",
            self.names()
        );
        values.iter().sum()
    }

    /// The sum of a name's series with this label; 0 where there is none yet.
    #[must_use]
    pub fn labelled(&self, name: &str, label: &str, value: &str) -> f64 {
        let wanted = format!("{label}=\"{value}\"");
        self.named(name)
            .filter(|(series, _)| series.contains(&wanted))
            .map(|(_, value)| value)
            .sum()
    }

    /// Whether there is a series, written as `name` or `name{label="value"}`; it may have more labels.
    #[must_use]
    pub fn has(&self, series: &str) -> bool {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}');
        self.named(name)
            .any(|(series, _)| labels.split(',').all(|label| series.contains(label)))
    }

    /// The values of several names, for comparing before and after.
    #[must_use]
    pub fn values(&self, names: &[&str]) -> BTreeMap<String, f64> {
        names
            .iter()
            .map(|name| ((*name).to_owned(), self.value(name)))
            .collect()
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let is_named = move |series: &str| series.split('{').next() == Some(name);
        self.0
            .iter()
            .filter(move |(series, _)| is_named(series))
            .map(|(series, value)| (series.as_str(), *value))
    }

    fn names(&self) -> String {
        self.0
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_name_are_summed_and_labels_selected() {
        let text = "# HELP a x\n# TYPE a counter\na{shard=\"0\",code=\"1008\"} 2\na{shard=\"1\",code=\"1009\"} 3\nab 7\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.value("a"), 5.0);
        assert_eq!(metrics.labelled("a", "code", "1009"), 3.0);
        assert_eq!(metrics.labelled("a", "code", "4431"), 0.0);
        assert_eq!(metrics.value("ab"), 7.0);
        for (series, there) in [
            ("ab", true),
            ("a", true),
            ("a{code=\"1009\"}", true),
            ("a{shard=\"0\",code=\"1008\"}", true),
            ("a{shard=\"0\",code=\"1009\"}", false),
            ("b", false),
        ] {
            assert_eq!(metrics.has(series), there, "{series}");
        }
    }
}
