//! Memory of commands on a store of 1 TiB: sparse packs with real directories, real index runs, and snapshots whose
//! trees refer to all of it, beside one directory of real files. The floor is the memory a command may take: 512 MiB.
//! Mapped pages of files are counted apart, since the kernel may drop them, and each command runs once more within the
//! floor.
//!
//! It takes about 5 GB of disk; `TORPOR_BENCH_PACKS` sets another number of packs than 32,768.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use store::index::{RunBuilder, store_run};
use store::pack::{self, PackDirectory};
use store::{
    Entry, EntryInode, Extent, Inode, LocalTier, Metadata, Node, SnapshotDraft, Store, StoreConfig, TreeRoot,
    Writer,
};

use crate::contender::command;
use crate::footprint::{Limited, cool, footprint};
use crate::measure::{Result, Row, duration, snapctl};
use crate::synthetic::{CHUNKS_OF_PACK, FRAME_LEN, chunk, directory};
use crate::workload::{files, mixed_tree};

const PACKS: u64 = 32_768;
const CHUNK_LEN: u32 = 64 << 10;
/// Files of a directory; each file is the chunks of one pack.
const FILES: u64 = 256;
const SNAPSHOTS: u64 = 3;
const ALLOWED_BYTES: u64 = 512 << 20;

pub(crate) fn memory(scratch: &Path) -> Result<Vec<Row>> {
    let packs = std::env::var("TORPOR_BENCH_PACKS").ok().and_then(|packs| packs.parse().ok());
    let packs: u64 = packs.unwrap_or(PACKS);
    let path = scratch.join("store");
    let store = Store::init(&StoreConfig::directory(&path))?;
    fill(&path, packs)?;
    refer(&store, packs)?;
    drop(store);
    let (source, target) = (scratch.join("source"), scratch.join("target"));
    mixed_tree(&source)?;
    let mut rows = Vec::new();
    let mut run = |arguments: &[&str], undo: &dyn Fn() -> Result<()>| -> Result<()> {
        let mut command = command(snapctl()?, &[&"--quiet", &"--store", &path]);
        command.args(arguments);
        let name: Vec<&str> = arguments.iter().copied().filter(|word| !word.starts_with('/')).collect();
        let row = row(&command, &name.join(" "), &path, undo)?;
        eprintln!("benches: {row}");
        rows.push(row);
        Ok(())
    };
    let nothing = || Ok(());
    let [source_text, target_text] = [&source, &target].map(|path| path.to_string_lossy());
    // The second run finds as much new data as the first.
    run(&["backup", &source_text, "real"], &|| files(&source, 512, 1 << 20, 9).map(drop))?;
    run(&["restore", "real", &target_text], &|| Ok(fs::remove_dir_all(&target)?))?;
    run(&["stats"], &nothing)?;
    run(&["check"], &nothing)?;
    run(&["gc", "--dry-run"], &nothing)?;
    // The results of the first run are deleted.
    run(&["gc"], &|| Ok(fs::remove_dir_all(path.join("local/marks"))?))?;
    run(&["index", "rebuild"], &nothing)?;
    Ok(rows)
}

/// Runs a command over a store that is not in the page cache, and once more within the allowed memory.
fn row(command: &Command, name: &str, store: &Path, between: &dyn Fn() -> Result<()>) -> Result<Row> {
    cool(store)?;
    let free = footprint(command, None)?;
    let within = match Limited::new(ALLOWED_BYTES) {
        None => "no memory cgroup can be made to try it in".to_owned(),
        Some(group) => {
            between()?;
            cool(store)?;
            let held = footprint(command, Some(&group))?;
            format!("{} in a cgroup of so much, page cache included", duration(held.seconds))
        }
    };
    Ok(Row {
        figure: format!("memory of snapctl {name}"),
        ours: format!("{} MiB", free.own_bytes >> 20),
        floor: format!("{} MiB", ALLOWED_BYTES >> 20),
        ratio: free.own_bytes as f64 / ALLOWED_BYTES as f64,
        note: format!(
            "{} MiB of files mapped besides; {}, {within}",
            free.mapped_bytes >> 20,
            duration(free.seconds)
        ),
    })
}

/// Packs whose frames are holes, and their index.
fn fill(root: &Path, packs: u64) -> Result<()> {
    let tier = LocalTier::new(root);
    let mut builder = RunBuilder::default();
    for number in 0..packs {
        let mut pack = directory(number, number * CHUNKS_OF_PACK..(number + 1) * CHUNKS_OF_PACK);
        builder.push(&pack)?;
        if builder.is_full() {
            store_run(&tier, "bench", &std::mem::take(&mut builder).finish())?;
        }
        pack.entries.sort_unstable_by_key(|entry| entry.id);
        write_pack(root, &pack)?;
    }
    if !builder.is_empty() {
        store_run(&tier, "bench", &builder.finish())?;
    }
    Ok(())
}

fn write_pack(root: &Path, directory: &PackDirectory) -> Result<()> {
    let path = root.join(directory.id.key());
    fs::create_dir_all(path.parent().unwrap_or(root))?;
    let file = File::create_new(path)?;
    file.write_all_at(&pack::header(directory.id, directory.kind), 0)?;
    let end = 64 + directory.frames.len() as u64 * u64::from(FRAME_LEN);
    Ok(file.write_all_at(&directory.encode_at(end), end)?)
}

/// Snapshots that need all packs, each but for some files that it alone is missing.
fn refer(store: &Store, packs: u64) -> Result<()> {
    let mut writer = store.writer("bench")?;
    let mut files = Vec::with_capacity(packs as usize);
    for number in 0..packs {
        let mut content = writer.content_writer();
        for chunk_number in number * CHUNKS_OF_PACK..(number + 1) * CHUNKS_OF_PACK {
            content.extent(Extent::Chunk { id: chunk(chunk_number), len_bytes: CHUNK_LEN })?;
        }
        files.push(Node::File(content.finish()?));
    }
    for snapshot in 0..SNAPSHOTS {
        let mut entries = Vec::new();
        for (number, files) in files.chunks(FILES as usize).enumerate() {
            let lacks = if number as u64 % SNAPSHOTS == snapshot { 1 } else { 0 };
            entries.push(subdirectory(&mut writer, number, &files[lacks..])?);
        }
        let directory = writer.put_directory(&entries)?;
        let root = TreeRoot { metadata: Metadata::default(), directory, links: Default::default() };
        let tree = Some(writer.put_tree(&root)?);
        let bytes = packs * CHUNKS_OF_PACK * u64::from(CHUNK_LEN);
        writer
            .commit("synthetic", SnapshotDraft { tree, files: packs, bytes, ..SnapshotDraft::default() })?;
    }
    Ok(())
}

fn subdirectory(writer: &mut Writer, number: usize, files: &[Node]) -> Result<Entry> {
    let entry = |name: String, node: Node| {
        let inode = Inode { metadata: Metadata::default(), node };
        Entry { name: name.into_bytes(), inode: EntryInode::Own(inode) }
    };
    let files = files.iter().enumerate();
    let entries: Vec<Entry> = files.map(|(file, node)| entry(format!("{file:04}"), node.clone())).collect();
    Ok(entry(format!("{number:04}"), Node::Directory(writer.put_directory(&entries)?)))
}
