//! Runs the conformance cases against a server: `cargo run -p roomful-client --example conformance -- ws://127.0.0.1:7400 [case …]`.
//!
//! Prints one line a case, and ends with failure if one failed. `clients/conformance/README.md` says what cases may contain.
#![expect(clippy::print_stdout, reason = "what it prints is its result")]

mod actor;
mod case;
mod keyed;
mod step;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;

use case::Case;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments
        .next()
        .context("usage: conformance URL [case …]")?;
    let wanted: Vec<String> = arguments.collect();
    let cases = load(&wanted)?;
    let runs = cases
        .iter()
        .map(|case| async { (&case.name, case.run(&url).await) });
    let mut outcomes = futures_util::stream::iter(runs).buffered(SIDE_BY_SIDE);
    let mut failed = 0;
    while let Some((name, outcome)) = outcomes.next().await {
        match outcome {
            Ok(()) => println!("ok      {name}"),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}: {error:#}");
            }
        }
    }
    println!("{} of {} cases passed", cases.len() - failed, cases.len());
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The cases of those names, or all, by name.
fn load(wanted: &[String]) -> Result<Vec<Case>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/cases");
    let mut paths: Vec<_> = std::fs::read_dir(&directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    let cases: Vec<Case> = paths
        .iter()
        .map(|path| Case::read(path))
        .collect::<Result<_>>()?;
    let known = |name: &String| cases.iter().any(|case| case.name == *name);
    let unknown: Vec<_> = wanted.iter().filter(|name| !known(name)).collect();
    ensure!(unknown.is_empty(), "no such case: {unknown:?}");
    ensure!(
        !cases.is_empty(),
        "there are no cases in {}",
        directory.display()
    );
    Ok(cases
        .into_iter()
        .filter(|case| wanted.is_empty() || wanted.contains(&case.name))
        .collect())
}

/// Cases that run at a time: most of them wait.
const SIDE_BY_SIDE: usize = 8;
