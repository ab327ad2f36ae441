//! `snapctl index rebuild`: builds the index again from the packs, which hold the truth.

use std::io::{self, Write};

use serde::Serialize;

use crate::args::{IndexAction, IndexArguments};
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::Show;

#[derive(Serialize)]
struct Rebuilt {
    packs: u64,
    chunks: u64,
}

impl Show for Rebuilt {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "rebuilt the index of {} chunks in {} packs", self.chunks, self.packs)
    }
}

pub(super) fn run(arguments: &IndexArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    match arguments.action {
        IndexAction::Rebuild => {
            let store = context.store_of_all_domains()?;
            let (packs, chunks) = store::rebuild_index(&store, &context.progress)?;
            context.progress.clear();
            context.output.report(&Rebuilt { packs, chunks })?;
        }
    }
    Ok(Outcome::Done)
}
