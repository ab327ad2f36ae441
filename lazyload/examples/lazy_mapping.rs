//! Memory that is read before it is there: a memory image of a store, mapped into this process. A page is fetched from
//! the store when it is touched, with its neighbours, by a thread that serves the page faults through userfaultfd.
//!
//! `cargo run --package torpor-lazyload --example lazy_mapping -- DIRECTORY`

use std::error::Error;
use std::path::Path;

use lazyload::ServeReport;
use lazyload::map::map;
use store::{ImageBuilder, ImageKind, PAGE, SnapshotDraft, Store, StoreConfig};

/// Pages of the image; every second one is zero and is not stored.
const PAGES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("usage: lazy_mapping DIRECTORY")?;
    let report = run(Path::new(&directory))?;
    println!("{} faults brought {} of {PAGES} pages", report.faults, report.pages + report.zero_pages);
    Ok(())
}

/// The contents of a page.
fn page(number: usize) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    if number.is_multiple_of(2) {
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&(number + 1).to_le_bytes()));
    }
    bytes
}

fn run(directory: &Path) -> Result<ServeReport, Box<dyn Error>> {
    let store = Store::init(&StoreConfig::directory(&directory.join("store")))?;
    let mut writer = store.writer("example")?;
    let mut builder = ImageBuilder::new(&mut writer, ImageKind::Raw, None);
    builder.begin_space(0, (PAGES * PAGE) as u64)?;
    for number in 0..PAGES {
        builder.page(number as u64, &page(number))?;
    }
    let (image, _) = builder.finish()?;
    writer.commit("memory", SnapshotDraft { image: Some(image), ..SnapshotDraft::default() })?;
    drop(writer);

    // The mapping costs no reads. It is a slice of bytes like any other.
    let mapping = map(&store.image(&image)?, 0)?;
    for number in [3000, 7, 8] {
        assert_eq!(mapping[number * PAGE..][..PAGE], page(number));
    }
    Ok(mapping.unmap()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_touched_is_brought() {
        let directory = tempfile::tempdir().unwrap();
        let report = run(directory.path()).unwrap();
        assert!(report.faults > 0 && report.pages < PAGES as u64 / 4, "{report:?}");
    }
}
