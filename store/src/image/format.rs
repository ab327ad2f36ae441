//! Encoding of an image's page table. Columns, not rows: each column of a table compresses far better than the rows.
//! Table: docs/FORMAT.md.

use super::table::{ImageKind, PageRun, Space};
use crate::error::{Error, Result};
use crate::id::{ChunkId, ImageId};
use crate::page::{GROUP_PAGES, PAGE};
use crate::repo::store::Store;
use crate::tree::Content;
use crate::wire::{Decoder, Encoder, FORMAT_VERSION};
use crate::writer::blob;
use std::collections::{BTreeMap, HashMap};

/// First bytes of a page table.
pub(crate) const IMAGE_MAGIC: &[u8; 4] = b"TIMG";
/// Encoded length of a run.
const RUN_LEN: usize = 18;
/// Format version of a page table with deltas; one without is still of version 1.
const DELTA_VERSION: u16 = 2;

/// The parts of an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub kind: ImageKind,
    pub spaces: Vec<Space>,
    pub groups: Vec<ChunkId>,
    /// The bases of groups stored as deltas, by group number.
    pub bases: BTreeMap<u32, ChunkId>,
    pub blobs: Vec<(String, Content)>,
}

/// The bytes of a page table.
pub(crate) fn encode(parts: &Parts) -> Vec<u8> {
    let mut out = Encoder::new();
    let version = if parts.bases.is_empty() { FORMAT_VERSION } else { DELTA_VERSION };
    out.bytes(IMAGE_MAGIC).u16(version).u8(parts.kind as u8).u8(0);
    out.u32(PAGE as u32).u32(GROUP_PAGES as u32).count(parts.groups.len());
    parts.groups.iter().for_each(|id| {
        out.bytes(id.as_bytes());
    });
    out.count(parts.blobs.len());
    for (name, content) in &parts.blobs {
        out.string(name.as_bytes());
        content.encode_into(&mut out);
    }
    out.count(parts.spaces.len());
    for space in &parts.spaces {
        out.u64(space.id).u64(space.len_bytes).count(space.runs.len());
        let mut end = 0;
        for run in &space.runs {
            out.u64(run.first_page - end); // gap since the run before
            end = run.end_page();
        }
        for run in &space.runs {
            out.u32(run.page_count);
        }
        let mut group = 0u32;
        for run in &space.runs {
            out.u32(run.group.wrapping_sub(group)); // step since the run before
            group = run.group;
        }
        for run in &space.runs {
            out.u16(run.first_slot);
        }
    }
    if !parts.bases.is_empty() {
        encode_bases(parts, &mut out);
    }
    out.finish()
}

/// A base is a number: most are groups of the image as well, the others are listed.
fn encode_bases(parts: &Parts, out: &mut Encoder) {
    let mut numbers: HashMap<ChunkId, u32> = parts.groups.iter().copied().zip(0..).collect();
    let mut others = Vec::new();
    for base in parts.bases.values() {
        let next = (parts.groups.len() + others.len()) as u32;
        if next == *numbers.entry(*base).or_insert(next) {
            others.push(*base);
        }
    }
    out.count(others.len());
    others.iter().for_each(|id| {
        out.bytes(id.as_bytes());
    });
    out.count(parts.bases.len());
    let mut end = 0;
    for group in parts.bases.keys() {
        out.u32(group - end); // groups since the one behind the delta before
        end = group + 1;
    }
    for base in parts.bases.values() {
        out.u32(numbers[base]);
    }
}

fn decode_bases(fields: &mut Decoder<'_>, groups: &[ChunkId]) -> Result<BTreeMap<u32, ChunkId>> {
    let others = decode_ids(fields)?;
    let count = fields.count(8)?;
    let (mut steps, mut numbers) =
        (Decoder::new(fields.take(count * 4)?), Decoder::new(fields.take(count * 4)?));
    let (mut end, mut bases) = (0u32, BTreeMap::new());
    for _ in 0..count {
        let group = end.checked_add(steps.u32()?).filter(|group| (*group as usize) < groups.len());
        let number = numbers.u32()? as usize;
        let base = groups.get(number).or_else(|| others.get(number - groups.len()));
        let (Some(group), Some(base)) = (group, base) else {
            return Err(Error::corrupt("page table names a delta or a base that is not there"));
        };
        bases.insert(group, *base);
        end = group + 1;
    }
    match bases.is_empty() {
        true => Err(Error::corrupt("page table of a version with deltas has none")),
        false => Ok(bases),
    }
}

fn decode_ids(fields: &mut Decoder<'_>) -> Result<Vec<ChunkId>> {
    (0..fields.count(ChunkId::LEN)?).map(|_| fields.array().map(ChunkId::from_bytes)).collect()
}

/// Parses a page table; checks everything that a later read relies on.
pub(crate) fn decode(bytes: &[u8]) -> Result<Parts> {
    let mut fields = Decoder::new(bytes);
    if fields.take(4)? != IMAGE_MAGIC {
        return Err(Error::corrupt("not a memory image (wrong magic)"));
    }
    let (version, kind, _) = (fields.u16()?, fields.u8()?, fields.u8()?);
    let (page_len, group_pages) = (fields.u32()?, fields.u32()?);
    let is_known = [FORMAT_VERSION, DELTA_VERSION].contains(&version);
    if !is_known || page_len as usize != PAGE || group_pages as usize > 1 << 10 {
        let message =
            format!("memory image of version {version}, pages of {page_len}, groups of {group_pages}");
        return Err(Error::invalid(message).advice("use a newer snapctl"));
    }
    let kind = match kind {
        0 => ImageKind::Raw,
        1 => ImageKind::Firecracker,
        2 => ImageKind::Criu,
        unknown => return Err(Error::corrupt(format!("memory image of unknown kind {unknown}"))),
    };
    let groups = decode_ids(&mut fields)?;
    let mut blobs = Vec::new();
    for _ in 0..fields.count(9)? {
        blobs.push((fields.text()?, Content::decode_from(&mut fields)?));
    }
    let mut spaces = Vec::new();
    for _ in 0..fields.count(20)? {
        spaces.push(decode_space(&mut fields, groups.len(), group_pages)?);
    }
    let bases = match version {
        DELTA_VERSION => decode_bases(&mut fields, &groups)?,
        _ => BTreeMap::new(),
    };
    fields.end()?;
    Ok(Parts { kind, spaces, groups, bases, blobs })
}

fn decode_space(fields: &mut Decoder<'_>, group_count: usize, group_pages: u32) -> Result<Space> {
    let (id, len_bytes) = (fields.u64()?, fields.u64()?);
    let count = fields.count(RUN_LEN)?;
    let (mut gaps, mut counts) =
        (Decoder::new(fields.take(count * 8)?), Decoder::new(fields.take(count * 4)?));
    let (mut steps, mut slots) =
        (Decoder::new(fields.take(count * 4)?), Decoder::new(fields.take(count * 2)?));
    let (mut end, mut group) = (0u64, 0u32);
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let (gap, page_count) = (gaps.u64()?, counts.u32()?);
        group = group.wrapping_add(steps.u32()?);
        let first_slot = slots.u16()?;
        let first_page = end.checked_add(gap);
        let next =
            first_page.and_then(|first| first.checked_add(page_count.into())).filter(|next| *next <= 1 << 52);
        let (Some(first_page), Some(next)) = (first_page, next) else {
            return Err(Error::corrupt("page run leaves the address space"));
        };
        let last_slot = u32::from(first_slot).saturating_add(page_count);
        if page_count == 0 || last_slot > group_pages || group as usize >= group_count {
            return Err(Error::corrupt("page run leaves its group"));
        }
        runs.push(PageRun { first_page, page_count, group, first_slot });
        end = next;
    }
    if end > len_bytes.div_ceil(PAGE as u64) {
        return Err(Error::corrupt("page run lies behind the end of its space"));
    }
    Ok(Space { id, len_bytes, runs })
}

/// Reads an image's page table and calls `visit` with the chunks that make it up.
pub(crate) fn read_parts(store: &Store, id: &ImageId, visit: &mut dyn FnMut(&ChunkId)) -> Result<Parts> {
    let table = blob::read_visiting(store, &id.chunk(), visit)?;
    decode(&table).map_err(|error| error.object(format!("image {id}")))
}
