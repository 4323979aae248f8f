//! An app with a protocol of its own, which is no HTTP: lines over TCP, datagrams over UDP. It knows
//! nothing of Weft.
//!
//! - `weft-example-echo serve <name> <address>…`: answers each line or datagram with its name, who
//!   asks, and what was said.
//! - `weft-example-echo ask <milliseconds> <target>…`: asks each target once, all at the same time,
//!   and prints a line each: the target, how it went, and the answer. Targets are `tcp:<address>`,
//!   `udp:<address>` and `icmp:<ip>`; it went `ok`, `refused`, `denied`, `unreachable`, `timeout` or
//!   `error`.
//! - `weft-example-echo talk <address> <word>`: says a line with the word every 10 ms on one connection
//!   until its input is closed, then prints how many were said and answered.

mod ask;
mod serve;
mod talk;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["serve", name, ref addresses @ ..] if !addresses.is_empty() => serve::run(name, addresses),
        ["ask", patience, ref targets @ ..] if !targets.is_empty() => ask::run(patience, targets),
        ["talk", address, word] => talk::run(address, word),
        _ => {
            eprintln!(
                "usage: weft-example-echo serve <name> <address>… | ask <ms> <target>… | talk <address> <word>"
            );
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-example-echo: {error}");
            ExitCode::FAILURE
        }
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;
