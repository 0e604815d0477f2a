//! A process and everything it started.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context as _, Result, bail};

/// The fields of `/proc/PID/stat` behind the command's name; field 3 of proc_pid_stat(5) is the first.
pub(super) struct Stat(Vec<String>);

impl Stat {
    /// Reads a process; `None` if it has ended.
    pub(super) fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name may hold spaces and parentheses, so the fields are counted from the last one.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        Some(Self(
            fields.split_ascii_whitespace().map(str::to_owned).collect(),
        ))
    }

    /// A field by its number in proc_pid_stat(5).
    pub(super) fn field(&self, number: usize) -> Option<u64> {
        self.0.get(number.checked_sub(3)?)?.parse().ok()
    }

    fn is_running(&self) -> bool {
        self.0
            .first()
            .is_some_and(|state| !matches!(state.as_str(), "Z" | "X"))
    }
}

/// Whether a process exists and has not ended.
pub(super) fn is_running(pid: u32) -> bool {
    Stat::of(pid).is_some_and(|stat| stat.is_running())
}

/// The process and its descendants, itself first.
///
/// # Errors
/// The process has ended, or there is no `/proc`.
pub(super) fn members(root: u32) -> Result<Vec<u32>> {
    if !is_running(root) {
        bail!("the server died: there is no process {root} any more");
    }
    let children = children_by_parent()?;
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(parent) = tree.get(next) {
        tree.extend(children.get(parent).into_iter().flatten());
        next += 1;
    }
    Ok(tree)
}

fn children_by_parent() -> Result<HashMap<u32, Vec<u32>>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in
        fs::read_dir("/proc").context("measuring needs /proc, which this system doesn't have")?
    {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let parent = Stat::of(pid)
            .and_then(|stat| stat.field(4))
            .and_then(|parent| u32::try_from(parent).ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command, Stdio};

    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_with_parentheses() {
        let stat = Stat::parse("7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 70 80 20").unwrap();
        assert_eq!(stat.field(4), Some(1));
        assert_eq!((stat.field(14), stat.field(15)), (Some(50), Some(60)));
        assert_eq!(stat.field(2), None);
    }

    #[test]
    fn a_child_belongs_to_the_tree() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let tree = members(process::id()).unwrap();
        assert_eq!(tree.first(), Some(&process::id()));
        assert!(tree.contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            members(child.id())
                .unwrap_err()
                .to_string()
                .contains("died")
        );
    }
}
