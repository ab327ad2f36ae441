//! What long work tells whoever watches it. The tools draw it; the libraries never print.

/// A watcher of long work. Every method may be called from several threads.
pub trait Progress: Sync {
    /// Work begins; its size in bytes where known.
    fn begin(&self, _what: &str, _total_bytes: Option<u64>) {}
    /// So many bytes more are done.
    fn advance(&self, _bytes: u64) {}
    /// Something that the user should know and that does not stop the work.
    fn note(&self, _message: &str) {}
    /// Work has ended.
    fn end(&self) {}
}

/// Nobody watches.
pub struct Unwatched;

impl Progress for Unwatched {}
