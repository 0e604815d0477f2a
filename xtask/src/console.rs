//! What the person at the terminal reads. The one place that prints.

/// One line, or several, of result.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// One line of complaint.
#[expect(clippy::print_stderr, reason = "a command's complaints belong there")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}

/// The headline of a stage.
pub(crate) fn headline(name: &str, about: &str) {
    say(&format!("\n=== {name}: {about}"));
}
