//! The bytes of an object, read or mapped.

use crate::host::map::Mapped;

/// The bytes of an object.
#[derive(Debug)]
pub enum Object {
    /// Read into memory.
    Owned(Vec<u8>),
    /// Mapped from a local file.
    Mapped(Mapped),
}

impl std::ops::Deref for Object {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}
