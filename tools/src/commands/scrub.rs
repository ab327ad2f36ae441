//! `snapctl scrub`: reads and verifies every stored byte of every tier; reports the affected files of snapshots; and
//! with `--repair`, rebuilds damaged packs from any intact copies. Without it nothing changes.

use std::io::{self, Write};

use serde::Serialize;
use store::scrub::{AffectedSnapshot, Remedy};
use store::{Error, Kind, ScrubOptions, ScrubReport};

use super::check::Problem;
use super::ls::json_path;
use crate::args::ScrubArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::output::Show;

/// Number of paths of a snapshot shown to people.
const SHOWN_PATHS: usize = 20;

#[derive(Serialize)]
struct Scrubbed {
    repair: bool,
    refs: u64,
    snapshots: u64,
    packs: u64,
    copies: u64,
    read_bytes: u64,
    frames: u64,
    locked_domains: Vec<String>,
    locked_frames: u64,
    problems: Vec<Problem>,
    more_problems: u64,
    damages: Vec<Damage>,
    more_damages: u64,
    damaged_copies: u64,
    repaired_copies: u64,
    repaired_index_runs: u64,
    lost: Vec<Lost>,
    affected: Vec<Affected>,
    more_affected: u64,
    is_intact: bool,
}

#[derive(Serialize)]
struct Damage {
    tier: String,
    pack: String,
    offset: u64,
    error: String,
    /// `repairable`, `repaired`, `failed` or `missing`.
    state: &'static str,
    /// Key of the damaged bytes, or why they stay.
    detail: Option<String>,
}

#[derive(Serialize)]
struct Lost {
    pack: String,
    offsets: Vec<u64>,
    lost_chunks: u64,
    chunks_in_other_packs: u64,
}

#[derive(Serialize)]
struct Affected {
    snapshot: String,
    domain: String,
    refs: Vec<String>,
    paths: Vec<AffectedPath>,
    more_paths: u64,
}

#[derive(Serialize)]
struct AffectedPath {
    path: String,
    /// The bytes of a path that is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    how: String,
    #[serde(skip)]
    shown: String,
}

impl Show for Scrubbed {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        for problem in &self.problems {
            problem.show(out)?;
        }
        for damage in &self.damages {
            damage.show(out)?;
        }
        for (count, what) in [(self.more_problems, "problems"), (self.more_damages, "places of damage")] {
            if count > 0 {
                writeln!(out, "and {count} {what} more")?;
            }
        }
        for lost in &self.lost {
            writeln!(
                out,
                "packs/{}: {} frames have no intact copy: {} chunks are lost, {} are read from other packs",
                lost.pack,
                lost.offsets.len(),
                lost.lost_chunks,
                lost.chunks_in_other_packs,
            )?;
        }
        for affected in &self.affected {
            affected.show(out)?;
        }
        if self.more_affected > 0 {
            writeln!(out, "and {} more snapshots are affected", self.more_affected)?;
        }
        for domain in &self.locked_domains {
            writeln!(
                out,
                "domain {domain} cannot be opened here: which of its files are affected is unknown"
            )?;
        }
        if self.lost.iter().any(|lost| lost.lost_chunks > 0) {
            writeln!(
                out,
                "to replace lost data whose source still exists, run `snapctl scrub --repair`, then `snapctl backup \
                 --force-read`; otherwise run `snapctl forget` on the snapshots, then `snapctl gc`"
            )?;
        }
        writeln!(
            out,
            "scrubbed {} packs in {} copies, read {}, {} frames; repaired {} copies and {} index runs: {}",
            self.packs,
            self.copies,
            human::size(self.read_bytes),
            self.frames,
            self.repaired_copies,
            self.repaired_index_runs,
            if self.is_intact { "ok" } else { "damaged" },
        )
    }
}

impl Damage {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "packs/{} byte {} in {}: {}; ", self.pack, self.offset, self.tier, self.error)?;
        let detail = self.detail.as_deref();
        match (self.state, detail) {
            ("repairable", _) => {
                writeln!(out, "can be repaired: every part of the pack is intact on some tier")
            }
            ("repaired", Some(quarantine)) => {
                writeln!(out, "repaired, the damaged bytes are in {quarantine}")
            }
            ("repaired", None) => writeln!(out, "repaired"),
            ("failed", detail) => writeln!(out, "could be repaired, but {}", detail.unwrap_or_default()),
            (_, detail) => writeln!(out, "cannot be repaired: {}", detail.unwrap_or_default()),
        }
    }
}

impl Affected {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let domain =
            if self.domain == "default" { String::new() } else { format!(" of domain {}", self.domain) };
        writeln!(out, "snapshot {}{domain} ({}) is affected:", &self.snapshot[..12], self.refs.join(" "))?;
        for AffectedPath { shown, how, .. } in self.paths.iter().take(SHOWN_PATHS) {
            writeln!(out, "  {shown}: {how}")?;
        }
        let more = self.more_paths + self.paths.len().saturating_sub(SHOWN_PATHS) as u64;
        if more > 0 {
            writeln!(out, "  and {more} paths more")?;
        }
        Ok(())
    }
}

pub(super) fn run(arguments: &ScrubArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store_of_all_domains()?;
    let ScrubArguments { subset, rate, repair } = *arguments;
    let options = ScrubOptions { subset, rate, repair };
    let report = store::scrub(&store, &options, &context.progress)?;
    context.progress.clear();
    let scrubbed = describe(report, repair);
    context.output.report(&scrubbed)?;
    if scrubbed.is_intact {
        return Ok(Outcome::Done);
    }
    let can_repair = scrubbed.damages.iter().any(|damage| damage.state == "repairable");
    let problems = scrubbed.problems.len() as u64 + scrubbed.more_problems;
    let what =
        format!("the store has {} damaged copies of packs and {problems} problems", scrubbed.damaged_copies);
    let error = Error::new(Kind::Corrupt, what).object(store.metadata_tier().describe());
    Err(match can_repair {
        true => error.advice("run `snapctl scrub --repair`"),
        false => error.advice("everything that is not listed is intact"),
    }
    .into())
}

fn describe(report: ScrubReport, repair: bool) -> Scrubbed {
    let is_intact = report.is_intact();
    let damages = report.damages.into_iter().map(|damage| {
        let (state, detail) = match damage.remedy {
            Remedy::Repairable => ("repairable", None),
            Remedy::Repaired { quarantine } => ("repaired", quarantine),
            Remedy::Failed { error } => ("failed", Some(error)),
            Remedy::Missing { reason } => ("missing", Some(reason)),
        };
        let store::scrub::Damage { tier, pack, offset, error, .. } = damage;
        Damage { tier, pack: pack.to_string(), offset, error, state, detail }
    });
    let lost = report.lost.into_iter().map(|lost| Lost {
        pack: lost.pack.to_string(),
        offsets: lost.offsets,
        lost_chunks: lost.lost_chunks,
        chunks_in_other_packs: lost.read_elsewhere,
    });
    Scrubbed {
        repair,
        refs: report.records.refs,
        snapshots: report.records.snapshots,
        packs: report.packs,
        copies: report.copies,
        read_bytes: report.read_bytes,
        frames: report.frames,
        locked_domains: report.records.locked_domains,
        locked_frames: report.locked_frames,
        problems: Problem::all(report.records.problems),
        more_problems: report.records.more_problems,
        damages: damages.collect(),
        more_damages: report.more_damages,
        damaged_copies: report.damaged_copies,
        repaired_copies: report.repaired_copies,
        repaired_index_runs: report.repaired_runs,
        lost: lost.collect(),
        affected: report.affected.into_iter().map(affected).collect(),
        more_affected: report.more_affected,
        is_intact,
    }
}

fn affected(affected: AffectedSnapshot) -> Affected {
    let describe = |found: store::scrub::AffectedPath| {
        let (path, path_hex) = json_path(&found.path);
        AffectedPath { path, path_hex, how: found.how, shown: human::name(&found.path) }
    };
    Affected {
        snapshot: affected.id.to_string(),
        domain: affected.domain,
        refs: affected.refs,
        paths: affected.paths.into_iter().map(describe).collect(),
        more_paths: affected.more_paths,
    }
}
