//! Everything that `docs/security.md` and `docs/operations.md` name exists.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_tests::Server;
use roomful_tests::process::Process;

/// One row: threat, answer, limit, metric, test.
struct Row {
    line: usize,
    cells: Vec<String>,
}

/// Each row's close codes and errors are in the catalogue, its keys in the configuration, its metrics at `/metrics` with their labels, and its test is a
/// function of the file that it names; and every test of an attack is in a row.
#[tokio::test]
async fn the_table_names_nothing_that_does_not_exist() {
    let server = Server::start().await;
    let metrics = server.metrics().await;
    let printed = Process::run(server.dir(), &["print-config"], &[]).await;
    let keys = keys(&printed.output);
    let rows = rows(&read(&repository().join("docs/security.md")));
    assert!(!rows.is_empty());
    let mut wrong = Vec::new();
    let mut named = BTreeSet::new();
    for Row { line, cells } in &rows {
        let [threat, answer, limit, metric, test] = &cells[..] else {
            wrong.push(format!("{line}: a row has five cells, not {}", cells.len()));
            continue;
        };
        let mut complain = |what: String| wrong.push(format!("{line} ({threat}): {what}"));
        unknown_answers(answer).into_iter().for_each(&mut complain);
        for key in code(limit).filter(|key| !keys.contains(*key)) {
            complain(format!("no key {key}"));
        }
        if code(metric).next().is_none() {
            complain("no metric".to_owned());
        }
        for series in code(metric).filter(|series| !metrics.has(series)) {
            complain(format!("no metric {series}"));
        }
        match code(test).collect::<Vec<_>>()[..] {
            [] => complain("no test".to_owned()),
            [_] => complain("a test is a file and functions".to_owned()),
            [file, ref functions @ ..] => {
                let path = repository().join("tests/tests").join(file);
                let source = std::fs::read_to_string(&path).unwrap_or_default();
                for function in functions {
                    named.insert(((*file).to_owned(), (*function).to_owned()));
                    if !source.contains(&format!("async fn {function}(")) {
                        complain(format!("no test {function} in {file}"));
                    }
                }
            }
        }
    }
    for (file, function) in attacks() {
        if !named.contains(&(file.clone(), function.clone())) {
            wrong.push(format!("{file}: {function} is in no row"));
        }
    }
    assert!(wrong.is_empty(), "docs/security.md:\n{}", wrong.join("\n"));
}

/// Each metric that an operator is told to look at is at `/metrics`, with its label, and each key is one of the configuration; `*` stands for any rest.
#[tokio::test]
async fn operations_names_nothing_that_does_not_exist() {
    let server = Server::start().await;
    let metrics = server.metrics().await;
    let printed = Process::run(server.dir(), &["print-config"], &[]).await;
    let keys = keys(&printed.output);
    let sections: BTreeSet<&str> = keys
        .iter()
        .filter_map(|key| key.split_once('.').map(|(section, _)| section))
        .collect();
    let text = read(&repository().join("docs/operations.md"));
    let (mut named, mut wrong) = (0, Vec::new());
    for span in text.lines().flat_map(code) {
        for series in span
            .match_indices("roomful_")
            .map(|(at, _)| series(&span[at..]))
        {
            named += 1;
            if !metrics.has(series) {
                wrong.push(series);
            }
        }
        let is_key = span
            .split_once('.')
            .is_some_and(|(section, key)| sections.contains(section) && !key.contains(' '));
        if is_key {
            named += 1;
            if !keys.iter().any(|key| matches(span, key)) {
                wrong.push(span);
            }
        }
    }
    assert!(named > 30, "only {named} names");
    assert!(wrong.is_empty(), "docs/operations.md: {wrong:?}");
}

/// The series that a text begins with: a name, and its labels.
fn series(text: &str) -> &str {
    let name = text
        .find(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        .unwrap_or(text.len());
    let labels = text[name..]
        .starts_with('{')
        .then(|| text.find('}').unwrap() + 1);
    &text[..labels.unwrap_or(name)]
}

/// Whether a key is one of a pattern's, in which `*` stands for anything.
fn matches(pattern: &str, key: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = key.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty() || pattern.ends_with('*')
}

/// The tests in `threats/`, with their file.
fn attacks() -> Vec<(String, String)> {
    let mut attacks = Vec::new();
    for entry in std::fs::read_dir(repository().join("tests/tests/threats")).unwrap() {
        let path = entry.unwrap().path();
        let file = format!("threats/{}", path.file_name().unwrap().to_str().unwrap());
        let source = read(&path);
        let mut lines = source.lines();
        while lines.any(|line| line.trim().starts_with("#[tokio::test")) {
            let function = lines.next().unwrap().trim();
            let name = function
                .strip_prefix("async fn ")
                .unwrap()
                .split('(')
                .next();
            attacks.push((file.clone(), name.unwrap().to_owned()));
        }
    }
    attacks
}

/// What an answer says of codes that no catalogue has: `close 1002`, `error rate_limited`.
fn unknown_answers(answer: &str) -> Vec<String> {
    let words: Vec<&str> = answer
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
        .collect();
    let pairs = words.windows(2);
    let unknown = pairs.filter(|pair| match *pair {
        ["close", code] => code
            .parse()
            .is_ok_and(|code| CloseCode::from_code(code).is_none()),
        ["error", name] => !ErrorCode::ALL.iter().any(|known| known.name() == *name),
        _ => false,
    });
    unknown
        .map(|pair| format!("no {} {}", pair[0], pair[1]))
        .collect()
}

/// The tables' rows, without their heads.
fn rows(text: &str) -> Vec<Row> {
    let lines = text.lines().enumerate().filter(|(_, line)| {
        line.starts_with('|') && !line.starts_with("| threat |") && !line.starts_with("| --- |")
    });
    let rows = lines.map(|(index, line)| Row {
        line: index + 1,
        cells: line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect(),
    });
    rows.collect()
}

/// What stands between backticks.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The keys of a configuration file, with their sections; a namespace's are those of `namespaces.*`.
fn keys(config: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in config.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = match name.split_once('.') {
                Some((whole, _)) => format!("{whole}.*"),
                None => name.to_owned(),
            };
        } else if let Some((key, _)) = line.trim_start_matches(['#', ' ']).split_once(" =") {
            keys.insert(
                format!("{section}.{key}")
                    .trim_start_matches('.')
                    .to_owned(),
            );
        }
    }
    keys
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}
