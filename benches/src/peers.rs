//! Ingest, restore and stored bytes against restic, borg, tar and cp on real files (`corpus`), in turns. The floor of
//! an ingest is its unavoidable work: reading, BLAKE3 and zstd of the same bytes at the same level on every core.
//!
//! Everything is in the page cache; `cold` does the same with caches dropped before each run, which needs root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::contender::{Contender, Cost, Kind, command, cost};
use crate::corpus::Corpus;
use crate::measure::{Result, Row, duration, median, spread};

const NAME: &str = "peers";
/// Stores on a slower tier, by the level of recompression there.
const RECOMPRESSED: [(&str, i32); 2] = [("torpor, far, level 9", 9), ("torpor, far, level 19", 19)];

/// Runs by name of the contender.
#[derive(Default)]
struct Runs(BTreeMap<&'static str, Vec<Cost>>);

impl Runs {
    fn add(&mut self, who: &'static str, cost: Cost) {
        eprintln!("benches: {who}: {:.2} s, {:.2} s of CPU", cost.seconds, cost.cpu_seconds);
        self.0.entry(who).or_default().push(cost);
    }

    fn seconds(&self, who: &str) -> Vec<f64> {
        self.0[who].iter().map(|cost| cost.seconds).collect()
    }

    /// One row for each contender that Torpor is compared with.
    fn rows(&self, figure: &str, note: &str) -> Vec<Row> {
        self.rows_of(Kind::Torpor, figure, note)
    }

    /// The same for one of Torpor's ways.
    fn rows_of(&self, kind: Kind, figure: &str, note: &str) -> Vec<Row> {
        let our_name = kind.name();
        let ours = self.seconds(our_name);
        let others = self.0.keys().filter(|who| !who.starts_with(Kind::Torpor.name()));
        let row = |who: &&'static str| {
            let theirs = self.seconds(who);
            let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
            let cpu =
                |who: &str| median(&self.0[who].iter().map(|cost| cost.cpu_seconds).collect::<Vec<_>>());
            let peak = |who: &str| self.0[who].iter().map(|cost| cost.peak_bytes).max().unwrap_or(0) >> 20;
            let note = format!(
                "{note}CPU {:.2} s to {:.2} s, peak {} MiB to {} MiB",
                cpu(our_name),
                cpu(who),
                peak(our_name),
                peak(who),
            );
            Row {
                figure: format!("{figure} / {who}"),
                ours: say(&ours),
                floor: say(&theirs),
                ratio: median(&ratios),
                note,
            }
        };
        others.map(row).collect()
    }
}

fn say(seconds: &[f64]) -> String {
    let (least, most) = spread(seconds);
    format!("{} ({} to {})", duration(median(seconds)), duration(least), duration(most))
}

/// A row that compares bytes, which do not vary from run to run.
fn bytes_row(figure: String, ours: u64, theirs: u64, note: String) -> Row {
    let say = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    Row { figure, ours: say(ours), floor: say(theirs), ratio: ours as f64 / theirs as f64, note }
}

fn rounds() -> usize {
    std::env::var("TORPOR_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

/// Warm runs of everything.
pub(crate) fn peers(scratch: &Path) -> Result<Vec<Row>> {
    let bench = Bench::prepare(scratch, false)?;
    bench.run()
}

/// The same with cold caches.
pub(crate) fn cold(scratch: &Path) -> Result<Vec<Row>> {
    let bench = Bench::prepare(scratch, true)?;
    bench.run()
}

/// A copy of the corpus that may be changed.
struct Bench<'a> {
    scratch: &'a Path,
    source: PathBuf,
    files: Vec<PathBuf>,
    len_bytes: u64,
    is_cold: bool,
}

impl<'a> Bench<'a> {
    fn prepare(scratch: &'a Path, is_cold: bool) -> Result<Self> {
        let source = scratch.join("source");
        cost(&mut command("cp", &[&"-a", &Corpus::open()?.tree(), &source]), scratch)?;
        let mut files = Vec::new();
        let len_bytes = regular_files(&source, &mut files)?;
        Ok(Self { scratch, source, files, len_bytes, is_cold })
    }

    /// Nothing waits to be written, and the files are in memory or not, as the bench wants it.
    fn settle(&self) -> Result<()> {
        rustix::fs::sync();
        if self.is_cold {
            fs::write("/proc/sys/vm/drop_caches", "3")?;
        }
        Ok(())
    }

    fn run(&self) -> Result<Vec<Row>> {
        let [mut first, mut second, mut changed, mut restored] = [(); 4].map(|()| Runs::default());
        let mut stored = BTreeMap::new();
        for round in 0..rounds() {
            let mut contenders = Vec::new();
            for kind in Kind::ALL {
                let mut contender = Contender::new(kind, self.scratch)?;
                self.settle()?;
                first.add(kind.name(), contender.back_up(&self.source, NAME)?);
                stored.insert(kind.name(), contender.stored_bytes()?);
                contenders.push(contender);
            }
            let mut fast = Contender::new(Kind::Fast, self.scratch)?;
            self.settle()?;
            first.add(Kind::Fast.name(), fast.back_up(&self.source, NAME)?);
            stored.insert("torpor, level 1", fast.stored_bytes()?);
            let spent = fast.recompress()?;
            eprintln!("benches: recompressed in {:.1} s, {:.1} s of CPU", spent.seconds, spent.cpu_seconds);
            stored.insert("torpor, level 1, then recompressed at 9", fast.stored_bytes()?);
            drop(fast);
            self.settle()?;
            first.add("floor", cost(&mut self.floor()?, self.scratch)?);
            let archive = self.scratch.join("tar.zst");
            let tar = "tar -C \"$1\" -cf - . | zstd -q -3 -T2 -f -o \"$2\"";
            self.settle()?;
            first.add(
                "tar zstd -3 -T2",
                cost(&mut command("sh", &[&"-c", &tar, &"sh", &self.source, &archive]), self.scratch)?,
            );
            stored.insert("tar zstd -3 -T2", fs::metadata(&archive)?.len());
            // Files changed in the second before a backup are never taken for unchanged; see to it that none are.
            for contender in &mut contenders {
                self.settle()?;
                second.add(contender.kind.name(), contender.back_up(&self.source, NAME)?);
            }
            self.settle()?;
            second.add(
                "find",
                cost(&mut command("find", &[&self.source, &"-printf", &"%s %C@\n"]), self.scratch)?,
            );
            self.change(round)?;
            for contender in &mut contenders {
                self.settle()?;
                changed.add(contender.kind.name(), contender.back_up(&self.source, NAME)?);
            }
            self.restore(&contenders, &mut restored)?;
        }
        let note = format!("{} MB in {} files; ", self.len_bytes / 1_000_000, self.files.len());
        let cold = if self.is_cold { ", cold" } else { "" };
        let mut rows = first.rows(&format!("first ingest{cold}"), &note);
        rows.extend(first.rows_of(Kind::Fast, &format!("first ingest at level 1{cold}"), &note));
        let others = stored.iter().filter(|(who, _)| **who != "torpor");
        rows.extend(others.map(|(who, theirs)| {
            bytes_row(format!("first ingest, stored bytes / {who}"), stored["torpor"], *theirs, String::new())
        }));
        rows.extend(second.rows(&format!("second ingest, unchanged{cold}"), ""));
        rows.extend(changed.rows(&format!("ingest with 1 % of the files changed{cold}"), ""));
        rows.extend(restored.rows(&format!("restore{cold}"), ""));
        Ok(rows)
    }

    /// Changes a few bytes in the middle of every hundredth file.
    fn change(&self, round: usize) -> Result<()> {
        for path in self.files.iter().skip(round).step_by(100) {
            let file = fs::File::options().write(true).open(path)?;
            file.write_all_at(&(round as u64).to_le_bytes(), file.metadata()?.len() / 2)?;
        }
        Ok(())
    }

    fn restore(&self, contenders: &[Contender], runs: &mut Runs) -> Result<()> {
        let target = self.scratch.join("target");
        for contender in contenders {
            self.settle()?;
            runs.add(contender.kind.name(), contender.restore(NAME, &target)?);
            fs::remove_dir_all(&target)?;
        }
        self.settle()?;
        runs.add("cp -a", cost(&mut command("cp", &[&"-a", &self.source, &target]), self.scratch)?);
        Ok(fs::remove_dir_all(&target)?)
    }

    /// This program again, so that its time and memory are counted like the others'.
    fn floor(&self) -> Result<std::process::Command> {
        Ok(command(std::env::current_exe()?, &[&"floor", &self.source]))
    }
}

/// Regular files below a directory in order of their names, and their bytes together.
pub(crate) fn regular_files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<u64> {
    let mut entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut len_bytes = 0;
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            len_bytes += regular_files(&entry.path(), found)?;
        } else if kind.is_file() {
            len_bytes += entry.metadata()?.len();
            found.push(entry.path());
        }
    }
    Ok(len_bytes)
}

/// Stored bytes of several versions of one thing.
pub(crate) fn versions(scratch: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (what, versions) in Corpus::open()?.version_sets() {
        let mut stored = BTreeMap::new();
        for kind in Kind::ALL {
            let mut contender = Contender::new(kind, scratch)?;
            for (number, version) in versions.iter().enumerate() {
                contender.back_up(version, &format!("version-{number}"))?;
            }
            stored.insert(kind.name(), contender.stored_bytes()?);
            if kind == Kind::Torpor {
                for (name, level) in RECOMPRESSED {
                    contender.recompress_far(level)?;
                    stored.insert(name, contender.stored_bytes()?);
                }
            }
        }
        let (restic, borg) = (stored["restic"], stored["borg"]);
        let note = format!("restic {:.1} MB, borg {:.1} MB", restic as f64 / 1e6, borg as f64 / 1e6);
        for who in ["torpor"].into_iter().chain(RECOMPRESSED.map(|(name, _)| name)) {
            rows.push(bytes_row(
                format!("{what}, stored bytes of {who} / better of restic and borg"),
                stored[who],
                restic.min(borg),
                note.clone(),
            ));
        }
    }
    Ok(rows)
}
