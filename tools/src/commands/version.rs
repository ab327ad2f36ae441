//! `snapctl version`: the version of this binary, and the formats it reads and writes.

use std::io::{self, Write};

use serde::Serialize;

use crate::context::Context;
use crate::exit::Outcome;
use crate::output::Show;

#[derive(Serialize)]
struct Version {
    version: &'static str,
    format_version: u32,
    target: String,
    features: &'static [&'static str],
}

impl Show for Version {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "snapctl {} for {}", self.version, self.target)?;
        writeln!(out, "store format {}", self.format_version)?;
        writeln!(out, "features: {}", self.features.join(" "))
    }
}

pub(super) fn run(context: &mut Context) -> anyhow::Result<Outcome> {
    context.output.answer(&Version {
        version: env!("CARGO_PKG_VERSION"),
        format_version: u32::from(store::wire::FORMAT_VERSION),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        features: &["tiers", "mount", "freeze", "criu", "firecracker", "raw"],
    })?;
    Ok(Outcome::Done)
}
