//! `snapctl capture REF`: stores memory: a dump of CRIU or Firecracker, or one plain file. Pages that the parent image
//! has at the same position cost nothing, and a Diff file names only the changed ones. The new snapshot holds a
//! complete image, and nothing else.

use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use lazyload::memory_file::{self, MemorySource, MemoryType};
use lazyload::{Captured, criu, firecracker};
use serde::Serialize;
use store::{Error, Image, Kind, Progress, SnapshotDraft, SnapshotId, Store, Writer};

use crate::args::CaptureArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::human;
use crate::output::Show;
use crate::spec;

#[derive(Serialize)]
struct Stored {
    #[serde(rename = "ref")]
    name: String,
    snapshot: String,
    image: String,
    parent: Option<String>,
    bytes: u64,
    pages: u64,
    zero_pages: u64,
    pages_same_as_parent: u64,
    pages_not_brought: u64,
    inherited_pages: u64,
    declined_pages: u64,
    new_pages: u64,
    new_bytes: u64,
    stored_bytes: u64,
    elapsed_seconds: f64,
}

impl Show for Stored {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{} is now snapshot {}", self.name, self.snapshot)?;
        writeln!(
            out,
            "{} pages: {} zero, {} as in the parent, {} left out and the parent's, {} written again, {} new; {} stored, \
             in {:.1} s",
            self.pages,
            self.zero_pages,
            self.pages_same_as_parent,
            self.inherited_pages,
            self.declined_pages,
            self.new_pages,
            human::size(self.stored_bytes),
            self.elapsed_seconds,
        )?;
        if self.pages_not_brought > 0 {
            writeln!(
                out,
                "{} pages of the woken process were still to come: they are those of the image it was woken from",
                self.pages_not_brought
            )?;
        }
        Ok(())
    }
}

pub(super) fn run(arguments: CaptureArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    store::check_name(&arguments.name)?;
    let store = context.store()?;
    let purpose = format!("capture {}", arguments.name);
    let mut writer = store.writer(&purpose)?;
    let current = store.refs().get(&arguments.name)?.and_then(|found| found.current());
    let named = arguments.parent.as_ref().map(|spec| store.resolve(spec).asked()).transpose()?;
    let parent = named.or(current);
    // Pages taken over from the parent are not offered to the writer: they must stay until the commit names them.
    let _pin = parent.map(|parent| store.pin(&purpose, &[parent])).transpose()?;
    let image = parent.map(|parent| parent_image(&store, &arguments, parent)).transpose()?.flatten();
    let captured = capture(&mut writer, &arguments, image.as_ref(), &context.progress)?;
    let draft = SnapshotDraft {
        tree: None,
        image: Some(captured.image),
        parent: current,
        labels: spec::labels(arguments.labels),
        files: captured.stats.pages,
        bytes: captured.bytes,
    };
    let snapshot = writer.commit(&arguments.name, draft)?;
    context.progress.clear();
    let written = writer.stats();
    context.output.report(&Stored {
        name: arguments.name,
        snapshot: snapshot.to_string(),
        image: captured.image.to_string(),
        parent: parent.filter(|_| image.is_some()).map(|parent| parent.to_string()),
        bytes: captured.bytes,
        pages: captured.stats.pages,
        zero_pages: captured.stats.zero,
        pages_same_as_parent: captured.stats.same_as_parent,
        pages_not_brought: captured.not_brought,
        inherited_pages: captured.stats.inherited,
        declined_pages: captured.stats.declined,
        new_pages: captured.stats.new,
        new_bytes: written.new_bytes,
        stored_bytes: written.stored_bytes,
        elapsed_seconds: begun.elapsed().as_secs_f64(),
    })?;
    Ok(Outcome::Done)
}

/// The parent's image, to compare with; a ref's current snapshot need not have one.
fn parent_image(
    store: &Store,
    arguments: &CaptureArguments,
    parent: SnapshotId,
) -> anyhow::Result<Option<Image>> {
    match (store.snapshot(&parent)?.image, &arguments.parent) {
        (Some(image), _) => Ok(Some(store.image(&image)?)),
        (None, None) => Ok(None),
        (None, Some(spec)) => {
            Err(Error::new(Kind::Invalid, "the parent holds no memory image").object(spec).into())
        }
    }
}

fn capture(
    writer: &mut Writer,
    arguments: &CaptureArguments,
    parent: Option<&Image>,
    progress: &dyn Progress,
) -> store::Result<Captured> {
    for path in [&arguments.firecracker, &arguments.vmstate, &arguments.raw].into_iter().flatten() {
        expect_file(path)?;
    }
    let memory_type = match (arguments.full, arguments.diff) {
        (true, _) => Some(MemoryType::Full),
        (_, true) => Some(MemoryType::Diff),
        _ => None,
    };
    let memory = |path| MemorySource { path, memory_type, parent };
    match (&arguments.criu, &arguments.firecracker, &arguments.vmstate, &arguments.raw) {
        (Some(directory), ..) => criu::capture(writer, directory, parent, progress),
        (_, Some(path), Some(state), _) => firecracker::capture(writer, memory(path), state, progress),
        (_, _, _, Some(path)) => memory_file::capture(writer, memory(path), progress),
        _ => Err(Error::new(Kind::Internal, "the command line names nothing to capture")),
    }
}

fn expect_file(path: &Path) -> store::Result<()> {
    let metadata = path.metadata().map_err(|source| Error::io("cannot capture", path.display(), source))?;
    if metadata.is_file() {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, "not a regular file").object(path.display()))
}
