//! Frames with right checksums and false content: bombs, wrong lengths, dictionaries, skippable frames, bytes behind
//! the frame. All are refused, plain ones and deltas, and none makes the reader take memory beyond a frame's maximum.

use super::*;
use crate::domain::Domain;
use crate::id::ChunkId;
use crate::pack::ChunkBytes;
use crate::pack::codec;
use std::sync::Arc;

const NAME: &str = "pack::hostile::lying_frames_are_refused_in_bounded_memory";
const CHILD: &str = "TORPOR_TEST_HOSTILE_FRAMES";

fn plain() -> Domain {
    Domain::plain([7; 32])
}

/// Fields of a forged frame.
#[derive(Clone)]
struct Forged {
    base: Option<ChunkId>,
    codec: u8,
    plain_len: u32,
    slots: Vec<(ChunkId, u32)>,
    stored: Vec<u8>,
}

impl Forged {
    fn bytes(&self) -> Vec<u8> {
        let mut head = Encoder::new();
        head.bytes(FRAME_MAGIC).u16(1).u8(0).u8(self.codec).u8(0).u8(0).u16(0).u32(0);
        head.count(self.slots.len()).u32(self.plain_len).count(self.stored.len()).u32(0);
        head.bytes(&self.base.map_or([0; 32], |base| *base.as_bytes()));
        head.bytes(&blake3::hash(&self.stored).as_bytes()[..16]);
        let mut slots = Encoder::new();
        for (id, len) in &self.slots {
            slots.bytes(id.as_bytes()).u32(*len);
        }
        let (head, slots) = (head.finish(), slots.finish());
        let guard = checksum(&[head.as_slice(), &slots].concat()).to_le_bytes();
        let mut bytes = [head.as_slice(), &guard, &slots, &self.stored].concat();
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }
}

/// A zstd frame of blocks that each stand for 128 KiB of zeroes.
fn bomb(blocks: usize) -> Vec<u8> {
    let mut bytes = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    bytes.extend([0, 0x60]); // no content size; a window of 4 MiB
    for block in 0..blocks {
        let is_last = u32::from(block + 1 == blocks);
        bytes.extend_from_slice(&((128 << 10) << 3 | 1 << 1 | is_last).to_le_bytes()[..3]);
        bytes.push(0);
    }
    bytes
}

/// The same frame, requiring a dictionary of this number.
fn with_dictionary_id(frame: &[u8]) -> Vec<u8> {
    let is_single_segment = frame[4] & 0x20 != 0;
    let at = if is_single_segment { 5 } else { 6 };
    let mut wanting = [&frame[..at], &[1, 2, 3, 4], &frame[at..]].concat();
    wanting[4] |= 3;
    wanting
}

fn skippable(len: usize) -> Vec<u8> {
    [&[0x50, 0x2a, 0x4d, 0x18], (len as u32).to_le_bytes().as_slice(), &vec![0; len]].concat()
}

/// Every forgery of one right frame.
fn lies(right: &Forged) -> Vec<(String, Forged)> {
    let mut lies = Vec::new();
    let stored = &right.stored;
    let mut bodies = vec![
        ("nothing".to_owned(), Vec::new()),
        ("wants a dictionary".to_owned(), with_dictionary_id(stored)),
        ("two frames".to_owned(), [stored.as_slice(), stored].concat()),
        (
            "an empty frame behind it".to_owned(),
            [stored.as_slice(), &zstd::bulk::compress(&[], 1).unwrap()].concat(),
        ),
        ("checksum missing".to_owned(), stored[..stored.len() - 1].to_vec()),
    ];
    for len in [0, 1, 64, 5000] {
        let skip = skippable(len);
        bodies.push((format!("skips {len} alone"), skip.clone()));
        bodies.push((format!("skips {len} before"), [skip.as_slice(), stored].concat()));
        bodies.push((format!("skips {len} behind"), [stored.as_slice(), &skip].concat()));
    }
    for len in [1, 3, 4, 64, 1000] {
        bodies.push((format!("{len} zeroes behind"), [stored.as_slice(), &vec![0; len]].concat()));
        bodies.push((format!("{len} bytes behind"), [stored.as_slice(), &vec![0x28; len]].concat()));
    }
    for blocks in [1, 8, 16, 17, 250, 32_768] {
        bodies.push((format!("a bomb of {} KiB", blocks * 128), bomb(blocks)));
    }
    lies.extend(bodies.into_iter().map(|(what, stored)| (what, Forged { stored, ..right.clone() })));
    let id = right.slots[0].0;
    let len = right.plain_len;
    for wrong in [0, 1, len - 1, len + 1, 2 * len, 2 << 20, (2 << 20) + 1, u32::MAX] {
        let said = Forged { plain_len: wrong, slots: vec![(id, wrong)], ..right.clone() };
        lies.push((format!("{wrong} bytes for {len}"), said.clone()));
        lies.push((format!("a bomb that says {wrong}"), Forged { stored: bomb(32_768), ..said.clone() }));
        lies.push((format!("slots of {wrong}"), Forged { plain_len: len, ..said.clone() }));
        lies.push((
            format!("{wrong} bytes, right slots"),
            Forged { slots: right.slots.clone(), ..said.clone() },
        ));
        lies.push((format!("raw, {wrong} bytes"), Forged { codec: 0, ..said }));
    }
    let zeroes = vec![0; 2 << 20];
    let id = plain().chunk_id(&zeroes);
    for blocks in [17, 250, 32_768] {
        // The id is right for the maximum that a frame may hold.
        let said =
            Forged { plain_len: 2 << 20, slots: vec![(id, 2 << 20)], stored: bomb(blocks), ..right.clone() };
        lies.push((format!("2 MiB of a bomb of {} KiB", blocks * 128), said));
    }
    lies.push(("unknown codec".to_owned(), Forged { codec: 2, ..right.clone() }));
    lies.push(("another chunk".to_owned(), Forged { slots: vec![(id, len)], ..right.clone() }));
    lies
}

/// The right frames: one without a base, and a delta against `base`.
fn right(base: &ChunkBytes, base_id: ChunkId) -> [Forged; 2] {
    let chunk = b"nothing but lies, ".repeat(500);
    let id = plain().chunk_id(&chunk);
    let (codec, stored) = codec::compress(&chunk, 3).unwrap();
    assert_eq!(codec, codec::Codec::Zstd);
    let alone = Forged {
        base: None,
        codec: 1,
        plain_len: chunk.len() as u32,
        slots: vec![(id, chunk.len() as u32)],
        stored,
    };
    let mut changed = base.to_vec();
    changed[100] ^= 1;
    let id = plain().chunk_id(&changed);
    let stored = codec::compress_delta(&changed, base, 3, changed.len()).unwrap().unwrap();
    let len = changed.len() as u32;
    let delta = Forged { base: Some(base_id), codec: 1, plain_len: len, slots: vec![(id, len)], stored };
    [alone, delta]
}

#[test]
fn lying_frames_are_refused_in_bounded_memory() {
    if std::env::var_os(CHILD).is_none() {
        // In a process of its own, so that nothing else affects the peak.
        let test = std::env::current_exe().unwrap();
        let run = std::process::Command::new(test)
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{text}\n{}", String::from_utf8_lossy(&run.stderr));
        text.lines().filter(|line| line.contains("refused")).for_each(|line| println!("{line}"));
        assert!(text.contains("refused"));
        return;
    }
    let mut noise = vec![0; 3000];
    blake3::Hasher::new().update(b"base").finalize_xof().fill(&mut noise);
    let mut draft = FrameDraft::new(PackKind::Data);
    draft.push(plain().chunk_id(&noise), &noise);
    let frame = Frame::decode(&draft.encode(3).unwrap().bytes, &[&plain()]).unwrap();
    let base = ChunkBytes::new(Arc::new(frame), 0..noise.len());
    let read_base = |_: &ChunkId| Ok(base.clone());
    let decode = |bytes: &[u8]| Frame::decode_on(bytes, &[&plain()], &read_base).map(|_| ());
    let rights = right(&base, plain().chunk_id(&noise));
    rights.iter().for_each(|right| decode(&right.bytes()).unwrap());
    let lies: Vec<(String, Vec<u8>)> =
        rights.iter().flat_map(lies).map(|(what, lie)| (what, lie.bytes())).collect();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_bytes();
    for (what, lie) in &lies {
        assert!(decode(lie).is_err(), "{what} is taken");
    }
    let grown = peak_bytes().saturating_sub(before);
    println!("{} lying frames refused, plain and deltas; memory grew by {grown} bytes", lies.len());
    assert!(grown < 2 * MAX_FRAME_PLAIN as u64, "memory grew by {grown} bytes");
}

/// Peak memory of this process since the last reset.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
