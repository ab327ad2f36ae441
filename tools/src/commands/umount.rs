//! `snapctl umount DIR`: asks the mount's process to finish; `--force` takes the mount off even without it.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::mount::UnmountFlags;
use serde::Serialize;
use store::{Error, Kind};

use super::ls::json_path;
use crate::args::UmountArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::output::Show;

#[derive(Serialize)]
struct Unmounted {
    mountpoint: String,
    /// Its bytes when it is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    mountpoint_hex: Option<String>,
    forced: bool,
}

impl Show for Unmounted {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "unmounted {}", self.mountpoint)
    }
}

pub(super) fn run(arguments: &UmountArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let directory = &arguments.mountpoint;
    let asked = snapfs::control::find(directory).and_then(|client| client.unmount());
    let forced = arguments.force && asked.as_ref().is_err_and(|error| error.kind() != Kind::NotFound);
    if forced {
        detach(directory)?;
    } else {
        asked.asked()?;
    }
    let (mountpoint, mountpoint_hex) = json_path(directory.as_os_str().as_bytes());
    context.output.report(&Unmounted { mountpoint, mountpoint_hex, forced })?;
    Ok(Outcome::Done)
}

/// Takes the mount out of the name space; processes that still use it go on until they close it.
fn detach(directory: &Path) -> store::Result<()> {
    rustix::mount::unmount(directory, UnmountFlags::DETACH)
        .map_err(|source| Error::io("cannot detach the mount", directory.display(), source.into()))
}
