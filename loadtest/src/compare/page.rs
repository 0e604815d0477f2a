//! The comparison as a page to look at, and as the one drawing that stands for it.

use super::comparison::{Cell, Comparison, Goal, Row};
use crate::peer::PeerName;
use crate::report::html::{self, Body, Page, Section, Table, Tile, latency_plot, latency_series};
use crate::report::plot::{
    Axis, Dot, Lane, Lines, Mark, Plot, Scale, Series, Ticks, Whisker, Whiskers,
};
use crate::report::{Measurement, Spread, number};
use crate::scenario::{PER_DELIVERY, idle};

/// The page.
pub(super) fn page(comparison: &Comparison) -> Page {
    let failures = comparison
        .failures()
        .into_iter()
        .map(|failure| format!("INCOMPLETE: {failure}"));
    let headlines = comparison.rows.iter();
    let tiles = headlines
        .filter(|row| HEADLINES.contains(&row.name))
        .filter_map(|row| tile(comparison, row));
    Page {
        title: "What a delivery costs".to_owned(),
        lead: "Servers side by side on one machine, in one run, each with the same traffic. Processor time is the kernel's \
               own accounting of the server's process; every figure is of a run in which each delivery arrived once and in order."
            .to_owned(),
        notes: comparison.conditions.clone(),
        alarms: failures.collect(),
        tiles: tiles.collect(),
        sections: sections(comparison),
    }
}

/// Rows that get a large number, each for its kind; the others are in the tables.
const HEADLINES: [&str; 6] = [
    "fanout-1000-w1",
    "fanout-1000-w32",
    "rooms-1000x10",
    "connect",
    "idle",
    "latency-1000",
];

/// All ratios to the floor in one drawing.
pub(super) fn ratios(comparison: &Comparison) -> Plot {
    let lanes = comparison
        .rows
        .iter()
        .filter_map(|row| lane(comparison, row));
    let lanes: Vec<Lane> = lanes.collect();
    let whiskers = || lanes.iter().flat_map(|lane| &lane.whiskers);
    let mut legend: Vec<(Mark, String)> = Vec::new();
    for column in &comparison.peers {
        let mark = mark(comparison, column.name);
        if whiskers().any(|whisker| whisker.mark == mark) {
            legend.push((mark, column.name.to_string()));
        }
    }
    Plot::Whiskers(Whiskers {
        about: "Ratios to the floor, with their intervals".to_owned(),
        axis: "times the floor server's, logarithmic; dashed: the goal".to_owned(),
        reference: "the floor".to_owned(),
        lanes,
        legend,
    })
}

const FLOORS: [PeerName; 2] = [PeerName::FLOOR, PeerName::FLOOR_COALESCING];

const INTERVALS: &str = "Dots are medians of ratios, run by run; lines are the 95 % interval of the median, or the smallest and the \
                         largest ratio where fewer than six pairs were run.";

fn sections(comparison: &Comparison) -> Vec<Section> {
    let ratios = plot_section("Against the floor", INTERVALS, ratios(comparison));
    let tables = [
        Section {
            title: "Times the floor's".to_owned(),
            note: "The median of the pairwise ratios; below it the 95 % interval, or in brackets the smallest and the largest of fewer than six."
                .to_owned(),
            body: Body::Table(table(comparison, |row| capital(row.title), ratio_cell)),
        },
        Section {
            title: "Medians".to_owned(),
            note: "Below each the smallest and the largest run.".to_owned(),
            body: Body::Table(table(
                comparison,
                |row| format!("{} ({})", capital(row.title), row.unit),
                value_cell,
            )),
        },
    ];
    [ratios]
        .into_iter()
        .chain(fanouts(comparison))
        .chain(latencies(comparison))
        .chain(memory(comparison))
        .chain(tables)
        .chain(conditions(comparison))
        .collect()
}

fn plot_section(title: &str, note: &str, plot: Plot) -> Section {
    Section {
        title: title.to_owned(),
        note: note.to_owned(),
        body: Body::Plot(Box::new(plot)),
    }
}

/// A server keeps its mark on the whole page.
fn mark(comparison: &Comparison, peer: PeerName) -> Mark {
    match peer {
        PeerName::FLOOR => Mark::FLOOR,
        PeerName::FLOOR_COALESCING => Mark::OTHER_FLOOR,
        _ => {
            let mut names = comparison.peers.iter().map(|column| column.name);
            let place = names
                .by_ref()
                .filter(|name| !FLOORS.contains(name))
                .position(|name| name == peer);
            match place {
                None | Some(0) => Mark::SUBJECT,
                Some(place) => Mark::other(place - 1),
            }
        }
    }
}

fn subject<'a>(comparison: &Comparison, row: &'a Row) -> Option<&'a Cell> {
    row.cell(comparison.peers.first()?.name)
}

fn tile(comparison: &Comparison, row: &Row) -> Option<Tile> {
    let cell = subject(comparison, row)?;
    let of_floor = cell
        .times_floor
        .filter(|_| !matches!(row.goal, Some(Goal::Value(_))))
        .map(|times| format!("{:.2} × the floor {}", times.median, interval_text(times)));
    let goal = row.goal.map(|goal| {
        if goal.is_reached(cell) {
            format!("✓ within the goal, {goal}")
        } else {
            format!("✗ beyond the goal, {goal}")
        }
    });
    let told: Vec<String> = of_floor.into_iter().chain(goal).collect();
    Some(Tile {
        label: capital(row.title),
        value: number(cell.value.median),
        unit: row.unit.to_owned(),
        told: told.join("\n"),
    })
}

/// Memory has a goal of its own: a floor that holds next to nothing says little.
fn lane(comparison: &Comparison, row: &Row) -> Option<Lane> {
    let goal = match row.goal {
        Some(Goal::Value(_)) => return None,
        Some(Goal::TimesFloor(goal)) => Some(goal),
        None => None,
    };
    let whisker = |cell: &Cell| {
        let times = cell.times_floor.filter(|_| !FLOORS.contains(&cell.peer))?;
        Some(Whisker {
            name: cell.peer.to_string(),
            mark: mark(comparison, cell.peer),
            value: times.median,
            ends: ends(times),
        })
    };
    let (title, subtitle) = row.title.split_once(": ").unwrap_or((row.title, ""));
    Some(Lane {
        title: capital(title),
        subtitle: subtitle.to_owned(),
        goal,
        whiskers: row.cells.iter().filter_map(whisker).collect(),
    })
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// The interval, or with too few runs for one the ends.
fn ends(spread: Spread) -> (f64, f64) {
    spread
        .interval
        .map_or((spread.min, spread.max), |interval| {
            (interval.low, interval.high)
        })
}

/// Processor time per delivery against the members of the room, for each number in flight.
fn fanouts(comparison: &Comparison) -> Vec<Section> {
    ["1", "32"]
        .into_iter()
        .filter_map(|in_flight| {
            let is_one = |measurement: &Measurement| {
                measurement.scenario() == "fanout"
                    && measurement.setting("in flight") == Some(in_flight)
                    && measurement.setting("payload bytes") == Some("64")
            };
            let rows = comparison
                .rows
                .iter()
                .filter(|row| row.figure == PER_DELIVERY);
            let series = against(comparison, rows, "members", is_one);
            let plot = Plot::Lines(Lines {
                about: format!(
                    "Processor time per delivery against members, {in_flight} in flight"
                ),
                x: axis(
                    "members of the room, logarithmic",
                    Scale::Log,
                    Ticks::AtValues,
                ),
                y: axis(
                    "µs of server CPU per delivery, logarithmic",
                    Scale::Log,
                    Ticks::Round,
                ),
                series,
            });
            let title = format!("CPU per delivery against fan-out, {in_flight} in flight");
            let note = "64 B a message. Medians with the smallest and the largest run.";
            has_lines(&plot).then(|| plot_section(&title, note, plot))
        })
        .collect()
}

fn memory(comparison: &Comparison) -> Option<Section> {
    let rows = comparison
        .rows
        .iter()
        .filter(|row| row.figure == idle::PER_CONNECTION);
    let mut series = against(comparison, rows, "connections", |_| true);
    // To kibibytes.
    for dot in series.iter_mut().flat_map(|series| &mut series.dots) {
        dot.y /= KIB;
        dot.ends = dot.ends.map(|(low, high)| (low / KIB, high / KIB));
    }
    let plot = Plot::Lines(Lines {
        about: "Memory of an idle connection against connections".to_owned(),
        x: axis(
            "connections, joined and idle",
            Scale::Linear,
            Ticks::AtValues,
        ),
        y: axis(
            "KiB resident per connection, logarithmic",
            Scale::Log,
            Ticks::Round,
        ),
        series,
    });
    let note = "Resident memory of the server less what it had before, divided by the connections. The kernel's own memory for a socket comes on top.";
    has_lines(&plot).then(|| plot_section("Memory against connections", note, plot))
}

const KIB: f64 = 1024.0;

/// Each server's distribution, of the run in the middle.
fn latencies(comparison: &Comparison) -> Vec<Section> {
    let section = |row: &Row| {
        let series: Vec<Series> = row
            .cells
            .iter()
            .filter_map(|cell| {
                let mut runs: Vec<_> = cell.runs.iter().collect();
                runs.sort_by(|one, other| one.value.total_cmp(&other.value));
                let middle = runs.get(runs.len() / 2)?;
                let curve = middle.measurement.curves().first()?;
                Some(latency_series(
                    cell.peer.to_string(),
                    mark(comparison, cell.peer),
                    curve,
                ))
            })
            .collect();
        let (title, _) = row.title.rsplit_once(", p50").unwrap_or((row.title, ""));
        let note = "From the moment a message was due, so that a server that falls behind can't hide it. The run with the middle median of each server.";
        (!series.is_empty())
            .then(|| plot_section(&capital(title), note, latency_plot(title, series)))
    };
    comparison.rows.iter().filter_map(section).collect()
}

/// A series for each server over the rows whose runs are `wanted`, by one of their settings.
fn against<'a>(
    comparison: &Comparison,
    rows: impl Iterator<Item = &'a Row>,
    setting: &str,
    wanted: impl Fn(&Measurement) -> bool,
) -> Vec<Series> {
    let cells: Vec<(f64, &Cell)> = rows
        .flat_map(|row| &row.cells)
        .filter_map(|cell| {
            let measurement = &cell.runs.first()?.measurement;
            let x = measurement.setting(setting)?.parse().ok()?;
            wanted(measurement).then_some((x, cell))
        })
        .collect();
    let series = comparison.peers.iter().map(|column| {
        let mut dots: Vec<Dot> = cells
            .iter()
            .filter(|(_, cell)| cell.peer == column.name)
            .map(|(x, cell)| Dot {
                x: *x,
                y: cell.value.median,
                ends: Some((cell.value.min, cell.value.max)),
            })
            .collect();
        dots.sort_by(|one, other| one.x.total_cmp(&other.x));
        Series {
            name: column.name.to_string(),
            mark: mark(comparison, column.name),
            dots,
            has_marks: true,
        }
    });
    series.filter(|series| !series.dots.is_empty()).collect()
}

/// A line needs two points.
fn has_lines(plot: &Plot) -> bool {
    matches!(plot, Plot::Lines(lines) if lines.series.iter().any(|series| series.dots.len() > 1))
}

fn axis(title: &str, scale: Scale, ticks: Ticks) -> Axis {
    Axis {
        title: title.to_owned(),
        scale,
        ticks,
    }
}

fn table(
    comparison: &Comparison,
    title: fn(&Row) -> String,
    text: fn(&Row, &Cell) -> html::Cell,
) -> Table {
    let names = comparison
        .peers
        .iter()
        .map(|column| column.name.to_string());
    let cell = |row: &Row, peer| {
        let empty = || {
            let failed = row.failures.iter().any(|failure| failure.peer == peer);
            html::Cell {
                text: if failed { "failed" } else { "" }.to_owned(),
                small: String::new(),
            }
        };
        row.cell(peer).map_or_else(empty, |cell| text(row, cell))
    };
    let row = |row: &Row| {
        let cells = comparison.peers.iter().map(|column| cell(row, column.name));
        (title(row), cells.collect())
    };
    Table {
        head: ["row".to_owned()].into_iter().chain(names).collect(),
        rows: comparison.rows.iter().map(row).collect(),
        subject: Some(0),
    }
}

fn ratio_cell(row: &Row, cell: &Cell) -> html::Cell {
    let Some(times) = cell.times_floor.filter(|_| cell.peer != row.floor) else {
        let is_floor = cell.peer == row.floor;
        return html::Cell {
            text: if is_floor { "1" } else { "–" }.to_owned(),
            small: String::new(),
        };
    };
    html::Cell {
        text: format!("{:.2}", times.median),
        small: interval_text(times),
    }
}

fn value_cell(_: &Row, cell: &Cell) -> html::Cell {
    html::Cell {
        text: number(cell.value.median),
        small: format!("{}–{}", number(cell.value.min), number(cell.value.max)),
    }
}

fn interval_text(times: Spread) -> String {
    match times.interval {
        Some(interval) => format!("({:.2}–{:.2})", interval.low, interval.high),
        None if times.count > 1 => format!("[{:.2}–{:.2}]", times.min, times.max),
        None => "one run".to_owned(),
    }
}

fn conditions(comparison: &Comparison) -> [Section; 1] {
    let servers = comparison.peers.iter().flat_map(|column| {
        let settings = column.settings.iter().map(|setting| format!("  {setting}"));
        [format!(
            "{} ({}): {}",
            column.name, column.title, column.server
        )]
        .into_iter()
        .chain(settings)
    });
    let token = comparison.token_check.map(|check| {
        format!(
            "a token check adds {} µs to a connect ({}–{})",
            number(check.median),
            number(check.min),
            number(check.max)
        )
    });
    let left_out = comparison
        .left_out
        .iter()
        .map(|left_out| format!("left out: {} ({})", left_out.peer, left_out.reason));
    let lines = token
        .into_iter()
        .chain(left_out)
        .chain([String::new()])
        .chain(servers);
    [Section {
        title: "How it was run".to_owned(),
        note: "Ratios travel to other machines; times don't.".to_owned(),
        body: Body::Lines(lines.collect()),
    }]
}
