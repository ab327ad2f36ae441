//! What long work tells whoever watches it. The tools draw it; the libraries never print.

/// How much work there is, and in what it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// So many bytes.
    Bytes(u64),
    /// Bytes, nobody knows how many.
    SomeBytes,
    /// So many things.
    Items(u64),
}

/// A watcher of long work. Every method may be called from several threads.
pub trait Progress: Sync {
    /// Work begins.
    fn begin(&self, _what: &str, _work: Work) {}
    /// So many bytes or things more are done.
    fn advance(&self, _amount: u64) {}
    /// Something that the user should know and that does not stop the work.
    fn note(&self, _message: &str) {}
    /// Work has ended.
    fn end(&self) {}
}

/// Nobody watches.
pub struct Unwatched;

impl Progress for Unwatched {}
