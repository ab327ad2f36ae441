//! Mounts a snapshot in a process of its own, so that a test can kill it: STORE SNAPSHOT MOUNTPOINT UPPER [--read-only]
//! [--hold DIRECTORY]. Prints one line when the mount answers and ends when the mount is gone. With --hold each freeze
//! waits at its commit until the pipes in the directory release it.

use std::path::{Path, PathBuf};
use tests::hold::{Hold, HoldTier};

/// As `snapctl mount` has it.
const CACHE_BYTES: u64 = 16 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A test that is killed must not leave a mount behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    lazyload::share_one_heap();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, snapshot, mountpoint, upper, flags @ ..] = arguments.as_slice() else {
        return Err(
            "usage: mount_helper STORE SNAPSHOT MOUNTPOINT UPPER [--read-only] [--hold DIRECTORY]".into()
        );
    };
    let mut config = store::StoreConfig::directory(&PathBuf::from(store));
    config.cache_bytes = CACHE_BYTES;
    if let Some(at) = flags.iter().position(|flag| flag == "--hold") {
        let directory = flags.get(at + 1).ok_or("--hold needs a directory")?;
        config.metadata_tier = HoldTier::new(config.metadata_tier, Hold::in_directory(Path::new(directory)));
    }
    let store = store::Store::open(&config)?;
    let options = snapfs::MountOptions {
        snapshot: store.resolve(snapshot)?,
        ref_name: snapshot.clone(),
        mountpoint: PathBuf::from(mountpoint),
        upper: PathBuf::from(upper),
        read_only: flags.iter().any(|flag| flag == "--read-only"),
        allow_other: true,
        release_memory: lazyload::release_free_memory,
    };
    let mount = snapfs::mount(&store, options)?;
    println!("mounted");
    mount.wait()?;
    Ok(())
}
