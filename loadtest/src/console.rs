//! What the commands print: results to standard output, progress and errors to standard error.
//!
//! Everything else in this crate calls these, so that a result is never mixed with what is said about it.

/// One line of a result.
#[expect(
    clippy::print_stdout,
    reason = "this module is where a command talks to its user"
)]
pub(crate) fn result(text: &str) {
    println!("{text}");
}

/// What is being done right now.
#[expect(
    clippy::print_stderr,
    reason = "this module is where a command talks to its user"
)]
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

/// Why the run ends without a result.
#[expect(
    clippy::print_stderr,
    reason = "this module is where a command talks to its user"
)]
pub(crate) fn error(text: &str) {
    eprintln!("error: {text}");
}
