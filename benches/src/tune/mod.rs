//! `tune`: the experiments behind docs/TUNING.md, on the memory of real servers that CRIU hibernated.
//!
//! `cargo run --release --package benches -- tune DATA PACKAGES` makes the missing data below DATA (see `hibernate.py`
//! for PACKAGES) and prints one markdown table per experiment. Sizes are exact and repeat; times are medians. Each
//! server sleeps `TORPOR_TUNE_SLEEPS` times, 6 unless set.
//!
//! - `data`    the servers, their memory page by page
//! - `trace`   the pages that a resumed server touches
//! - `sizes`   unit of identity, pages of a group, zstd level
//! - `likes`   similar pages: dictionaries, deltas against the parent, equal pages elsewhere
//! - `budget`  fetches of a resume, as generations go by
//! - `chain`   the same over a hundred sleeps of synthetic memory

mod budget;
mod data;
mod likes;
mod sizes;
mod trace;

use std::path::Path;

use crate::measure::{Result, circumstances};
use data::Server;

/// Runs every experiment.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [data, packages, only @ ..] = arguments else { return Err("tune needs DATA and PACKAGES".into()) };
    let scratch = tempfile::Builder::new().prefix("torpor-tune-").tempdir()?;
    let mut servers = data::prepare(Path::new(data), Path::new(packages), scratch.path())?;
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    println!("{}\n", circumstances()?);
    if wanted("data") {
        data::describe(&servers);
    }
    if wanted("unit") {
        sizes::unit(&servers);
    }
    if ["group", "budget", "cost"].into_iter().any(wanted) {
        trace::record(&mut servers, scratch.path())?;
    }
    if wanted("group") {
        sizes::group(&servers);
    }
    if wanted("level") {
        sizes::level(&servers);
    }
    if wanted("dictionary") {
        likes::dictionary(&servers);
    }
    if wanted("delta") {
        likes::delta(&servers);
    }
    if wanted("elsewhere") {
        likes::elsewhere(&servers, Path::new(packages))?;
    }
    if wanted("budget") {
        budget::budget(&servers);
    }
    if wanted("chain") {
        budget::chain();
    }
    Ok(())
}

/// Prints one table: its title, its columns, and one row per runtime.
fn table(title: &str, columns: &[&str], rows: &[Vec<String>]) {
    println!("{title}\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
    rows.iter().for_each(|row| println!("| {} |", row.join(" | ")));
    println!();
}

/// The servers of each runtime, in the order of their names.
fn by_runtime(servers: &[Server]) -> Vec<(&str, Vec<&Server>)> {
    let mut runtimes: Vec<(&str, Vec<&Server>)> = Vec::new();
    for server in servers {
        match runtimes.iter_mut().find(|(runtime, _)| *runtime == server.runtime()) {
            Some((_, of_it)) => of_it.push(server),
            None => runtimes.push((server.runtime(), vec![server])),
        }
    }
    runtimes
}

fn kib(bytes: usize) -> String {
    format!("{:.0}", bytes as f64 / 1024.0)
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}
