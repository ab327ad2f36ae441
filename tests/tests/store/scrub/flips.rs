//! Every bit of small packs, every byte on a directory, sampled bits of a large one: a read returns the right bytes or
//! an error, or heals from another copy; the scrub finds every single flip.

use super::*;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use store::DomainInventory;
use store::verify_pack::examine;
use store::{ChunkId, DirectoryId, GROUP_PAGES, LocalTier, PAGE};

/// A chunk and its right bytes.
type Chunk = (ChunkId, Vec<u8>);

/// A store of two small packs, and for each frame its chunks with their right bytes.
struct Small {
    scratch: Scratch,
    tier: MemoryTier,
    chunks: HashMap<(PackId, u32), Vec<Chunk>>,
}

impl Small {
    fn new(noise_len: usize) -> Self {
        let (mut scratch, tier) = Scratch::in_memory();
        // No read may be answered from memory.
        scratch.config.cache_bytes = 0;
        scratch.config.disk_cache_bytes = 0;
        let store = scratch.open();
        let mut writer = store.writer("test").unwrap();
        let mut random = Random::new(3);
        let mut files = Files::from([(Vec::new(), Item::directory())]);
        files.insert(b"text".to_vec(), Item::file(b"a line that comes again\n".repeat(300)));
        files.insert(b"noise".to_vec(), Item::file(random.bytes(noise_len)));
        let tree = put_files(&mut writer, &files).unwrap();
        let _group = writer.put_page_group(&vec![7; GROUP_PAGES * PAGE], None).unwrap();
        writer.commit("web", SnapshotDraft { tree: Some(tree), ..SnapshotDraft::default() }).unwrap();
        drop(writer);
        let mut chunks: HashMap<_, Vec<_>> = HashMap::new();
        for (pack, _) in store.packs().unwrap() {
            for entry in read_directory(&tier, pack).unwrap().entries {
                let bytes = store.read_chunk(&entry.id).unwrap().to_vec();
                chunks.entry((pack, entry.frame)).or_default().push((entry.id, bytes));
            }
        }
        assert_eq!(store.packs().unwrap().len(), 2);
        Self { scratch, tier, chunks }
    }

    fn packs(&self) -> Vec<(PackId, Vec<u8>, PackDirectory)> {
        let packs = self.scratch.open().packs().unwrap().into_iter();
        let whole = |pack: PackId| {
            let bytes = self.tier.get(&pack.key()).unwrap().to_vec();
            (pack, bytes, read_directory(&self.tier, pack).unwrap())
        };
        packs.map(|(pack, _)| whole(pack)).collect()
    }

    /// Reads the chunks of the frame around a byte of a pack, or of all its frames when it is in none. Returns how many
    /// reads failed.
    fn read_around(&self, store: &Store, pack: PackId, directory: &PackDirectory, at: usize) -> u64 {
        let at = at as u64;
        let frame = directory
            .frames
            .iter()
            .position(|frame| (frame.offset..frame.offset + u64::from(frame.len_bytes)).contains(&at));
        let frames = match frame {
            Some(number) => number as u32..number as u32 + 1,
            None => 0..directory.frames.len() as u32,
        };
        let mut refused = 0;
        for (id, right) in frames.flat_map(|number| &self.chunks[&(pack, number)]) {
            match store.read_chunk(id) {
                Ok(bytes) => assert!(*bytes == **right, "byte {at} of {pack}: other bytes of {id}"),
                Err(_) => refused += 1,
            }
        }
        refused
    }
}

fn is_found(domains: &DomainInventory, pack: PackId, bytes: &[u8]) -> bool {
    !examine(domains, pack, bytes).faults.is_empty()
}

#[test]
fn every_bit_of_small_packs_in_memory() {
    let small = Small::new(7000);
    let store = small.scratch.open();
    let domains = DomainInventory::take(&store).unwrap();
    let (mut flips, mut refused) = (0_u64, 0);
    for (pack, right, directory) in small.packs() {
        assert!(!is_found(&domains, pack, &right));
        let mut bytes = right.clone();
        for bit in 0..right.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(is_found(&domains, pack, &bytes), "bit {bit} of {pack}");
            flips += 1;
            if bit % 8 == bit / 8 % 8 {
                overwrite(&small.tier, &pack.key(), &bytes);
                refused += small.read_around(&store, pack, &directory, bit / 8);
            }
            bytes[bit / 8] = right[bit / 8];
        }
        overwrite(&small.tier, &pack.key(), &right);
    }
    println!(
        "{flips} single bits flipped: all found; every byte read back flipped once: {refused} reads refused, 0 wrong"
    );
    assert!(flips > 40_000, "{flips}");
}

/// All eight bits of each byte, through reads of a store on a tier in memory with an intact second copy: always healed.
#[test]
fn every_bit_is_healed_from_another_copy() {
    let small = Small::new(7000);
    let second = copy_of(&small.tier);
    let config = small.scratch.config.clone().with_tier(DataTier::new(TierClass::Warm, Arc::new(second)));
    let store = Store::open(&config).unwrap();
    let mut flips = 0;
    for (pack, right, directory) in small.packs() {
        for bit in 0..right.len() * 8 {
            let mut bytes = right.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            overwrite(&small.tier, &pack.key(), &bytes);
            assert_eq!(small.read_around(&store, pack, &directory, bit / 8), 0, "bit {bit} of {pack}");
            flips += 1;
        }
        overwrite(&small.tier, &pack.key(), &right);
    }
    println!("{flips} single bits flipped beside a whole copy: every read healed");
    assert!(flips > 40_000, "{flips}");
}

#[test]
fn every_byte_of_small_packs_in_a_directory() {
    let small = Small::new(7000);
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let local = LocalTier::new(directory.path());
    for info in small.tier.list("").unwrap() {
        local.put_if_absent(&info.key, &small.tier.get(&info.key).unwrap()).unwrap();
    }
    let mut scratch = Scratch::over(Arc::new(local));
    (scratch.config.cache_bytes, scratch.config.disk_cache_bytes) = (0, 0);
    let store = scratch.open();
    let domains = DomainInventory::take(&store).unwrap();
    let (mut flips, mut refused) = (0, 0);
    for (pack, right, frames) in small.packs() {
        let file = File::options().write(true).open(directory.path().join(pack.key())).unwrap();
        for (at, byte) in right.iter().enumerate() {
            let flipped = byte ^ (1 << (at % 8)) ^ (at as u8 & 0x30);
            let flipped = if flipped == *byte { !byte } else { flipped };
            file.write_all_at(&[flipped], at as u64).unwrap();
            refused += small.read_around(&store, pack, &frames, at);
            let copy = store::verify_pack::read_copy(store.tiers()[0], pack, &mut |_| {}).unwrap();
            assert!(!copy.examine(&domains, pack).faults.is_empty(), "byte {at} of {pack}");
            file.write_all_at(&[*byte], at as u64).unwrap();
            flips += 1;
        }
    }
    println!("{flips} bytes changed in files: all found, {refused} reads refused, 0 wrong");
}

#[test]
fn sampled_bits_of_a_large_pack() {
    let small = Small::new(1_500_000);
    let store = small.scratch.open();
    let domains = DomainInventory::take(&store).unwrap();
    let (pack, right, directory) = small.packs().into_iter().max_by_key(|(_, bytes, _)| bytes.len()).unwrap();
    let mut random = Random::new(12);
    let (mut bytes, mut refused) = (right.clone(), 0);
    const FLIPS: usize = 400;
    for _ in 0..FLIPS {
        let bit = random.below(right.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(is_found(&domains, pack, &bytes), "bit {bit}");
        overwrite(&small.tier, &pack.key(), &bytes);
        refused += small.read_around(&store, pack, &directory, bit / 8);
        bytes[bit / 8] = right[bit / 8];
    }
    println!("{FLIPS} bits of a pack of {} bytes: all found, {refused} reads refused, 0 wrong", right.len());
}

/// A directory's id is its chunk's: what marks chunks marks directories.
#[test]
fn a_directory_is_marked_by_its_chunk() {
    let id = ChunkId::from_bytes([7; 32]);
    assert_eq!(DirectoryId::from(id).chunk(), id);
}
