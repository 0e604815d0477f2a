//! Doing a costly thing only when what it depends on has changed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Runs `work` unless `mark` says that it was done for this very `source`; a failure leaves no mark.
///
/// # Errors
/// The source can't be read, or `work` fails.
pub(super) fn when_changed(
    source: &Path,
    mark: &Path,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let wanted = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
    if fs::read(mark).is_ok_and(|done| done == wanted) {
        return Ok(());
    }
    work()?;
    fs::write(mark, wanted).with_context(|| format!("cannot write {}", mark.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once per content: again after a change, and again after a failure.
    #[test]
    fn work_is_done_once_per_content() {
        let dir = std::env::temp_dir().join(format!("roomful-stamp-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (source, mark) = (dir.join("source"), dir.join("mark"));
        let mut runs = 0;
        for (text, succeeds, runs_after) in [
            ("1", false, 1),
            ("1", true, 2),
            ("1", true, 2),
            ("2", true, 3),
        ] {
            fs::write(&source, text).unwrap();
            let outcome = when_changed(&source, &mark, || {
                runs += 1;
                anyhow::ensure!(succeeds, "failed");
                Ok(())
            });
            drop(outcome);
            assert_eq!(runs, runs_after);
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
