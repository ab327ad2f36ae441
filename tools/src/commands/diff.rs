//! `snapctl diff SPEC_A SPEC_B`: `+` added, `-` removed, `M` modified, `U` only metadata. Exit code 1: they differ.

use std::io::{self, Write};

use serde::Serialize;
use store::tree::{Change, ChangeKind, Diff, Found, Walk};
use store::{Inode, Snapshot, Store};

use crate::args::DiffArguments;
use crate::commands::ls::json_path;
use crate::context::Context;
use crate::exit::Outcome;
use crate::human;
use crate::nodes;
use crate::output::Show;

/// One difference; also the JSON of a line.
#[derive(Serialize)]
struct Item {
    change: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    before: Option<Side>,
    after: Option<Side>,
    #[serde(skip)]
    shown: String,
}

#[derive(Serialize)]
struct Side {
    kind: &'static str,
    len_bytes: u64,
}

impl Show for Item {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.shown)
    }
}

/// The memory images differ; they have no path.
#[derive(Serialize)]
struct ImageItem {
    change: &'static str,
    image_before: Option<String>,
    image_after: Option<String>,
}

impl Show for ImageItem {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "M (the memory image)")
    }
}

/// The answer of `--stat`.
#[derive(Default, Serialize)]
struct Statistics {
    added: u64,
    removed: u64,
    modified: u64,
    metadata: u64,
    added_bytes: u64,
    removed_bytes: u64,
    image_differs: bool,
}

impl Statistics {
    fn count(&mut self, change: &Change) {
        let size = |inode: &Option<Inode>| inode.as_ref().map_or(0, |inode| nodes::len_bytes(&inode.node));
        match change.kind {
            ChangeKind::Added => self.added += 1,
            ChangeKind::Removed => self.removed += 1,
            ChangeKind::Modified => self.modified += 1,
            ChangeKind::Metadata => self.metadata += 1,
        }
        if change.kind != ChangeKind::Metadata {
            self.removed_bytes = self.removed_bytes.saturating_add(size(&change.before));
            self.added_bytes = self.added_bytes.saturating_add(size(&change.after));
        }
    }

    fn is_empty(&self) -> bool {
        self.added + self.removed + self.modified + self.metadata == 0 && !self.image_differs
    }
}

impl Show for Statistics {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "added      {:>8}  {:>12}", self.added, human::size(self.added_bytes))?;
        writeln!(out, "removed    {:>8}  {:>12}", self.removed, human::size(self.removed_bytes))?;
        writeln!(out, "modified   {:>8}", self.modified)?;
        writeln!(out, "metadata   {:>8}", self.metadata)?;
        writeln!(out, "memory     {:>8}", if self.image_differs { "differs" } else { "same" })
    }
}

pub(super) fn run(arguments: &DiffArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    // Exit code 1 means that they differ, so that a missing one is an error here.
    let before = store.snapshot(&store.resolve(&arguments.before)?)?;
    let after = store.snapshot(&store.resolve(&arguments.after)?)?;
    let mut statistics = Statistics { image_differs: before.image != after.image, ..Statistics::default() };
    compare_trees(&store, &before, &after, |change| {
        statistics.count(&change);
        if arguments.stat { Ok(()) } else { context.output.answer(&item(change)) }
    })?;
    if arguments.stat {
        context.output.answer(&statistics)?;
    } else if statistics.image_differs {
        context.output.answer(&ImageItem {
            change: "image",
            image_before: before.image.map(|image| image.to_string()),
            image_after: after.image.map(|image| image.to_string()),
        })?;
    }
    Ok(if statistics.is_empty() { Outcome::Done } else { Outcome::No })
}

/// Calls `act` with each difference of the snapshots' trees. A snapshot without a tree counts as empty.
fn compare_trees(
    store: &Store,
    before: &Snapshot,
    after: &Snapshot,
    mut act: impl FnMut(Change) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let open = |snapshot: &Snapshot| snapshot.tree.as_ref().map(|tree| store.tree(tree)).transpose();
    match (open(before)?, open(after)?) {
        (Some(before), Some(after)) => Diff::new(store, &before, &after)?.try_for_each(|change| act(change?)),
        (Some(tree), None) => all_of(&tree, ChangeKind::Removed, act),
        (None, Some(tree)) => all_of(&tree, ChangeKind::Added, act),
        (None, None) => Ok(()),
    }
}

fn all_of(
    tree: &store::Tree,
    kind: ChangeKind,
    mut act: impl FnMut(Change) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let store::Node::Directory(root) = &tree.root().node else { return Ok(()) };
    Walk::new(tree, tree.directory(root)?, Vec::new(), true).try_for_each(|found| {
        let Found { path, inode, .. } = found?;
        let (before, after) =
            if kind == ChangeKind::Added { (None, Some(inode)) } else { (Some(inode), None) };
        act(Change { kind, path, before, after })
    })
}

fn item(change: Change) -> Item {
    let (letter, word) = match change.kind {
        ChangeKind::Added => ('+', "added"),
        ChangeKind::Removed => ('-', "removed"),
        ChangeKind::Modified => ('M', "modified"),
        ChangeKind::Metadata => ('U', "metadata"),
    };
    let side = |inode: Option<Inode>| {
        inode.map(|inode| Side { kind: nodes::word(&inode.node), len_bytes: nodes::len_bytes(&inode.node) })
    };
    let shown_path = if change.path.is_empty() { ".".to_owned() } else { human::name(&change.path) };
    let (path, path_hex) = json_path(&change.path);
    Item {
        change: word,
        path,
        path_hex,
        before: side(change.before),
        after: side(change.after),
        shown: format!("{letter} {shown_path}"),
    }
}
