//! `snapctl tier`: where packs are stored, and moving them. `status` shows every tier beside its limit; `move` brings
//! all tiers below their limits, or one snapshot to a tier; `recompress` rewrites packs on a tier at the tier's level;
//! `pin` keeps a snapshot on the hot tier.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use gc::Pace;
use serde::Serialize;
use store::{MoveReport, Store};

use crate::args::{TierAction, TierArguments, TierMoveArguments, TierRecompressArguments};
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::output::{Show, Table};

#[derive(Serialize)]
struct Status {
    shared: bool,
    tiers: Vec<Tier>,
    disk_cache: super::cache::Usage,
    pinned: Vec<String>,
}

#[derive(Serialize)]
struct Tier {
    class: String,
    place: String,
    packs: u64,
    bytes: u64,
    limit_bytes: Option<u64>,
}

impl Show for Status {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&["tier", ">packs", ">size", ">limit", "place"]);
        for tier in &self.tiers {
            let limit = tier.limit_bytes.map_or("none".to_owned(), human::size);
            let (packs, size) = (tier.packs.to_string(), human::size(tier.bytes));
            table.row(vec![tier.class.clone(), packs, size, limit, tier.place.clone()]);
        }
        table.show(out)?;
        self.disk_cache.show(out)?;
        for snapshot in &self.pinned {
            writeln!(out, "pinned to hot: {snapshot}")?;
        }
        if self.shared {
            writeln!(out, "the cold tier is shared with other hosts and holds every pack")?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Movement {
    copied_packs: u64,
    copied_bytes: u64,
    released_packs: u64,
    released_bytes: u64,
    dropped_packs: u64,
    dropped_bytes: u64,
    pinned_without_room: u64,
}

impl Show for Movement {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let (copied, released) = (human::size(self.copied_bytes), human::size(self.released_bytes));
        writeln!(
            out,
            "copied {} packs ({copied}), released {} packs ({released})",
            self.copied_packs, self.released_packs
        )?;
        if self.dropped_packs > 0 {
            let dropped = human::size(self.dropped_bytes);
            writeln!(
                out,
                "dropped {} copies ({dropped}) of packs that are gone from the bucket",
                self.dropped_packs
            )?;
        }
        if self.pinned_without_room > 0 {
            writeln!(
                out,
                "the hot tier has no room for {} packs that belong there",
                self.pinned_without_room
            )?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Recompressed {
    packs: u64,
    bytes_before: u64,
    bytes_after: u64,
    unreadable: Vec<String>,
}

impl Show for Recompressed {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let (before, after) = (human::size(self.bytes_before), human::size(self.bytes_after));
        writeln!(out, "recompressed {} packs: {before} are now {after}", self.packs)?;
        if self.packs > 0 {
            writeln!(out, "the old packs go in the third run of `snapctl gc` from now")?;
        }
        for pack in &self.unreadable {
            writeln!(out, "left as it is, run `snapctl scrub`: {pack}")?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Pinned {
    snapshot: String,
    pinned: bool,
    changed: bool,
}

impl Show for Pinned {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let state = if self.pinned { "pinned to the hot tier" } else { "not pinned" };
        let when =
            if self.changed && self.pinned { "; the next `snapctl tier move` brings it there" } else { "" };
        writeln!(out, "snapshot {} is {state}{when}", self.snapshot)
    }
}

pub(super) fn run(arguments: TierArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    match arguments.action {
        TierAction::Status => {
            let store = context.store()?;
            context.output.answer(&status(&store)?)?;
            Ok(Outcome::Done)
        }
        TierAction::Move(arguments) => movement(&arguments, context),
        TierAction::Recompress(arguments) => recompress(&arguments, context),
        TierAction::Pin(arguments) => pin(&arguments.spec, true, context),
        TierAction::Unpin(arguments) => pin(&arguments.spec, false, context),
    }
}

fn status(store: &Store) -> store::Result<Status> {
    let mut tiers = Vec::new();
    for (number, tier) in store.placement().tiers().iter().enumerate() {
        let usage = store.placement().usage(number)?;
        tiers.push(Tier {
            class: tier.class.to_string(),
            place: tier.tier.describe(),
            packs: usage.packs,
            bytes: usage.bytes,
            limit_bytes: tier.limit_bytes,
        });
    }
    let pinned = store::pins(store)?.iter().map(ToString::to_string).collect();
    let disk_cache = super::cache::Usage::of(store)?;
    Ok(Status { shared: store.is_shared(), tiers, disk_cache, pinned })
}

fn movement(arguments: &TierMoveArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let stop = Stop::on_signal(context);
    loop {
        let report = match (&arguments.spec, arguments.to) {
            (Some(spec), Some(class)) => {
                let snapshot = store.resolve(spec)?;
                let _pin = store.pin("tier move", &[snapshot])?;
                store::move_snapshot(&store, &snapshot, class.into(), arguments.rate, &context.progress)?
            }
            _ => store::rebalance(&store, arguments.rate, &context.progress)?,
        };
        context.progress.clear();
        context.output.report(&describe(report))?;
        context.output.finish()?;
        if stop.ends(arguments.every) {
            return Ok(Outcome::Done);
        }
    }
}

fn recompress(arguments: &TierRecompressArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let stop = Stop::on_signal(context);
    let mut outcome = Outcome::Done;
    loop {
        let is_stopped = || stop.was_told();
        let pace = Pace { rate: arguments.rate, is_stopped: &is_stopped, progress: &context.progress };
        let report = gc::recompress(&store, arguments.unread, &pace)?;
        if !report.unreadable.is_empty() {
            outcome = Outcome::Partial;
        }
        context.progress.clear();
        context.output.report(&Recompressed {
            packs: report.packs.len() as u64,
            bytes_before: report.packs.iter().map(|(_, len_bytes)| len_bytes).sum(),
            bytes_after: report.new_bytes,
            unreadable: report.unreadable.iter().map(|(pack, error)| format!("{pack}: {error}")).collect(),
        })?;
        context.output.finish()?;
        if stop.ends(arguments.every) {
            return Ok(outcome);
        }
    }
}

/// Signals that repeated work is to end.
struct Stop {
    told: Arc<AtomicBool>,
    signal: Receiver<()>,
}

impl Stop {
    fn on_signal(context: &mut Context) -> Self {
        let (sender, signal) = channel();
        let told = Arc::new(AtomicBool::new(false));
        let raised = told.clone();
        context.signals.on_stop(move || {
            raised.store(true, Ordering::Relaxed);
            // The receiver is gone when the work is done.
            let _ = sender.send(());
        });
        Self { told, signal }
    }

    fn was_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Waits this many seconds until the next turn is due; true when there is none.
    fn ends(&self, every: Option<u32>) -> bool {
        let Some(seconds) = every else { return true };
        self.was_told() || self.signal.recv_timeout(Duration::from_secs(seconds.into())).is_ok()
    }
}

fn describe(report: MoveReport) -> Movement {
    Movement {
        copied_packs: report.moved.copied,
        copied_bytes: report.moved.copied_bytes,
        released_packs: report.moved.released,
        released_bytes: report.moved.released_bytes,
        dropped_packs: report.strays.packs,
        dropped_bytes: report.strays.bytes,
        pinned_without_room: report.pinned_elsewhere,
    }
}

fn pin(spec: &str, pinned: bool, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let snapshot = store.resolve(spec)?;
    let changed = store::set_pin(&store, &snapshot, pinned)?;
    context.output.report(&Pinned { snapshot: snapshot.to_string(), pinned, changed })?;
    Ok(Outcome::Done)
}
