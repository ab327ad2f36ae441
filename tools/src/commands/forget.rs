//! `snapctl forget REF`: drops entries from a ref's history, by rules or by name. The plan that `--dry-run` prints is
//! the one that is carried out. The bytes stay until `gc`.

use std::collections::HashSet;
use std::io::{self, Write};

use gc::{Policy, Retained};
use serde::Serialize;
use store::{Error, Kind, Ref, RefEntry, SnapshotId, Store};

use crate::args::{ForgetArguments, KeepArguments};
use crate::commands::snapshots::{SHORT_ID, get_ref};
use crate::context::Context;
use crate::exit::{Asked as _, Outcome, complain};
use crate::human;
use crate::output::{Show, Table};

#[derive(Serialize)]
struct Plan {
    #[serde(rename = "ref")]
    name: String,
    dry_run: bool,
    kept: Vec<Kept>,
    forgotten: Vec<Entry>,
}

#[derive(Serialize)]
struct Kept {
    #[serde(flatten)]
    entry: Entry,
    reasons: Vec<&'static str>,
}

#[derive(Serialize)]
struct Entry {
    snapshot: String,
    time: String,
    #[serde(skip)]
    shown_time: String,
}

impl Show for Plan {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&["snapshot", "time (UTC)", "what", "why"]);
        let mut row = |entry: &Entry, what: &str, why: String| {
            let id = entry.snapshot[..SHORT_ID].to_owned();
            table.row(vec![id, entry.shown_time.clone(), what.to_owned(), why]);
        };
        for entry in &self.forgotten {
            row(entry, "forget", String::new());
        }
        for kept in &self.kept {
            row(&kept.entry, "keep", kept.reasons.join(", "));
        }
        table.show(out)?;
        let (count, left) = (self.forgotten.len(), self.kept.len());
        if self.dry_run {
            return writeln!(out, "would forget {count} and keep {left}; nothing was changed");
        }
        writeln!(out, "forgot {count}, kept {left}; their space comes back with `snapctl gc`")
    }
}

pub(super) fn run(arguments: &ForgetArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let (name, dry_run) = (arguments.name.as_str(), arguments.dry_run);
    let found = get_ref(&store, name)?;
    let plan = if arguments.snapshots.is_empty() {
        gc::forget(&store, name, &policy(&arguments.keep), dry_run)?
    } else {
        forget_named(&store, &found, &arguments.snapshots, dry_run)?
    };
    warn_of_future(name, &plan);
    context.output.report(&describe(name, dry_run, plan))?;
    Ok(Outcome::Done)
}

/// Warns that a clock was wrong once, or is wrong now.
fn warn_of_future(name: &str, plan: &[Retained]) {
    let future: Vec<&Retained> = plan.iter().filter(|retained| retained.is_future).collect();
    if let Some(last) = future.iter().map(|retained| retained.entry.time).max() {
        complain(&format!(
            "snapctl: {name}: {} snapshots lie in the future, the last at {} UTC: rules of time do not count them and \
             leave them; see to the clock, and forget them by name if they are not wanted",
            future.len(),
            human::time(last),
        ));
    }
}

fn policy(keep: &KeepArguments) -> Policy {
    Policy {
        keep_last: keep.keep_last,
        keep_hourly: keep.keep_hourly,
        keep_daily: keep.keep_daily,
        keep_weekly: keep.keep_weekly,
        keep_monthly: keep.keep_monthly,
        keep_yearly: keep.keep_yearly,
        keep_within: keep.keep_within,
    }
}

/// Drops just the named snapshots; all of them are looked up before anything is changed.
fn forget_named(
    store: &Store,
    found: &Ref,
    named: &[String],
    dry_run: bool,
) -> anyhow::Result<Vec<Retained>> {
    let mut dropped: HashSet<SnapshotId> = HashSet::new();
    for spec in named {
        let id = store.resolve(spec).asked()?;
        if !found.history.iter().any(|entry| entry.snapshot == id) {
            let error =
                Error::new(Kind::NotFound, format!("{} has no such snapshot", found.name)).object(spec);
            return Err(error).asked();
        }
        dropped.insert(id);
    }
    if !dry_run {
        store.forget(&found.name, |entry| dropped.contains(&entry.snapshot))?;
    }
    let reasons =
        |entry: &RefEntry| if dropped.contains(&entry.snapshot) { vec![] } else { vec!["not named"] };
    let now = store::clock::now();
    let retained =
        |entry: &RefEntry| Retained { entry: *entry, reasons: reasons(entry), is_future: entry.time > now };
    Ok(found.history.iter().map(retained).collect())
}

fn describe(name: &str, dry_run: bool, plan: Vec<Retained>) -> Plan {
    let (kept, forgotten): (Vec<Retained>, Vec<Retained>) = plan.into_iter().partition(Retained::is_kept);
    let describe = |entry: &RefEntry| Entry {
        snapshot: entry.snapshot.to_string(),
        time: human::rfc3339(entry.time),
        shown_time: human::time(entry.time),
    };
    let kept = kept.into_iter().map(|item| Kept { entry: describe(&item.entry), reasons: item.reasons });
    Plan {
        name: name.to_owned(),
        dry_run,
        kept: kept.collect(),
        forgotten: forgotten.iter().map(|item| describe(&item.entry)).collect(),
    }
}
