//! The form of an image directory that only a lazy restore takes.
//!
//! Such a directory has few of its pages. A page map lists those that come later as lazy and not present, as `criu dump
//! --lazy-pages` does, and ends with a page at an address where no memory can be: `criu restore --lazy-pages` passes
//! over it like over every lazy page, and a plain `criu restore`, which would take other pages for the missing ones,
//! fails at it. Pages of arguments and environment are not left for later, because `ps` and `/proc/PID/environ` show
//! them and cannot wait for a page.

use std::path::Path;

use store::{Error, Image, Kind, PAGE, Result, Store};

use super::entries::arguments_and_environment;
use super::mark::marked;
use super::page_map::{PageEntry, PageMap};
use super::{
    PROCESS_TREE, mappings_name, page_map_name, read_content, read_file, task_of_mappings, task_of_page_map,
};
use crate::wake_log::WakeId;

/// Files that differ between two dumps of the same processes: registers, mappings, page maps.
const TASK_FILES: [&str; 3] = ["core-", "mm-", "pagemap-"];
/// An address behind the memory of every process.
const NOWHERE: u64 = 1 << 55;
/// More pages of arguments and environment than this are left for later: 2 MiB, a quarter of the longest there are.
const EAGER_PAGES: u64 = 512;

/// A task's page map in this form.
///
/// # Errors
/// Those of reading the task's files.
pub(super) fn lazy_page_map(store: &Store, image: &Image, task: u32) -> Result<PageMap> {
    let map = PageMap::parse(&read_file(store, image, &page_map_name(task))?)?;
    let shown = arguments_and_environment(&read_file(store, image, &mappings_name(task))?)?;
    let mut eager: Vec<u64> = shown
        .into_iter()
        .flat_map(|range| {
            (range.start / PAGE as u64..range.end.div_ceil(PAGE as u64)).take(EAGER_PAGES as usize)
        })
        .collect();
    eager.sort_unstable();
    eager.dedup();
    let mut lazy = PageMap { pages_id: map.pages_id, entries: Vec::new() };
    for entry in &map.entries {
        lazy.entries.extend(parts(*entry, &eager));
    }
    let nowhere =
        PageEntry { start: NOWHERE, page_count: 1, is_present: false, is_in_parent: false, is_lazy: true };
    lazy.entries.push(nowhere);
    Ok(lazy)
}

/// An entry in this form: lazy pages are not present, except eager ones.
fn parts(entry: PageEntry, eager: &[u64]) -> Vec<PageEntry> {
    if !entry.is_lazy {
        return vec![entry];
    }
    let later = PageEntry { is_present: false, ..entry };
    let now = PageEntry { is_lazy: false, ..entry };
    let mut parts = Vec::new();
    let mut next = entry.pages().start;
    for page in eager.iter().copied().filter(|page| entry.pages().contains(page)) {
        parts.extend((next < page).then(|| later.with_pages(next..page)));
        parts.push(now.with_pages(page..page + 1));
        next = page + 1;
    }
    parts.extend((next < entry.pages().end).then(|| later.with_pages(next..entry.pages().end)));
    parts
}

/// Refuses a directory that was not written from this image: its tasks would get each other's pages.
pub(super) fn check_same(store: &Store, image: &Image, images: &Path) -> Result<()> {
    let tells_apart =
        |name: &str| name == PROCESS_TREE || TASK_FILES.iter().any(|kind| name.starts_with(kind));
    for (name, content) in image.blobs().iter().filter(|(name, _)| tells_apart(name)) {
        let (mut found, mut expected) = (read(images, name)?, read_content(store, content)?);
        if let Some(task) = task_of_page_map(name) {
            expected = lazy_page_map(store, image, task)?.encode();
        } else if task_of_mappings(name).is_some() {
            found = marked(&found, None).unwrap_or_default();
            expected = marked(&expected, None)?;
        }
        if found != expected {
            return Err(Error::new(Kind::Invalid, "the image directory is of another image")
                .object(images.join(name).display())
                .advice("materialize the image into a new directory"));
        }
    }
    Ok(())
}

/// Writes the mark of a wake into the files of every task.
///
/// # Errors
/// `Invalid` when a task cannot carry one; those of reading and writing the directory.
pub(super) fn set_marks(image: &Image, images: &Path, mark: WakeId) -> Result<()> {
    let names = image.blobs().iter().map(|(name, _)| name);
    for name in names.filter(|name| task_of_mappings(name).is_some()) {
        let path = images.join(name);
        let changed =
            marked(&read(images, name)?, Some(mark)).map_err(|error| error.object(path.display()))?;
        std::fs::write(&path, changed)
            .map_err(|error| Error::io("cannot write an image file", path.display(), error))?;
    }
    Ok(())
}

fn read(images: &Path, name: &str) -> Result<Vec<u8>> {
    let path = images.join(name);
    std::fs::read(&path).map_err(|error| Error::io("cannot read an image file", path.display(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_pages_come_now_and_the_others_later() {
        let entry = PageEntry {
            start: 10 * PAGE as u64,
            page_count: 10,
            is_present: true,
            is_in_parent: false,
            is_lazy: true,
        };
        let kinds = |entry, eager: &[u64]| {
            parts(entry, eager)
                .into_iter()
                .map(|part| (part.pages(), part.is_present, part.is_lazy))
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(entry, &[]), [(10..20, false, true)]);
        assert_eq!(
            kinds(entry, &[3, 10, 14, 15, 19, 20]),
            [
                (10..11, true, false),
                (11..14, false, true),
                (14..15, true, false),
                (15..16, true, false),
                (16..19, false, true),
                (19..20, true, false)
            ]
        );
        let at_once = PageEntry { is_lazy: false, ..entry };
        assert_eq!(parts(at_once, &[12]), [at_once]);
    }
}
