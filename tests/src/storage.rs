//! A server whose disk is short, closed or broken, and what of its journal lies there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::Server;
use crate::http;
use crate::wait::{PATIENCE, until};

/// Words in front of a command that has mounts of its own: what it mounts, nobody else sees. Without root it gets a user
/// namespace for that.
#[must_use]
pub fn own_mounts() -> Vec<&'static str> {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    match is_root {
        true => vec!["unshare", "--mount"],
        false => vec!["unshare", "--map-root-user", "--mount"],
    }
}

/// Words in front of a command that mounts a file system in memory over a directory, and then becomes what follows.
#[must_use]
pub fn on_tmpfs<'a>(options: &'a str, directory: &'a str) -> Vec<&'a str> {
    const MOUNT: &str = "options=$1 directory=$2; shift 2; mkdir -p \"$directory\" && mount -t tmpfs -o \"$options\" none \"$directory\" && exec \"$@\"";
    [
        own_mounts(),
        vec!["sh", "-c", MOUNT, "sh", options, directory],
    ]
    .concat()
}

/// Words in front of a command whose calls of the system fail as `inject` says: `fdatasync:error=EIO:when=9+`.
#[must_use]
pub fn with_failing(inject: &str) -> Vec<String> {
    let (calls, _) = inject.split_once(':').unwrap();
    let words = [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        &format!("trace={calls}"),
        "-e",
        &format!("inject={inject}"),
    ];
    words.map(str::to_owned).into()
}

/// The log's files, oldest first.
#[must_use]
pub fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir.join("journal/log")).unwrap();
    let mut segments: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    segments.sort_unstable();
    segments
}

/// Waits until `/readyz` answers so.
pub async fn until_ready(server: &Server, status: u16, text: &str) {
    until(&format!("/readyz says {text:?}"), PATIENCE, async || {
        let response = http::get(server.address(), "/readyz", &[]).await;
        response.status == status && response.text().contains(text)
    })
    .await;
}

/// The files of the store in which values stand.
#[must_use]
pub fn tables(data_dir: &Path) -> Vec<PathBuf> {
    let (mut tables, mut waiting) = (Vec::new(), vec![data_dir.join("journal/store")]);
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => tables.push(path),
            }
        }
    }
    tables.retain(|path| path.parent().unwrap().ends_with("tables"));
    tables
}
