//! A dumped image directory into the store.
//!
//! Pages of tasks become address spaces of the image; every other file becomes a blob under its name, shared memory's
//! page maps and pages included. Nothing is written to the directory. Refused: dumps that lean on a parent directory or a
//! page server, because their bytes are elsewhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use store::{Error, Image, ImageBuilder, ImageKind, Kind, PAGE, Progress, Result, Work, Writer};

use super::entries::{PageMap, check_inventory, tasks};
use super::{INVENTORY, PROCESS_TREE, RECORD_FILE_LIMIT_BYTES, mappings_name, page_map_name, pages_name};
use crate::report::Captured;

const READ_BYTES: usize = 1 << 20;

/// One task's pages, as found in the directory.
struct TaskPages {
    task: u32,
    map: PageMap,
}

/// Stores the image directory that `criu dump` wrote. Pages equal to those of `parent` at the same address of the same
/// task cost nothing.
///
/// # Errors
/// `Corrupt` when files are cut or contradict each other; `Invalid` when bytes are elsewhere (a parent directory, a page
/// server) or the images are of another version; those of reading the directory and of the writer.
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
    let found = find_pages(images, &names)?;
    let bytes: u64 = found.iter().map(|pages| pages.map.pages_file_bytes()).sum();
    progress.begin("capture", Work::Bytes(bytes));
    let mut builder = ImageBuilder::new(writer, ImageKind::Criu, parent);
    for pages in &found {
        store_pages(&mut builder, images, pages, progress)?;
    }
    let of_tasks: BTreeSet<String> = found.iter().map(|pages| pages_name(pages.map.pages_id)).collect();
    for name in names.difference(&of_tasks) {
        let path = images.join(name);
        let file = File::open(&path)
            .map_err(|error| Error::io("cannot open an image file", path.display(), error))?;
        builder.blob(name, &mut BufReader::with_capacity(READ_BYTES, file))?;
    }
    let (image, stats) = builder.finish()?;
    progress.end();
    Ok(Captured { image, stats, bytes })
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
            return Err(Error::new(Kind::Invalid, "the dump leans on a parent directory")
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

fn find_pages(images: &Path, names: &BTreeSet<String>) -> Result<Vec<TaskPages>> {
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
        found.push(TaskPages { task, map });
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

fn store_pages(
    builder: &mut ImageBuilder<'_>,
    images: &Path,
    pages: &TaskPages,
    progress: &dyn Progress,
) -> Result<()> {
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
    builder.begin_space(pages.task.into(), pages.map.end())?;
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut page = [0; PAGE];
    for entry in &pages.map.entries {
        for number in entry.pages() {
            reader.read_exact(&mut page).map_err(failed)?;
            builder.page(number, &page)?;
        }
        progress.advance(entry.page_count * PAGE as u64);
    }
    Ok(())
}

fn read_records<T>(images: &Path, name: &str, parse: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let path = images.join(name);
    let failed = |error| Error::io("cannot read an image file", path.display(), error);
    let file = File::open(&path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(RECORD_FILE_LIMIT_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes).map_err(|error| error.object(path.display()))
}
