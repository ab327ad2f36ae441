//! `snapctl umount DIR`: asks the mount's process to finish; `--force` takes the mount off even without it.

use std::io::{self, Write};
use std::path::Path;

use rustix::mount::UnmountFlags;
use serde::Serialize;
use store::{Error, Kind};

use crate::args::UmountArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::output::Show;

#[derive(Serialize)]
struct Unmounted {
    mountpoint: String,
    forced: bool,
}

impl Show for Unmounted {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "unmounted {}", self.mountpoint)
    }
}

pub fn run(arguments: &UmountArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let directory = &arguments.mountpoint;
    let asked = snapfs::control::find(directory).and_then(|client| client.unmount());
    let forced = arguments.force && asked.as_ref().is_err_and(|error| error.kind() != Kind::NotFound);
    if forced {
        detach(directory)?;
    } else {
        asked.asked()?;
    }
    context.output.report(&Unmounted { mountpoint: directory.display().to_string(), forced })?;
    Ok(Outcome::Done)
}

/// Takes the mount out of the name space; what still uses it goes on until it lets go.
fn detach(directory: &Path) -> store::Result<()> {
    rustix::mount::unmount(directory, UnmountFlags::DETACH)
        .map_err(|source| Error::io("cannot detach the mount", directory.display(), source.into()))
}
