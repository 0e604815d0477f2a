//! What a command prints for the person who typed it.
//!
//! Only `main` calls it; everything else logs. A closed pipe is no error: the reader has seen enough.

use std::io::{self, BufWriter, Write};

/// Prints lines to standard output.
///
/// # Errors
/// Standard output can't be written, a closed pipe aside.
pub fn print(text: &str) -> io::Result<()> {
    write_line(&mut io::stdout().lock(), text)
}

/// Where a command writes what is long.
#[must_use]
pub fn output() -> impl Write {
    BufWriter::new(io::stdout().lock())
}

/// Prints lines to standard error, each message with the program's name in front.
///
/// # Errors
/// Standard error can't be written, a closed pipe aside.
pub fn complain(text: &str) -> io::Result<()> {
    write_line(&mut io::stderr().lock(), &format!("roomful: {text}"))
}

fn write_line(out: &mut impl Write, text: &str) -> io::Result<()> {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
