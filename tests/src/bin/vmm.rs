//! A small virtual machine on the command line: stamps pages and is saved, or is resumed and checks them.
//!
//! `vmm save --memory FILE --state FILE --pages N [--sparse] [--diffs N]`
//! `vmm resume --socket SOCKET --state FILE [--rounds N] [--discard N] [--page-size BYTES] [--hang-up]`
//!
//! `save` writes the memory file as a Full snapshot does, with `--sparse` without its pages of zeroes. With `--diffs` some
//! pages are wrong in it, and after it N Diff snapshots follow, FILE.1 and so on, each of which makes a part of them right.
//!
//! `resume` prints one line of JSON and ends with 0 when every page was right, 3 when one was wrong, 4 when the machine
//! was stopped. With `--discard`, N times a stretch of the last quarter of the pages is given back while the guest runs,
//! and must read as zero from then on. `--page-size` is only what the handshake says. With `--hang-up` the monitor closes
//! its socket and its userfaultfd before the guest runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use tests::vmm::{Failure, Machine};

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
            let mut machine =
                Machine::resume(&socket, &state, number("--page-size", 4096)).expect("the handler answers");
            if arguments.iter().any(|argument| argument == "--hang-up") {
                machine.hang_up();
            }
            resume(machine, start, number("--rounds", 1), number("--discard", 0))
        }
        _ => {
            eprintln!(
                "usage: vmm save --memory FILE --state FILE --pages N | vmm resume --socket SOCKET --state FILE"
            );
            ExitCode::from(2)
        }
    }
}

fn resume(mut machine: Machine, start: Instant, rounds: u64, discards: u64) -> ExitCode {
    let pages = machine.pages();
    let window = if discards == 0 { 0..0 } else { pages - pages / 4..pages };
    let stamped = machine.stamped();
    let balloon = std::thread::spawn({
        let window = window.clone();
        move || stamped.discard_at_random(window, discards)
    });
    let mut zero_pages = 0;
    for round in 0..rounds {
        match machine.check(start, window.clone()) {
            Ok(checked) => {
                zero_pages += checked.zero_pages;
                if round + 1 == rounds {
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
    ExitCode::SUCCESS
}
