//! `snapctl init`: a new, empty store.

use std::io::{self, Write};

use serde::Serialize;
use store::Store;

use crate::context::Context;
use crate::exit::Outcome;
use crate::output::Show;

#[derive(Serialize)]
struct Made {
    store: String,
    path: String,
}

impl Show for Made {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "made store {} in {}", self.store, self.path)
    }
}

pub fn run(context: &mut Context) -> anyhow::Result<Outcome> {
    let config = context.config()?;
    let store = Store::init(&config.store())?;
    let made = Made { store: store.id().to_string(), path: config.hot.display().to_string() };
    context.output.report(&made)?;
    Ok(Outcome::Done)
}
