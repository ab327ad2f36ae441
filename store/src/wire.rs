//! Little-endian, fixed-width encoding, and the envelope around every stored record.
//!
//! A decoder never trusts a length: it takes only bytes that are there, so a hostile count cannot make it allocate more
//! than its input could hold. Layout tables are in docs/FORMAT.md.

use crate::clock::Time;
use crate::error::{Error, Kind, Result};

/// First bytes of every enveloped record.
pub const MAGIC: &[u8; 8] = b"TORPOR\r\n";
/// Bytes before the body of an enveloped record.
pub const ENVELOPE_LEN: usize = 56;
/// The one format version of this build.
pub const FORMAT_VERSION: u16 = 1;

/// Kind of an enveloped record; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Record {
    /// [`crate::records::superblock`]
    Superblock = 1,
    /// [`crate::domain`]
    Domain = 2,
    /// [`crate::records::snapshot`]
    Snapshot = 3,
    /// [`crate::records::reference`]
    Ref = 4,
    /// [`crate::records::session`]
    Session = 5,
    /// [`crate::records::condemned`]: the epoch
    CollectorState = 6,
    /// [`crate::records::condemned`]: one list of condemned packs
    Condemned = 7,
    /// [`crate::index`]: one sorted run without buckets: read and no longer written
    IndexRun = 8,
    /// [`crate::host::lock`]: the writer's incarnation counter
    WriterState = 9,
    /// [`crate::backup`]: metadata of files at the last backup
    StatCache = 10,
    /// [`crate::tier::BucketRecord`]
    Bucket = 11,
    /// [`crate::index`]: one sorted run with buckets
    BucketRun = 12,
    /// [`crate::records::lost_frames`]: frames of a pack that are lost
    DamagedPack = 13,
    /// [`crate::restore`]: a restore that is not complete yet
    Restore = 14,
    /// [`crate::domain`]: a domain with keys of its own
    KeyedDomain = 20,
    /// [`crate::domain`]: an encrypted snapshot record
    SealedSnapshot = 21,
    /// [`crate::domain`]: a signed ref, encrypted or not
    SignedRef = 22,
    /// [`crate::domain`]: the state of a ref or domain that a host saw last
    Seen = 23,
}

/// Wraps a body: magic, kind, version, length and a BLAKE3 hash over all of it.
pub fn seal(record: Record, body: &[u8]) -> Vec<u8> {
    let mut out = Encoder::with_capacity(ENVELOPE_LEN + body.len());
    out.bytes(&envelope(record, body)).bytes(body);
    out.finish()
}

/// The bytes that [`seal`] puts before a body: for bodies too long to be copied.
pub fn envelope(record: Record, body: &[u8]) -> [u8; ENVELOPE_LEN] {
    let mut out = Encoder::with_capacity(ENVELOPE_LEN);
    out.bytes(MAGIC).u16(record as u16).u16(FORMAT_VERSION).u32(0).u64(body.len() as u64);
    let hash = envelope_hash(&out.0, body);
    out.bytes(hash.as_bytes());
    out.finish().try_into().expect("the fields of an envelope have its length")
}

/// Checks the envelope and returns the body.
///
/// # Errors
/// `Corrupt` for anything but a complete, unchanged record of this kind; `Invalid` for a newer format version.
pub fn unseal(record: Record, bytes: &[u8]) -> Result<&[u8]> {
    let mut header = Decoder::new(bytes);
    if bytes.len() < ENVELOPE_LEN {
        return Err(Error::corrupt(format!("{record:?} record is cut short: {} bytes", bytes.len())));
    }
    if header.take(8)? != MAGIC {
        return Err(Error::corrupt(format!("not a Torpor {record:?} record (wrong magic)")));
    }
    let (kind, version) = (header.u16()?, header.u16()?);
    if version != FORMAT_VERSION {
        return Err(Error::new(Kind::Invalid, format!("{record:?} record has format version {version}"))
            .advice(format!("this build reads version {FORMAT_VERSION}; use a newer snapctl")));
    }
    if kind != record as u16 {
        return Err(Error::corrupt(format!("expected a {record:?} record, found record kind {kind}")));
    }
    let reserved = header.u32()?;
    let len_bytes = header.u64()?;
    let stored = header.array::<32>()?;
    let body = &bytes[ENVELOPE_LEN..];
    if reserved != 0 || len_bytes != body.len() as u64 {
        let found = body.len();
        return Err(Error::corrupt(format!(
            "{record:?} record should have {len_bytes} body bytes, found {found}"
        )));
    }
    if envelope_hash(&bytes[..24], body).as_bytes() != &stored {
        return Err(Error::corrupt(format!("{record:?} record fails its checksum")));
    }
    Ok(body)
}

/// Whether the bytes are one complete, unchanged record, whatever its kind.
pub fn is_sealed(bytes: &[u8]) -> bool {
    let Some((header, body)) = bytes.split_at_checked(ENVELOPE_LEN) else { return false };
    header.starts_with(MAGIC) && header[24..] == envelope_hash(&header[..24], body).as_bytes()[..]
}

fn envelope_hash(header: &[u8], body: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header).update(body);
    hasher.finalize()
}

/// The first 8 bytes of BLAKE3: guards headers against damage, not against malice.
pub fn checksum(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Checks the four magic bytes and the version at the head of a record.
pub fn expect_head(fields: &mut Decoder<'_>, magic: &[u8; 4], what: &str) -> Result<()> {
    expect_versions(fields, magic, what, FORMAT_VERSION)
}

/// As [`expect_head`], of a record that has had versions up to `newest`.
pub fn expect_versions(fields: &mut Decoder<'_>, magic: &[u8; 4], what: &str, newest: u16) -> Result<()> {
    if fields.take(4)? != magic {
        return Err(Error::corrupt(format!("not a {what} (wrong magic)")));
    }
    match fields.u16()? {
        version if (FORMAT_VERSION..=newest).contains(&version) => Ok(()),
        version => {
            Err(Error::invalid(format!("{what} has format version {version}")).advice("use a newer snapctl"))
        }
    }
}

/// Appends fields to a buffer.
#[derive(Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// An empty encoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty encoder with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Raw bytes, no length.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A u32 length, then the bytes.
    pub fn string(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).bytes(bytes)
    }

    /// A u32 count of the items that follow.
    ///
    /// # Panics
    /// Above 2^32 items: no record is that large.
    pub fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).expect("a record has fewer than 2^32 items"))
    }

    /// Seconds and nanoseconds.
    pub fn time(&mut self, time: Time) -> &mut Self {
        self.u64(time.seconds as u64).u32(time.nanos)
    }

    /// The bytes so far.
    pub fn bytes_so_far(&self) -> &[u8] {
        &self.0
    }

    /// Number of bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The buffer.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields off a buffer; every call fails with `Corrupt` where the bytes end too soon.
#[derive(Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads from the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(Error::corrupt(format!(
                "record ends early: {len} bytes wanted, {} left",
                self.rest.len()
            ))),
        }
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A u32 length, then that many bytes.
    pub fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    /// A string that must be UTF-8.
    pub fn text(&mut self) -> Result<String> {
        let bytes = self.string()?;
        String::from_utf8(bytes.to_vec())
            .map_err(|error| Error::corrupt("text is not UTF-8").caused_by(error))
    }

    /// A u32 count of items of at least `item_len` bytes each; refused when the rest could not hold them.
    pub fn count(&mut self, item_len: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        match count.checked_mul(item_len) {
            Some(needed) if needed <= self.rest.len() => Ok(count),
            _ => {
                Err(Error::corrupt(format!("count {count} does not fit the {} bytes left", self.rest.len())))
            }
        }
    }

    /// Seconds and nanoseconds; refuses a second or more of nanoseconds.
    pub fn time(&mut self) -> Result<Time> {
        let (seconds, nanos) = (self.u64()? as i64, self.u32()?);
        if nanos >= 1_000_000_000 {
            return Err(Error::corrupt(format!("time has {nanos} nanoseconds")));
        }
        Ok(Time { seconds, nanos })
    }

    /// Number of bytes not taken yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Refuses bytes behind the last field.
    pub fn end(self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Error::corrupt(format!("record has {extra} bytes too many"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_opens_only_whole_unchanged_and_as_its_own_kind() {
        let sealed = seal(Record::Ref, b"body of a record");
        assert_eq!(unseal(Record::Ref, &sealed).unwrap(), b"body of a record");
        assert_eq!(unseal(Record::Snapshot, &sealed).unwrap_err().kind(), Kind::Corrupt);
        for len in 0..sealed.len() {
            assert!(unseal(Record::Ref, &sealed[..len]).is_err(), "cut at {len}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(Record::Ref, &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_count_that_the_bytes_cannot_hold_is_refused() {
        let mut out = Encoder::new();
        out.u32(u32::MAX);
        let bytes = out.finish();
        assert!(Decoder::new(&bytes).count(1).is_err());
        assert!(Decoder::new(&bytes).string().is_err());
    }
}
