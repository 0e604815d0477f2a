//! `with-server program argument…`: starts a server, runs a program against it, and ends with its exit code.
//!
//! `{url}` in an argument becomes the page's address, without a slash at its end; the variable `ROOMFUL_URL` is the WebSocket's. `{control}`
//! becomes the address at which the program has the server killed and started again: of each line, `kill` or `start`, it is told `done`.
//!
//! This is how tests that are no Rust programs get the real server: by the same harness as the others.
#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a small program for test runs, which reports by failing"
)]

use std::convert::Infallible;
use std::process::ExitCode;

use roomful_tests::Server;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [program, arguments @ ..] = words.as_slice() else {
        eprintln!("usage: with-server program argument…");
        return ExitCode::FAILURE;
    };
    let mut server = Server::start().await;
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_address = control.local_addr().unwrap().to_string();
    let arguments = arguments.iter().map(|argument| {
        argument
            .replace("{url}", &server.url())
            .replace("{control}", &control_address)
    });
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("ROOMFUL_URL", server.websocket_url());
    let status = tokio::select! {
        status = command.status() => status.unwrap(),
        never = obey(&control, &mut server) => match never {},
    };
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

/// Does what the program asks for, one connection after the other.
async fn obey(control: &TcpListener, server: &mut Server) -> Infallible {
    loop {
        let (mut stream, _) = control.accept().await.unwrap();
        let (orders, mut answers) = stream.split();
        let mut orders = BufReader::new(orders).lines();
        while let Some(order) = orders.next_line().await.unwrap() {
            match order.as_str() {
                "kill" => server.kill().await,
                "start" => server.start_again().await,
                other => panic!("{other:?} is neither kill nor start"),
            }
            answers.write_all(b"done\n").await.unwrap();
        }
    }
}
