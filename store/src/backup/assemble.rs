//! The assembler: takes the steps of a walk and the pieces of its readers in order and stores new chunks. It alone
//! holds the writer.

use super::events::{Event, Form, InodeKey, Leaf, Old, Remark, Segment};
use super::read::{Item, Outcome, Pieces, Seen};
use super::stat_cache::Look;
use crate::buffer_pool::BufferPool;
use crate::error::{Error, Kind, Result};
use crate::id::DirectoryId;
use crate::progress::Progress;
use crate::tree::{Content, Entry, EntryInode, Extent, Inode, LinkedInode, Metadata, Node, Tree, TreeRoot};
use crate::writer::Writer;
use crossbeam_channel::Receiver;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Counts of a backup.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub files: u64,
    pub directories: u64,
    pub unchanged_files: u64,
    pub bytes: u64,
    pub unreadable: Vec<String>,
    pub unreadable_attributes: Vec<String>,
    pub changed: Vec<String>,
    pub vanished: Vec<String>,
}

/// A complete tree, its counts, and the looks of its files.
pub(super) struct Assembled {
    pub root: TreeRoot,
    pub counts: Counts,
    pub looks: Vec<Look>,
}

/// A directory whose entries are coming.
struct Open {
    name: Vec<u8>,
    metadata: Metadata,
    old: Option<Old>,
    entries: Vec<Entry>,
    /// Positions of unchanged entries in the old directory.
    same: Vec<usize>,
}

/// A tree being assembled.
pub(super) struct Assembler<'a> {
    writer: &'a mut Writer,
    parent: Option<&'a Tree>,
    progress: &'a dyn Progress,
    buffers: BufferPool,
    /// The directory that is open now.
    path: PathBuf,
    stack: Vec<Open>,
    root: Option<(Metadata, DirectoryId)>,
    /// Numbers of inodes with several names in the link table, or why one is not there.
    numbers: HashMap<InodeKey, Result<u64, String>>,
    links: BTreeMap<u64, LinkedInode>,
    counts: Counts,
    looks: Vec<Look>,
}

/// A file as its reader left it.
enum Read {
    Whole(Box<Seen>, Content),
    Vanished,
    Failed(String),
}

impl<'a> Assembler<'a> {
    pub(super) fn new(
        writer: &'a mut Writer,
        source: &Path,
        parent: Option<&'a Tree>,
        progress: &'a dyn Progress,
        buffers: BufferPool,
    ) -> Self {
        Self {
            writer,
            parent,
            progress,
            buffers,
            path: source.to_owned(),
            stack: Vec::new(),
            root: None,
            numbers: HashMap::new(),
            links: BTreeMap::new(),
            counts: Counts::default(),
            looks: Vec::new(),
        }
    }

    /// Assembles the tree.
    ///
    /// # Errors
    /// Those of the store, and fatal errors of the walk. An unreadable file is reported and left out.
    pub(super) fn run(mut self, segments: &Receiver<Segment>) -> Result<Assembled> {
        let buffers = self.buffers.clone();
        for Segment { events, pieces } in segments {
            let mut incoming = Incoming::new(pieces, &buffers);
            for event in events {
                match event {
                    Event::Enter { name, metadata, old } => self.enter(name, metadata, old),
                    Event::Leave => self.leave()?,
                    Event::Leaf(leaf) => self.leaf(leaf, &mut incoming)?,
                    Event::Remark(remark) => self.remark(remark),
                    Event::Failed(error) => return Err(error),
                }
            }
        }
        let (metadata, directory) =
            self.root.ok_or_else(|| Error::new(Kind::Internal, "the walk ended before its root"))?;
        let root = TreeRoot { metadata, directory, links: self.links };
        Ok(Assembled { root, counts: self.counts, looks: self.looks })
    }

    fn enter(&mut self, name: Vec<u8>, metadata: Metadata, old: Option<Old>) {
        self.counts.directories += 1;
        if !self.stack.is_empty() {
            self.path.push(OsStr::from_bytes(&name));
        }
        self.stack.push(Open { name, metadata, old, entries: Vec::new(), same: Vec::new() });
    }

    /// Stores a directory. An unchanged one keeps its id and is not even encoded.
    fn leave(&mut self) -> Result<()> {
        let mut open = self.stack.pop().ok_or_else(|| Error::new(Kind::Internal, "no directory to leave"))?;
        let id = match &open.old {
            Some(old) if open.entries.is_empty() && open.same.len() == old.directory.len() => old.id,
            old => {
                if let Some(old) = old {
                    for position in &open.same {
                        open.entries.push(old.directory.entry(*position)?);
                    }
                }
                open.entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
                self.writer.put_directory(&open.entries)?
            }
        };
        if self.stack.is_empty() {
            self.root = Some((open.metadata, id));
            return Ok(());
        }
        self.path.pop();
        let inode = Inode { metadata: open.metadata, node: Node::Directory(id) };
        self.add(Entry { name: open.name, inode: EntryInode::Own(inode) })
    }

    fn open(&mut self) -> Result<&mut Open> {
        self.stack.last_mut().ok_or_else(|| Error::new(Kind::Internal, "no open directory"))
    }

    /// Adds a subdirectory or a link, often unchanged.
    fn add(&mut self, entry: Entry) -> Result<()> {
        let open = self.open()?;
        if let Some(old) = &open.old
            && let Some(position) = old.directory.find(&entry.name)?
            && old.directory.entry(position)? == entry
        {
            open.same.push(position);
            return Ok(());
        }
        open.entries.push(entry);
        Ok(())
    }

    fn leaf(&mut self, leaf: Leaf, incoming: &mut Incoming<'_>) -> Result<()> {
        let Leaf { name, linked, form } = leaf;
        match form {
            Form::Again => self.again(name, linked),
            Form::Same { position, file_len, look } => {
                self.looks.extend(look);
                if let Some(len_bytes) = file_len {
                    self.counts.unchanged_files += 1;
                    self.stored(len_bytes);
                }
                match linked {
                    None => {
                        self.counts.files += 1;
                        self.open()?.same.push(position);
                        Ok(())
                    }
                    Some(_) => self.first(name, linked, self.old_inode(position)?),
                }
            }
            Form::Whole { inode, look } => {
                self.looks.extend(look);
                self.first(name, linked, inode)
            }
            Form::Unreadable(why) => {
                self.left_out(&name, linked, why);
                Ok(())
            }
            Form::Read => self.file(name, linked, incoming),
        }
    }

    /// A regular file, whose reader has it.
    fn file(&mut self, name: Vec<u8>, linked: Option<InodeKey>, incoming: &mut Incoming<'_>) -> Result<()> {
        let (seen, content) = match self.read(incoming)? {
            Read::Whole(seen, content) => (seen, content),
            Read::Failed(why) => {
                self.left_out(&name, linked, why);
                return Ok(());
            }
            Read::Vanished => {
                let path = self.path_of(&name).display().to_string();
                self.remark(Remark::Vanished(path));
                self.numbers.extend(linked.map(|key| (key, Err("its first name vanished".to_owned()))));
                return Ok(());
            }
        };
        let Seen { stat, attributes, look, change } = *seen;
        for remark in super::attribute_remarks(|| self.path_of(&name), attributes.failed) {
            self.remark(remark);
        }
        if let Some(change) = change {
            self.counts.changed.push(format!("{}: {change}", self.path_of(&name).display()));
        }
        self.looks.extend(look);
        self.stored(content.len_bytes());
        let metadata = Metadata { xattrs: attributes.xattrs, ..Metadata::of_inode(&stat) };
        self.first(name, linked, Inode { metadata, node: Node::File(content) })
    }

    /// Counts the bytes of a regular file.
    fn stored(&mut self, len_bytes: u64) {
        self.counts.bytes += len_bytes;
        self.progress.advance(len_bytes);
    }

    fn remark(&mut self, remark: Remark) {
        match remark {
            Remark::Unreadable(what) => self.counts.unreadable.push(what),
            Remark::Attribute(what) => self.counts.unreadable_attributes.push(what),
            Remark::Vanished(path) => self.counts.vanished.push(path),
        }
    }

    fn path_of(&self, name: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(name))
    }

    /// Leaves out a name, and with it other names of its inode.
    fn left_out(&mut self, name: &[u8], linked: Option<InodeKey>, why: String) {
        self.remark(Remark::Unreadable(format!("{}: {why}", self.path_of(name).display())));
        self.numbers.extend(linked.map(|key| (key, Err(why))));
    }

    /// The inode at this position of the old directory, looked up in the link table if need be.
    fn old_inode(&self, position: usize) -> Result<Inode> {
        let open = self.stack.last().and_then(|open| open.old.as_ref());
        match (self.parent, open) {
            (Some(tree), Some(old)) => tree.inode(old.directory.entry(position)?),
            _ => Err(Error::new(Kind::Internal, "no old directory to take an entry from")),
        }
    }

    /// An inode that is new to this tree. When it has several names, the first of them stores it.
    fn first(&mut self, name: Vec<u8>, linked: Option<InodeKey>, inode: Inode) -> Result<()> {
        self.counts.files += 1;
        let Some(key) = linked else {
            self.open()?.entries.push(Entry { name, inode: EntryInode::Own(inode) });
            return Ok(());
        };
        let (_, mut number) = key;
        while self.links.contains_key(&number) {
            number = number.wrapping_add(1 << 48); // the same inode number on another device
        }
        self.numbers.insert(key, Ok(number));
        self.links.insert(number, LinkedInode { count: 1, inode });
        self.add(Entry { name, inode: EntryInode::Link(number) })
    }

    fn again(&mut self, name: Vec<u8>, linked: Option<InodeKey>) -> Result<()> {
        match linked.and_then(|key| self.numbers.get(&key).cloned()) {
            Some(Ok(number)) => {
                self.counts.files += 1;
                if let Some(linked) = self.links.get_mut(&number) {
                    linked.count += 1;
                }
                self.add(Entry { name, inode: EntryInode::Link(number) })
            }
            Some(Err(why)) => {
                self.left_out(&name, None, why);
                Ok(())
            }
            None => Err(Error::new(Kind::Internal, "a second name came before the first")),
        }
    }

    /// Stores the next file from its reader. The outer error is one of the store.
    fn read(&mut self, incoming: &mut Incoming<'_>) -> Result<Read> {
        let mut extents = Vec::new();
        let mut inline = None;
        loop {
            match incoming.next()? {
                Item::Chunk { id, len } => {
                    let id = self.writer.put_hashed(id, incoming.take(len))?;
                    extents.push(Extent::Chunk { id, len_bytes: len as u32 });
                }
                Item::Inline { len } => inline = Some(incoming.take(len).to_vec()),
                Item::Hole { len } => push_hole(&mut extents, len),
                Item::Zeroes { len } => {
                    incoming.take(len);
                    push_hole(&mut extents, len as u64);
                }
                Item::End(Outcome::Vanished) => return Ok(Read::Vanished),
                Item::End(Outcome::Failed(why)) => return Ok(Read::Failed(why)),
                Item::End(Outcome::Read(seen)) => {
                    let content = match inline {
                        Some(bytes) => Content::inline(bytes),
                        None => Content::from_extents(self.writer, extents)?,
                    };
                    return Ok(Read::Whole(seen, content));
                }
            }
        }
    }
}

fn push_hole(extents: &mut Vec<Extent>, len: u64) {
    match extents.last_mut() {
        Some(Extent::Hole { len_bytes }) => *len_bytes += len,
        _ => extents.push(Extent::Hole { len_bytes: len }),
    }
}

/// The items of a segment's pieces, one after the other.
struct Incoming<'a> {
    pieces: Option<Pieces>,
    buffers: &'a BufferPool,
    bytes: Vec<u8>,
    items: std::vec::IntoIter<Item>,
    at: usize,
}

impl<'a> Incoming<'a> {
    fn new(pieces: Option<Pieces>, buffers: &'a BufferPool) -> Self {
        Self { pieces, buffers, bytes: Vec::new(), items: Vec::new().into_iter(), at: 0 }
    }

    fn next(&mut self) -> Result<Item> {
        loop {
            if let Some(item) = self.items.next() {
                return Ok(item);
            }
            let died = || Error::new(Kind::Internal, "a reading thread died");
            let piece = self.pieces.as_ref().and_then(|pieces| pieces.recv().ok()).ok_or_else(died)?;
            let empty = std::mem::replace(&mut self.bytes, piece.bytes);
            if empty.capacity() > 0 {
                self.buffers.give(empty);
            }
            self.items = piece.items.into_iter();
            self.at = 0;
        }
    }

    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> &[u8] {
        let start = self.at;
        self.at += len;
        &self.bytes[start..self.at]
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            self.buffers.give(std::mem::take(&mut self.bytes));
        }
    }
}
