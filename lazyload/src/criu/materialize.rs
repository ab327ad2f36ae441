//! An image directory for `criu restore --lazy-pages`, out of the store.
//!
//! Every kept file is written back as it was. A task's pages file is sparse: it has its full length, but only the pages
//! that CRIU restores before the task runs are filled. Nothing outside the directory is ever written, whatever names the
//! image holds.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use store::{Content, Error, Image, Kind, PAGE, Result, Store};

use super::entries::PageMap;
use super::{check_kind, pages_name, read_content, task_of_page_map};

const COPY_BYTES: usize = 1 << 20;

/// Writes the directory, making it if it is missing.
///
/// # Errors
/// `Invalid` when the directory is not empty or the image is of another kind; `Corrupt` when the image contradicts
/// itself; those of reading the store and writing files.
pub fn materialize(image: &Image, store: &Store, target: &Path) -> Result<()> {
    check_kind(image)?;
    let failed = |error| Error::io("cannot make the image directory", target.display(), error);
    // A process's memory is nobody else's to read.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(target).map_err(failed)?;
    if std::fs::read_dir(target).map_err(failed)?.next().is_some() {
        return Err(Error::new(Kind::Invalid, "the image directory is not empty")
            .object(target.display())
            .advice("give a new directory"));
    }
    for (name, content) in image.blobs() {
        check_name(name)?;
        write_content(store, content, &create(target, name)?).map_err(|error| error.object(name))?;
        if let Some(task) = task_of_page_map(name) {
            let map = PageMap::parse(&read_content(store, content)?).map_err(|error| error.object(name))?;
            write_eager_pages(image, task, &map, &create(target, &pages_name(map.pages_id))?)?;
        }
    }
    Ok(())
}

/// A name from an image is one path component and nothing else.
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
        write(file, &buffer[..read], offset)?;
        offset += read as u64;
    }
}

fn write_eager_pages(image: &Image, task: u32, map: &PageMap, file: &File) -> Result<()> {
    let name = pages_name(map.pages_id);
    file.set_len(map.pages_file_bytes())
        .map_err(|error| Error::io("cannot size an image file", &name, error))?;
    let Some(space) = image.space(task.into()) else {
        return Err(Error::new(Kind::Corrupt, format!("the image lacks the memory of task {task}")));
    };
    let mut page = [0; PAGE];
    let mut offset = 0;
    for entry in map.entries.iter().filter(|entry| entry.is_present) {
        if !entry.is_lazy {
            for (place, number) in entry.pages().enumerate() {
                if image.locate(space, number).is_some() {
                    image.read_page(space, number, &mut page)?;
                    write(file, &page, offset + (place * PAGE) as u64)?;
                }
            }
        }
        offset += entry.page_count * PAGE as u64;
    }
    Ok(())
}

fn write(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(bytes, offset)
        .map_err(|error| Error::io("cannot write an image file", "image directory", error))
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
