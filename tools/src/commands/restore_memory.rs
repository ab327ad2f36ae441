//! `snapctl restore SPEC TARGET` of a memory image: the program that dumped it can restore it from TARGET without
//! Torpor. A CRIU image directory; a directory with `memory` and `vmstate` for Firecracker; for plain memory the file.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Instant;

use lazyload::{criu, firecracker, write_memory};
use serde::Serialize;
use store::{Error, Image, ImageId, ImageKind, Kind, PAGE, Progress, SnapshotId, Store};

use crate::args::RestoreArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::output::Show;

#[derive(Serialize)]
struct Restored {
    snapshot: String,
    target: String,
    kind: &'static str,
    bytes: u64,
    elapsed_seconds: f64,
}

impl Show for Restored {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let how = match self.kind {
            "criu" => "; `criu restore --images-dir` takes it",
            "firecracker" => ": memory and vmstate",
            _ => "",
        };
        let size = human::size(self.bytes);
        writeln!(out, "restored {size} of memory to {} in {:.1} s{how}", self.target, self.elapsed_seconds)
    }
}

/// Writes the image of a snapshot.
pub(super) fn run(
    arguments: &RestoreArguments,
    context: &mut Context,
    store: &Store,
    (snapshot, image): (SnapshotId, ImageId),
) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    if !arguments.source.path.is_empty() {
        return Err(Error::new(Kind::Invalid, "the snapshot holds memory, not files")
            .object(&arguments.source.spec)
            .advice("restore it without a path")
            .into());
    }
    let _pin = store.pin(&format!("restore {}", arguments.source.spec), &[snapshot])?;
    let image = store.image(&image)?;
    let target = &arguments.target;
    let kind = write(store, &image, target, &context.progress)?;
    context.progress.clear();
    let pages =
        (0..image.spaces().len()).flat_map(|space| image.runs(space)).map(|run| u64::from(run.page_count));
    context.output.report(&Restored {
        snapshot: snapshot.to_string(),
        target: target.display().to_string(),
        kind,
        bytes: pages.sum::<u64>() * PAGE as u64,
        elapsed_seconds: begun.elapsed().as_secs_f64(),
    })?;
    Ok(Outcome::Done)
}

fn write(
    store: &Store,
    image: &Image,
    target: &Path,
    progress: &dyn Progress,
) -> store::Result<&'static str> {
    match image.kind() {
        ImageKind::Criu => {
            let is_new = !target.exists();
            criu::restore(image, store, target, progress).inspect_err(|_| {
                if is_new && let Err(error) = criu::remove(target, &criu::file_names(image)) {
                    tracing::warn!(%error, "a part of an image directory stays");
                }
            })?;
            Ok("criu")
        }
        ImageKind::Firecracker => {
            let failed = |error| Error::io("cannot make the directory", target.display(), error);
            fs::DirBuilder::new().mode(0o700).recursive(true).create(target).map_err(failed)?;
            write_memory(image, &target.join("memory"), progress)?;
            firecracker::write_vmstate(image, store, &target.join("vmstate"), None)?;
            Ok("firecracker")
        }
        ImageKind::Raw => {
            write_memory(image, target, progress)?;
            Ok("raw")
        }
    }
}
