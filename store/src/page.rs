//! Pages of memory images, and how many are stored together.

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Pages of a group: one chunk in a frame of its own, the unit that a fault fetches.
pub const GROUP_PAGES: usize = 16;
