//! `snapctl cache`: the disk cache of slower tiers' frames on this host. `info` shows it, `warm` fills it with the
//! frames of a snapshot, `trim` shrinks it.

use std::io::{self, Write};

use serde::Serialize;
use store::Store;

use crate::args::{CacheAction, CacheArguments};
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::output::Show;

/// Content of the cache.
#[derive(Serialize)]
pub(super) struct Usage {
    frames: u64,
    bytes: u64,
    limit_bytes: u64,
}

impl Usage {
    pub(super) fn of(store: &Store) -> store::Result<Usage> {
        let usage = store.disk_cache().usage()?;
        Ok(Usage { frames: usage.frames, bytes: usage.bytes, limit_bytes: usage.limit_bytes })
    }
}

impl Show for Usage {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let (size, limit) = (human::size(self.bytes), human::size(self.limit_bytes));
        writeln!(out, "disk cache: {} frames, {size} of {limit}", self.frames)
    }
}

#[derive(Serialize)]
struct Warmed {
    snapshot: String,
    chunks: u64,
    #[serde(flatten)]
    usage: Usage,
}

impl Show for Warmed {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "read {} chunks of snapshot {} from slower tiers", self.chunks, self.snapshot)?;
        self.usage.show(out)
    }
}

#[derive(Serialize)]
struct Trimmed {
    freed_bytes: u64,
    #[serde(flatten)]
    usage: Usage,
}

impl Show for Trimmed {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "freed {}", human::size(self.freed_bytes))?;
        self.usage.show(out)
    }
}

pub(super) fn run(arguments: CacheArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    match arguments.action {
        CacheAction::Info => context.output.answer(&Usage::of(&store)?)?,
        CacheAction::Warm(arguments) => {
            let snapshot = store.resolve(&arguments.spec)?;
            let _pin = store.pin("cache warm", &[snapshot])?;
            let chunks = store::warm(&store, &snapshot, &context.progress)?;
            context.progress.clear();
            let usage = Usage::of(&store)?;
            context.output.report(&Warmed { snapshot: snapshot.to_string(), chunks, usage })?;
        }
        CacheAction::Trim(arguments) => {
            let freed_bytes = store.disk_cache().trim(arguments.to)?;
            let usage = Usage::of(&store)?;
            context.output.report(&Trimmed { freed_bytes, usage })?;
        }
    }
    Ok(Outcome::Done)
}
