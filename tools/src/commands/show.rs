//! `snapctl show SPEC`: one snapshot in full.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use store::{Image, Snapshot, SnapshotId, Store};

use crate::args::ShowArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::human;
use crate::output::Show;

#[derive(Serialize)]
struct Description {
    snapshot: String,
    refs: Vec<String>,
    time: String,
    parent: Option<String>,
    tree: Option<String>,
    image: Option<ImageDescription>,
    files: u64,
    bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    labels: BTreeMap<String, String>,
    #[serde(skip)]
    shown_time: String,
}

#[derive(Serialize)]
struct ImageDescription {
    id: String,
    kind: &'static str,
    frames: usize,
    spaces: Vec<SpaceDescription>,
    blobs: Vec<BlobDescription>,
}

#[derive(Serialize)]
struct SpaceDescription {
    id: u64,
    len_bytes: u64,
    pages: u64,
}

#[derive(Serialize)]
struct BlobDescription {
    name: String,
    len_bytes: u64,
}

impl Show for Description {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "snapshot  {}", self.snapshot)?;
        if !self.refs.is_empty() {
            writeln!(out, "refs      {}", self.refs.join(" "))?;
        }
        writeln!(out, "time      {} UTC", self.shown_time)?;
        writeln!(out, "parent    {}", self.parent.as_deref().unwrap_or("-"))?;
        if let Some(tree) = &self.tree {
            writeln!(out, "tree      {tree}")?;
        }
        if let Some(image) = &self.image {
            image.show(out)?;
        }
        let counted = if self.tree.is_some() { "names" } else { "pages" };
        writeln!(out, "{counted}     {}", self.files)?;
        writeln!(out, "size      {}", human::size(self.bytes))?;
        writeln!(out, "new       {}", human::size(self.new_bytes))?;
        writeln!(out, "stored    {}", human::size(self.stored_bytes))?;
        for (key, value) in &self.labels {
            writeln!(out, "label     {}={}", human::name(key.as_bytes()), human::name(value.as_bytes()))?;
        }
        Ok(())
    }
}

impl ImageDescription {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "image     {} ({}) in {} frames", self.id, self.kind, self.frames)?;
        for space in &self.spaces {
            let pages = human::size(space.pages.saturating_mul(store::PAGE as u64));
            writeln!(
                out,
                "  space   {}: {}, of it not zero {pages}",
                space.id,
                human::size(space.len_bytes)
            )?;
        }
        for blob in &self.blobs {
            writeln!(
                out,
                "  blob    {}: {}",
                human::name(blob.name.as_bytes()),
                human::size(blob.len_bytes)
            )?;
        }
        Ok(())
    }
}

pub(super) fn run(arguments: &ShowArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let id = store.resolve(&arguments.spec).asked()?;
    let snapshot = store.snapshot(&id)?;
    let description = describe(&store, id, snapshot)?;
    context.output.answer(&description)?;
    Ok(Outcome::Done)
}

fn describe(store: &Store, id: SnapshotId, snapshot: Snapshot) -> store::Result<Description> {
    let image = snapshot.image.as_ref().map(|image| store.image(image)).transpose()?;
    // A damaged ref does not concern this snapshot.
    let refs: Vec<store::Ref> = store.refs().each()?.into_iter().flatten().collect();
    Ok(Description {
        snapshot: id.to_string(),
        refs: refs.into_iter().filter(|item| item.current() == Some(id)).map(|item| item.name).collect(),
        time: human::rfc3339(snapshot.time),
        parent: snapshot.parent.map(|parent| parent.to_string()),
        tree: snapshot.tree.map(|tree| tree.to_string()),
        image: image.as_ref().map(describe_image),
        files: snapshot.totals.files,
        bytes: snapshot.totals.bytes,
        new_bytes: snapshot.totals.new_bytes,
        stored_bytes: snapshot.totals.stored_bytes,
        labels: snapshot.labels,
        shown_time: human::time(snapshot.time),
    })
}

fn describe_image(image: &Image) -> ImageDescription {
    let spaces = image.spaces().iter().enumerate().map(|(index, space)| SpaceDescription {
        id: space.id,
        len_bytes: space.len_bytes,
        pages: image.runs(index).iter().map(|run| u64::from(run.page_count)).sum(),
    });
    let blobs = image
        .blobs()
        .iter()
        .map(|(name, content)| BlobDescription { name: name.clone(), len_bytes: content.len_bytes() });
    ImageDescription {
        id: image.id().to_string(),
        kind: match image.kind() {
            store::ImageKind::Raw => "raw",
            store::ImageKind::Firecracker => "firecracker",
            store::ImageKind::Criu => "criu",
        },
        frames: image.frame_count(),
        spaces: spaces.collect(),
        blobs: blobs.collect(),
    }
}
