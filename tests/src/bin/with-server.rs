//! `with-server program argument…`: starts a server, runs a program against it, and ends with its exit code.
//!
//! `{url}` in an argument becomes the page's address, without a slash at its end; the variable `ROOMFUL_URL` is the WebSocket's.
//!
//! This is how tests that are no Rust programs get the real server: by the same harness as the others.
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a small program for test runs, which reports by failing"
)]

use std::process::ExitCode;

use roomful_tests::Server;
use tokio::process::Command;

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [program, arguments @ ..] = words.as_slice() else {
        eprintln!("usage: with-server program argument…");
        return ExitCode::FAILURE;
    };
    let server = Server::start().await;
    let arguments = arguments
        .iter()
        .map(|argument| argument.replace("{url}", &server.url()));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("ROOMFUL_URL", server.websocket_url());
    let status = command.status().await.unwrap();
    if !status.success() {
        eprintln!("the server's log:\n{}", server.log().join("\n"));
    }
    ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    )
}
