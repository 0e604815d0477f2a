//! File descriptors: as many as the system gives, and a few that the public never gets.
//!
//! The kernel gives the lowest number that is free, so a socket's own number tells how many are in use: one close to
//! the limit means that nearly all are.

/// Lets the process have as many as the system allows it; how many that are, where there is such a limit.
///
/// # Errors
/// The system refuses.
pub fn raise() -> std::io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// Whether a descriptor is one of the last so many of the process. Where few are allowed at all, no more than a
/// quarter of them are kept back.
#[must_use]
pub fn is_reserved(descriptor: u64, reserved: u64) -> bool {
    limit().is_some_and(|limit| descriptor >= limit - reserved.min(limit / 4))
}

/// How many the process may have now; an operator may change it while the process runs.
#[cfg(unix)]
fn limit() -> Option<u64> {
    let (soft, _hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).ok()?;
    Some(soft)
}

#[cfg(not(unix))]
fn limit() -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// The last ones are kept back, the others are not, and without a reserve none is.
    #[test]
    fn the_last_descriptors_are_reserved() {
        let limit = limit().unwrap();
        assert!(!is_reserved(limit - 9, 8));
        assert!(is_reserved(limit - 8, 8));
        assert!(is_reserved(limit - 1, 8));
        assert!(!is_reserved(limit - 1, 0));
        assert!(!is_reserved(3, u64::MAX));
    }
}
