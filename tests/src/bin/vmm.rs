//! A small virtual machine on the command line: stamps pages and is saved, or is resumed and checks them.
//!
//! `vmm save --memory FILE --state FILE --pages N [--sparse] [--diffs N]`
//! `vmm resume --socket SOCKET --state FILE [--rounds N | --until FILE] [--discard N] [--page-size BYTES] [--hang-up]`
//! `vmm knock --socket SOCKET [--text TEXT] [--descriptor]`
//!
//! `save` writes the memory file as a Full snapshot does, with `--sparse` without its pages of zeroes. With `--diffs`
//! some pages are wrong in it, and after it N Diff snapshots follow, FILE.1 and so on, each of which corrects a part of
//! them.
//!
//! `resume` prints one line of JSON and ends with 0 when every page was right, 3 when one was wrong, 4 when the machine
//! was stopped. With `--discard`, N times a stretch of the last quarter of the pages is discarded while the guest runs,
//! and must read as zero from then on. `--page-size` is sent in the handshake; with 2097152 the memory is made of such
//! pages, and discarded by them. With `--hang-up` the monitor closes its socket and its userfaultfd before the guest
//! runs. With `--until` the guest checks, and pages are discarded, until the file is there.
//!
//! `knock` is no machine: it starts a child, connects, sends TEXT, with `--descriptor` also a descriptor of a pipe,
//! prints `knocked`, and waits until the connection is closed. It ends with 0 when its child is still there.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use serde_json::json;
use tests::vmm::{Failure, HUGE_PAGE, Machine, send};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let path = |name: &str| value(name).map(PathBuf::from);
    let number = |name: &str, default| value(name).map_or(default, |value| value.parse().expect("a number"));
    match (arguments.first().map(String::as_str), path("--memory"), path("--state"), path("--socket")) {
        (Some("save"), Some(memory), Some(state), _) => {
            let diffs = number("--diffs", 0);
            let mut machine = Machine::boot(number("--pages", 1 << 14), diffs > 0);
            machine.stamp();
            machine.spoil(diffs);
            machine.save(&memory, &state, arguments.iter().any(|argument| argument == "--sparse"));
            for part in 0..diffs {
                machine.mend(part, diffs);
                let next = |path: &Path| path.with_extension((part + 1).to_string());
                machine.save_diff(&next(&memory), &next(&state));
            }
            ExitCode::SUCCESS
        }
        (Some("resume"), _, Some(state), Some(socket)) => {
            let start = Instant::now();
            let page_size = number("--page-size", 4096);
            let unit = if page_size == HUGE_PAGE { page_size / 4096 } else { 1 };
            let mut machine = Machine::resume(&socket, &state, page_size).expect("the handler answers");
            if arguments.iter().any(|argument| argument == "--hang-up") {
                machine.hang_up();
            }
            resume(machine, start, number("--rounds", 1), path("--until"), number("--discard", 0), unit)
        }
        (Some("knock"), _, _, Some(socket)) => {
            let text = value("--text").unwrap_or_default();
            knock(&socket, &text, arguments.iter().any(|argument| argument == "--descriptor"))
        }
        _ => {
            eprintln!(
                "usage: vmm save --memory FILE --state FILE --pages N | vmm resume --socket SOCKET --state FILE"
            );
            ExitCode::from(2)
        }
    }
}

/// Connects, sends something that is no handshake, and waits for the end of the connection.
fn knock(socket: &Path, text: &str, with_descriptor: bool) -> ExitCode {
    let mut child = Command::new("sleep").arg("1000").spawn().expect("a child");
    let mut stream = UnixStream::connect(socket).expect("the handler listens");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let descriptors = [reader.as_fd()];
    if !text.is_empty() {
        send(&stream, text.as_bytes(), if with_descriptor { &descriptors } else { &[] }).expect("said");
    }
    println!("knocked");
    // Closed with unread bytes, the connection ends with an error.
    drop(stream.read_to_end(&mut Vec::new()));
    let is_there = child.try_wait().expect("looked").is_none();
    child.kill().and_then(|()| child.wait()).expect("the child ends");
    ExitCode::from(u8::from(!is_there))
}

/// Runs the machine for some rounds, or until a file is there.
fn resume(
    mut machine: Machine,
    start: Instant,
    rounds: u64,
    until: Option<PathBuf>,
    discards: u64,
    unit: u64,
) -> ExitCode {
    let pages = machine.pages();
    let window = if discards == 0 { 0..0 } else { pages - pages / 4..pages };
    let stamped = machine.stamped();
    let balloon = std::thread::spawn({
        let (window, until) = (window.clone(), until.clone());
        move || {
            let mut seed = 1;
            stamped.discard_at_random(window.clone(), discards, seed, unit);
            while discards > 0 && until.as_ref().is_some_and(|file| !file.exists()) {
                seed += 1;
                stamped.discard_at_random(window.clone(), discards, seed, unit);
            }
        }
    });
    let mut zero_pages = 0;
    for round in 0.. {
        match machine.check(start, window.clone()) {
            Ok(checked) => {
                zero_pages += checked.zero_pages;
                if until.as_ref().map_or(round + 1 == rounds, |file| file.exists()) {
                    let seconds = |duration: std::time::Duration| duration.as_secs_f64();
                    balloon.join().expect("every page given back reads as zero");
                    println!(
                        "{}",
                        json!({
                            "pages": pages,
                            "first_instruction_seconds": seconds(checked.resumed),
                            "first_page_seconds": seconds(checked.first_page),
                            "all_pages_seconds": seconds(checked.all_pages),
                            "zero_pages": zero_pages,
                        })
                    );
                    return ExitCode::SUCCESS;
                }
            }
            Err(Failure::WrongPage { page, found, expected }) => {
                println!("{}", json!({ "wrong_page": page, "found": found, "expected": expected }));
                return ExitCode::from(3);
            }
            Err(Failure::Stopped) => {
                println!("{}", json!({ "stopped": true }));
                return ExitCode::from(4);
            }
        }
    }
    unreachable!("the rounds end with an answer")
}
