//! The bytes of a fill, out of the store.
//!
//! A group is decoded and verified once however many of its pages are asked for in a row: the last one is kept. Never
//! invents bytes: what cannot be read is an error.

use std::ops::Range;

use store::{ChunkBytes, Error, Image, Kind, PAGE, Result};

use crate::fault::Fill;

/// Reads groups of one image.
#[derive(Debug)]
pub(crate) struct Resolver {
    image: Image,
    last: Option<(u32, ChunkBytes)>,
}

impl Resolver {
    /// Over an image.
    pub(crate) fn new(image: Image) -> Self {
        Self { image, last: None }
    }

    /// One more over the same image.
    pub(crate) fn fork(&self) -> Self {
        Self { image: self.image.clone(), last: self.last.clone() }
    }

    /// The group that holds a fill, and where in it the fill's bytes are. May read the tier.
    ///
    /// # Errors
    /// Those of reading the group; `Corrupt` when it is shorter than the page table says.
    pub(crate) fn read(&mut self, fill: &Fill) -> Result<(ChunkBytes, Range<usize>)> {
        let group = match &self.last {
            Some((number, bytes)) if *number == fill.group => bytes.clone(),
            _ => {
                let bytes = self.image.group(fill.group)?;
                self.last = Some((fill.group, bytes.clone()));
                bytes
            }
        };
        let start = fill.first_slot as usize * PAGE;
        let end = start + fill.page_count as usize * PAGE;
        if end > group.len() {
            return Err(Error::new(Kind::Corrupt, "a page group is shorter than the page table says")
                .object(format!("group {} of image {}", fill.group, self.image.id())));
        }
        Ok((group, start..end))
    }
}
