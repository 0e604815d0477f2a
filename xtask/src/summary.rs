//! How many tests there were, read from what the test programs print.

use std::fmt;

/// Tests that passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Succeeded.
    pub passed: u64,
    /// Did not.
    pub failed: u64,
}

impl Counts {
    /// One check that succeeded.
    pub(crate) const PASSED: Self = Self {
        passed: 1,
        failed: 0,
    };
    /// One check that failed.
    pub(crate) const FAILED: Self = Self {
        passed: 0,
        failed: 1,
    };

    /// Adds what a line reports: Rust's `test result: ok. 3 passed; 0 failed; …`, Node's `# pass 3`, `ℹ fail 0`, the `3 passed, 0 failed`
    /// of our own scripts, and the `28 of 28 cases passed` of the conformance runners. Any other line reports nothing.
    pub(crate) fn read(&mut self, line: &str) {
        let words: Vec<&str> = line
            .split([' ', ',', ';'])
            .filter(|word| !word.is_empty())
            .collect();
        match words.as_slice() {
            ["test", "result:", _, passed, "passed", failed, "failed", ..]
            | [passed, "passed", failed, "failed"] => {
                self.passed += passed.parse().unwrap_or(0);
                self.failed += failed.parse().unwrap_or(0);
            }
            [passed, "of", all, "cases", "passed"] => {
                let (passed, all) = (passed.parse().unwrap_or(0), all.parse().unwrap_or(0));
                self.passed += passed;
                self.failed += u64::saturating_sub(all, passed);
            }
            ["#" | "ℹ", "pass", passed] => self.passed += passed.parse().unwrap_or(0),
            ["#" | "ℹ", "fail", failed] => self.failed += failed.parse().unwrap_or(0),
            _ => {}
        }
    }

    /// Adds another's.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Whether nothing was counted.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of closing line is understood, and a test's own words are not mistaken for one.
    #[test]
    fn closing_lines_are_counted() {
        for (line, passed, failed) in [
            (
                "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                12,
                0,
            ),
            (
                "test result: FAILED. 11 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
                11,
                1,
            ),
            ("# pass 7", 7, 0),
            ("ℹ fail 2", 0, 2),
            ("9 passed, 1 failed", 9, 1),
            ("27 of 28 cases passed", 27, 1),
            ("27 of 28 cases passed", 27, 1),
            ("test a_join_passed ... ok", 0, 0),
            ("3 passed", 0, 0),
        ] {
            let mut counts = Counts::default();
            counts.read(line);
            assert_eq!(counts, Counts { passed, failed }, "{line}");
        }
    }
}
