//! Writes what the targets start from: the objects of the stores in `tests/fixtures`, and one message of each protocol.
//!
//! `cargo run --bin seeds` in this directory makes `corpus/<target>/`, where cargo-fuzz looks.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use store::wire::ENVELOPE_LEN;
use store::{Store, StoreConfig};

/// The first byte of a seed of `records`, by the first part of the key of the object.
const RECORDS: [(&str, u8); 6] =
    [("superblock", 0), ("snapshots", 1), ("refs", 2), ("gc/state", 3), ("gc/condemned", 4), ("domains", 6)];

const HANDSHAKE: &str =
    r#"[{"base_host_virt_addr":140000000000000,"size":134217728,"offset":0,"page_size":4096}]"#;
const WAKE: &str = r#"{"at":1,"space":0,"entry":{"task":7}}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = here.join("corpus");
    let fixture = here.join("../fixtures/format-1");
    let mut count = 0;
    let mut seed = |target: &str, bytes: &[u8]| -> Result<(), Box<dyn Error>> {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory)?;
        count += 1;
        Ok(fs::write(directory.join(count.to_string()), bytes)?)
    };
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    for (prefix, kind) in RECORDS {
        for path in files(&fixture.join(prefix))? {
            seed("records", &with(kind, &fs::read(path)?[ENVELOPE_LEN..]))?;
        }
    }
    for path in files(&fixture.join("index"))? {
        seed("index_run", &with(1, &fs::read(path)?[ENVELOPE_LEN..]))?;
    }
    seed("index_run", &with(0, &fs::read(here.join("../fixtures/bucket-run"))?[ENVELOPE_LEN..]))?;
    for path in files(&fixture.join("packs"))? {
        seed("pack", &fs::read(path)?)?;
    }
    let scratch = tempfile::tempdir()?;
    let copy = scratch.path().join("store");
    for path in files(&fixture)? {
        let target = copy.join(path.strip_prefix(&fixture)?);
        fs::create_dir_all(target.parent().ok_or("an object lies in a directory")?)?;
        fs::copy(path, target)?;
    }
    let store = Store::open(&StoreConfig::directory(&copy))?;
    for (pack, _) in store.packs()? {
        let directory = store::pack::read_directory(store.metadata_tier(), pack)?;
        for frame in &directory.frames {
            seed("frame", &store.metadata_tier().get_range(&pack.key(), frame.offset, frame.len_bytes.into())?)?;
        }
        for entry in &directory.entries {
            let Ok(chunk) = store.read_chunk(&entry.id) else { continue };
            match chunk.get(..4) {
                Some(b"TREE") => seed("tree", &with(1, &chunk))?,
                Some(b"TIMG") => seed("image_table", &chunk)?,
                Some(_) if directory.kind == store::pack::PackKind::Meta => {
                    seed("tree", &with(0, &chunk))?;
                    seed("tree", &with(2, &chunk))?;
                }
                _ => {}
            }
        }
    }
    seed("handshake", HANDSHAKE.as_bytes())?;
    let image = format!(r#"{{"at":1,"space":0,"entry":{{"image":"{}"}}}}"#, "07".repeat(32));
    seed("wake_log", format!("{image}\n{WAKE}\n").as_bytes())?;
    seed("lazy_pages", &[7, 0, 0, 0, 1])?;
    seed("lazy_pages", &0x5253_5446_i32.to_ne_bytes())?;
    seed("supervisor", &[5, 1, 0, 0, 0, 2, 1, 0, 0, 0])?;
    println!("{count} seeds in {}", corpus.display());
    Ok(())
}

/// All files at or below a path, in order.
fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(if path.is_file() { vec![path.to_owned()] } else { Vec::new() });
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        found.extend(files(&entry)?);
    }
    Ok(found)
}
