//! A dumped image directory into the store.
//!
//! Pages of tasks become address spaces of the image; every other file becomes a blob under its name, shared memory's
//! page maps and pages included. Nothing is written to the directory. Pages that the dump misses because userfaultfd
//! had not brought them yet are taken from the image that was woken ([`super::not_brought`]); the stored image is that
//! of a complete dump. Refused: dumps that depend on a parent directory or a page server, because their bytes are
//! elsewhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use store::{Error, Image, ImageBuilder, ImageKind, Kind, PAGE, Progress, Result, Store, Work, Writer};

use super::entries::{check_inventory, tasks};
use super::mark::marked;
use super::not_brought::{DumpedTask, MissingPage, NotBrought, not_brought};
use super::page_map::{PageEntry, PageMap};
use super::{INVENTORY, PROCESS_TREE, RECORD_FILE_LIMIT_BYTES, mappings_name, page_map_name, pages_name};
use crate::report::Captured;
use crate::wake_log::Stamp;

const READ_BYTES: usize = 1 << 20;

/// One task's pages, as found in the directory.
struct TaskPages {
    task: u32,
    map: PageMap,
    /// The pages that the dump misses.
    missing: Option<NotBrought>,
    /// The bytes of its `mm-*.img`, without the mark of a wake.
    mappings: Vec<u8>,
}

impl TaskPages {
    /// The pages that the task has: those in the dump and those that the dump misses.
    fn complete_map(&self) -> PageMap {
        let missing = self.missing.iter().flat_map(|missing| &missing.pages);
        let mut missing = missing.map(|missing| (missing.page, missing.entry())).peekable();
        let mut complete = PageMap { pages_id: self.map.pages_id, entries: Vec::new() };
        for entry in &self.map.entries {
            while let Some((page, kind)) = missing.next_if(|(page, _)| *page < entry.pages().start) {
                complete.push(page, kind);
            }
            entry.pages().for_each(|page| complete.push(page, *entry));
        }
        missing.for_each(|(page, kind)| complete.push(page, kind));
        complete
    }
}

impl MissingPage {
    /// The entry that CRIU would have written for it.
    fn entry(&self) -> PageEntry {
        PageEntry {
            start: self.page * PAGE as u64,
            page_count: 1,
            is_present: true,
            is_in_parent: false,
            is_lazy: self.is_lazy,
        }
    }
}

/// Stores the image directory that `criu dump` wrote. Pages equal to those of `parent` at the same address of the same
/// task cost nothing, nor do those that a lazily woken process had not received yet when it was dumped.
///
/// # Errors
/// `Corrupt` when files are cut or contradict each other; `Invalid` when bytes are elsewhere (a parent directory, a
/// page server), when it cannot be known which pages of a woken process were still missing, or when the images are of
/// another version; those of reading the directory and of the writer.
pub fn capture(
    writer: &mut Writer,
    images: &Path,
    parent: Option<&Image>,
    progress: &dyn Progress,
) -> Result<Captured> {
    let names = list(images)?;
    if !names.contains(INVENTORY) {
        return Err(Error::new(Kind::Invalid, "not a CRIU image directory: it has no inventory.img")
            .object(images.display())
            .advice("give the directory that criu dump was told with --images-dir"));
    }
    read_records(images, INVENTORY, check_inventory)?;
    let store = writer.store().clone();
    let found = find_pages(&store, images, &names, parent)?;
    let bytes: u64 = found.iter().map(|pages| pages.map.pages_file_bytes()).sum();
    progress.begin("capture", Work::Bytes(bytes));
    let mut builder = ImageBuilder::new(writer, ImageKind::Criu, parent);
    let mut not_brought = 0;
    for pages in &found {
        not_brought += store_pages(&mut builder, parent, images, pages, progress)?;
    }
    let of_tasks: BTreeSet<String> = found.iter().map(|pages| pages_name(pages.map.pages_id)).collect();
    for name in names.difference(&of_tasks) {
        store_file(&mut builder, images, name, &found)?;
    }
    let (image, stats) = builder.finish()?;
    progress.end();
    Ok(Captured { image, stats, bytes, not_brought })
}

/// Stores a file as it is, or as it would be if the dump were complete and the process had never been woken.
fn store_file(builder: &mut ImageBuilder<'_>, images: &Path, name: &str, found: &[TaskPages]) -> Result<()> {
    for pages in found {
        if name == mappings_name(pages.task) {
            return builder.blob(name, &mut pages.mappings.as_slice());
        }
        if name == page_map_name(pages.task) && pages.missing.is_some() {
            return builder.blob(name, &mut pages.complete_map().encode().as_slice());
        }
    }
    let path = images.join(name);
    let file =
        File::open(&path).map_err(|error| Error::io("cannot open an image file", path.display(), error))?;
    builder.blob(name, &mut BufReader::with_capacity(READ_BYTES, file))
}

/// The names of the files to keep.
fn list(images: &Path) -> Result<BTreeSet<String>> {
    let failed = |error| Error::io("cannot list the image directory", images.display(), error);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(images).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let name = entry.file_name().into_string().map_err(|name| {
            Error::new(Kind::Invalid, "a file name in the image directory is not text").object(name.display())
        })?;
        if name == "parent" {
            return Err(Error::new(Kind::Invalid, "the dump depends on a parent directory")
                .object(images.display())
                .advice("dump without --prev-images-dir: equal pages are found against the parent snapshot anyway"));
        }
        // Logs and statistics differ every time and restore reads none of them.
        if kind.is_file() && !name.ends_with(".log") && !name.starts_with("stats-") {
            names.insert(name);
        }
    }
    Ok(names)
}

fn find_pages(
    store: &Store,
    images: &Path,
    names: &BTreeSet<String>,
    parent: Option<&Image>,
) -> Result<Vec<TaskPages>> {
    let mut found: Vec<TaskPages> = Vec::new();
    for task in read_records(images, PROCESS_TREE, tasks)? {
        let (name, mappings) = (page_map_name(task), mappings_name(task));
        match (names.contains(&name), names.contains(&mappings)) {
            (true, true) => {}
            // A zombie has no memory.
            (false, false) => continue,
            (has_map, _) => {
                return Err(Error::new(
                    Kind::Invalid,
                    "the dump is not complete: a file of a task is missing",
                )
                .object(images.join(if has_map { mappings } else { name }).display())
                .advice("dump again, and capture what criu wrote as it is"));
            }
        }
        let map = read_records(images, &name, PageMap::parse)?;
        check_self_contained(&map).map_err(|error| error.object(images.join(&name).display()))?;
        if found.iter().any(|other| other.map.pages_id == map.pages_id) {
            return Err(Error::new(Kind::Corrupt, "two tasks name the same pages file").object(&name));
        }
        let mappings = read_records(images, &mappings, |bytes| Ok(bytes.to_vec()))?;
        let dumped_at = written_at(&images.join(&name))?;
        let dumped = DumpedTask { number: task, mappings: &mappings, map: &map, dumped_at };
        let missing = not_brought(store, parent, &dumped)?;
        let mappings = marked(&mappings, None)?;
        found.push(TaskPages { task, map, missing, mappings });
    }
    Ok(found)
}

fn check_self_contained(map: &PageMap) -> Result<()> {
    let elsewhere = |what: &str, advice: &str| Err(Error::new(Kind::Invalid, what).advice(advice));
    if map.entries.iter().any(|entry| entry.is_in_parent) {
        return elsewhere("pages stand in a parent directory", "dump without --prev-images-dir");
    }
    if map.entries.iter().any(|entry| !entry.is_present) {
        return elsewhere("pages were left with a page server", "dump without --lazy-pages");
    }
    Ok(())
}

/// Stores the memory of a task, and returns how many of its pages the dump misses.
fn store_pages(
    builder: &mut ImageBuilder<'_>,
    parent: Option<&Image>,
    images: &Path,
    pages: &TaskPages,
    progress: &dyn Progress,
) -> Result<u64> {
    let path = images.join(pages_name(pages.map.pages_id));
    let failed = |error| Error::io("cannot read a pages file", path.display(), error);
    let file = File::open(&path).map_err(failed)?;
    let (expected, found) = (pages.map.pages_file_bytes(), file.metadata().map_err(failed)?.len());
    if expected != found {
        return Err(Error::new(
            Kind::Corrupt,
            format!("a pages file has {found} bytes, its page map says {expected}"),
        )
        .object(path.display())
        .advice("was the dump interrupted, or is it still running?"));
    }
    let missing = pages.missing.as_ref().map_or(&[][..], |missing| &missing.pages);
    let highest = missing.last().map_or(0, |last| (last.page + 1) * PAGE as u64);
    builder.begin_space(pages.task.into(), pages.map.end().max(highest))?;
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut page = [0; PAGE];
    let mut missing = missing.iter().peekable();
    let take = |builder: &mut ImageBuilder<'_>, one: &MissingPage| match &pages.missing {
        Some(from) => take(builder, parent, &from.image, one),
        None => Ok(()),
    };
    for entry in &pages.map.entries {
        while let Some(one) = missing.next_if(|one| one.page < entry.pages().start) {
            take(builder, one)?;
        }
        for number in entry.pages() {
            reader.read_exact(&mut page).map_err(failed)?;
            builder.page(number, &page)?;
        }
        progress.advance(entry.page_count * PAGE as u64);
    }
    missing.try_for_each(|one| take(builder, one))?;
    Ok(pages.missing.as_ref().map_or(0, |missing| missing.pages.len() as u64))
}

/// Stores a page of the image that was woken: unread, if that image is the parent.
fn take(
    builder: &mut ImageBuilder<'_>,
    parent: Option<&Image>,
    woken: &Image,
    one: &MissingPage,
) -> Result<()> {
    if parent.is_some_and(|parent| parent.id() == woken.id()) {
        return builder.page_of_parent(one.page, one.space, one.image_page);
    }
    let mut page = [0; PAGE];
    woken.read_page(one.space, one.image_page, &mut page)?;
    builder.page(one.page, &page)
}

/// When the last byte of a file was written.
fn written_at(path: &Path) -> Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata =
        path.metadata().map_err(|error| Error::io("cannot look at an image file", path.display(), error))?;
    Ok(Stamp(metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())))
}

fn read_records<T>(images: &Path, name: &str, parse: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let path = images.join(name);
    let failed = |error| Error::io("cannot read an image file", path.display(), error);
    let file = File::open(&path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(RECORD_FILE_LIMIT_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes).map_err(|error| error.object(path.display()))
}
