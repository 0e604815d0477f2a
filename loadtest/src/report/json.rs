//! A result for programs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Writes a result as JSON.
///
/// # Errors
/// The file can't be written.
pub(crate) fn write(file: &Path, result: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(result).context("the result can't be written as JSON")?;
    text.push('\n');
    fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}
