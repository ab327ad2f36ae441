//! Packs and frames: round trip, every truncation and every flipped bit.

use super::*;
use crate::domain::Domain;
use crate::id::{ChunkId, WriterId};
use crate::pack::ChunkBytes;
use crate::testing::flipped;
use crate::tier::{MemoryTier, Tier};
use proptest::prelude::*;

fn plain() -> Domain {
    Domain::plain([7; 32])
}

fn id_of(bytes: &[u8]) -> ChunkId {
    plain().chunk_id(bytes)
}

fn pack_id() -> PackId {
    PackId { writer: WriterId::from_bytes([3; 8]), epoch: 1, sequence: 2 }
}

/// A pack of two frames: one that compresses, one that does not.
fn sample() -> (Vec<u8>, PackDirectory) {
    let mut noise = vec![0; 700];
    blake3::Hasher::new().update(b"pack").finalize_xof().fill(&mut noise);
    let mut builder = PackBuilder::new(pack_id(), PackKind::Data);
    for chunks in [vec![vec![7; 900], b"hello hello hello".to_vec()], vec![noise]] {
        let mut draft = FrameDraft::new(PackKind::Data);
        chunks.iter().for_each(|chunk| draft.push(id_of(chunk), chunk));
        builder.push(&draft.encode(3).unwrap());
    }
    let (_, bytes, directory) = builder.finish();
    (bytes, directory)
}

/// All data that a reader takes from a pack: its directory and each chunk's bytes.
fn read_all(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let tier = MemoryTier::new();
    tier.put_if_absent(&pack_id().key(), bytes)?;
    let directory = read_directory(&tier, pack_id())?;
    let mut chunks = Vec::new();
    for extent in &directory.frames {
        let stored = tier.get_range(&pack_id().key(), extent.offset, extent.len_bytes.into())?;
        let frame = Frame::decode(&stored, &[&plain()])?;
        chunks.extend(frame.slots.iter().map(|(_, range)| frame.plain[range.clone()].to_vec()));
    }
    for entry in &directory.entries {
        assert!(chunks.iter().any(|chunk| id_of(chunk) == entry.id));
    }
    Ok(chunks)
}

#[test]
fn a_pack_reads_back_as_written() {
    let (bytes, directory) = sample();
    let tier = MemoryTier::new();
    tier.put_if_absent(&pack_id().key(), &bytes).unwrap();
    assert_eq!(read_directory(&tier, pack_id()).unwrap(), directory);
    assert_eq!(read_all(&bytes).unwrap().len(), 3);
}

#[test]
fn a_pack_cut_at_any_byte_is_refused() {
    let (bytes, _) = sample();
    for len in 0..bytes.len() {
        assert!(read_all(&bytes[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn no_flipped_bit_gives_other_bytes() {
    let (bytes, directory) = sample();
    let good = read_all(&bytes).unwrap();
    let mut padding_bits = 0;
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match read_all(&damaged) {
            Ok(chunks) => {
                assert_eq!(chunks, good, "bit {bit} gave other bytes");
                padding_bits += 1;
            }
            Err(error) => assert!(matches!(error.kind(), crate::Kind::Corrupt | crate::Kind::Invalid)),
        }
    }
    // Readers use the directory, so only the pack header (for a forward scan) and padding may change undetected.
    let used: usize = directory.frames.iter().map(|frame| frame.len_bytes as usize).sum();
    assert!(
        padding_bits / 8 < PACK_HEADER_LEN + directory.frames.len() * ALIGNMENT,
        "{padding_bits} of {used}"
    );
}

/// Reading skips padding and the checksum of the stored body; verifying skips nothing.
#[test]
fn no_flipped_bit_of_a_frame_passes_verify() {
    let (bytes, directory) = sample();
    for extent in &directory.frames {
        let stored = &bytes[extent.offset as usize..][..extent.len_bytes as usize];
        Frame::verify(stored, &[&plain()]).unwrap();
        for bit in 0..stored.len() * 8 {
            assert!(Frame::verify(&flipped(stored, bit), &[&plain()]).is_err(), "bit {bit}");
        }
        for len in 0..stored.len() {
            assert!(Frame::verify(&stored[..len], &[&plain()]).is_err(), "cut at {len}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn frames_of_any_chunks_read_back(
        frames in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6), 1..5),
        level in 1..=9,
    ) {
        let mut builder = PackBuilder::new(pack_id(), PackKind::Meta);
        for chunks in &frames {
            let mut draft = FrameDraft::new(PackKind::Meta);
            chunks.iter().for_each(|chunk| draft.push(id_of(chunk), chunk));
            builder.push(&draft.encode(level).unwrap());
        }
        let (_, bytes, directory) = builder.finish();
        let tier = MemoryTier::new();
        tier.put_if_absent(&pack_id().key(), &bytes).unwrap();
        prop_assert_eq!(&read_directory(&tier, pack_id()).unwrap(), &directory);
        let read = read_all(&bytes).unwrap();
        prop_assert_eq!(read, frames.concat());
        for (number, extent) in (0..).zip(&directory.frames) {
            let stored = &bytes[extent.offset as usize..][..extent.len_bytes as usize];
            let frame = Frame::verify(stored, &[&plain()]).unwrap();
            prop_assert!(directory.names(number, &frame));
            prop_assert!(!directory.names(number + 1, &frame));
        }
    }
}

/// A directory with right checksums but impossible entries, as a hostile writer could make it.
#[test]
fn a_directory_that_names_what_cannot_be_is_refused() {
    let refused = |change: &dyn Fn(&mut PackDirectory)| {
        let (bytes, mut directory) = sample();
        let end = directory.frames.last().map(|frame| frame.offset + u64::from(frame.len_bytes)).unwrap();
        change(&mut directory);
        let mut damaged = bytes[..end as usize].to_vec();
        directory.append_to(&mut damaged);
        let tier = MemoryTier::new();
        tier.put_if_absent(&pack_id().key(), &damaged).unwrap();
        read_directory(&tier, pack_id()).is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|directory| directory.frames[0].offset += 64), "a gap");
    assert!(refused(&|directory| directory.frames[1].offset = 64), "frames over each other");
    assert!(refused(&|directory| directory.frames[1].len_bytes += 64), "past the end");
    assert!(refused(&|directory| directory.frames[1].len_bytes -= 64), "space left over");
    assert!(refused(&|directory| directory.frames[1].len_bytes = u32::MAX - 63), "far past the end");
    assert!(refused(&|directory| directory.entries[0].frame = 2), "a frame that is not there");
    assert!(refused(&|directory| directory.entries[0].slot = 65_536), "a slot no index can name");
    assert!(refused(&|directory| directory.frames.clear()), "no frames");
}

#[test]
fn a_frame_that_claims_more_than_it_holds_is_refused() {
    let mut draft = FrameDraft::new(PackKind::Data);
    draft.push(id_of(b"x"), b"x");
    let mut bytes = draft.encode(3).unwrap().bytes;
    bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    let guarded = [&bytes[..80], &bytes[88..88 + 36]].concat();
    let guard = checksum(&guarded);
    bytes[80..88].copy_from_slice(&guard.to_le_bytes());
    assert!(FrameHeader::decode(&bytes).is_err());
}

/// A chunk and its base, as bytes and as input of a writer.
fn chunk_and_base(len: usize) -> (Vec<u8>, Base) {
    let mut noise = vec![0; len];
    blake3::Hasher::new().update(b"base").finalize_xof().fill(&mut noise);
    let frame = Frame::decode(&encode(&noise, None).bytes, &[&plain()]).unwrap();
    let bytes = ChunkBytes::new(std::sync::Arc::new(frame), 0..len);
    let base = Base { id: id_of(&noise), bytes };
    noise[len / 2..len / 2 + 8].copy_from_slice(b"changed!");
    (noise, base)
}

fn encode(chunk: &[u8], base: Option<Base>) -> EncodedFrame {
    let mut draft = FrameDraft::new(PackKind::Data);
    draft.push(id_of(chunk), chunk);
    draft.base = base;
    draft.encode(3).unwrap()
}

#[test]
fn a_delta_reads_back_on_its_base_and_no_flipped_bit_or_other_base_gives_other_bytes() {
    let (chunk, base) = chunk_and_base(3000);
    let frame = encode(&chunk, Some(base.clone()));
    assert_eq!(frame.base, Some(base.id));
    assert!(frame.bytes.len() < 300);
    let read_base = |id: &ChunkId| match *id == base.id {
        true => Ok(base.bytes.clone()),
        false => Err(Error::corrupt("no such base")),
    };
    let domain = plain();
    let decode = |bytes: &[u8]| Frame::decode_on(bytes, &[&domain], &read_base);
    let read = decode(&frame.bytes).unwrap();
    assert_eq!((&read.plain, read.base), (&chunk, Some(base.id)));
    assert_eq!(FrameHeader::decode(&frame.bytes).unwrap().base, Some(base.id));
    assert!(Frame::decode(&frame.bytes, &[&domain]).is_err(), "where no delta may be");
    let other = |_: &ChunkId| {
        let noise = encode(&vec![9; 3000], None);
        let frame = Frame::decode(&noise.bytes, &[&domain]).unwrap();
        Ok(ChunkBytes::new(std::sync::Arc::new(frame), 0..3000))
    };
    assert!(Frame::decode_on(&frame.bytes, &[&domain], &other).is_err(), "another base");
    for bit in 0..frame.bytes.len() * 8 {
        let damaged = flipped(&frame.bytes, bit);
        assert!(Frame::verify_stored(&damaged).is_err(), "bit {bit}");
        assert!(decode(&damaged).map_or(true, |read| read.plain == chunk), "bit {bit}");
    }
    for len in 0..frame.bytes.len() {
        assert!(decode(&frame.bytes[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn a_directory_tells_deltas_from_chunks_that_are_whole() {
    let (chunk, base) = chunk_and_base(3000);
    let mut builder = PackBuilder::new(pack_id(), PackKind::Data);
    let frames = [encode(&chunk, Some(base.clone())), encode(&base.bytes, None)];
    frames.iter().for_each(|frame| builder.push(frame));
    let (_, bytes, mut directory) = builder.finish();
    let tier = MemoryTier::new();
    tier.put_if_absent(&pack_id().key(), &bytes).unwrap();
    assert_eq!(read_directory(&tier, pack_id()).unwrap(), directory);
    let slot_of = |id| directory.entries.iter().find(|entry| entry.id == id).unwrap().slot;
    assert_eq!((slot_of(id_of(&chunk)), slot_of(base.id)), (u32::from(DELTA_SLOT), 0));
    let read_base = |_: &ChunkId| Ok(base.bytes.clone());
    let delta = Frame::decode_on(&frames[0].bytes, &[&plain()], &read_base).unwrap();
    assert!(directory.names(0, &delta));
    for entry in &mut directory.entries {
        entry.slot = 0;
    }
    assert!(!directory.names(0, &delta), "a delta that passes for whole");
}

mod encrypted {
    use super::*;
    use crate::domain::{SEAL_LEN, Sealer, testing_domain};
    use crate::pack::ChunkBytes;
    use crate::pack::codec;
    use crate::wire::Encoder;

    fn chunks() -> Vec<Vec<u8>> {
        vec![vec![7; 900], b"hello hello hello".to_vec(), Vec::new()]
    }

    fn frame_of(domain: &Domain, chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut draft = FrameDraft::new(PackKind::Data);
        chunks.iter().for_each(|chunk| draft.push(domain.chunk_id(chunk), chunk));
        pad(draft.encode_for(3, &domain.sealer().unwrap()).unwrap().bytes)
    }

    fn pad(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn no_base(id: &ChunkId) -> Result<ChunkBytes> {
        Err(Error::corrupt("no base").object(id))
    }

    fn reguard(frame: &mut [u8], slot_count: usize) {
        let guard = checksum(&[&frame[..80], &frame[88..88 + slot_count * SLOT_LEN]].concat());
        frame[80..88].copy_from_slice(&guard.to_le_bytes());
    }

    #[test]
    fn an_encrypted_frame_says_nothing_of_what_is_in_it() {
        let domain = testing_domain();
        let frame = frame_of(&domain, &chunks());
        let read = Frame::verify(&frame, &[&domain]).unwrap();
        let plain: Vec<&[u8]> = read.slots.iter().map(|(_, range)| &read.plain[range.clone()]).collect();
        assert_eq!(plain, chunks());
        let header = Frame::verify_stored(&frame).unwrap();
        assert_eq!((header.key_epoch, header.plain_len), (Some(1), 0));
        assert!(header.slots.iter().all(|(_, range)| *range == (0..0)));
        assert!(!frame.windows(5).any(|window| window == b"hello"));
        assert_ne!(frame_of(&domain, &chunks()), frame, "the same chunks do not look the same");
        assert!(Frame::decode(&frame, &[&super::plain(), &testing_domain()]).is_err());
    }

    /// Also when an attacker who flips bits corrects the checksums.
    #[test]
    fn no_flipped_bit_of_an_encrypted_frame_opens() {
        let domain = testing_domain();
        let frame = frame_of(&domain, &chunks());
        let end = Frame::verify_stored(&frame).map(|header| header.header_len() + header.stored_len).unwrap();
        let (mut refused, mut reguarded) = (0, 0);
        for bit in 0..frame.len() * 8 {
            let mut damaged = flipped(&frame, bit);
            assert!(Frame::verify(&damaged, &[&domain]).is_err(), "bit {bit}");
            refused += 1;
            // Both checksums are corrected; padding is skipped by reads.
            if bit / 8 >= end || (64..88).contains(&(bit / 8)) {
                assert_eq!(Frame::decode(&damaged, &[&domain]).is_err(), bit / 8 < end, "bit {bit}");
                continue;
            }
            let body_checksum = blake3::hash(&damaged[88 + 3 * SLOT_LEN..end]);
            damaged[64..80].copy_from_slice(&body_checksum.as_bytes()[..16]);
            reguard(&mut damaged, chunks().len());
            assert!(Frame::decode(&damaged, &[&domain]).is_err(), "bit {bit} with right checksums");
            reguarded += 1;
        }
        println!("{refused} flipped bits refused, {reguarded} of them also with right checksums");
        for len in 0..frame.len() {
            assert!(Frame::verify(&frame[..len], &[&domain]).is_err(), "cut at {len}");
        }
    }

    /// A writer of the domain with a bug, or a thief of its key, cannot make a reader allocate without bound.
    #[test]
    fn what_is_sealed_is_bounded_too() {
        let domain = testing_domain();
        let sealer = domain.sealer().unwrap();
        let zeroes = vec![0; 1 << 20];
        let (codec, compressed) = codec::compress(&zeroes, 19).unwrap();
        let id = domain.chunk_id(&zeroes);
        assert!(Frame::decode(&forge(&sealer, codec, id, &[1 << 20], &compressed), &[&domain]).is_ok());
        for lengths in [&[0][..], &[1], &[(1 << 20) - 1], &[(1 << 20) + 1], &[u32::MAX], &[]] {
            let bomb = forge(&sealer, codec, id, lengths, &compressed);
            assert!(Frame::decode(&bomb, &[&domain]).is_err(), "{lengths:?}");
        }
        let raw = forge(&sealer, codec::Codec::Raw, id, &[3 << 20], &vec![0; 3 << 20]);
        assert!(Frame::decode(&raw, &[&domain]).is_err(), "more than a frame may hold");
    }

    /// A frame of one chunk with a well-formed sealed part and the given fields.
    fn forge(
        sealer: &Sealer,
        codec: codec::Codec,
        id: ChunkId,
        lengths: &[u32],
        compressed: &[u8],
    ) -> Vec<u8> {
        let mut inner = Encoder::new();
        lengths.iter().for_each(|len| {
            inner.u32(*len);
        });
        inner.bytes(compressed);
        let inner = inner.finish();
        let mut fixed = Encoder::new();
        fixed.bytes(FRAME_MAGIC).u16(1).u8(0).u8(codec as u8).u8(1).u8(0).u16(0).u32(1);
        fixed.u32(1).u32(0).count(inner.len() + SEAL_LEN).u32(sealer.tag).bytes(&[0; 32]);
        let mut slots = Encoder::new();
        slots.bytes(id.as_bytes()).u32(0);
        let (fixed, slots) = (fixed.finish(), slots.finish());
        let bound = [b"Torpor 1 frame\0", sealer.domain.as_bytes().as_slice(), &fixed, &slots].concat();
        let stored = sealer.key.as_ref().unwrap().1.seal(&bound, &inner).unwrap();
        let mut bytes = fixed;
        bytes.extend_from_slice(&blake3::hash(&stored).as_bytes()[..16]);
        let guard = checksum(&[&bytes[..], &slots].concat());
        bytes.extend_from_slice(&guard.to_le_bytes());
        pad([bytes, slots, stored].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn encrypted_frames_of_any_chunks_read_back_and_reseal(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
            level in 1..=9,
        ) {
            let domain = testing_domain();
            let mut draft = FrameDraft::new(PackKind::Meta);
            chunks.iter().for_each(|chunk| draft.push(domain.chunk_id(chunk), chunk));
            let sealer = domain.sealer().unwrap();
            let first = draft.encode_for(level, &sealer).unwrap().bytes;
            let again = reseal(&first, &domain, &sealer, &no_base).unwrap().bytes;
            prop_assert!(first != again, "sealed under a new nonce");
            for bytes in [first, again] {
                let frame = Frame::verify(&pad(bytes), &[&domain]).unwrap();
                let read: Vec<&[u8]> = frame.slots.iter().map(|(_, range)| &frame.plain[range.clone()]).collect();
                prop_assert_eq!(&read, &chunks);
            }
            let other = testing_domain();
            prop_assert!(reseal(&frame_of(&domain, &chunks), &other, &sealer, &no_base).is_err());
        }
    }
}
