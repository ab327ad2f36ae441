//! A directory node: entries sorted by name behind a table of their offsets, so that opening parses nothing and a
//! lookup is a binary search over the stored bytes.

use super::format::{IDENTITY_VERSION, decode_inode, encode_inode, version};
use super::inode::{Entry, EntryInode, check_entry_name};
use crate::error::{Error, Result};
use crate::wire::{Decoder, Encoder, expect_versions};
use crate::writer::blob::Blob;
use std::cmp::Ordering;

/// First bytes of a directory node.
pub(super) const DIRECTORY_MAGIC: &[u8; 4] = b"TDIR";
/// Bytes before the offset table.
const HEADER_LEN: usize = 12;

const OWN: u8 = 0;
const LINK: u8 = 1;

/// The bytes of a directory with these entries.
///
/// # Errors
/// `Invalid` when names are not sorted, unique and possible.
pub fn encode_directory(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut records = Encoder::new();
    let mut offsets = Vec::with_capacity(entries.len());
    let mut has_identity = false;
    for (index, entry) in entries.iter().enumerate() {
        check_entry_name(&entry.name).map_err(|error| Error::invalid(error.to_string()))?;
        if index > 0 && entries[index - 1].name >= entry.name {
            return Err(Error::invalid("directory entries are not sorted and unique"));
        }
        offsets.push(records.len());
        records.u8(entry.name.len() as u8).bytes(&entry.name);
        match &entry.inode {
            EntryInode::Own(inode) => {
                records.u8(OWN);
                has_identity |= inode.has_identity();
                encode_inode(&mut records, inode, &inode.metadata.identity);
            }
            EntryInode::Link(number) => {
                records.u8(LINK).u64(*number);
            }
        }
    }
    let mut out = Encoder::with_capacity(HEADER_LEN + offsets.len() * 4 + records.len());
    out.bytes(DIRECTORY_MAGIC).u16(version(has_identity)).u16(0).count(entries.len());
    for offset in offsets {
        out.count(offset);
    }
    out.bytes(&records.finish());
    Ok(out.finish())
}

/// An open directory node.
#[derive(Clone, Debug)]
pub struct Directory {
    node: Blob,
    count: usize,
}

impl Directory {
    pub(crate) fn parse(node: Blob) -> Result<Self> {
        let mut fields = Decoder::new(&node);
        expect_versions(&mut fields, DIRECTORY_MAGIC, "directory", IDENTITY_VERSION)?;
        fields.u16()?;
        let count = fields.count(4)?;
        Ok(Self { node, count })
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that stay in memory while it is open: its own, or those of the frame that it lies in.
    pub fn held_bytes(&self) -> usize {
        self.node.held_bytes()
    }

    /// The fields of an entry, from its name on.
    fn record(&self, index: usize) -> Result<Decoder<'_>> {
        let mut table = Decoder::new(&self.node[HEADER_LEN..]);
        table.take(index.checked_mul(4).ok_or_else(|| Error::corrupt("no such entry"))?)?;
        let offset = table.u32()? as usize;
        let start = HEADER_LEN + self.count * 4;
        let mut record = Decoder::new(&self.node[start..]);
        record.take(offset)?;
        Ok(record)
    }

    fn name(&self, index: usize) -> Result<&[u8]> {
        let mut record = self.record(index)?;
        let len = record.u8()? as usize;
        record.take(len)
    }

    /// The entry at a position in name order.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn entry(&self, index: usize) -> Result<Entry> {
        if index >= self.count {
            return Err(Error::invalid(format!("directory has {} entries, not {index}", self.count)));
        }
        let mut record = self.record(index)?;
        let len = record.u8()? as usize;
        let name = record.take(len)?.to_vec();
        check_entry_name(&name)?;
        let inode = match record.u8()? {
            OWN => EntryInode::Own(decode_inode(&mut record)?),
            LINK => EntryInode::Link(record.u64()?),
            unknown => return Err(Error::corrupt(format!("entry of unknown type {unknown}"))),
        };
        Ok(Entry { name, inode })
    }

    /// The position of a name, or where it would stand.
    fn search(&self, name: &[u8]) -> Result<Result<usize, usize>> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle)?.cmp(name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Ok(middle)),
            }
        }
        Ok(Err(low))
    }

    /// The position of the entry with this name.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn find(&self, name: &[u8]) -> Result<Option<usize>> {
        Ok(self.search(name)?.ok())
    }

    /// The entry with this name.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn get(&self, name: &[u8]) -> Result<Option<Entry>> {
        self.find(name)?.map(|index| self.entry(index)).transpose()
    }

    /// The position of the first entry whose name is not below `name`: where a listing goes on.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn position(&self, name: &[u8]) -> Result<usize> {
        Ok(self.search(name)?.unwrap_or_else(|after| after))
    }

    /// All entries in name order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Entry>> + '_ {
        (0..self.count).map(|index| self.entry(index))
    }
}
