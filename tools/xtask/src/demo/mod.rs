//! `cargo xtask demo`: the main job on real input, in a scratch directory, with a table at the end.
//!
//! - `scene`    the scratch directory, the programs, the table; nothing of it outlives the demo
//! - `janitor`  the process that cleans up, however the demo ends
//! - `files`    two versions of a real runtime: backup, restore, mount, run, write, freeze
//! - `process`  a real server: put to sleep, woken eagerly and lazily, put to sleep again
//! - `server`   that server, seen from outside
//! - `guest`    a KVM guest: saved, resumed over userfaultfd
//! - `collect`  forget and gc under a mount in use, then check
//! - `tiers`    a slower tier, recompression, a damaged pack that is mended
//! - `bucket`   two hosts over one S3 bucket

mod bucket;
mod collect;
mod files;
mod guest;
pub(crate) mod janitor;
mod process;
mod scene;
mod server;
mod tiers;

use crate::setup;
use crate::shell::{Result, cargo, run as run_command, step};
use scene::Scene;

/// Sets up, builds, plays every scene; `keep` leaves the scratch directory for a look.
pub(crate) fn run(keep: bool) -> Result<()> {
    setup::run(false)?;
    step("programs", || {
        run_command(&mut cargo(&[
            "build",
            "--release",
            "--package",
            "torpor-tools",
            "--package",
            "tests",
            "--bins",
        ]))?;
        Ok("release build".into())
    })?;
    let mut scene = Scene::new(keep)?;
    println!("{:<12} {}", "machine", setup::machine()?);
    println!("{:<12} {}", "scratch", scene.path("").display());
    let played = play(&mut scene);
    scene.print_table();
    scene.close()?;
    played
}

fn play(scene: &mut Scene) -> Result<()> {
    let runtimes = files::back_up_two_versions(scene)?;
    files::mount_run_write_freeze(scene, &runtimes)?;
    process::sleep_and_wake(scene, &runtimes)?;
    guest::save_and_resume(scene)?;
    collect::forget_and_collect(scene, &runtimes)?;
    tiers::move_recompress_and_mend(scene, &runtimes)?;
    bucket::share(scene, &runtimes)
}
