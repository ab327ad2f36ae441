//! `snapctl snapshots [REF]`: every entry of every ref's history, oldest first.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use store::{Error, Kind, Progress as _, Ref, RefEntry, Snapshot, Store};

use crate::args::SnapshotsArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::human;
use crate::output::{Show, Table};

/// One snapshot in a ref's history; also the JSON of a line.
#[derive(Serialize)]
struct Item {
    #[serde(rename = "ref")]
    name: String,
    snapshot: String,
    time: String,
    current: bool,
    has_tree: bool,
    has_image: bool,
    files: u64,
    bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    labels: BTreeMap<String, String>,
    #[serde(skip)]
    shown_time: String,
}

impl Item {
    fn row(&self) -> Vec<String> {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let kind = match (self.has_tree, self.has_image) {
            (true, true) => "files+memory",
            (true, false) => "files",
            (false, true) => "memory",
            (false, false) => "-",
        };
        vec![
            self.name.clone(),
            self.snapshot[..SHORT_ID].to_owned(),
            self.shown_time.clone(),
            kind.to_owned(),
            human::size(self.bytes),
            human::size(self.new_bytes),
            human::name(labels.join(" ").as_bytes()),
        ]
    }
}

/// Digits of an id that a table shows; enough for `SPEC`.
pub(super) const SHORT_ID: usize = 12;

/// A table of snapshots for people.
#[derive(Serialize)]
struct Listing(Vec<Item>);

impl Show for Listing {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&["ref", "snapshot", "time (UTC)", "holds", ">size", ">new", "labels"]);
        for item in &self.0 {
            table.row(item.row());
        }
        table.show(out)
    }
}

impl Show for Item {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.row().join("  "))
    }
}

pub(super) fn run(arguments: &SnapshotsArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let mut first_error = None;
    let refs = match &arguments.name {
        Some(name) => vec![get_ref(&store, name)?],
        None => readable_refs(&store, context, &mut first_error)?,
    };
    let mut listing = Listing(Vec::new());
    for (item, entry) in refs.iter().flat_map(|item| item.history.iter().map(move |entry| (item, entry))) {
        match store.snapshot(&entry.snapshot) {
            Ok(snapshot) if context.output.is_json() => {
                context.output.answer(&describe(item, entry, snapshot))?;
            }
            Ok(snapshot) => listing.0.push(describe(item, entry, snapshot)),
            // One damaged record does not hide the others.
            Err(error) => {
                context.progress.note(&format!("snapctl: {}: {error}", item.name));
                first_error.get_or_insert(error);
            }
        }
    }
    if !context.output.is_json() {
        context.output.answer(&listing)?;
    }
    first_error.map_or(Ok(Outcome::Done), |error| Err(error.into()))
}

/// Every readable ref, by name; the others are reported.
fn readable_refs(
    store: &Store,
    context: &Context,
    first_error: &mut Option<Error>,
) -> store::Result<Vec<Ref>> {
    let mut refs = Vec::new();
    for found in store.refs().each()? {
        match found {
            Ok(found) => refs.push(found),
            Err(error) => {
                let advice = "put the ref's record back from a copy, or delete it to give the ref up";
                let error = error.further_advice(advice);
                context.progress.note(&format!("snapctl: {error}"));
                first_error.get_or_insert(error);
            }
        }
    }
    refs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(refs)
}

/// The ref of a name.
///
/// # Errors
/// Absent when there is none; those of reading it.
pub(super) fn get_ref(store: &Store, name: &str) -> anyhow::Result<Ref> {
    let found = store.refs().get(name)?.ok_or_else(|| {
        Error::new(Kind::NotFound, "there is no such ref")
            .object(name)
            .advice("`snapctl snapshots` lists them")
    });
    found.asked()
}

fn describe(item: &Ref, entry: &RefEntry, snapshot: Snapshot) -> Item {
    Item {
        name: item.name.clone(),
        snapshot: entry.snapshot.to_string(),
        time: human::rfc3339(snapshot.time),
        current: item.history.last() == Some(entry),
        has_tree: snapshot.tree.is_some(),
        has_image: snapshot.image.is_some(),
        files: snapshot.totals.files,
        bytes: snapshot.totals.bytes,
        new_bytes: snapshot.totals.new_bytes,
        stored_bytes: snapshot.totals.stored_bytes,
        labels: snapshot.labels,
        shown_time: human::time(snapshot.time),
    }
}
