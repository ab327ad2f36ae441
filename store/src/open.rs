//! What a store opens for its users: trees, images, file contents, and writers. Wiring only.

use crate::error::Result;
use crate::id::{ImageId, TreeId};
use crate::image::Image;
use crate::repo::Store;
use crate::tree::{Content, ContentReader, Tree};
use crate::writer::{Role, Shape, Writer};
use std::time::Duration;

impl Store {
    /// Begins writing: takes the writer's lock, for which it waits as the local state says, and opens a session.
    ///
    /// # Errors
    /// `Conflict`, naming the holder, when another process writes; `Full` or `Invalid` as the tier.
    pub fn writer(&self, purpose: &str) -> Result<Writer> {
        Writer::open(self, self.state(), Role::Author, purpose)
    }

    /// The same, waiting so long for the writer's lock.
    ///
    /// # Errors
    /// As [`Self::writer`].
    pub fn writer_within(&self, wait: Duration, purpose: &str) -> Result<Writer> {
        Writer::open(self, &self.state().clone().waiting(wait), Role::Author, purpose)
    }

    /// Begins to put what is stored already into new packs on the tier of this number, compressed at `level`: takes the
    /// rewriter's lock and opens a session. Other writers go on meanwhile.
    ///
    /// # Errors
    /// As [`Self::writer`].
    pub fn rewriter(&self, tier: usize, level: i32, purpose: &str) -> Result<Writer> {
        Writer::open(self, self.state(), Role::Rewriter(Shape { level, tier }), purpose)
    }

    /// Opens a tree: reads its root record only.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn tree(&self, id: &TreeId) -> Result<Tree> {
        Tree::open(self, id)
    }

    /// Opens a memory image: reads its page table.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn image(&self, id: &ImageId) -> Result<Image> {
        Image::open(self, id)
    }

    /// Opens a file's bytes for random reads.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`: when its list of extents cannot be read.
    pub fn content(&self, content: &Content) -> Result<ContentReader> {
        ContentReader::open(self, content)
    }
}
