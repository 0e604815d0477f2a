//! `cargo xtask pages`: the page that the server embeds, built from its TypeScript source.
//!
//! The built files are committed, so that building the server needs no Node. The check builds them again and compares.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::context::Context;
use crate::run;

const ASSETS: &str = "server/assets";

/// Writes `server/assets`.
///
/// # Errors
/// The build fails.
pub(crate) fn build(context: &Context) -> Result<()> {
    run::line(context, "clients/typescript: npm run build:page")
}

/// Builds the page and compares it with what was there.
///
/// # Errors
/// The build fails, or it wrote something else than what was there; the new files stay.
pub(crate) fn check(context: &Context) -> Result<()> {
    let assets = context.root.join(ASSETS);
    let before = contents(&assets)?;
    build(context)?;
    let changed = differences(&before, &contents(&assets)?);
    if !changed.is_empty() {
        bail!(
            "{ASSETS} was not current: {}. The files are built now; commit them",
            changed.join(", ")
        );
    }
    Ok(())
}

type Contents = BTreeMap<PathBuf, Vec<u8>>;

fn differences(before: &Contents, after: &Contents) -> Vec<String> {
    let names = before
        .keys()
        .chain(after.keys().filter(|name| !before.contains_key(*name)));
    names
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| name.display().to_string())
        .collect()
}

fn contents(dir: &Path) -> Result<Contents> {
    let mut found = Contents::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let listing =
            fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in listing {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changed, new and vanished files are each named once.
    #[test]
    fn every_difference_is_named() {
        let files = |list: &[(&str, &str)]| -> Contents {
            list.iter()
                .map(|(name, text)| (PathBuf::from(name), text.as_bytes().to_vec()))
                .collect()
        };
        let before = files(&[("same", "1"), ("changed", "1"), ("gone", "1")]);
        let after = files(&[("same", "1"), ("changed", "2"), ("new", "1")]);
        assert_eq!(differences(&before, &after), ["changed", "gone", "new"]);
    }
}
