//! `snapctl ls SPEC[:PATH]`: the entries of a tree, from the Merkle directories alone; no file is read.

use std::io::{self, Write};

use serde::Serialize;
use store::tree::{Found, Walk};
use store::{Error, Kind, Node, Store, Tree};

use crate::args::LsArguments;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::human;
use crate::nodes;
use crate::output::Show;
use crate::spec::PathSpec;

/// One entry; also the JSON of a line.
#[derive(Serialize)]
struct Item {
    path: String,
    /// The bytes of a path that is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    kind: &'static str,
    mode: u32,
    uid: u32,
    gid: u32,
    len_bytes: u64,
    mtime: String,
    link_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The bytes of a link's target that is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip)]
    shown: String,
}

impl Show for Item {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.shown)
    }
}

pub(super) fn run(arguments: &LsArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    let store = context.store()?;
    let (tree, shown) = open_tree(&store, &arguments.target)?;
    let path = &arguments.target.path;
    let inode = nodes::find(&tree, path, &shown)?;
    let Node::Directory(id) = &inode.node else {
        let found = Found { path: path.clone(), inode, link_count: 1 };
        context.output.answer(&item(&found, arguments.long))?;
        return Ok(Outcome::Done);
    };
    for found in Walk::new(&tree, tree.directory(id)?, path.clone(), arguments.recursive) {
        context.output.answer(&item(&found?, arguments.long))?;
    }
    Ok(Outcome::Done)
}

/// The tree of the snapshot that a SPEC names, and the complete SPEC as text.
///
/// # Errors
/// Absent when there is no such snapshot, Invalid when it is one of memory alone.
pub(super) fn open_tree(store: &Store, target: &PathSpec) -> anyhow::Result<(Tree, String)> {
    let snapshot = store.snapshot(&store.resolve(&target.spec).asked()?)?;
    let id = snapshot.tree.ok_or_else(|| {
        Error::new(Kind::Invalid, "the snapshot holds memory, not files")
            .object(&target.spec)
            .advice("`snapctl show` describes it")
    })?;
    Ok((store.tree(&id)?, format!("{}:{}", target.spec, human::name(&target.path))))
}

/// A path for JSON: as text, and in hex as well when it is not UTF-8.
pub(super) fn json_path(path: &[u8]) -> (String, Option<String>) {
    let hex = || path.iter().map(|byte| format!("{byte:02x}")).collect();
    let is_text = std::str::from_utf8(path).is_ok();
    (String::from_utf8_lossy(path).into_owned(), (!is_text).then(hex))
}

fn item(found: &Found, long: bool) -> Item {
    let (metadata, node) = (&found.inode.metadata, &found.inode.node);
    let (path, path_hex) = json_path(&found.path);
    let (target, target_hex) = match node {
        Node::Symlink(target) => {
            let (target, hex) = json_path(target);
            (Some(target), hex)
        }
        _ => (None, None),
    };
    let device = match node {
        Node::CharDevice(device) | Node::BlockDevice(device) => {
            Some(format!("{}:{}", rustix::fs::major(*device), rustix::fs::minor(*device)))
        }
        _ => None,
    };
    Item {
        path,
        path_hex,
        kind: nodes::word(node),
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        len_bytes: nodes::len_bytes(node),
        mtime: human::rfc3339(metadata.mtime),
        link_count: found.link_count,
        shown: if long { long_line(found, device.as_deref()) } else { human::name(&found.path) },
        target,
        target_hex,
        device,
    }
}

fn long_line(found: &Found, device: Option<&str>) -> String {
    let metadata = &found.inode.metadata;
    let size = device.map_or_else(|| nodes::len_bytes(&found.inode.node).to_string(), str::to_owned);
    let mut line = format!(
        "{} {:>3} {:>5} {:>5} {:>12} {} {}",
        human::mode(nodes::letter(&found.inode.node), metadata.mode),
        found.link_count,
        metadata.uid,
        metadata.gid,
        size,
        human::time(metadata.mtime),
        human::name(&found.path),
    );
    if let Node::Symlink(target) = &found.inode.node {
        line.push_str(" -> ");
        line.push_str(&human::name(target));
    }
    line
}
