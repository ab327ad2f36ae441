//! Shared by the unit tests: a store in memory, and the damage that every decoder must detect.

use crate::error::Result;
use crate::repo::config::StoreConfig;
use crate::repo::store::Store;
use crate::tier::MemoryTier;
use std::fmt::Debug;
use std::sync::Arc;

/// A new store on a tier in memory; its local state is removed with the directory.
pub(crate) fn memory_store() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        cache_bytes: 1 << 20,
        level: 1,
        ..StoreConfig::on(Arc::new(MemoryTier::new()), directory.path().to_owned())
    };
    (Store::init(&config).unwrap(), directory)
}

/// A record with a checksum of its own reads back, and is refused when cut anywhere or with any bit flipped.
pub(crate) fn assert_sealed<T: PartialEq + Debug>(
    bytes: &[u8],
    value: &T,
    decode: impl Fn(&[u8]) -> Result<T>,
) {
    assert_eq!(&decode(bytes).unwrap(), value);
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "cut at {len}");
    }
    assert!(decode(&[bytes, &[0]].concat()).is_err(), "a byte too many");
    for bit in 0..bytes.len() * 8 {
        assert!(decode(&flipped(bytes, bit)).is_err(), "bit {bit}");
    }
}

/// A record that is guarded by its id alone reads back and is refused when cut anywhere; with a bit flipped it is
/// refused or decodes to another value, and no decoder panics.
pub(crate) fn assert_total<T: PartialEq + Debug>(
    bytes: &[u8],
    value: &T,
    decode: impl Fn(&[u8]) -> Result<T>,
) {
    assert_eq!(&decode(bytes).unwrap(), value);
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "cut at {len}");
    }
    assert!(decode(&[bytes, &[0]].concat()).is_err(), "a byte too many");
    for bit in 0..bytes.len() * 8 {
        std::hint::black_box(decode(&flipped(bytes, bit)).is_ok());
    }
}

/// The bytes with one bit changed.
pub(crate) fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    damaged[bit / 8] ^= 1 << (bit % 8);
    damaged
}
