//! The container of CRIU's image files: magic numbers, then records of a length and a protobuf message.
//!
//! Total: any bytes give records or an error. `entries` reads the records.

use store::{Error, Kind, Result};

/// First number of every image file of records, except the inventory.
const COMMON_MAGIC: u32 = 0x5456_4319;
const INVENTORY_MAGIC: u32 = 0x5831_3116;

/// The kind of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageFile {
    /// The version of the images.
    Inventory,
    /// The list of tasks.
    ProcessTree,
    /// The list of a task's dumped pages.
    PageMap,
    /// A task's mappings.
    Mappings,
}

impl ImageFile {
    fn magics(self) -> &'static [u32] {
        match self {
            Self::Inventory => &[INVENTORY_MAGIC],
            Self::ProcessTree => &[COMMON_MAGIC, 0x5027_3030],
            Self::PageMap => &[COMMON_MAGIC, 0x5608_4025],
            Self::Mappings => &[COMMON_MAGIC, 0x5749_2820],
        }
    }
}

/// The messages of an image file, in order.
///
/// # Errors
/// `Corrupt` when the file is of another kind, or ends within a record.
pub(super) fn records(bytes: &[u8], file: ImageFile) -> Result<Vec<&[u8]>> {
    let mut rest = bytes;
    for magic in file.magics() {
        if number(&mut rest)? != *magic {
            return Err(Error::new(
                Kind::Corrupt,
                format!("not a CRIU {file:?} image: its magic number is wrong"),
            ));
        }
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let len = number(&mut rest)? as usize;
        let (record, after) = rest.split_at_checked(len).ok_or_else(cut_off)?;
        found.push(record);
        rest = after;
    }
    Ok(found)
}

/// The bytes of an image file with these messages.
pub(super) fn image_file(file: ImageFile, messages: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes: Vec<u8> = file.magics().iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for message in messages {
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
    }
    bytes
}

fn number(rest: &mut &[u8]) -> Result<u32> {
    let (number, after) = rest.split_first_chunk().ok_or_else(cut_off)?;
    *rest = after;
    Ok(u32::from_le_bytes(*number))
}

fn cut_off() -> Error {
    Error::new(Kind::Corrupt, "a CRIU image file ends within a record").advice("was the dump interrupted?")
}
