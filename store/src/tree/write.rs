//! Writing the records of trees: contents, directories, roots.

use super::content::Content;
use super::content_writer::ContentWriter;
use super::directory::encode_directory;
use super::format::encode_tree;
use super::inode::{Entry, TreeRoot};
use crate::error::Result;
use crate::id::{DirectoryId, TreeId};
use crate::writer::Writer;
use crate::writer::blob;
use std::io::Read;

impl Writer {
    /// Chunks a stream of bytes by content.
    ///
    /// # Errors
    /// Those of `reader`, as `Unavailable`, and of [`Self::put_chunk`].
    pub fn put_content(&mut self, reader: &mut dyn Read) -> Result<Content> {
        let mut content = self.content_writer();
        content.copy_from(reader)?;
        content.finish()
    }

    /// Writes a file's bytes piece by piece, with holes.
    pub fn content_writer(&mut self) -> ContentWriter<'_> {
        ContentWriter::new(self)
    }

    /// Stores a directory.
    ///
    /// # Errors
    /// `Invalid` when names are not sorted, unique and possible; else as [`Self::put_chunk`].
    pub fn put_directory(&mut self, entries: &[Entry]) -> Result<DirectoryId> {
        let bytes = encode_directory(entries)?;
        blob::put(self, &bytes).map(DirectoryId::from)
    }

    /// Stores the root record of a tree.
    ///
    /// # Errors
    /// As [`Self::put_chunk`].
    pub fn put_tree(&mut self, root: &TreeRoot) -> Result<TreeId> {
        encode_tree(self, root)
    }
}
