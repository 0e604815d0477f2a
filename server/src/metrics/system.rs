//! What the system knows about this process; nothing where it doesn't tell.

/// Bytes of memory that the process holds; none where the system doesn't tell.
#[cfg(target_os = "linux")]
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// File descriptors, without the one that reads them.
#[cfg(target_os = "linux")]
pub(super) fn open_files() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    Some(entries.saturating_sub(1) as u64)
}

/// Bytes of memory that the process holds; none where the system doesn't tell.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open_files() -> Option<u64> {
    None
}
