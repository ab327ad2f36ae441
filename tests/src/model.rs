//! The oracle: a store as plain maps. A tree of files is a map from path to entry, memory is a map from page to bytes,
//! and the store is the history of each ref. The same maps are read from a directory of the host, a stored tree and the
//! model, so that "equal" has one definition.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use store::{
    CheckOptions, Content, DirectoryId, Entry, EntryInode, Image, ImageBuilder, ImageId, ImageKind,
    ImageStats, Inode, LinkedInode, Metadata, Node, PAGE, Result, SnapshotDraft, SnapshotId, Store, Time,
    Tree, TreeId, TreeRoot, Unwatched, Writer, write_with_holes,
};

/// Repeatable randomness: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.word().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// The object at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A directory.
    Directory,
    /// A regular file and its bytes.
    File(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A device, pipe or socket: its type bits and its number.
    Special(u32, u64),
}

/// An object of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Permission bits, owner, time and attributes.
    pub metadata: Metadata,
    /// Its kind and content.
    pub body: Body,
    /// The first of its names, when the tree has several for it.
    pub link: Option<Vec<u8>>,
}

impl Item {
    /// A plain file.
    pub fn file(bytes: Vec<u8>) -> Self {
        let metadata = Metadata { mode: 0o644, mtime: Time { seconds: 1, nanos: 2 }, ..Metadata::default() };
        Self { metadata, body: Body::File(bytes), link: None }
    }

    /// A plain directory.
    pub fn directory() -> Self {
        let metadata = Metadata { mode: 0o755, mtime: Time { seconds: 3, nanos: 4 }, ..Metadata::default() };
        Self { metadata, body: Body::Directory, link: None }
    }
}

/// A tree: path below the root, empty for the root itself, to the object there.
pub type Files = BTreeMap<Vec<u8>, Item>;

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        [] => name.to_vec(),
        _ => [path, b"/", name].concat(),
    }
}

/// Names every inode with several names after the first of them.
fn name_links<Id: std::hash::Hash + Eq>(files: &mut Files, ids: Vec<(Vec<u8>, Id)>) {
    let mut names: HashMap<Id, Vec<Vec<u8>>> = HashMap::new();
    for (path, id) in ids {
        names.entry(id).or_default().push(path);
    }
    for mut paths in names.into_values().filter(|paths| paths.len() > 1) {
        paths.sort();
        for path in &paths {
            files.get_mut(path).expect("it was met").link = Some(paths[0].clone());
        }
    }
}

/// The tree below a directory of the host.
pub fn files_of_host(root: &Path) -> Files {
    let (mut files, mut ids) = (Files::new(), Vec::new());
    let mut waiting = vec![Vec::new()];
    while let Some(relative) = waiting.pop() {
        let path = root.join(OsStr::from_bytes(&relative));
        let stat = fs::symlink_metadata(&path).expect("the tree is readable");
        let format = stat.mode() & 0o170_000;
        let body = match format {
            0o040_000 => {
                for entry in fs::read_dir(&path).expect("the tree is readable") {
                    let name = entry.expect("the tree is readable").file_name();
                    waiting.push(join(&relative, name.as_bytes()));
                }
                Body::Directory
            }
            0o100_000 => Body::File(fs::read(&path).expect("the tree is readable")),
            0o120_000 => {
                let target = fs::read_link(&path).expect("the tree is readable");
                Body::Symlink(target.as_os_str().as_bytes().to_vec())
            }
            0o060_000 | 0o020_000 => Body::Special(format, stat.rdev()),
            _ => Body::Special(format, 0),
        };
        if stat.nlink() > 1 && body != Body::Directory {
            ids.push((relative.clone(), (stat.dev(), stat.ino())));
        }
        let mtime = Time { seconds: stat.mtime(), nanos: stat.mtime_nsec() as u32 };
        let (mode, uid, gid) = (stat.mode() & 0o7777, stat.uid(), stat.gid());
        let metadata = Metadata { mode, uid, gid, mtime, xattrs: xattrs(&path), ..Metadata::default() };
        files.insert(relative, Item { metadata, body, link: None });
    }
    name_links(&mut files, ids);
    files
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut buffer).unwrap_or(0);
    let names = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value).expect("an attribute is readable");
        value.truncate(len);
        (name.to_vec(), value)
    };
    let mut found: Vec<_> = names.map(value).collect();
    found.sort();
    found
}

/// The tree of a snapshot.
///
/// # Errors
/// As the store.
pub fn files_of_store(store: &Store, snapshot: &SnapshotId) -> Result<Files> {
    let tree = store.snapshot(snapshot)?.tree.expect("the snapshot has files");
    files_of_tree(store, &tree)
}

/// A stored tree.
///
/// # Errors
/// As the store.
pub fn files_of_tree(store: &Store, id: &TreeId) -> Result<Files> {
    let tree = store.tree(id)?;
    let (mut files, mut ids) = (Files::new(), Vec::new());
    let mut waiting = vec![(Vec::new(), tree.root().clone())];
    while let Some((path, inode)) = waiting.pop() {
        let body = match &inode.node {
            Node::Directory(id) => {
                for entry in tree.directory(id)?.iter() {
                    let entry = entry?;
                    let path = join(&path, &entry.name);
                    if let EntryInode::Link(number) = entry.inode {
                        ids.push((path.clone(), number));
                    }
                    waiting.push((path, tree.inode(entry)?));
                }
                Body::Directory
            }
            Node::File(content) => Body::File(bytes_of(store, content)?),
            Node::Symlink(target) => Body::Symlink(target.clone()),
            Node::CharDevice(number) => Body::Special(0o020_000, *number),
            Node::BlockDevice(number) => Body::Special(0o060_000, *number),
            Node::Fifo => Body::Special(0o010_000, 0),
            Node::Socket => Body::Special(0o140_000, 0),
        };
        files.insert(path, Item { metadata: inode.metadata, body, link: None });
    }
    check_link_counts(&tree, &ids)?;
    name_links(&mut files, ids);
    Ok(files)
}

fn check_link_counts(tree: &Tree, ids: &[(Vec<u8>, u64)]) -> Result<()> {
    for (number, linked) in tree.links()?.iter() {
        let names = ids.iter().filter(|(_, id)| id == number).count();
        assert_eq!(names, linked.count as usize, "link table counts the names of {number}");
    }
    Ok(())
}

/// All bytes of a file, read in uneven pieces.
///
/// # Errors
/// As the store.
pub fn bytes_of(store: &Store, content: &Content) -> Result<Vec<u8>> {
    let reader = store.content(content)?;
    let mut bytes = vec![0; content.len_bytes() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + 100_003);
        assert_eq!(reader.read_at(at as u64, &mut bytes[at..end])?, end - at);
        at = end;
    }
    assert_eq!(reader.read_at(content.len_bytes(), &mut [0; 8])?, 0, "nothing behind the end");
    Ok(bytes)
}

/// Stores a tree.
///
/// # Errors
/// As the writer.
pub fn put_files(writer: &mut Writer, files: &Files) -> Result<TreeId> {
    let mut links = BTreeMap::new();
    let directory = put_directory(writer, files, &[], &mut links)?;
    let metadata = files[&Vec::new()].metadata.clone();
    writer.put_tree(&TreeRoot { metadata, directory, links })
}

fn put_directory(
    writer: &mut Writer,
    files: &Files,
    path: &[u8],
    links: &mut BTreeMap<u64, LinkedInode>,
) -> Result<DirectoryId> {
    let mut children = BTreeMap::new();
    for (child, item) in files.iter().filter(|(child, _)| is_child(path, child)) {
        let name = child[path.len() + usize::from(!path.is_empty())..].to_vec();
        children.insert(name, (child, item));
    }
    let mut entries = Vec::new();
    for (name, (child, item)) in children {
        let node = match &item.body {
            Body::Directory => Node::Directory(put_directory(writer, files, child, links)?),
            Body::File(bytes) => {
                let mut content = writer.content_writer();
                write_with_holes(&mut content, 0, bytes)?;
                Node::File(content.finish()?)
            }
            Body::Symlink(target) => Node::Symlink(target.clone()),
            Body::Special(0o020_000, number) => Node::CharDevice(*number),
            Body::Special(0o060_000, number) => Node::BlockDevice(*number),
            Body::Special(0o010_000, _) => Node::Fifo,
            Body::Special(..) => Node::Socket,
        };
        let inode = Inode { metadata: item.metadata.clone(), node };
        let inode = match &item.link {
            None => EntryInode::Own(inode),
            Some(first) => {
                let number = files.keys().position(|path| path == first).expect("a name of the tree") as u64;
                links.entry(number).or_insert(LinkedInode { count: 0, inode }).count += 1;
                EntryInode::Link(number)
            }
        };
        entries.push(Entry { name, inode });
    }
    writer.put_directory(&entries)
}

fn is_child(parent: &[u8], path: &[u8]) -> bool {
    let rest = match parent {
        [] => Some(path),
        _ => path.strip_prefix(parent).and_then(|rest| rest.strip_prefix(b"/")),
    };
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'/'))
}

/// One address space: its length and its pages that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Length in bytes.
    pub len_bytes: u64,
    /// Page number to bytes.
    pub pages: BTreeMap<u64, Vec<u8>>,
}

/// Memory: spaces by id, and opaque state by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The address spaces.
    pub spaces: BTreeMap<u64, Pages>,
    /// The blobs.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

/// Stores memory as an image over `parent`.
///
/// # Errors
/// As the writer.
pub fn put_memory(writer: &mut Writer, memory: &Memory, parent: Option<&Image>) -> Result<ImageId> {
    count_memory(writer, memory, parent).map(|(id, _)| id)
}

/// The same, and the counts of the pages.
///
/// # Errors
/// As the writer.
pub fn count_memory(
    writer: &mut Writer,
    memory: &Memory,
    parent: Option<&Image>,
) -> Result<(ImageId, ImageStats)> {
    let mut builder = ImageBuilder::new(writer, ImageKind::Raw, parent);
    for (id, space) in &memory.spaces {
        builder.begin_space(*id, space.len_bytes)?;
        for (page, bytes) in &space.pages {
            builder.page(*page, bytes.as_slice().try_into().expect("a page has its length"))?;
        }
    }
    for (name, bytes) in &memory.blobs {
        builder.blob(name, &mut bytes.as_slice())?;
    }
    builder.finish()
}

/// The memory of an image, every page of every space read.
///
/// # Errors
/// As the store.
pub fn memory_of_store(store: &Store, id: &ImageId) -> Result<Memory> {
    let image = store.image(id)?;
    let mut memory = Memory::default();
    for (index, space) in image.spaces().iter().enumerate() {
        let mut pages = BTreeMap::new();
        for page in 0..space.len_bytes.div_ceil(PAGE as u64) {
            let mut bytes = [0; PAGE];
            image.read_page(index, page, &mut bytes)?;
            if bytes != [0; PAGE] {
                pages.insert(page, bytes.to_vec());
            }
        }
        memory.spaces.insert(space.id, Pages { len_bytes: space.len_bytes, pages });
    }
    for (name, content) in image.blobs() {
        memory.blobs.insert(name.clone(), bytes_of(store, content)?);
    }
    Ok(memory)
}

/// The expected content of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Its files.
    pub files: Option<Files>,
    /// Its memory.
    pub memory: Option<Memory>,
}

/// Puts a state into the store, its memory over the image that the ref's last snapshot has. Returns the draft of a
/// snapshot.
///
/// # Errors
/// As the writer.
pub fn draft_of(writer: &mut Writer, name: &str, state: &State) -> Result<SnapshotDraft> {
    let store = writer.store().clone();
    let parent = store.refs().get(name)?.and_then(|found| found.current());
    let tree = state.files.as_ref().map(|files| put_files(writer, files)).transpose()?;
    let image = match (&state.memory, parent.map(|id| store.snapshot(&id)).transpose()?) {
        (None, _) => None,
        (Some(memory), before) => {
            let before = before.and_then(|snapshot| snapshot.image);
            let before = before.map(|image| store.image(&image)).transpose()?;
            Some(put_memory(writer, memory, before.as_ref())?)
        }
    };
    Ok(SnapshotDraft { tree, image, parent, ..SnapshotDraft::default() })
}

/// The content of a snapshot.
///
/// # Errors
/// As the store.
pub fn state_of_store(store: &Store, id: &SnapshotId) -> Result<State> {
    let snapshot = store.snapshot(id)?;
    Ok(State {
        files: snapshot.tree.map(|tree| files_of_tree(store, &tree)).transpose()?,
        memory: snapshot.image.map(|image| memory_of_store(store, &image)).transpose()?,
    })
}

/// Every ref's history, oldest first.
pub type Histories = BTreeMap<String, Vec<(SnapshotId, Arc<State>)>>;

/// Asserts that the store holds exactly these histories.
pub fn assert_holds(store: &Store, model: &Histories, context: &str) {
    let refs = store.refs().list().unwrap_or_else(|error| panic!("{context}: {error}"));
    let names: Vec<&String> = refs.iter().map(|found| &found.name).collect();
    assert_eq!(names, model.keys().collect::<Vec<_>>(), "{context}");
    for found in &refs {
        let history = &model[&found.name];
        let ids: Vec<SnapshotId> = found.history.iter().map(|entry| entry.snapshot).collect();
        let expected: Vec<SnapshotId> = history.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, expected, "{context}: history of {}", found.name);
        for (id, expected) in history {
            let state = state_of_store(store, id).unwrap_or_else(|error| panic!("{context}: {id}: {error}"));
            assert!(state == **expected, "{context}: {} {id} holds something else", found.name);
        }
    }
}

/// Asserts that a full check finds nothing.
pub fn assert_clean(store: &Store, context: &str) {
    let report = store::check(store, CheckOptions { read_data: true }, &Unwatched)
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.problems.is_empty(), "{context}: {:#?}", report.problems);
}

/// A tree that `seed` and `version` determine: most of it is the same from one version to the next.
pub fn sample_files(seed: u64, version: u64) -> Files {
    let mut files = Files::from([(Vec::new(), Item::directory()), (b"sub".to_vec(), Item::directory())]);
    for number in 0..8u64 {
        let changes = number == version % 8;
        let mut random = Random::new(seed ^ number << 32 ^ if changes { version + 1 } else { 0 });
        let len = [0, 10, 4096, 4097, 30_000, 70_000, 100_000, 300][number as usize];
        let path = format!("{}file-{number}", if number % 2 == 0 { "sub/" } else { "" });
        files.insert(path.into_bytes(), Item::file(random.bytes(len)));
    }
    let linked = Item { link: Some(b"hard-1".to_vec()), ..Item::file(b"linked".to_vec()) };
    files.insert(b"hard-1".to_vec(), linked.clone());
    files.insert(b"sub/hard-2".to_vec(), linked);
    let version = Body::Symlink(format!("version-{version}").into_bytes());
    files.insert(b"link".to_vec(), Item { body: version, ..Item::file(Vec::new()) });
    files
}

/// Memory that `seed` and `version` determine, mostly the same from one version to the next.
pub fn sample_memory(seed: u64, version: u64) -> Memory {
    let mut memory = Memory::default();
    for id in [0, 7] {
        let page_count = 50;
        let changes = |page: u64| (page + version).is_multiple_of(9);
        let bytes = |page: u64| {
            let version = if changes(page) { version + 1 } else { 0 };
            Random::new(seed ^ id << 40 ^ page << 20 ^ version).bytes(PAGE)
        };
        let pages = (0..page_count).filter(|page| page % 5 != 0).map(|page| (page, bytes(page))).collect();
        memory.spaces.insert(id, Pages { len_bytes: page_count * PAGE as u64, pages });
    }
    memory.blobs.insert("vmstate".to_owned(), Random::new(seed ^ version).bytes(6000));
    memory
}
