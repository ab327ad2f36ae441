//! The assembler: takes the steps of a walk and the pieces of its readers in order and stores what is new. It alone holds
//! the writer.

use super::events::{Event, Form, InodeKey, Leaf, Old, Segment};
use super::host::Xattrs;
use super::read::{Item, Pieces};
use super::stat_cache::Look;
use crate::error::{Error, Kind, Result};
use crate::id::DirectoryId;
use crate::progress::Progress;
use crate::spare::SpareBuffers;
use crate::tree::{Content, Entry, EntryInode, Extent, Inode, LinkedInode, Metadata, Node, Tree, TreeRoot};
use crate::writer::Writer;
use crossbeam_channel::Receiver;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a backup counted.
#[derive(Debug, Default)]
pub struct Counts {
    pub files: u64,
    pub directories: u64,
    pub unchanged_files: u64,
    pub bytes: u64,
    pub unreadable: Vec<String>,
}

/// A whole tree, what was counted, and how files looked.
pub struct Assembled {
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
    /// Positions of the old directory whose entries are as they were.
    same: Vec<usize>,
}

/// What is being put together.
pub struct Assembler<'a> {
    writer: &'a mut Writer,
    parent: Option<&'a Tree>,
    progress: &'a dyn Progress,
    buffers: SpareBuffers,
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

/// Attributes and bytes of a file, or why it cannot be read.
type Read = Result<(Xattrs, Content)>;

impl<'a> Assembler<'a> {
    pub fn new(
        writer: &'a mut Writer,
        source: &Path,
        parent: Option<&'a Tree>,
        progress: &'a dyn Progress,
        buffers: SpareBuffers,
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

    /// Puts the tree together.
    ///
    /// # Errors
    /// Those of the store, and what the walk could not go on after. A file that cannot be read is noted and left out.
    pub fn run(mut self, segments: &Receiver<Segment>) -> Result<Assembled> {
        let buffers = self.buffers.clone();
        for Segment { events, pieces } in segments {
            let mut incoming = Incoming::new(pieces, &buffers);
            for event in events {
                match event {
                    Event::Enter { name, metadata, old } => self.enter(name, metadata, old),
                    Event::Leave => self.leave()?,
                    Event::Leaf(leaf) => self.leaf(leaf, &mut incoming)?,
                    Event::Unreadable(what) => self.counts.unreadable.push(what),
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

    /// Stores a directory. One in which everything is as it was keeps its id and is not even put together.
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

    /// Adds a subdirectory or a link, which is often what it was.
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
        let Leaf { name, file_len, mut look, linked, form } = leaf;
        self.counts.files += 1;
        let is_same = matches!(form, Form::Same(_));
        if let (Some(len_bytes), false) = (file_len, matches!(form, Form::Again)) {
            self.counts.bytes += len_bytes;
            self.counts.unchanged_files += u64::from(is_same);
            self.progress.advance(len_bytes);
        }
        let inode = match form {
            Form::Again => return self.again(name, linked),
            Form::Same(position) if linked.is_none() => {
                self.looks.extend(look);
                self.open()?.same.push(position);
                return Ok(());
            }
            Form::Same(position) => Ok(self.old_inode(position)?),
            Form::Whole(inode) => Ok(inode),
            Form::Unreadable(error) => Err(error),
            Form::Read(metadata) => match self.read(incoming)? {
                Ok((xattrs, content)) => {
                    // A file that changed while it was read is read again the next time.
                    look = look.filter(|_| file_len == Some(content.len_bytes()));
                    Ok(Inode { metadata: Metadata { xattrs, ..metadata }, node: Node::File(content) })
                }
                Err(error) => Err(error),
            },
        };
        match (inode, linked) {
            (Ok(inode), None) => {
                self.looks.extend(look);
                self.open()?.entries.push(Entry { name, inode: EntryInode::Own(inode) });
                Ok(())
            }
            (Ok(inode), Some(key)) => {
                self.looks.extend(look);
                self.first(name, key, inode)
            }
            (Err(error), linked) => {
                if let Some(key) = linked {
                    self.numbers.insert(key, Err(error.to_string()));
                }
                self.unreadable(&name, &error.to_string());
                Ok(())
            }
        }
    }

    fn unreadable(&mut self, name: &[u8], error: &str) {
        let path = self.path.join(OsStr::from_bytes(name));
        self.counts.unreadable.push(format!("{}: {error}", path.display()));
    }

    /// What the old directory has at this position, looked up in the link table if need be.
    fn old_inode(&self, position: usize) -> Result<Inode> {
        let open = self.stack.last().and_then(|open| open.old.as_ref());
        match (self.parent, open) {
            (Some(tree), Some(old)) => tree.inode(old.directory.entry(position)?),
            _ => Err(Error::new(Kind::Internal, "no old directory to take an entry from")),
        }
    }

    /// The first name of an inode that has several stores the inode.
    fn first(&mut self, name: Vec<u8>, key: InodeKey, inode: Inode) -> Result<()> {
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
                if let Some(linked) = self.links.get_mut(&number) {
                    linked.count += 1;
                }
                self.add(Entry { name, inode: EntryInode::Link(number) })
            }
            Some(Err(error)) => {
                self.unreadable(&name, &error);
                Ok(())
            }
            None => Err(Error::new(Kind::Internal, "a second name came before the first")),
        }
    }

    /// Stores what a reader has of the next file. The outer error is one of the store.
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
                Item::Hole { len } => match extents.last_mut() {
                    Some(Extent::Hole { len_bytes }) => *len_bytes += len,
                    _ => extents.push(Extent::Hole { len_bytes: len }),
                },
                Item::End(Err(error)) => return Ok(Err(error)),
                Item::End(Ok(xattrs)) => {
                    let content = match inline {
                        Some(bytes) => Content::inline(bytes),
                        None => Content::from_extents(self.writer, extents)?,
                    };
                    return Ok(Ok((xattrs, content)));
                }
            }
        }
    }
}

/// The items of a segment's pieces, one after the other.
struct Incoming<'a> {
    pieces: Option<Pieces>,
    buffers: &'a SpareBuffers,
    bytes: Vec<u8>,
    items: std::vec::IntoIter<Item>,
    at: usize,
}

impl<'a> Incoming<'a> {
    fn new(pieces: Option<Pieces>, buffers: &'a SpareBuffers) -> Self {
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

    /// The next so many bytes.
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
