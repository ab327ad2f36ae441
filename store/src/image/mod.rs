//! Memory images: the stored page for each page of an address space, plus opaque state (device state, CRIU's
//! image files).
//!
//! Pages are stored in groups of up to [`GROUP_PAGES`]; a group is one chunk in a frame of its own, the unit that a
//! fault fetches. The page table is flat: a child points straight at its ancestors' groups, so the length of a chain
//! costs nothing. Zero pages and pages outside every run are not stored.

mod budget;
mod builder;
pub(crate) mod format;
mod reader;
mod table;

pub use builder::{ImageBuilder, ImageStats};
pub(crate) use format::read_parts;
pub use reader::Image;
pub use table::{ImageKind, Location, PageRun, Space};

#[cfg(test)]
mod tests;
