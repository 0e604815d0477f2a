//! Resident memory.

use std::fs;

use anyhow::Result;

use super::tree;

/// Resident bytes of a process and its descendants (`VmRSS`). Pages they share count once for each.
///
/// # Errors
/// The process has ended.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let of_process = |pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        resident_kibibytes(&text)
    };
    Ok(tree::members(pid)?
        .into_iter()
        .filter_map(of_process)
        .sum::<u64>()
        * 1024)
}

fn resident_kibibytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn the_resident_set_is_read_in_kibibytes() {
        assert_eq!(
            resident_kibibytes("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t   1234 kB\n"),
            Some(1234)
        );
        assert_eq!(resident_kibibytes("Name:\tx\n"), None);
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
