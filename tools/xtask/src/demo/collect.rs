//! Forget and gc while a forgotten snapshot is mounted; then the whole store is checked.

use std::time::Instant;

use super::files::{Runtimes, mount, same_trees};
use super::scene::{Scene, directory_len_bytes, megabytes};
use crate::shell::Result;

pub(super) fn forget_and_collect(scene: &mut Scene, runtimes: &Runtimes) -> Result<()> {
    let mountpoint = scene.directory("withdrawn")?;
    mount(scene, "node", &mountpoint, &["--read-only"])?;
    let (_, elapsed) = scene.ask(["forget", "node", "node"])?;
    scene.happened("forget", "the newer runtime, which is mounted", elapsed);
    let (_, elapsed) = scene.ask(["forget", "large", "large~1", "large"])?;
    scene.happened("forget", "the large server", elapsed);
    collect(scene, "gc, mounted")?;
    let start = Instant::now();
    same_trees(&runtimes.trees[1], &mountpoint)?;
    scene.happened("read", "every file of the mount, equal to what was backed up", start.elapsed());
    for name in ["withdrawn", "mount"] {
        let (_, elapsed) = scene.ask(["umount".as_ref(), scene.path(name).as_os_str()])?;
        scene.happened("umount", name, elapsed);
    }
    collect(scene, "gc, unmounted")?;
    let (answer, elapsed) = scene.ask(["check", "--read-data"])?;
    let what = format!(
        "{} snapshots, {} chunks, {} read: ok",
        answer.number("snapshots")?,
        answer.number("chunks")?,
        megabytes(answer.number("read_bytes")?)
    );
    scene.happened("check", what, elapsed);
    Ok(())
}

fn collect(scene: &mut Scene, step: &str) -> Result<()> {
    let store = scene.path("store");
    let before = directory_len_bytes(&store)?;
    let (_, elapsed) = scene.ask(["gc", "--cycles", "3"])?;
    let after = directory_len_bytes(&store)?;
    let what = format!("the store goes from {} to {}", megabytes(before), megabytes(after));
    scene.happened(step, what, elapsed);
    Ok(())
}
