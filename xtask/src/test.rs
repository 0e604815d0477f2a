//! `cargo xtask test`: set up, run the stages, say how it went.
//!
//! The run stops at the first stage that fails. Its last line is `N passed, N failed`; what `--without` left out comes after that. Exit code 0: everything passed;
//! 1: something failed; 3: something could not be set up.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::context::Context;
use crate::setup::{self, Tool};
use crate::stages::{Action, STAGES, Stage};
use crate::summary::Counts;
use crate::{console, guard, mutants, pages, run, tidy};

const EXIT_NOT_SET_UP: u8 = 3;

/// Which stages to run.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Tools not to set up; the stages that need them are left out.
    without: Vec<Tool>,
    /// Stages to run alone; empty: all.
    stages: Vec<String>,
}

impl Selection {
    /// Reads the command's arguments.
    ///
    /// # Errors
    /// A name that is no tool or no stage.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut selection = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if *word == "--without" {
                let names = words
                    .next()
                    .context("--without takes a list, for example browsers,python")?;
                for name in names.split(',') {
                    selection.without.push(Tool::parse(name)?);
                }
            } else if STAGES.iter().any(|stage| stage.name == *word) {
                selection.stages.push((*word).to_owned());
            } else {
                let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
                bail!("{word:?} is no stage; they are: {}", names.join(", "));
            }
        }
        Ok(selection)
    }

    /// The stages to run, and those that `--without` leaves out.
    fn split(&self) -> (Vec<&'static Stage>, Vec<&'static Stage>) {
        let wanted = STAGES.iter().filter(|stage| {
            self.stages.is_empty() || self.stages.iter().any(|name| name == stage.name)
        });
        wanted.partition(|stage| !stage.needs.iter().any(|tool| self.without.contains(tool)))
    }
}

/// Runs it all.
///
/// # Errors
/// Never for a test that fails; that is an exit code.
pub(crate) fn run(context: &Context, selection: &Selection) -> Result<ExitCode> {
    let (stages, left_out) = selection.split();
    let mut tools: Vec<Tool> = stages
        .iter()
        .flat_map(|stage| stage.needs)
        .copied()
        .collect();
    tools.sort_unstable();
    tools.dedup();
    console::headline("set-up", "what the stages need");
    if let Err(error) = setup::require(context, &tools) {
        console::say(&format!("not set up: {error:#}"));
        console::say(
            "the list of what is missing stands above; `--without browsers,node,python,deny,valgrind,strace` leaves out what needs it",
        );
        return Ok(ExitCode::from(EXIT_NOT_SET_UP));
    }
    let mut total = Counts::default();
    let mut failed = None;
    for stage in stages {
        console::headline(stage.name, stage.about);
        let (counts, outcome) = perform(context, &stage.action);
        total.add(settled(counts, outcome.is_ok()));
        if let Err(error) = outcome {
            console::say(&format!("\nstage {} failed: {error:#}", stage.name));
            failed = Some(stage.name);
            break;
        }
    }
    if let Some(name) = failed {
        console::say(&format!("run it alone with: cargo xtask test {name}"));
    }
    console::say(&total.to_string());
    if !left_out.is_empty() {
        let names: Vec<&str> = left_out.iter().map(|stage| stage.name).collect();
        console::say(&format!("left out: {}", names.join(", ")));
    }
    Ok(if failed.is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A stage without tests of its own counts as one; a stage that failed has at least one failure.
fn settled(mut counts: Counts, succeeded: bool) -> Counts {
    if succeeded && counts.is_empty() {
        return Counts::PASSED;
    }
    if !succeeded && counts.failed == 0 {
        counts.add(Counts::FAILED);
    }
    counts
}

fn perform(context: &Context, action: &Action) -> (Counts, Result<()>) {
    match action {
        Action::Lines(lines) => all(context, lines, &[]),
        Action::Docs(lines) => all(context, lines, &[("RUSTDOCFLAGS", "-D warnings")]),
        Action::Tidy => (
            Counts::default(),
            tidy::check(context).map(|report| console::say(&report)),
        ),
        Action::Guard => guard::check(context),
        Action::Mutants => mutants::check(context, mutants::Extent::First),
        Action::Pages => (Counts::default(), pages::check(context)),
    }
}

fn all(context: &Context, lines: &[&str], env: &[(&str, &str)]) -> (Counts, Result<()>) {
    let mut total = Counts::default();
    for line in lines {
        let (counts, outcome) = run::counted(context, line, env);
        total.add(counts);
        if outcome.is_err() {
            return (total, outcome);
        }
    }
    (total, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaving out a tool leaves out exactly the stages that need it.
    #[test]
    fn without_a_tool_its_stages_are_left_out() {
        let (run, left_out) = Selection::parse(&["--without", "node"]).unwrap().split();
        assert!(left_out.iter().any(|stage| stage.name == "browsers"));
        assert!(run.iter().any(|stage| stage.name == "third-party-python"));
        assert_eq!(run.len() + left_out.len(), STAGES.len());
    }

    /// A stage always counts for something, and a failed one never looks like success.
    #[test]
    fn a_stage_counts_at_least_one() {
        assert_eq!(
            settled(Counts::default(), true),
            Counts {
                passed: 1,
                failed: 0
            }
        );
        assert_eq!(
            settled(Counts::default(), false),
            Counts {
                passed: 0,
                failed: 1
            }
        );
        assert_eq!(
            settled(
                Counts {
                    passed: 3,
                    failed: 1
                },
                false
            ),
            Counts {
                passed: 3,
                failed: 1
            }
        );
        assert_eq!(
            settled(
                Counts {
                    passed: 3,
                    failed: 0
                },
                false
            ),
            Counts {
                passed: 3,
                failed: 1
            }
        );
    }

    #[test]
    fn names_that_do_not_exist_are_refused() {
        assert!(Selection::parse(&["--without", "coffee"]).is_err());
        assert!(Selection::parse(&["coffee"]).is_err());
        assert!(Selection::parse(&["--without"]).is_err());
    }
}
