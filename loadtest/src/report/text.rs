//! Numbers as people read them.

/// Three significant digits where a number is small, none after the point where it is large.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        small if small < 1.0 => format!("{value:.3}"),
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        for (value, text) in [
            (0.1704, "0.170"),
            (2.7, "2.70"),
            (26.14, "26.1"),
            (1_234.5, "1234"),
            (0.0, "0.000"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
