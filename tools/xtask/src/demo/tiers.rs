//! A slower tier beside the store: a snapshot moves there, is recompressed in the background, comes near again; then a bit
//! of a pack changes, and a scrub finds it and mends it from the other copy.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::{Runtimes, same_trees};
use super::scene::{Scene, directory_len_bytes, megabytes};
use crate::shell::{Context, Failure, Result};

pub(super) fn move_recompress_and_mend(scene: &mut Scene, runtimes: &Runtimes) -> Result<()> {
    let slow = scene.path("slow");
    scene.configure(&format!("[tiers]\nwarm = {slow:?}\n[levels]\nwarm = 9\n"))?;
    let (answer, elapsed) = scene.ask(["tier", "move", "node", "--to", "warm"])?;
    let what = format!("Node {} to a slower tier", megabytes(answer.number("released_bytes")?));
    scene.happened("tier move", what, elapsed);
    let (answer, elapsed) = scene.ask(["tier", "recompress"])?;
    let [before, after] = [answer.number("bytes_before")?, answer.number("bytes_after")?];
    let what = format!("{} there are now {}", megabytes(before), megabytes(after));
    scene.happened("recompress", what, elapsed);
    let (_, elapsed) = scene.ask(["gc", "--cycles", "3"])?;
    let what = format!("the slower tier holds {}", megabytes(directory_len_bytes(&slow)?));
    scene.happened("gc", what, elapsed);
    let (answer, elapsed) = scene.ask(["tier", "move", "node", "--to", "hot"])?;
    let what =
        format!("{} brought near, and still on the slower tier", megabytes(answer.number("copied_bytes")?));
    scene.happened("tier move", what, elapsed);

    let (_, pack) = largest_file(&slow.join("packs"))?;
    flip_a_bit(&pack)?;
    let (answer, elapsed) = scene.ask(["scrub", "--repair"])?;
    let repaired = answer.number("repaired_copies")?;
    if repaired != 1 {
        return Err(Failure::new(format!("scrub repaired {repaired} copies of a pack, one was damaged")));
    }
    let what = format!(
        "{} read, the pack with a flipped bit found and mended",
        megabytes(answer.number("read_bytes")?)
    );
    scene.happened("scrub", what, elapsed);
    let target = scene.path("mended");
    let (_, elapsed) = scene.ask(["restore".as_ref(), "node".as_ref(), target.as_os_str()])?;
    same_trees(&runtimes.trees[0], &target)?;
    scene.happened("restore", "Node, equal to what was backed up", elapsed);
    Ok(())
}

/// The largest file below a directory, and its length.
fn largest_file(directory: &Path) -> Result<(u64, PathBuf)> {
    let mut largest = (0, directory.to_owned());
    let cannot = || format!("cannot read {}", directory.display());
    for entry in fs::read_dir(directory).context(cannot)? {
        let entry = entry.context(cannot)?;
        let metadata = entry.metadata().context(cannot)?;
        let found =
            if metadata.is_dir() { largest_file(&entry.path())? } else { (metadata.len(), entry.path()) };
        largest = largest.max(found);
    }
    Ok(largest)
}

fn flip_a_bit(path: &Path) -> Result<()> {
    let cannot = || format!("cannot damage {}", path.display());
    let file = File::options().read(true).write(true).open(path).context(cannot)?;
    let middle = file.metadata().context(cannot)?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).context(cannot)?;
    file.write_all_at(&[byte[0] ^ 1], middle).context(cannot)
}
