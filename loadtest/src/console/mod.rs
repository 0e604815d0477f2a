//! What the commands print: results to standard output, progress and errors to standard error.
//!
//! Everything else in this crate calls these, so that a result is never mixed with what is said about it: bars are on standard error, are
//! taken away while a line is printed, and are gone when the command ends, by Ctrl-C as well.

mod bar;
mod interrupt;

pub(crate) use bar::{Bar, Runs};
pub(crate) use interrupt::{catch_interrupts, interrupted};

/// One line of a result.
#[expect(
    clippy::print_stdout,
    reason = "this module is where a command talks to its user"
)]
pub(crate) fn result(text: &str) {
    bar::aside(|| println!("{text}"));
}

/// What is being done right now.
pub(crate) fn progress(text: &str) {
    complain(text);
}

/// Why the run ends without a result.
pub(crate) fn error(text: &str) {
    complain(&format!("error: {text}"));
}

#[expect(
    clippy::print_stderr,
    reason = "this module is where a command talks to its user"
)]
fn complain(line: &str) {
    bar::aside(|| eprintln!("{line}"));
}
