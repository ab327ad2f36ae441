//! The bytes of a fill, read from the store.
//!
//! The last group is kept, so that a group is decoded and verified once for any number of its pages in a row. Never
//! invents bytes: a group that cannot be read is an error.

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
    /// A resolver over an image.
    pub(crate) fn new(image: Image) -> Self {
        Self { image, last: None }
    }

    /// Another resolver over the same image.
    pub(crate) fn fork(&self) -> Self {
        Self { image: self.image.clone(), last: self.last.clone() }
    }

    /// Returns the group that holds a fill, and the range of the fill's bytes in it. May read the tier.
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
