//! `cargo xtask mutants`: whether the simulation finds bugs that are planted.
//!
//! Each patch in `tests/mutants` plants one bug and says in its first line which. A copy of the workspace in the target directory gets one patch
//! after the other, and the simulation runs there over a thousand seeds: a bug that none of them finds is a check that is missing, and fails
//! the command. So does a patch that no longer applies. A bug that is out of the simulation's sight names the test that has to find it, in
//! a second line: `# found by: ` and what `cargo test` takes. Behaviour tests get the server with the bug. The sources themselves are never touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::console;
use crate::context::Context;
use crate::run;
use crate::summary::Counts;

/// Which of the planted bugs to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent<'a> {
    /// Every one of them.
    All,
    /// Those whose name contains this.
    Named(&'a str),
    /// The first; of the others only whether they can still be planted.
    First,
}

/// Plants bugs and counts those that are found as passed.
pub(crate) fn check(context: &Context, extent: Extent<'_>) -> (Counts, Result<()>) {
    let mut counts = Counts::default();
    let outcome = hunt(context, extent, &mut counts);
    (counts, outcome)
}

fn hunt(context: &Context, extent: Extent<'_>, counts: &mut Counts) -> Result<()> {
    let mutants = Mutant::all(context)?;
    let copy = Copy::new(context)?;
    copy.refresh(context)?;
    for mutant in &mutants {
        copy.apply(mutant, true)?;
    }
    console::say(&format!("{} patches apply", mutants.len()));
    let wanted = mutants
        .iter()
        .enumerate()
        .filter(|(index, mutant)| match extent {
            Extent::All => true,
            Extent::Named(part) => mutant.name.contains(part),
            Extent::First => *index == 0,
        });
    let mut survivors = Vec::new();
    let mut table = vec![row("planted", "seeds", "what was violated")];
    for (_, mutant) in wanted {
        copy.refresh(context)?;
        copy.apply(mutant, false)?;
        console::say(&format!("\n{}: {}", mutant.name, mutant.about));
        let found = match &mutant.test {
            None => copy.simulate()?,
            Some(test) => copy.test(test)?,
        };
        if let Some(found) = found {
            counts.add(Counts::PASSED);
            let seed = found.seed.map(|seed| format!(" by seed {seed}"));
            let seed = seed.unwrap_or_default();
            console::say(&format!("  found{seed}: {}", found.violated));
            let seeds = found
                .seed
                .map_or("-".to_owned(), |seed| (seed + 1).to_string());
            table.push(row(&mutant.name, &seeds, &found.violated));
        } else {
            counts.add(Counts::FAILED);
            console::say("  NOT FOUND");
            table.push(row(&mutant.name, "-", "NOT FOUND"));
            survivors.push(mutant.name.as_str());
        }
    }
    copy.refresh(context)?;
    ensure!(!counts.is_empty(), "no planted bug of that name");
    console::say(&format!("\n{}", table.join("\n")));
    ensure!(
        survivors.is_empty(),
        "not found by {SEEDS} seeds, or by its test: {}",
        survivors.join(", ")
    );
    Ok(())
}

fn row(name: &str, seeds: &str, violated: &str) -> String {
    format!("{name:28} {seeds:>5}  {violated}")
}

/// How a planted bug was found.
#[derive(Debug)]
struct Found {
    /// The first seed that failed; they are tried from 0 on. None: its test has no seeds that say all.
    seed: Option<u32>,
    /// What the check that failed says.
    violated: String,
}

impl Found {
    /// Reads what the simulation printed, if a seed has failed.
    fn read(text: &str) -> Option<Self> {
        // A test's own line may have begun in front of it.
        let (_, line) = text.lines().find_map(|line| line.split_once(FAILED))?;
        let (seed, violated) = line.split_once(": ")?;
        let violated = violated.trim_start_matches("assertion `left == right` failed: ");
        Some(Self {
            seed: Some(seed.parse().ok()?),
            violated: violated.trim_end_matches(':').to_owned(),
        })
    }

    /// Reads what a test has panicked with; it begins with the seed, if it has one.
    fn of_panic(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        lines.find(|line| line.contains("panicked at "))?;
        let line = lines.next()?;
        let seeded = line.split_once("seed ").and_then(|(_, line)| {
            let (seed, violated) = line.split_once(": ")?;
            Some((seed.parse().ok()?, violated))
        });
        let (seed, violated) =
            seeded.map_or((None, line), |(seed, violated)| (Some(seed), violated));
        // What a behaviour test shows of a record may be long.
        let violated = violated.split(": Operation {").next()?;
        Some(Self {
            seed,
            violated: violated.to_owned(),
        })
    }
}

/// A planted bug.
#[derive(Debug)]
struct Mutant {
    name: String,
    /// What the bug is: the patch's first line.
    about: String,
    /// What finds it instead of the simulation, as `cargo test` takes it.
    test: Option<String>,
    patch: PathBuf,
}

impl Mutant {
    /// All of them, by name.
    fn all(context: &Context) -> Result<Vec<Self>> {
        let dir = context.root.join("tests/mutants");
        let mut mutants = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let patch = entry?.path();
            let text = fs::read_to_string(&patch)?;
            let about = text
                .lines()
                .next()
                .and_then(|line| line.strip_prefix("# "))
                .with_context(|| {
                    format!(
                        "{}: the first line says `# what it plants`",
                        patch.display()
                    )
                })?;
            let mut others = text.lines().skip(1);
            let test = others.next().and_then(|line| line.strip_prefix(FOUND_BY));
            let name = patch
                .file_stem()
                .context("a file has a name")?
                .to_string_lossy()
                .into_owned();
            mutants.push(Self {
                name,
                about: about.to_owned(),
                test: test.map(str::to_owned),
                patch,
            });
        }
        mutants.sort_by(|a, b| a.name.cmp(&b.name));
        ensure!(
            !mutants.is_empty(),
            "there are no patches in {}",
            dir.display()
        );
        Ok(mutants)
    }
}

/// A copy of the workspace, with a target directory of its own.
#[derive(Debug)]
struct Copy {
    dir: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new(context: &Context) -> Result<Self> {
        let base = context.target.join("mutants");
        let (dir, target) = (base.join("workspace"), base.join("target"));
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, target })
    }

    /// Makes the copy what the workspace is. Files that are the same stay as they are, so that cargo builds only what a patch has changed.
    fn refresh(&self, context: &Context) -> Result<()> {
        let wanted = tracked(context)?;
        for name in &wanted {
            let Ok(bytes) = fs::read(context.root.join(name)) else {
                continue;
            };
            let to = self.dir.join(name);
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        for name in files_below(&self.dir, &self.dir)? {
            if !wanted.contains(&name) && name != "Cargo.lock" {
                fs::remove_file(self.dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Applies a patch, or only looks whether it could be.
    fn apply(&self, mutant: &Mutant, only_check: bool) -> Result<()> {
        let mut git = Command::new("git");
        git.args(["apply", "-C1"]);
        if only_check {
            git.arg("--check");
        }
        // Inside a repository git would take the paths from its root and silently leave out what is elsewhere.
        git.arg(&mutant.patch)
            .current_dir(&self.dir)
            .env("GIT_CEILING_DIRECTORIES", ceiling(&self.dir));
        let status = git.status().context("cannot start git")?;
        ensure!(
            status.success(),
            "{} does not apply any more; make the patch anew",
            mutant.name
        );
        Ok(())
    }

    /// Runs the simulation: what it has found, or none if all went well.
    fn simulate(&self) -> Result<Option<Found>> {
        let line = "cargo test -q -p roomful-server --test simulation --no-run";
        if !self.cargo(line).status()?.success() {
            bail!("the copy does not build with the patch");
        }
        let line = "cargo test -q -p roomful-server --test simulation the_promises -- --nocapture";
        let output = self
            .cargo(line)
            .env("ROOMFUL_SIMULATION_SEEDS", SEEDS.to_string())
            .stderr(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found = Found::read(&text);
        ensure!(
            found.is_some() || output.status.success(),
            "the simulation stopped without naming a seed:\n{text}"
        );
        Ok(found)
    }

    /// Runs one test: what it has found, or none if all went well.
    fn test(&self, test: &str) -> Result<Option<Found>> {
        let server = "cargo build -q -p roomful-server --bin roomful";
        if test.contains(BEHAVIOUR) && !self.cargo(server).status()?.success() {
            bail!("the copy does not build with the patch");
        }
        let output = self
            .cargo(&format!("cargo test -q {test}"))
            .env("RUST_BACKTRACE", "0")
            .env("ROOMFUL_BIN", self.target.join("debug/roomful"))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            ensure!(text.contains(" 1 passed"), "{test}: there is no such test");
            return Ok(None);
        }
        let found = Found::of_panic(&text);
        let errors = String::from_utf8_lossy(&output.stderr);
        let found = found.with_context(|| format!("it says nothing:\n{text}\n{errors}"))?;
        Ok(Some(found))
    }

    fn cargo(&self, line: &str) -> Command {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .current_dir(&self.dir)
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }
}

/// What git knows or would know, by name below the root.
fn tracked(context: &Context) -> Result<BTreeSet<String>> {
    let root = context.root.display().to_string();
    let arguments = [
        "-C",
        &root,
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ];
    let listing = run::output("git", &arguments).context("cannot list the files that git knows")?;
    Ok(listing.lines().map(str::to_owned).collect())
}

fn files_below(dir: &Path, root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path, root)?);
        } else {
            let name = path.strip_prefix(root)?;
            files.push(name.display().to_string());
        }
    }
    Ok(files)
}

/// The directory that git must not look above of.
fn ceiling(dir: &Path) -> &Path {
    dir.parent().unwrap_or(dir)
}

/// Within how many seeds a bug has to be found.
const SEEDS: u32 = 1_000;

/// What the simulation prints in front of the seed that failed.
const FAILED: &str = "simulation: failed at seed ";

/// The package of the tests that run the server.
const BEHAVIOUR: &str = "-p roomful-tests";

/// In front of the test that finds a bug.
const FOUND_BY: &str = "# found by: ";

#[cfg(test)]
mod tests {
    use super::*;

    /// The seed and the check are read from among a test's own words.
    #[test]
    fn what_was_found_is_read() {
        let text = "running 1 test\n.simulation: failed at seed 41: assertion `left == right` failed: client 0: a gap\nOptions {}";
        let found = Found::read(text).unwrap();
        assert_eq!(
            (found.seed, &*found.violated),
            (Some(41), "client 0: a gap")
        );
        assert!(Found::read("test result: ok. 1 passed").is_none());
    }

    /// So is what another test has panicked with.
    #[test]
    fn what_a_panic_says_is_read() {
        let text = "thread 'crash' (7) panicked at server/src/a.rs:1:2:\nseed 3: t:a: 4 is lost\nnote: run";
        let found = Found::of_panic(text).unwrap();
        assert_eq!((found.seed, &*found.violated), (Some(3), "t:a: 4 is lost"));
        let text = "thread 'linear' (7) panicked at tests/a.rs:1:2:\nchat:a: a stale page: Operation { user";
        let found = Found::of_panic(text).unwrap();
        assert_eq!(
            (found.seed, &*found.violated),
            (None, "chat:a: a stale page")
        );
        assert!(Found::of_panic("error[E0308]: mismatched types").is_none());
    }
}
