//! Resident memory.

use std::fs;

use anyhow::{Context as _, Result};

use super::tree;

/// What the kernel and the whole machine hold at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineMemory {
    /// Objects of open TCP sockets, in bytes; `None` where only root may read them, and this isn't root.
    sockets: Option<u64>,
    /// What programs could still get, in bytes.
    available: u64,
}

/// What one TCP socket with a file takes from the kernel while nothing is buffered. Its directory entry and its place in an epoll set, some
/// 300 bytes, are in caches that everybody uses, and not counted.
const SOCKET_CACHES: [&str; 3] = ["TCP", "sock_inode_cache", "filp"];

impl MachineMemory {
    /// Now.
    ///
    /// # Errors
    /// There is no `/proc/meminfo`.
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/meminfo").context("no /proc/meminfo")?;
        let available = kibibytes(&text, "MemAvailable:").context("no MemAvailable")?;
        let slabs = fs::read_to_string("/proc/slabinfo").ok();
        Ok(Self {
            sockets: slabs.map(|text| slab_bytes(&text)),
            available: available * 1024,
        })
    }

    /// Bytes of TCP sockets that came until a later moment, both ends of loopback connections included.
    pub(crate) fn sockets_until(self, later: Self) -> Option<f64> {
        Some(later.sockets? as f64 - self.sockets? as f64)
    }

    /// Bytes that are no longer available at a later moment, whoever took them.
    pub(crate) fn taken_until(self, later: Self) -> f64 {
        self.available as f64 - later.available as f64
    }
}

/// slabinfo(5): name, active objects, objects, bytes of each.
fn slab_bytes(text: &str) -> u64 {
    let of_line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (active, _, bytes) = (number()?, number()?, number()?);
        SOCKET_CACHES.contains(&name).then_some(active * bytes)
    };
    text.lines().filter_map(of_line).sum()
}

/// Resident bytes of a process and its descendants (`VmRSS`). Pages they share count once for each.
///
/// # Errors
/// The process has ended.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let of_process = |pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        kibibytes(&text, "VmRSS:")
    };
    Ok(tree::members(pid)?
        .into_iter()
        .filter_map(of_process)
        .sum::<u64>()
        * 1024)
}

/// A line of `/proc/PID/status` or `/proc/meminfo`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn the_resident_set_is_read_in_kibibytes() {
        assert_eq!(
            kibibytes("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t   1234 kB\n", "VmRSS:"),
            Some(1234)
        );
        assert_eq!(kibibytes("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    fn only_the_objects_of_sockets_are_counted() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n\
                    TCP 3 13 2368 13 8\ndentry 9 9 192 21 1\nfilp 5 21 192 21 1\n";
        assert_eq!(slab_bytes(text), 3 * 2368 + 5 * 192);
    }

    #[test]
    fn what_is_touched_becomes_resident() {
        let before = resident_bytes(process::id()).unwrap();
        let held = vec![1_u8; 32 << 20];
        let after = resident_bytes(process::id()).unwrap();
        assert!(
            after > before + (24 << 20),
            "{before} {after} {}",
            held.len()
        );
    }
}
