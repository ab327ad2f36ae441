//! A program that embeds the store: it makes one, writes a tree of one file, commits it under a ref, reads the file back
//! and restores the tree.
//!
//! `cargo run --package torpor-store --example embed -- DIRECTORY`

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use store::{
    Entry, EntryInode, Inode, Metadata, Node, SnapshotDraft, Store, StoreConfig, TreeRoot, Unwatched, restore,
};

const NAME: &[u8] = b"hello.txt";
const TEXT: &[u8] = b"hello, store\n";

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("usage: embed DIRECTORY")?;
    run(Path::new(&directory))
}

/// Makes `store` and `restored` below a directory.
fn run(directory: &Path) -> Result<(), Box<dyn Error>> {
    let store = Store::init(&StoreConfig::directory(&directory.join("store")))?;

    // Contents come first, then the directories that name them, from the leaves to the root.
    let owner = fs::metadata(directory)?;
    let metadata = |mode| Metadata { mode, uid: owner.uid(), gid: owner.gid(), ..Metadata::default() };
    let mut writer = store.writer("example")?;
    let mut content = writer.content_writer();
    content.write(TEXT)?;
    let file = Inode { metadata: metadata(0o644), node: Node::File(content.finish()?) };
    let root = writer.put_directory(&[Entry { name: NAME.to_vec(), inode: EntryInode::Own(file) }])?;
    let tree =
        writer.put_tree(&TreeRoot { metadata: metadata(0o755), directory: root, links: BTreeMap::new() })?;
    // Nothing is durable, and nothing can be found, before the commit has returned.
    let draft =
        SnapshotDraft { tree: Some(tree), files: 1, bytes: TEXT.len() as u64, ..SnapshotDraft::default() };
    writer.commit("greeting", draft)?;
    drop(writer);

    // A pin keeps a collector from deleting the snapshot while it is read.
    let snapshot = store.resolve("greeting")?;
    let _pin = store.pin("example", &[snapshot])?;
    let tree = store.snapshot(&snapshot)?.tree.ok_or("a snapshot of files has a tree")?;
    let found = store.tree(&tree)?.lookup_path(NAME)?.ok_or("the file is in the tree")?;
    let Node::File(content) = found.node else { return Err("the name is a file's".into()) };
    let mut text = vec![0; TEXT.len()];
    let read = store.content(&content)?.read_at(0, &mut text)?;
    assert_eq!(&text[..read], TEXT);

    let target = directory.join("restored");
    let report = restore(&store, &snapshot, b"", &target, &Unwatched)?;
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    println!("{} holds {} bytes", target.display(), report.bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_written_read_and_restored() {
        let directory = tempfile::tempdir().unwrap();
        run(directory.path()).unwrap();
        assert_eq!(fs::read(directory.path().join("restored/hello.txt")).unwrap(), TEXT);
    }
}
