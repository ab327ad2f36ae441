//! `snapctl domain create | list | rotate | destroy | trust`: tenants with keys of their own, and the public domain.

use std::io::{self, Write};

use gc::CollectOptions;
use serde::Serialize;
use store::{DomainKind, DomainSummary, Error, KeySource, Kind, Progress as _, Rotation, Store};

use crate::args::{DomainAction, DomainArguments};
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::output::{Show, Table};

/// Runs of the collector that free the packs that a repack condemned, if no writer is active.
const CYCLES: u32 = 3;

/// A domain as shown to every user.
#[derive(Serialize)]
struct Item {
    domain: String,
    id: String,
    kind: &'static str,
    key_epoch: u32,
    wrapped_by: Option<String>,
    verify_key: Option<String>,
    opens: bool,
    error: Option<String>,
}

impl Item {
    fn new(store: &Store, summary: &DomainSummary) -> Item {
        let opened = match summary.kind {
            DomainKind::Destroyed => Ok(()),
            _ => store.in_domain(&summary.name).map(drop),
        };
        Item {
            domain: summary.name.clone(),
            id: summary.id.to_string(),
            kind: summary.kind.word(),
            key_epoch: summary.key_epoch,
            wrapped_by: summary.kek.map(|kek| kek.to_string()),
            verify_key: summary.verify_key.map(|key| key.to_string()),
            opens: opened.is_ok() && summary.kind != DomainKind::Destroyed,
            error: opened.err().map(|error| error.to_string()),
        }
    }

    fn row(&self) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let epoch = if self.key_epoch > 0 { self.key_epoch.to_string() } else { "-".to_owned() };
        let opens = if self.opens { "yes".to_owned() } else { or_dash(&self.error) };
        vec![self.domain.clone(), self.kind.to_owned(), epoch, or_dash(&self.wrapped_by), opens]
    }
}

#[derive(Serialize)]
struct Listing(Vec<Item>);

impl Show for Listing {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&["domain", "kind", ">epoch", "wrapped by", "opens here"]);
        for item in &self.0 {
            table.row(item.row());
        }
        table.show(out)
    }
}

impl Show for Item {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "domain {} is {}", self.domain, self.kind)?;
        if self.key_epoch > 0 {
            write!(out, ", key epoch {}", self.key_epoch)?;
        }
        match &self.wrapped_by {
            Some(kek) => writeln!(out, ", keys wrapped by {kek}")?,
            None => writeln!(out)?,
        }
        match (&self.verify_key, self.kind == DomainKind::Public.word()) {
            (Some(key), true) => writeln!(
                out,
                "hosts that only read may pin its signer: verify = \"{key}\" under [keys.{}]",
                self.domain
            ),
            _ => Ok(()),
        }
    }
}

/// The result of a repack.
#[derive(Serialize)]
struct Repacked {
    domain: String,
    key_epoch: u32,
    packs: u64,
    frames: u64,
    bytes: u64,
    unreadable: Vec<String>,
    old_epochs: Vec<u32>,
    waits_for: Option<String>,
}

impl Show for Repacked {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let size = crate::human::size(self.bytes);
        writeln!(
            out,
            "sealed {} frames of {} packs ({size}) under key epoch {}",
            self.frames, self.packs, self.key_epoch
        )?;
        for unreadable in &self.unreadable {
            writeln!(out, "stays as it is: {unreadable}")?;
        }
        if let Some(error) = &self.waits_for {
            writeln!(out, "old packs are not collected yet: {error}")?;
        }
        match self.old_epochs.is_empty() {
            true => writeln!(out, "keys of older epochs are gone"),
            false => writeln!(
                out,
                "keys of epochs {:?} stay while frames need them: run the command again after the writers have ended",
                self.old_epochs
            ),
        }
    }
}

pub(super) fn run(arguments: &DomainArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store_of_all_domains()?;
    match &arguments.action {
        DomainAction::Create { name, public } => {
            let kind = if *public { DomainKind::Public } else { DomainKind::Encrypted };
            let summary = store.domains().create(name, kind)?;
            context.output.report(&Item::new(&store, &summary))?;
        }
        DomainAction::List => list(&store, context)?,
        DomainAction::Rotate { name, kek: Some(kek), .. } => {
            let kek = std::path::absolute(kek)
                .map_err(|source| Error::io("no path of a key", kek.display(), source))?;
            let summary = store.domains().rotate(name, &Rotation::Rewrap(KeySource::File(kek))).asked()?;
            let mut item = Item::new(&store, &summary);
            // The configuration still names the old key.
            (item.opens, item.error) = (true, None);
            context.output.report(&item)?;
        }
        DomainAction::Rotate { name, repack: false, .. } => {
            let summary = store.domains().rotate(name, &Rotation::NewEpoch).asked()?;
            context.output.report(&Item::new(&store, &summary))?;
        }
        DomainAction::Rotate { name, .. } => repack(&store, name, context)?,
        DomainAction::Destroy { name, yes_destroy } => {
            if yes_destroy.as_ref() != Some(name) {
                store.domains().summary(name).asked()?;
                return Err(Error::new(
                    Kind::Invalid,
                    "destroying a domain cannot be undone: its data becomes unreadable",
                )
                .object(name)
                .advice(format!("if that is meant, say it: --yes-destroy {name}"))
                .into());
            }
            let summary = store.domains().destroy(name).asked()?;
            context.output.report(&Item::new(&store, &summary))?;
        }
        DomainAction::Trust { name, reference } => {
            store.domains().trust(name, reference.as_deref()).asked()?;
        }
    }
    Ok(Outcome::Done)
}

fn list(store: &Store, context: &mut Context) -> anyhow::Result<()> {
    let mut listing = Listing(Vec::new());
    let mut first_error = None;
    for (name, summary) in store.domains().all()? {
        match summary {
            Ok(summary) if context.output.is_json() => context.output.answer(&Item::new(store, &summary))?,
            Ok(summary) => listing.0.push(Item::new(store, &summary)),
            Err(error) => {
                context.progress.note(&format!("snapctl: {name}: {error}"));
                first_error.get_or_insert(error);
            }
        }
    }
    if !context.output.is_json() {
        context.output.answer(&listing)?;
    }
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

/// New frames under a new key, old frames sealed again, old packs collected, old keys dropped.
fn repack(store: &Store, name: &str, context: &mut Context) -> anyhow::Result<()> {
    let domain = store.in_domain(name).asked()?;
    store.check_may_collect()?;
    let (known, _) = domain.domain().key_epochs();
    if known.len() < 2 {
        store.domains().rotate(name, &Rotation::NewEpoch)?;
    }
    let report = gc::repack_old_epochs(&domain, &context.progress)?;
    let options = CollectOptions { dry_run: false, cycles: CYCLES };
    let collected = gc::collect(store, &options, &context.progress);
    let old_epochs = domain.retire_epochs()?;
    context.progress.clear();
    context.output.report(&Repacked {
        domain: name.to_owned(),
        key_epoch: domain.domain().key_epochs().1,
        packs: report.packs.len() as u64,
        frames: report.frames,
        bytes: report.packs.iter().map(|(_, len_bytes)| len_bytes).sum(),
        unreadable: report.unreadable.iter().map(|(pack, error)| format!("{pack}: {error}")).collect(),
        old_epochs,
        waits_for: collected.err().map(|error| error.to_string()),
    })
}
