//! `compare`: the same scenarios against Roomful, the floors and other servers, side by side in one run.
//!
//! Ratios run by run travel to other machines better than figures do, so these are what it is about. [`rows`] says what is measured,
//! [`runner`] how it is interleaved; [`comparison`] is the result, and the only thing that reports are made of. Nothing is called
//! whole that isn't: a run that fails is named in its row, and the command fails.

mod comparison;
mod page;
mod quick;
mod rows;
mod runner;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::time::Instant;

use crate::console::{self, Runs};
use crate::peer::{LaunchArgs, PeerName};
use crate::process::Cores;
use crate::report::{self, Spread, number};
use crate::scenario::{OTHERS_BUSY, TESTER_BUSY, Target};

use comparison::{Column, Comparison, LeftOut, Row, pairs};
use rows::{Extent, Spec};
use runner::{Contestant, Runner};

/// The command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    launch: LaunchArgs,
    /// Repeats of each row with Roomful and the floors; nine give a 95 % interval that leaves out one at either end
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "quick")]
    pairs: u32,
    /// Of these, repeats with the other peers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "quick")]
    peer_pairs: u32,
    /// Measure these rows alone
    #[arg(long, value_name = "ROW", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
    /// Measure these peers alone, besides the subject and the floor of each row; one that is not set up is an error then
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', value_parser = PeerName::parser())]
    peers: Vec<PeerName>,
    /// Whose figures the goals are for
    #[arg(long, value_name = "NAME", default_value_t = PeerName::ROOMFUL, value_parser = PeerName::parser())]
    subject: PeerName,
    /// Within a minute, one line for each figure of the most telling rows: `name value unit ratio_to_floor ratio_to_best_peer`
    #[arg(long)]
    quick: bool,
    /// This share of the connections and of the seconds: below 1 to see that all works, and not to be quoted
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    scale: f64,
    /// Let the servers and this program run on any core, with the servers' own defaults for shards and threads
    #[arg(long)]
    unpinned: bool,
    /// Where to write the result as JSON, besides printing it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write it as a page with plots, which needs nothing but itself
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where to write the ratios to the floor as one SVG drawing
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// A quick comparison begins nothing that is likely to end after this; what is left of the minute is for what takes longer than it did before.
const QUICK_MAX: Duration = Duration::from_secs(53);

/// Above this share of a core, the tester or others on the machine may have had a part in a figure.
const TESTER_BUSY_MAX: f64 = 90.0;
const OTHERS_BUSY_MAX: f64 = 10.0;

/// Runs the command.
///
/// # Errors
/// A selection of nothing, a peer that was asked for and isn't there, or a run that failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    ensure!(
        args.scale > 0.0 && args.scale <= 1.0,
        "--scale takes a share above 0, and 1 at most"
    );
    let specs = specs(args)?;
    let (cores, pinned) = pin(args.unpinned);
    let (contestants, left_out) = contestants(args, &specs, cores)?;
    let peers = contestants.iter().map(column).collect::<Result<_>>()?;
    let rows = if args.quick {
        let ends = start + QUICK_MAX.mul_f64(args.scale);
        quickly(&specs, &contestants, ends)
    } else {
        wholly(&specs, &contestants, args.pairs)
    };
    ensure!(!console::interrupted(), "interrupted");
    let mut comparison = Comparison {
        conditions: vec![conditions(args, &pinned)],
        peers,
        left_out,
        token_check: rows.iter().find_map(token_check),
        rows,
    };
    comparison.conditions.extend(disturbances(&comparison));
    tell(args, &comparison)
}

fn tell(args: &Args, comparison: &Comparison) -> Result<()> {
    let lines = if args.quick {
        quick::lines(comparison)
    } else {
        table::lines(comparison)
    };
    lines.iter().for_each(|line| console::result(line));
    if let Some(file) = &args.json {
        report::write_json(file, comparison)?;
    }
    if let Some(file) = &args.html {
        page::page(comparison).write(file)?;
    }
    if let Some(file) = &args.plot {
        report::write_plot(file, &page::ratios(comparison))?;
    }
    let failures = comparison.failures();
    ensure!(
        failures.is_empty(),
        "the comparison is incomplete: {}",
        failures.join("; ")
    );
    Ok(())
}

/// The rows that were asked for.
fn specs(args: &Args) -> Result<Vec<Spec>> {
    let extent = Extent {
        scale: args.scale,
        ..if args.quick {
            Extent::QUICK
        } else {
            Extent::FULL
        }
    };
    let mut specs = rows::all(extent);
    specs.retain(|spec| spec.is_quick || !args.quick);
    if let Some(unknown) = args
        .only
        .iter()
        .find(|name| specs.iter().all(|spec| spec.name != **name))
    {
        let names: Vec<&str> = specs.iter().map(|spec| spec.name).collect();
        bail!("{unknown:?} is no row; they are: {}", names.join(", "));
    }
    specs.retain(|spec| args.only.is_empty() || args.only.iter().any(|name| name == spec.name));
    Ok(specs)
}

/// Pins if it can; and what is to be said about it.
fn pin(unpinned: bool) -> (Option<Cores>, String) {
    if unpinned {
        return (None, "not pinned, as asked".to_owned());
    }
    match Cores::pin_tester() {
        Ok(cores) => (
            Some(cores),
            format!(
                "server on core {}, tester on core {}",
                cores.server, cores.tester
            ),
        ),
        Err(error) => (None, format!("not pinned: {error:#}")),
    }
}

/// Who takes part, the subject first; and who can't.
fn contestants(
    args: &Args,
    specs: &[Spec],
    cores: Option<Cores>,
) -> Result<(Vec<Contestant>, Vec<LeftOut>)> {
    let (mut contestants, mut left_out) = (Vec::new(), Vec::new());
    let others = PeerName::all().filter(|name| *name != args.subject);
    for name in [args.subject].into_iter().chain(others) {
        if !takes_part(args, specs, name) {
            continue;
        }
        match Target::start(name, &args.launch, cores) {
            Ok(target) => contestants.push(Contestant {
                name,
                target,
                runs: runs(args, name),
            }),
            Err(error) if is_needed(args, specs, name) => return Err(error),
            Err(error) => left_out.push(LeftOut {
                peer: name,
                reason: format!("{error:#}"),
            }),
        }
    }
    Ok((contestants, left_out))
}

fn takes_part(args: &Args, specs: &[Spec], name: PeerName) -> bool {
    if is_needed(args, specs, name) {
        return true;
    }
    if args.quick {
        return args.peers.is_empty() && quick::PEERS.contains(&name);
    }
    args.peers.is_empty() && specs.iter().any(|spec| spec.takes(name))
}

/// What was asked for, and what there is no comparison without.
fn is_needed(args: &Args, specs: &[Spec], name: PeerName) -> bool {
    let is_floor = specs.iter().any(|spec| spec.floor == name);
    name == args.subject || is_floor || args.peers.contains(&name)
}

fn runs(args: &Args, name: PeerName) -> u32 {
    let is_paired = name == args.subject || PeerName::PAIRED.contains(&name);
    if is_paired || args.quick {
        args.pairs
    } else {
        args.peer_pairs.min(args.pairs)
    }
}

fn column(contestant: &Contestant) -> Result<Column> {
    Ok(Column {
        name: contestant.name,
        title: contestant.name.adapter().name(),
        server: contestant.target.description(),
        settings: contestant.target.settings()?,
    })
}

/// Row by row, all repeats of each.
fn wholly(specs: &[Spec], contestants: &[Contestant], repeats: u32) -> Vec<Row> {
    let mut runners = runners(specs, contestants);
    let runs = runners.iter().map(Runner::runs).sum();
    let mut bar = Runs::new(runs);
    for runner in &mut runners {
        for repeat in 0..repeats {
            runner.repeat(repeat, repeats, &mut bar);
        }
    }
    drop(bar);
    runners.into_iter().map(Runner::finish).collect()
}

/// Round by round, several short runs of each row, so that no single moment decides. Everybody runs in each; after the first round a row has
/// another one if that fits.
fn quickly(specs: &[Spec], contestants: &[Contestant], ends: Instant) -> Vec<Row> {
    let mut runners: Vec<(Runner<'_>, Duration)> = runners(specs, contestants)
        .into_iter()
        .map(|runner| (runner, Duration::ZERO))
        .collect();
    for round in 0.. {
        let mut has_run = false;
        for (runner, longest) in &mut runners {
            let begin = Instant::now();
            let fits = !runner.spec().is_steady() && begin + *longest < ends;
            if (round == 0 || fits) && !console::interrupted() {
                runner.repeat(round, 1, &mut Runs::new(runner.peers()));
                *longest = begin.elapsed().max(*longest);
                has_run = true;
            }
        }
        if !has_run {
            break;
        }
    }
    let rows = runners.into_iter();
    rows.map(|(runner, _)| runner.finish()).collect()
}

fn runners<'a>(specs: &[Spec], contestants: &'a [Contestant]) -> Vec<Runner<'a>> {
    let runner = |spec: &Spec| Runner::new(*spec, contestants);
    specs.iter().map(runner).collect()
}

/// With a token less without, run by run.
fn token_check(row: &Row) -> Option<Spread> {
    let with = row.cell(PeerName::ROOMFUL_TOKEN)?;
    let without = row.cell(PeerName::ROOMFUL)?;
    let (with, without) = pairs(&with.runs, &without.runs);
    let added: Vec<f64> = with
        .iter()
        .zip(&without)
        .map(|(with, without)| with - without)
        .collect();
    (!added.is_empty()).then(|| Spread::of(&added))
}

fn conditions(args: &Args, pinned: &str) -> String {
    let repeats = if args.quick {
        "short runs, interleaved: not to be quoted".to_owned()
    } else {
        format!(
            "interleaved, {} pairs with Roomful and the floors, {} with the others",
            args.pairs,
            args.peer_pairs.min(args.pairs)
        )
    };
    let scale = if args.scale < 1.0 {
        format!("; scaled by {}: not to be quoted", args.scale)
    } else {
        String::new()
    };
    format!("{repeats}{scale}; {pinned}")
}

/// Says so where the tester was near its own limit, or the machine was not ours.
fn disturbances(comparison: &Comparison) -> Vec<String> {
    let largest = |name| {
        let shares = comparison
            .measurements()
            .filter_map(|measurement| measurement.figure(name).ok());
        shares.map(|figure| figure.value).fold(0.0, f64::max)
    };
    let bounds = [
        (TESTER_BUSY, TESTER_BUSY_MAX),
        (OTHERS_BUSY, OTHERS_BUSY_MAX),
    ];
    let told = bounds.map(|(name, max)| {
        let share = largest(name);
        let warning = if share > max {
            "; figures may suffer from it"
        } else {
            ""
        };
        format!("{name}: at most {}% of a core{warning}", number(share))
    });
    told.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_tester_is_told() {
        let told = disturbances(&comparison::example());
        assert!(
            told[0].contains("tester busy: at most 95.0%") && told[0].contains("suffer"),
            "{told:?}"
        );
        assert!(
            told[1].contains("0.000%") && !told[1].contains("suffer"),
            "{told:?}"
        );
    }
}
