//! Processes: CRIU's image directories in and out of the store, and its lazy restore served.
//!
//! [`capture`] stores a dumped directory, [`restore`] writes a complete one, [`materialize`] writes one with only the
//! pages that CRIU reads by itself, and [`serve`] serves all others on `lazy-pages.socket` while `criu restore
//! --lazy-pages` runs. The image has one address space per task, by its process number; every other image file is
//! stored as it is.

pub(crate) mod announce;
mod capture;
pub(crate) mod entries;
mod lazy_form;
pub(crate) mod mark;
mod materialize;
mod not_brought;
pub(crate) mod page_map;
mod record;
mod serve;
mod wire;

pub use capture::capture;
pub use materialize::{file_names, materialize, remove, restore};
pub use serve::serve;

use store::{Content, Error, Image, ImageKind, Kind, Result, Store};

/// Longest file of records; a longer one is not from CRIU.
const RECORD_FILE_LIMIT_BYTES: u64 = 1 << 30;
const INVENTORY: &str = "inventory.img";
const PROCESS_TREE: &str = "pstree.img";

fn page_map_name(task: u32) -> String {
    format!("pagemap-{task}.img")
}

fn mappings_name(task: u32) -> String {
    format!("mm-{task}.img")
}

fn pages_name(pages_id: u32) -> String {
    format!("pages-{pages_id}.img")
}

/// The task whose pages a page map file lists; `None` for other files, shared memory's page maps among them.
fn task_of_page_map(name: &str) -> Option<u32> {
    let task = name.strip_prefix("pagemap-")?.strip_suffix(".img")?.parse().ok()?;
    (page_map_name(task) == name).then_some(task)
}

/// The task whose mappings a file lists.
fn task_of_mappings(name: &str) -> Option<u32> {
    let task = name.strip_prefix("mm-")?.strip_suffix(".img")?.parse().ok()?;
    (mappings_name(task) == name).then_some(task)
}

/// Reads an image file that is stored in an image.
///
/// # Errors
/// `Corrupt` when the image does not have it; those of reading the store.
fn read_file(store: &Store, image: &Image, name: &str) -> Result<Vec<u8>> {
    let content = image
        .blob(name)
        .ok_or_else(|| Error::new(Kind::Corrupt, format!("the image lacks {name}")).object(image.id()))?;
    read_content(store, content).map_err(|error| error.object(name))
}

fn read_content(store: &Store, content: &Content) -> Result<Vec<u8>> {
    let len_bytes = content.len_bytes();
    if len_bytes > RECORD_FILE_LIMIT_BYTES {
        return Err(Error::new(
            Kind::Corrupt,
            format!("an image file of {len_bytes} bytes is too long to be true"),
        ));
    }
    let reader = store.content(content)?;
    let mut bytes = vec![0; len_bytes as usize];
    let read = reader.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn check_kind(image: &Image) -> Result<()> {
    if image.kind() == ImageKind::Criu {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, "the image is not of processes dumped by CRIU")
        .object(image.id())
        .advice("a virtual machine is resumed with its own command"))
}
