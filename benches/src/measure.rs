//! How a figure comes about: ours and its floor in turns, the median of each, and the median of the ratios.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Any error that stops a bench.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Seconds of both sides, one entry a round.
#[derive(Default)]
pub(crate) struct Pairs {
    pub ours: Vec<f64>,
    pub floor: Vec<f64>,
}

/// One row of RESULTS.md.
pub(crate) struct Row {
    pub figure: String,
    pub ours: String,
    pub floor: String,
    /// Our time as a multiple of the floor's.
    pub ratio: f64,
    pub note: String,
}

impl Row {
    pub(crate) const HEAD: &str = "| figure | ours | floor | ours / floor | note |\n|---|---|---|---|---|";
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { figure, ours, floor, ratio, note } = self;
        write!(formatter, "| {figure} | {ours} | {floor} | {ratio:.2}x | {note} |")
    }
}

impl Pairs {
    /// Runs both sides in turns, after one unmeasured round. Each returns the seconds it counts.
    pub(crate) fn measure(
        rounds: usize,
        mut ours: impl FnMut() -> Result<f64>,
        mut floor: impl FnMut() -> Result<f64>,
    ) -> Result<Pairs> {
        let mut pairs = Pairs::default();
        floor()?;
        ours()?;
        for _ in 0..rounds {
            pairs.floor.push(floor()?);
            pairs.ours.push(ours()?);
        }
        Ok(pairs)
    }

    /// A row in GB/s of `len_bytes`.
    pub(crate) fn throughput(&self, figure: &str, len_bytes: u64, note: String) -> Row {
        let rate = |seconds: f64| len_bytes as f64 / seconds / 1e9;
        let say = |all: &[f64]| {
            let (least, most) = spread(all);
            format!("{:.2} GB/s ({:.2} to {:.2})", rate(median(all)), rate(most), rate(least))
        };
        self.row(figure, say, note)
    }

    /// A row in time of one of `count` operations.
    pub(crate) fn latency(&self, figure: &str, count: u64, note: String) -> Row {
        let each = |seconds: f64| duration(seconds / count as f64);
        let say = |all: &[f64]| {
            let (least, most) = spread(all);
            format!("{} ({} to {})", each(median(all)), each(least), each(most))
        };
        self.row(figure, say, note)
    }

    fn row(&self, figure: &str, say: impl Fn(&[f64]) -> String, note: String) -> Row {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.floor).map(|(ours, floor)| ours / floor).collect();
        Row {
            figure: figure.into(),
            ours: say(&self.ours),
            floor: say(&self.floor),
            ratio: median(&ratios),
            note,
        }
    }
}

/// The conditions of a figure: the machine, its other load, and the commit.
pub(crate) fn circumstances() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    let commit = Command::new("git").args(["describe", "--always", "--dirty"]).output()?;
    let commit = String::from_utf8_lossy(&commit.stdout);
    Ok(format!("Linux {}, {cores} cores, load {load} before; commit {}", kernel.trim(), commit.trim()))
}

/// The `snapctl` of the same build.
pub(crate) fn snapctl() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("snapctl");
    match program.exists() {
        true => Ok(program),
        false => Err("no snapctl beside this program: cargo build --release --package torpor-tools".into()),
    }
}

/// Seconds that `work` takes.
pub(crate) fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value that so many percent of all values do not exceed.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().saturating_sub(1) * percent).div_ceil(100)).copied().unwrap_or(f64::NAN)
}

/// A row of single operations, each timed by itself.
pub(crate) fn percentiles(figure: &str, ours: &[f64], floor: &[f64], note: String) -> Row {
    let say = |all: &[f64]| format!("p50 {}, p99 {}", duration(median(all)), duration(percentile(all, 99)));
    let ratio = median(ours) / median(floor);
    Row { figure: figure.into(), ours: say(ours), floor: say(floor), ratio, note }
}

/// The least and the greatest value.
pub(crate) fn spread(values: &[f64]) -> (f64, f64) {
    (percentile(values, 0), percentile(values, 100))
}

/// Seconds for people.
pub(crate) fn duration(seconds: f64) -> String {
    match Duration::from_secs_f64(seconds) {
        short if short < Duration::from_millis(1) => format!("{:.1} us", seconds * 1e6),
        short if short < Duration::from_secs(1) => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&values, 0), percentile(&values, 100)), (1.0, 100.0));
        assert_eq!(percentile(&values, 99), 100.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn the_ratio_is_the_median_of_each_round_s() {
        let pairs = Pairs { ours: vec![2.0, 40.0, 3.0], floor: vec![1.0, 10.0, 1.0] };
        assert_eq!(pairs.latency("x", 1, String::new()).ratio, 3.0);
    }
}
