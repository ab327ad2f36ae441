//! `snapctl doctor`: the guarantees of the store's tiers, found by trying.

use std::io::{self, Write};

use serde::Serialize;
use store::tier::{Examination, Finding, Property, examine_and_record, examine_bucket, examine_directory};
use store::{Error, Kind};

use crate::args::DoctorArguments;
use crate::config::{Cold, Config};
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{Show, Table};

pub(super) fn run(arguments: &DoctorArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let config = context.config()?;
    let mut worst = Fitness::Many;
    for place in places(&config).into_iter().filter(|place| arguments.names(place.tier)) {
        let report = place.examine(arguments.dry_run)?;
        context.output.answer(&report)?;
        worst = worst.max(report.fit_for);
    }
    match worst {
        Fitness::Many => Ok(Outcome::Done),
        Fitness::SingleOwner => Ok(Outcome::No),
        Fitness::Nothing => {
            let error = Error::new(Kind::Invalid, "a tier cannot be relied on");
            Err(error.advice("see the properties that do not hold, and use another place").into())
        }
    }
}

/// Examines the bucket of a configuration that has one and stores the record there; returns the bucket's fitness.
pub(super) fn prepare_bucket(config: &Config) -> anyhow::Result<Option<Fitness>> {
    let Some(Cold::Bucket(settings)) = &config.cold else { return Ok(None) };
    let examination = examine_and_record(settings)?;
    Ok(Some(Fitness::of_bucket(&examination)))
}

/// What a tier may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fitness {
    /// Many hosts at once; a directory: everything on this host.
    Many,
    /// One host, the only one that writes.
    SingleOwner,
    /// Nothing.
    Nothing,
}

impl Fitness {
    fn of_bucket(examination: &Examination) -> Fitness {
        let needed = examination.holds(Property::ReadAfterWrite) && examination.holds(Property::Ranges);
        match (needed, examination.guarantees().is_fit_for_many()) {
            (false, _) => Fitness::Nothing,
            (true, false) => Fitness::SingleOwner,
            (true, true) => Fitness::Many,
        }
    }

    fn of_directory(examination: &Examination) -> Fitness {
        let all = examination.findings.iter().all(|finding| finding.holds);
        if all { Fitness::Many } else { Fitness::Nothing }
    }
}

/// A tier of the configuration.
struct Place<'a> {
    tier: &'static str,
    cold: Cold,
    shown: String,
    config: &'a Config,
}

fn places(config: &Config) -> Vec<Place<'_>> {
    let directory = |tier, path: &std::path::Path| {
        let (cold, shown) = (Cold::Directory(path.to_owned()), path.display().to_string());
        Place { tier, cold, shown, config }
    };
    let mut places = vec![directory("hot", &config.hot)];
    places.extend(config.warm.as_deref().map(|warm| directory("warm", warm)));
    places.extend(config.cold.as_ref().map(|cold| match cold {
        Cold::Directory(path) => directory("cold", path),
        Cold::Bucket(settings) => Place { tier: "cold", cold: cold.clone(), shown: settings.url(), config },
    }));
    places
}

impl Place<'_> {
    fn examine(&self, dry_run: bool) -> anyhow::Result<Report> {
        let (examination, fit_for, recorded) = match &self.cold {
            Cold::Directory(path) => {
                let examination = examine_directory(path)?;
                let fit_for = Fitness::of_directory(&examination);
                (examination, fit_for, false)
            }
            Cold::Bucket(settings) => {
                let examine = if dry_run { examine_bucket } else { examine_and_record };
                let examination = examine(settings)?;
                let fit_for = Fitness::of_bucket(&examination);
                (examination, fit_for, !dry_run)
            }
        };
        Ok(Report {
            tier: self.tier,
            place: self.shown.clone(),
            fit_for,
            shared: self.config.sharing.shared && self.tier == "cold",
            recorded,
            put_us: examination.put_us,
            get_us: examination.get_us,
            properties: examination.findings.iter().map(Row::of).collect(),
        })
    }
}

#[derive(Serialize)]
struct Report {
    tier: &'static str,
    place: String,
    fit_for: Fitness,
    #[serde(skip)]
    shared: bool,
    recorded: bool,
    put_us: u32,
    get_us: u32,
    properties: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    property: &'static str,
    holds: bool,
    evidence: String,
    meaning: &'static str,
}

impl Row {
    fn of(finding: &Finding) -> Row {
        let (property, held, missing) = words(finding.property);
        let meaning = if finding.holds { held } else { missing };
        Row { property, holds: finding.holds, evidence: finding.evidence.clone(), meaning }
    }
}

/// The name of a property, and its meaning for Torpor when it holds and when it does not.
fn words(property: Property) -> (&'static str, &'static str, &'static str) {
    match property {
        Property::PutIfAbsent => (
            "put-if-absent",
            "writers never overwrite each other's objects",
            "two hosts could overwrite each other: give each its own `owned_refs`",
        ),
        Property::CompareAndSwap => (
            "compare-and-swap",
            "hosts can change the same ref",
            "two hosts could undo each other's refs: give each its own `owned_refs`",
        ),
        Property::ConditionalDelete => (
            "conditional-delete",
            "not needed",
            "not needed: nothing is deleted that another host could have replaced",
        ),
        Property::ListAfterWrite => (
            "list-after-write",
            "a host sees what others wrote and removed",
            "a host could miss what others wrote: let one host write",
        ),
        Property::ReadAfterWrite => {
            ("read-after-write", "what was written is read", "what was written may be read late: not usable")
        }
        Property::Ranges => {
            ("ranges", "a read costs what it needs", "parts of packs cannot be read: not usable")
        }
        Property::Multipart => {
            ("multipart", "packs go up in parts, at once", "packs are uploaded in one request each")
        }
        Property::MultipartCondition => (
            "multipart-condition",
            "packs in parts never overwrite each other",
            "packs are uploaded in one request where they must not overwrite each other",
        ),
        Property::Checksums => (
            "checksums",
            "what is damaged on its way up is refused",
            "damage on the way up is found when it is read: check after moving packs",
        ),
        Property::Marks => (
            "marks",
            "a write whose answer got lost is recognised",
            "a write whose answer got lost is recognised by its bytes only",
        ),
        Property::OwnDisk => {
            ("own-disk", "a disk of this machine", "network file systems are not meant for tiers")
        }
        Property::UnnamedFiles => (
            "unnamed-files",
            "objects appear complete, and once",
            "objects cannot be stored: use ext4, xfs, btrfs or tmpfs",
        ),
        Property::Rename => {
            ("rename", "refs change at once", "refs cannot be changed safely: use another file system")
        }
        Property::Sync => {
            ("sync", "what is acknowledged is on the disk", "nothing is durable here: use another disk")
        }
        Property::Locks => (
            "locks",
            "processes of this host know of each other",
            "processes of this host could disturb each other: use another file system",
        ),
    }
}

impl Show for Report {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{} tier {}", self.tier, self.place)?;
        let mut table = Table::new(&["property", "holds", "what that means", "seen"]);
        for row in &self.properties {
            let holds = if row.holds { "yes" } else { "NO" };
            table.row(vec![row.property.into(), holds.into(), row.meaning.into(), row.evidence.clone()]);
        }
        table.show(out)?;
        let milliseconds = |us: u32| f64::from(us) / 1e3;
        let (put, get) = (milliseconds(self.put_us), milliseconds(self.get_us));
        writeln!(out, "4 KiB stored in {put:.1} ms, read in {get:.1} ms")?;
        writeln!(out, "{}", self.verdict())
    }
}

impl Report {
    fn verdict(&self) -> &'static str {
        match (self.fit_for, self.tier, self.shared) {
            (Fitness::Nothing, ..) => "verdict: not usable",
            (Fitness::SingleOwner, _, true) => {
                "verdict: no conditional writes; give each host its own `owned_refs`, and one host `collector`"
            }
            (Fitness::SingleOwner, ..) => "verdict: fit for a single host only",
            (Fitness::Many, "cold", _) => "verdict: fit for many hosts",
            (Fitness::Many, ..) => "verdict: fit",
        }
    }
}
