//! The serving side of lazy memory as a process of its own, so that tests can kill it.
//!
//! `lazyload_handler [--supervised] [--prefetch] firecracker STORE IMAGE SOCKET`
//! `lazyload_handler [--supervised] [--prefetch] criu STORE IMAGE DIRECTORY`
//! `lazyload_handler map STORE IMAGE PAGE` maps the image and writes the bytes of one page
//!
//! Prints `ready PID` once it listens, PID being the process that serves, and one line of JSON at the end. With
//! `--supervised` it runs itself once more as the handler and stands by; its last line then reports the process that it
//! had to kill.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use lazyload::supervisor::{Escrow, run};
use lazyload::{ServeOptions, ServeReport};
use serde_json::json;
use store::{Error, Image, PAGE, Result, Store, StoreConfig};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (flags, rest): (Vec<String>, Vec<String>) =
        arguments.into_iter().partition(|argument| argument.starts_with("--"));
    let outcome = if flags.iter().any(|flag| flag == "--supervised") {
        supervise(&flags, &rest)
    } else {
        handle(&flags, &rest)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn supervise(flags: &[String], rest: &[String]) -> Result<()> {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(flags.iter().filter(|flag| *flag != "--supervised")).arg("--handler").args(rest);
    let supervised = run(command)?;
    println!("{}", json!({ "killed": supervised.killed, "handler": supervised.status.to_string() }));
    Ok(())
}

fn handle(flags: &[String], rest: &[String]) -> Result<()> {
    let is_set = |name: &str| flags.iter().any(|flag| flag == name);
    let options = ServeOptions {
        prefetch: is_set("--prefetch"),
        accept_timeout: Duration::from_secs(60),
        ready: Some(Box::new(|| println!("ready {}", std::process::id()))),
        escrow: is_set("--handler").then(Escrow::from_stdin).transpose()?,
        ..ServeOptions::default()
    };
    let [kind, store, image, path] = rest else {
        panic!("usage: lazyload_handler firecracker|criu STORE IMAGE PATH")
    };
    let store = Store::open(&StoreConfig::directory(Path::new(store)))?;
    let image = store.image(&image.parse()?)?;
    if kind == "map" {
        return write_page(&image, path.parse().expect("a page number"));
    }
    let path = Path::new(path);
    let report = match kind.as_str() {
        "firecracker" => lazyload::firecracker::serve(&store, &image, path, &options)?,
        _ => lazyload::criu::serve(&store, &image, path, path, &options)?,
    };
    print(&report);
    Ok(())
}

fn write_page(image: &Image, page: usize) -> Result<()> {
    let mapping = lazyload::map::map(image, 0)?;
    // Copied out first: touching a page that cannot be read ends this process.
    let bytes = mapping[page * PAGE..][..PAGE].to_vec();
    std::io::stdout().write_all(&bytes).map_err(|error| Error::io("cannot write", "standard output", error))
}

fn print(report: &ServeReport) {
    println!(
        "{}",
        json!({
            "spaces": report.spaces,
            "faults": report.faults,
            "pages": report.pages,
            "zero_pages": report.zero_pages,
            "removed_pages": report.removed_pages,
            "prefetched": report.prefetched,
            "poisoned": report.poisoned,
        })
    );
}
