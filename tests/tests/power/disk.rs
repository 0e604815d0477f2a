//! What a disk may show after a power cut.
//!
//! What was synced before the cut is there. Of what was written since, any part may be there, each sector for itself; of names,
//! those that their directory has not synced may be missing, and ones that were taken away may be back. A rename is there or not.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::trace::{Call, Trace, bytes, vector_bytes};

/// All that was done to the files below a directory.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    root: PathBuf,
    /// The first is the root.
    files: Vec<File>,
    names: Vec<Step<Naming>>,
    /// Now, while the calls are read.
    paths: BTreeMap<PathBuf, usize>,
    open: HashMap<i64, Open>,
}

/// A file or a directory.
#[derive(Debug, Clone, Default)]
struct File {
    is_directory: bool,
    steps: Vec<Step<Change>>,
    /// From when to when each sync was under way.
    syncs: Vec<(usize, usize)>,
    length: usize,
}

/// Something that was under way from one line to another.
#[derive(Debug, Clone)]
struct Step<T> {
    start: usize,
    end: usize,
    what: T,
}

#[derive(Debug, Clone)]
enum Change {
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    /// No longer than that.
    Cut(usize),
    /// At least so long.
    Reserve(usize),
}

#[derive(Debug, Clone)]
struct Naming {
    directory: usize,
    name: PathBuf,
    /// None: it is taken away.
    file: Option<usize>,
    /// The name that it had before, in the same directory.
    before: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Open {
    file: usize,
    path: PathBuf,
    at: usize,
    appends: bool,
}

/// How much is there of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    All,
    /// Each step, or not.
    Some,
    /// Each sector, or not.
    Torn,
}

impl Disk {
    /// Follows the calls of a process that worked in a directory, which was empty then.
    pub(crate) fn follow(root: &Path, trace: &Trace) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            files: vec![File {
                is_directory: true,
                ..File::default()
            }],
            names: Vec::new(),
            paths: BTreeMap::from([(root.to_owned(), 0)]),
            open: HashMap::new(),
        };
        // A number is free as soon as its close has begun, and taken when an open has ended.
        let mut order: Vec<_> = trace.calls.iter().collect();
        order.sort_by_key(|call| match &*call.name {
            "close" => call.start,
            _ => call.end,
        });
        for call in order {
            if call.result >= 0 {
                disk.take(call);
            }
        }
        disk
    }

    fn take(&mut self, call: &Call) {
        let argument = |index: usize| call.arguments[index].as_str();
        let number = |index: usize| argument(index).parse::<i64>().unwrap();
        let length = |index: usize| argument(index).parse::<usize>().unwrap();
        match &*call.name {
            "openat" => {
                let path = self.path(argument(0), argument(1));
                self.open(call, path, argument(2));
            }
            "close" => drop(self.open.remove(&number(0))),
            "dup" | "fcntl" => {
                let is_copy = call.name == "dup" || argument(1).starts_with("F_DUPFD");
                if let (true, Some(open)) = (is_copy, self.open.get(&number(0))) {
                    self.open.insert(call.result, open.clone());
                }
            }
            "lseek" => {
                if let Some(open) = self.open.get_mut(&number(0)) {
                    open.at = call.size();
                }
            }
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" => self.write(call),
            "ftruncate" => self.change(call, number(0), Change::Cut(length(1))),
            "fallocate" => {
                assert_eq!(argument(1), "0", "a way to reserve that is not known here");
                let end = length(2) + length(3);
                self.change(call, number(0), Change::Reserve(end));
            }
            "fsync" | "fdatasync" => {
                if let Some(open) = self.open.get(&number(0)) {
                    self.files[open.file].syncs.push((call.start, call.end));
                }
            }
            "mkdir" => self.make(call, self.path(AT_CWD, argument(0)), true),
            "mkdirat" => self.make(call, self.path(argument(0), argument(1)), true),
            "unlink" | "rmdir" => self.remove(call, &self.path(AT_CWD, argument(0))),
            "unlinkat" => self.remove(call, &self.path(argument(0), argument(1))),
            "rename" => {
                let (from, to) = (argument(0), argument(1));
                self.rename(call, &self.path(AT_CWD, from), self.path(AT_CWD, to));
            }
            "renameat" | "renameat2" => {
                let from = self.path(argument(0), argument(1));
                self.rename(call, &from, self.path(argument(2), argument(3)));
            }
            "linkat" => {
                let from = self.path(argument(0), argument(1));
                let to = self.path(argument(2), argument(3));
                if let Some(&file) = self.paths.get(&from) {
                    self.name(call, &to, Some(file), None);
                    self.paths.insert(to, file);
                }
            }
            other => {
                // Between files and sockets it is none of this disk's.
                let is_here = |text: &String| match text.starts_with('"') {
                    true => self.paths.contains_key(&self.path(AT_CWD, text)),
                    false => text.parse().is_ok_and(|fd| self.open.contains_key(&fd)),
                };
                assert!(!call.arguments.iter().any(is_here), "{other} of a file");
            }
        }
    }

    /// What a name stands for, from a directory.
    fn path(&self, directory: &str, name: &str) -> PathBuf {
        let name = String::from_utf8(bytes(name)).unwrap();
        let open = directory.parse().ok().and_then(|fd| self.open.get(&fd));
        let base = open.map_or(&self.root, |open| &open.path);
        let joined = base.join(name);
        let parts = joined.components();
        parts.filter(|part| *part != Component::CurDir).collect()
    }

    fn open(&mut self, call: &Call, path: PathBuf, flags: &str) {
        if !path.starts_with(&self.root) {
            return;
        }
        let has = |flag: &str| flags.split('|').any(|other| other == flag);
        if has("O_CREAT") && !self.paths.contains_key(&path) {
            self.make(call, path.clone(), false);
        }
        let Some(&file) = self.paths.get(&path) else {
            return;
        };
        let open = Open {
            file,
            path,
            at: 0,
            appends: has("O_APPEND"),
        };
        self.open.insert(call.result, open);
        if has("O_TRUNC") && self.files[file].length > 0 {
            self.change(call, call.result, Change::Cut(0));
        }
    }

    fn write(&mut self, call: &Call) {
        let Some(open) = self.open.get_mut(&call.arguments[0].parse().unwrap()) else {
            return;
        };
        let mut bytes = match call.name.contains('v') {
            true => vector_bytes(&call.arguments[1]),
            false => bytes(&call.arguments[1]),
        };
        if call.end != usize::MAX {
            bytes.truncate(call.size());
        }
        let at = match &*call.name {
            "write" | "writev" => {
                if open.appends {
                    open.at = self.files[open.file].length;
                }
                let at = open.at;
                open.at += bytes.len();
                at
            }
            _ => call.arguments[3].parse().unwrap(),
        };
        let fd = call.arguments[0].parse().unwrap();
        self.change(call, fd, Change::Write { at, bytes });
    }

    fn change(&mut self, call: &Call, fd: i64, change: Change) {
        let Some(open) = self.open.get(&fd) else {
            return;
        };
        let file = &mut self.files[open.file];
        file.length = match &change {
            Change::Write { at, bytes } => file.length.max(at + bytes.len()),
            Change::Cut(length) => *length,
            Change::Reserve(end) => file.length.max(*end),
        };
        file.steps.push(Step {
            start: call.start,
            end: call.end,
            what: change,
        });
    }

    fn make(&mut self, call: &Call, path: PathBuf, is_directory: bool) {
        if !path.starts_with(&self.root) {
            return;
        }
        let file = self.files.len();
        self.files.push(File {
            is_directory,
            ..File::default()
        });
        self.name(call, &path, Some(file), None);
        self.paths.insert(path, file);
    }

    fn remove(&mut self, call: &Call, path: &Path) {
        if self.paths.remove(path).is_some() {
            self.name(call, path, None, None);
        }
    }

    fn rename(&mut self, call: &Call, from: &Path, to: PathBuf) {
        let Some(file) = self.paths.remove(from) else {
            return;
        };
        assert!(!self.files[file].is_directory, "a directory moves");
        assert_eq!(from.parent(), to.parent(), "between directories");
        let before = from.file_name().map(PathBuf::from);
        self.name(call, &to, Some(file), before);
        self.paths.insert(to, file);
    }

    fn name(&mut self, call: &Call, path: &Path, file: Option<usize>, before: Option<PathBuf>) {
        let what = Naming {
            directory: self.paths[path.parent().unwrap()],
            name: path.file_name().unwrap().into(),
            file,
            before,
        };
        self.names.push(Step {
            start: call.start,
            end: call.end,
            what,
        });
    }

    /// Writes into a directory what may be there if the power goes before a line.
    pub(crate) fn rebuild(&self, cut: usize, seed: u64, into: &Path) {
        let mut random = StdRng::seed_from_u64(seed);
        let kinds = [Left::Nothing, Left::All, Left::Some, Left::Torn];
        let left = kinds[random.random_range(0..kinds.len())];
        let names_left = kinds[random.random_range(0..kinds.len())];
        let mut tree: HashMap<usize, BTreeMap<&OsStr, usize>> = HashMap::new();
        for step in &self.names {
            let directory = step.what.directory;
            let synced = self.files[directory].synced(cut);
            let is_there = step.end < synced || one(names_left, &mut random);
            if step.start >= cut || !is_there {
                continue;
            }
            let names = tree.entry(directory).or_default();
            let Naming {
                name, file, before, ..
            } = &step.what;
            if let Some(before) = before
                && names.get(before.as_os_str()) == file.as_ref()
            {
                names.remove(before.as_os_str());
            }
            match file {
                Some(file) => names.insert(name.as_os_str(), *file),
                None => names.remove(name.as_os_str()),
            };
        }
        let mut waiting = vec![(0, into.to_owned())];
        while let Some((directory, path)) = waiting.pop() {
            fs::create_dir_all(&path).unwrap();
            for (name, file) in tree.remove(&directory).into_iter().flatten() {
                let path = path.join(name);
                match self.files[file].is_directory {
                    true => waiting.push((file, path)),
                    false => {
                        let content = self.files[file].content(cut, left, &mut random);
                        fs::write(path, content).unwrap();
                    }
                }
            }
        }
    }

    /// The same, had nobody ever asked for what is in a directory's files to be kept.
    pub(crate) fn without_syncs_in(&self, directory: &str) -> Self {
        let mut disk = self.clone();
        let mut names = self.names.iter().map(|step| &step.what);
        let directory = names.find(|what| what.name == Path::new(directory));
        let directory = directory.unwrap().file.unwrap();
        let inside = self.names.iter().map(|step| &step.what);
        for what in inside.filter(|what| what.directory == directory) {
            if let Some(file) = what.file {
                disk.files[file].syncs.clear();
            }
        }
        disk
    }

    /// The same, had there never been a file of a name.
    pub(crate) fn without(&self, name: &str) -> Self {
        let mut disk = self.clone();
        disk.names.retain(|step| step.what.name != Path::new(name));
        assert!(disk.names.len() < self.names.len(), "nothing is named so");
        disk
    }

    /// How many changes had not been synced when the power went.
    pub(crate) fn unsynced(&self, cut: usize) -> usize {
        let of = |file: &File| {
            let synced = file.synced(cut);
            let steps = file.steps.iter().filter(|step| step.start < cut);
            steps.filter(|step| step.end >= synced).count()
        };
        self.files.iter().map(of).sum()
    }
}

impl File {
    /// What was over before this is synced.
    fn synced(&self, cut: usize) -> usize {
        let done = self.syncs.iter().filter(|(_, end)| *end < cut);
        done.map(|(start, _)| *start).max().unwrap_or(0)
    }

    fn content(&self, cut: usize, left: Left, random: &mut StdRng) -> Vec<u8> {
        let mut content = Vec::new();
        let synced = self.synced(cut);
        for step in self.steps.iter().filter(|step| step.start < cut) {
            let is_synced = step.end < synced;
            match &step.what {
                Change::Write { at, bytes } if !is_synced && left == Left::Torn => {
                    let mut at = *at;
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        let sector = rest.len().min(SECTOR - at % SECTOR);
                        if random.random() {
                            put(&mut content, at, &rest[..sector]);
                        }
                        at += sector;
                        rest = &rest[sector..];
                    }
                }
                change if is_synced || one(left, random) => match change {
                    Change::Write { at, bytes } => put(&mut content, *at, bytes),
                    Change::Cut(length) => content.resize(*length, 0),
                    Change::Reserve(end) => {
                        let length = content.len().max(*end);
                        content.resize(length, 0);
                    }
                },
                _ => {}
            }
        }
        content
    }
}

/// Whether a step that was not synced is there.
fn one(left: Left, random: &mut StdRng) -> bool {
    match left {
        Left::Nothing => false,
        Left::All => true,
        Left::Some | Left::Torn => random.random(),
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

/// A disk writes that much, or nothing.
const SECTOR: usize = 512;

const AT_CWD: &str = "AT_FDCWD";
