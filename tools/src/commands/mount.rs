//! `snapctl mount SPEC DIR`: by default a background process serves the mount; this one returns when the mount answers.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapfs::{Mount, MountOptions};
use store::{Error, Kind, Store};

use super::ls::json_path;
use crate::args::MountArguments;
use crate::background;
use crate::context::Context;
use crate::exit::{Asked as _, Outcome};
use crate::output::Show;
use crate::respawn::Role;
use crate::signals::Action;

/// Directory of uppers in the store's local state.
const UPPERS: &str = "uppers";
const LOG: &str = "log";
/// Longest file name that Linux file systems take, in bytes.
const MAX_NAME_LEN_BYTES: usize = 255;

#[derive(Serialize, Deserialize)]
struct Mounted {
    mountpoint: String,
    /// Its bytes when it is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    mountpoint_hex: Option<String>,
    snapshot: String,
    upper: String,
    /// Its bytes when it is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    upper_hex: Option<String>,
    read_only: bool,
    pid: u32,
}

impl Show for Mounted {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let how = if self.read_only { ", read-only" } else { "" };
        writeln!(out, "mounted {} on {}{how} (process {})", self.snapshot, self.mountpoint, self.pid)
    }
}

pub(super) fn run(arguments: MountArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    if Role::current() == Role::Background {
        return serve_in_background(&arguments, context);
    }
    if arguments.foreground {
        let (mount, mounted) = mount(&arguments, context)?;
        context.output.report(&mounted)?;
        context.output.finish()?;
        return serve(mount, context);
    }
    let store = context.store()?;
    let upper = upper_of(&arguments, &store)?;
    refuse_plain_changes(&arguments, &store)?;
    create_directory(&upper)?;
    let mounted: Mounted = background::start(&upper.join(LOG))?;
    context.output.report(&mounted)?;
    Ok(Outcome::Done)
}

fn serve_in_background(arguments: &MountArguments, context: &mut Context) -> anyhow::Result<Outcome> {
    match mount(arguments, context) {
        Ok((mount, mounted)) => {
            background::detach()?;
            background::ready(&mounted)?;
            serve(mount, context)
        }
        Err(error) => {
            background::failed(&error)?;
            Err(error)
        }
    }
}

/// Mounts in this process; from then on a signal unmounts.
fn mount(arguments: &MountArguments, context: &Context) -> anyhow::Result<(Arc<Mount>, Mounted)> {
    lazyload::share_one_heap();
    let store = context.store_to_mount()?;
    let snapshot = store.resolve(&arguments.spec).asked()?;
    let upper = upper_of(arguments, &store)?;
    refuse_plain_changes(arguments, &store)?;
    let mountpoint = snapfs::check_mountpoint(&arguments.mountpoint)?;
    let (shown_mountpoint, mountpoint_hex) = json_path(mountpoint.as_os_str().as_bytes());
    let (shown_upper, upper_hex) = json_path(upper.as_os_str().as_bytes());
    let mounted = Mounted {
        mountpoint: shown_mountpoint,
        mountpoint_hex,
        snapshot: snapshot.to_string(),
        upper: shown_upper,
        upper_hex,
        read_only: arguments.read_only,
        pid: std::process::id(),
    };
    let options = MountOptions {
        snapshot,
        ref_name: ref_of(&store, &arguments.spec)?,
        mountpoint,
        upper,
        read_only: arguments.read_only,
        allow_other: arguments.allow_other,
        release_memory: lazyload::release_free_memory,
    };
    let mount = context.signals.on_stop_of(|| -> store::Result<(_, Action)> {
        let mount = Arc::new(snapfs::mount(&store, options)?);
        let asked = Arc::clone(&mount);
        let unmount = move || {
            if let Err(error) = asked.unmount() {
                tracing::warn!(%error, "cannot unmount");
            }
        };
        Ok((mount, Box::new(unmount)))
    })?;
    Ok((mount, mounted))
}

/// Changes in a mount are stored unencrypted in its upper until they are frozen. Where the domain is encrypted, the
/// user must confirm that this is acceptable.
fn refuse_plain_changes(arguments: &MountArguments, store: &Store) -> store::Result<()> {
    if arguments.read_only || arguments.upper.is_some() || !store.domain().is_encrypted() {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, "changes to a mount are not encrypted until they are frozen")
        .object(store.domain().name())
        .advice("give --upper DIR on an encrypted disk or in memory (tmpfs), or mount with --read-only"))
}

/// The ref that a freeze without a name moves; empty when the SPEC names none.
fn ref_of(store: &Store, spec: &str) -> store::Result<String> {
    let name = spec.split_once('~').map_or(spec, |(name, _)| name);
    let found = if store::check_name(name).is_ok() { store.refs().get(name)? } else { None };
    Ok(found.map(|found| found.name).unwrap_or_default())
}

/// Serves until the mount is unmounted.
fn serve(mount: Arc<Mount>, context: &Context) -> anyhow::Result<Outcome> {
    let ended = mount.wait();
    // Drops the mount, so that it releases its hold on the store before this process ends.
    context.signals.on_stop(|| {});
    ended?;
    Ok(Outcome::Done)
}

fn upper_of(arguments: &MountArguments, store: &Store) -> store::Result<PathBuf> {
    match &arguments.upper {
        Some(upper) => std::path::absolute(upper)
            .map_err(|source| Error::io("cannot make the path absolute", upper.display(), source)),
        None => {
            let name = upper_name(&snapfs::check_mountpoint(&arguments.mountpoint)?)?;
            Ok(store.state_dir().join(UPPERS).join(name))
        }
    }
}

/// One file name for an absolute path: `/srv/app-1` gives `srv-app%2D1`.
fn upper_name(mountpoint: &Path) -> store::Result<String> {
    let mut name = String::new();
    for byte in mountpoint.as_os_str().as_bytes().iter().skip(1) {
        match byte {
            b'/' => name.push('-'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => name.push(char::from(*byte)),
            other => name.push_str(&format!("%{other:02X}")),
        }
    }
    if name.is_empty() || name.len() > MAX_NAME_LEN_BYTES || name.starts_with('.') {
        return Err(Error::new(Kind::Invalid, "this mount point gives no name for its upper directory")
            .object(mountpoint.display())
            .advice("give --upper DIR"));
    }
    Ok(name)
}

fn create_directory(path: &Path) -> store::Result<()> {
    std::fs::create_dir_all(path)
        .map_err(|source| Error::io("cannot create directory", path.display(), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uppers_are_named_after_mount_points_without_collision() {
        assert_eq!(upper_name(Path::new("/srv/app-1")).unwrap(), "srv-app%2D1");
        assert_ne!(upper_name(Path::new("/a/b")).unwrap(), upper_name(Path::new("/a-b")).unwrap());
        assert!(upper_name(Path::new("/")).is_err());
        assert!(upper_name(Path::new(&format!("/{}", "x".repeat(300)))).is_err());
    }
}
