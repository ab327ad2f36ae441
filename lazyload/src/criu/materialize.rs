//! An image directory out of the store: for `criu restore --lazy-pages` while this library serves, or complete for a
//! plain `criu restore`.
//!
//! Every stored file is written as it was. In the lazy form ([`super::lazy_form`]) the page maps of tasks say which
//! pages come later, and the pages files have the others. Nothing outside the directory is written, whatever names the
//! image has.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use store::{Content, Error, Image, Kind, PAGE, Progress, Result, Store, Unwatched, Work};

use super::lazy_form::lazy_page_map;
use super::page_map::PageMap;
use super::{INVENTORY, check_kind, pages_name, read_content, task_of_page_map};

const COPY_BYTES: usize = 1 << 20;

/// Writes a directory for a lazy restore, making it if it is missing. A plain `criu restore` refuses it.
///
/// # Errors
/// `Invalid` when the directory is not empty or the image is of another kind; `Corrupt` when the image contradicts
/// itself; those of reading the store and writing files.
pub fn materialize(image: &Image, store: &Store, target: &Path) -> Result<()> {
    write_directory(image, store, target, &Unwatched, |task, _| lazy_page_map(store, image, task))
}

/// Writes a complete directory, as `criu dump` wrote it, making it if it is missing.
///
/// # Errors
/// As [`materialize`].
pub fn restore(image: &Image, store: &Store, target: &Path, progress: &dyn Progress) -> Result<()> {
    write_directory(image, store, target, progress, |_, bytes| PageMap::parse(bytes))
}

/// The names of the files that [`materialize`] and [`restore`] write for an image, without the pages files.
pub fn file_names(image: &Image) -> Vec<String> {
    image.blobs().iter().map(|(name, _)| name.clone()).filter(|name| check_name(name).is_ok()).collect()
}

/// Removes the files that [`materialize`] or [`restore`] wrote (`names`, and all pages files), and the directory itself
/// if it is empty then.
///
/// # Errors
/// Those of listing the directory and of removing files.
pub fn remove(target: &Path, names: &[String]) -> Result<()> {
    let failed = |error| Error::io("cannot remove an image directory", target.display(), error);
    let entries = match std::fs::read_dir(target) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if names.contains(&name) || name.starts_with("pages-") {
            std::fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    match std::fs::remove_dir(target) {
        Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => Err(failed(error)),
        _ => Ok(()),
    }
}

fn write_directory(
    image: &Image,
    store: &Store,
    target: &Path,
    progress: &dyn Progress,
    form: impl Fn(u32, &[u8]) -> Result<PageMap>,
) -> Result<()> {
    check_kind(image)?;
    let failed = |error| Error::io("cannot make the image directory", target.display(), error);
    // No other user may read a process's memory.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(target).map_err(failed)?;
    if std::fs::read_dir(target).map_err(failed)?.next().is_some() {
        return Err(Error::new(Kind::Invalid, "the image directory is not empty")
            .object(target.display())
            .advice("give a new directory"));
    }
    let lengths =
        (0..image.spaces().len()).flat_map(|space| image.runs(space)).map(|run| u64::from(run.page_count));
    progress.begin("restore", Work::Bytes(lengths.sum::<u64>() * PAGE as u64));
    // The inventory is last: a directory without one is no image directory.
    let (last, first): (Vec<_>, Vec<_>) = image.blobs().iter().partition(|(name, _)| name == INVENTORY);
    for (name, content) in first.into_iter().chain(last) {
        check_name(name)?;
        let Some(task) = task_of_page_map(name) else {
            write_content(store, content, &create(target, name)?).map_err(|error| error.object(name))?;
            continue;
        };
        let bytes = read_content(store, content).map_err(|error| error.object(name))?;
        let kept = PageMap::parse(&bytes).map_err(|error| error.object(name))?;
        let map = form(task, &bytes).map_err(|error| error.object(name))?;
        let bytes = if map == kept { bytes } else { map.encode() };
        create(target, name)?
            .write_all(&bytes)
            .map_err(|error| Error::io("cannot write an image file", name, error))?;
        write_pages(image, task, &map, create(target, &pages_name(map.pages_id))?, progress)?;
    }
    progress.end();
    Ok(())
}

/// Checks that a name from an image is one path component.
fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::new(Kind::Corrupt, "an image file name leaves its directory").object(name));
    }
    Ok(())
}

fn create(target: &Path, name: &str) -> Result<File> {
    let path = target.join(name);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Error::io("cannot create an image file", path.display(), error))
}

fn write_content(store: &Store, content: &Content, file: &File) -> Result<()> {
    let reader = store.content(content)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let read = reader.read_at(offset, &mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        file.write_all_at(&buffer[..read], offset).map_err(not_written)?;
        offset += read as u64;
    }
}

/// Writes the present pages of a page map, one behind the other.
fn write_pages(image: &Image, task: u32, map: &PageMap, file: File, progress: &dyn Progress) -> Result<()> {
    let Some(space) = image.space(task.into()) else {
        return Err(Error::new(Kind::Corrupt, format!("the image lacks the memory of task {task}")));
    };
    let mut file = BufWriter::with_capacity(COPY_BYTES, file);
    let mut page = [0; PAGE];
    for entry in map.entries.iter().filter(|entry| entry.is_present) {
        for number in entry.pages() {
            image.read_page(space, number, &mut page)?;
            file.write_all(&page).map_err(not_written)?;
        }
        progress.advance(entry.page_count * PAGE as u64);
    }
    file.flush().map_err(not_written)
}

fn not_written(error: std::io::Error) -> Error {
    Error::io("cannot write an image file", "image directory", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "/etc/passwd", "a\0b"] {
            assert_eq!(check_name(name).expect_err("refused").kind(), Kind::Corrupt, "{name:?}");
        }
        for name in ["pstree.img", "..img", "a b"] {
            check_name(name).expect("accepted");
        }
    }
}
