//! Virtual machines: Firecracker's snapshot files into the store, and its page faults served.
//!
//! [`capture`] takes the memory file and the vmstate file, [`write_vmstate`] writes the latter, and [`serve`] is the
//! page fault handler behind `mem_backend: {"backend_type": "Uffd", "backend_path": SOCKET}`. One address space with id
//! 0 per machine; the blob `vmstate` is opaque.

mod capture;
pub(crate) mod handshake;
mod serve;

pub use capture::{capture, write_vmstate};
pub use serve::serve;

use store::{Error, Image, ImageKind, Kind, Result};

/// Name of the blob that holds the device state.
const VMSTATE: &str = "vmstate";

fn check_kind(image: &Image) -> Result<()> {
    if image.kind() == ImageKind::Firecracker {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, "the image is not of a virtual machine")
        .object(image.id())
        .advice("processes are resumed with their own command"))
}
