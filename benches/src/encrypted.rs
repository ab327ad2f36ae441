//! The cost of encryption: ingest, restore and reading of the same files in an encrypted domain and in the plain one,
//! in turns; and the cipher alone beside the work on a frame that it comes on top of.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use store::domain::DomainConfig;
use store::pack::{Frame, FrameDraft, PackKind};
use store::{DomainKind, KeySource, KeySources, Store, StoreConfig, Unwatched};

use crate::measure::{Pairs, Result, Row, time};
use crate::storage::back_up;
use crate::workload::mixed_tree;

const ROUNDS: usize = 7;
const FRAME_LEN_BYTES: usize = 512 << 10;
const CHUNK_LEN_BYTES: usize = 64 << 10;
/// Frames for the figures of one core.
const FRAMES: usize = 128;

/// A store in a directory, with an encrypted domain `acme`, and that domain.
fn store_with_domain(path: &Path, key: &Path) -> Result<(Store, Store)> {
    let keys = KeySources { common: Some(KeySource::File(key.to_owned())), ..KeySources::default() };
    let domains = DomainConfig { keys, ..DomainConfig::default() };
    let store = Store::init(&StoreConfig { domains, ..StoreConfig::directory(path) })?;
    store.domains().create("acme", DomainKind::Encrypted)?;
    let acme = store.in_domain("acme")?;
    Ok((store, acme))
}

fn write_key(path: &Path) -> Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(std::io::Write::write_all(&mut file, &[7; 32])?)
}

pub(crate) fn crypto(scratch: &Path) -> Result<Vec<Row>> {
    let (source, key) = (scratch.join("source"), scratch.join("key"));
    write_key(&key)?;
    let (paths, len_bytes) = mixed_tree(&source)?;
    let mut rows = vec![ingest(scratch, &source, &key, len_bytes)?];
    let (plain, acme) = store_with_domain(&scratch.join("store"), &key)?;
    rows.push(restore(scratch, &source, (&plain, &acme), len_bytes)?);
    let mut sample = Vec::new();
    for path in &paths {
        if sample.len() < FRAMES * FRAME_LEN_BYTES {
            File::open(path)?.read_to_end(&mut sample)?;
        }
    }
    sample.truncate(FRAMES * FRAME_LEN_BYTES);
    rows.extend(frames(&plain, &acme, &sample)?);
    Ok(rows)
}

fn ingest(scratch: &Path, source: &Path, key: &Path, len_bytes: u64) -> Result<Row> {
    let ingest = |encrypted: bool| {
        let path = scratch.join("fresh");
        let (plain, acme) = store_with_domain(&path, key)?;
        rustix::fs::sync();
        let elapsed = time(|| back_up(if encrypted { &acme } else { &plain }, source))?;
        drop((plain, acme));
        fs::remove_dir_all(&path)?;
        Ok(elapsed)
    };
    let pairs = Pairs::measure(ROUNDS, || ingest(true), || ingest(false))?;
    Ok(pairs.throughput("ingest, encrypted / plain", len_bytes, "the same files into a new store".into()))
}

fn restore(scratch: &Path, source: &Path, (plain, acme): (&Store, &Store), len_bytes: u64) -> Result<Row> {
    let snapshots = (back_up(plain, source)?, back_up(acme, source)?);
    let restore = |encrypted: bool| {
        let target = scratch.join("target");
        let (store, snapshot) = if encrypted { (acme, snapshots.1) } else { (plain, snapshots.0) };
        rustix::fs::sync();
        let elapsed = time(|| Ok(store::restore(store, &snapshot, b"", &target, &Unwatched)?))?;
        fs::remove_dir_all(&target)?;
        Ok(elapsed)
    };
    let pairs = Pairs::measure(ROUNDS, || restore(true), || restore(false))?;
    Ok(pairs.throughput("restore, encrypted / plain", len_bytes, "from one store".into()))
}

/// One core: making and reading frames, and the cipher alone.
fn frames(plain: &Store, acme: &Store, sample: &[u8]) -> Result<Vec<Row>> {
    let level = StoreConfig::directory(Path::new("/")).level;
    let make = |store: &Store| -> Result<Vec<Vec<u8>>> {
        let sealer = store.domain().sealer()?;
        let mut frames = Vec::new();
        for bytes in sample.chunks(FRAME_LEN_BYTES) {
            let mut draft = FrameDraft::new(PackKind::Data);
            for chunk in bytes.chunks(CHUNK_LEN_BYTES) {
                draft.push(store.domain().chunk_id(chunk), chunk);
            }
            frames.push(draft.encode_for(level, &sealer)?.bytes);
        }
        Ok(frames)
    };
    let stored = [make(acme)?, make(plain)?];
    let read = |store: &Store, frames: &[Vec<u8>]| -> Result<()> {
        for frame in frames {
            std::hint::black_box(Frame::decode(frame, &[store.domain()])?);
        }
        Ok(())
    };
    let len_bytes = sample.len() as u64;
    let making = Pairs::measure(ROUNDS, || time(|| make(acme)), || time(|| make(plain)))?;
    let reading =
        Pairs::measure(ROUNDS, || time(|| read(acme, &stored[0])), || time(|| read(plain, &stored[1])))?;
    let (_, key) = acme.domain().sealer()?.key.ok_or("an encrypted domain has a key")?;
    let bodies: Vec<&[u8]> = sample.chunks(FRAME_LEN_BYTES).collect();
    let sealed: Vec<Vec<u8>> = bodies.iter().map(|body| key.seal(b"", body)).collect::<store::Result<_>>()?;
    let seal = || time(|| bodies.iter().try_for_each(|body| Ok(key.seal(b"", body).map(drop)?)));
    let open =
        || time(|| sealed.iter().try_for_each(|body| key.open(b"", body).map(drop).ok_or("sealed".into())));
    let cipher = Pairs::measure(ROUNDS, seal, open)?;
    let note = |what: &str| format!("one core, frames of 512 KiB: {what}");
    Ok(vec![
        making.throughput("frames made, encrypted / plain", len_bytes, note("BLAKE3, zstd and its check")),
        reading.throughput("frames read, encrypted / plain", len_bytes, note("zstd and BLAKE3")),
        cipher.throughput(
            "XChaCha20-Poly1305, seal / open",
            len_bytes,
            note("the cipher alone, uncompressed"),
        ),
    ])
}
