//! Reports of long work to the caller. The tools draw them; the libraries never print.

/// Amount of work, and its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// This many bytes.
    Bytes(u64),
    /// An unknown number of bytes.
    SomeBytes,
    /// This many items.
    Items(u64),
}

/// Receives the progress of long work. Every method may be called from several threads.
pub trait Progress: Sync {
    /// Work begins.
    fn begin(&self, _what: &str, _work: Work) {}
    /// This many more bytes or items are done.
    fn advance(&self, _amount: u64) {}
    /// A message that the user should see and that does not stop the work.
    fn note(&self, _message: &str) {}
    /// Work has ended.
    fn end(&self) {}
}

/// Discards progress.
pub struct Unwatched;

impl Progress for Unwatched {}
