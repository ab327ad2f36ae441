//! The store of Torpor: content-addressed chunks in packs over tiers, and what is built of them: trees of files, memory
//! images, snapshots and refs.
//!
//! ```
//! use store::{BackupOptions, Store, StoreConfig, Unwatched, backup, restore};
//!
//! # let scratch = tempfile::tempdir().expect("a scratch directory");
//! # let (source, target) = (scratch.path().join("source"), scratch.path().join("target"));
//! # std::fs::create_dir(&source).expect("a new directory");
//! # std::fs::write(source.join("hello.txt"), "hello").expect("a new file");
//! let store = Store::init(&StoreConfig::directory(&scratch.path().join("store")))?;
//! let mut writer = store.writer("example")?;
//! let report = backup(&mut writer, &source, "web", &BackupOptions::default(), &Unwatched)?;
//! assert!(report.unreadable.is_empty());
//! let report = restore(&store, &store.resolve("web")?, b"", &target, &Unwatched)?;
//! assert!(report.refused.is_empty());
//! # assert_eq!(std::fs::read(target.join("hello.txt")).expect("it is restored"), b"hello");
//! # Ok::<(), store::Error>(())
//! ```
//!
//! `examples/embed.rs` writes a tree by itself and reads a file of it.
//!
//! Start at [`Store`] for reading and [`Writer`] for writing. The crate knows nothing of FUSE, userfaultfd or command
//! lines, never prints, never deletes a last copy (the collector does), and is blocking throughout.

// In layers: a module uses modules of the layers above its own, and in its own layer there is no circle. `tidy` holds this.

// Leaves: errors, numbers, names, bytes.
mod buffer_pool;
mod chunker;
pub mod clock;
mod error;
mod id;
pub mod keys;
mod page;
mod progress;
mod sync;
mod throttle;
pub mod wire;

// This machine's file system.
mod host;

// Where objects live.
pub mod tier;

// Cryptography and trust.
pub mod domain;

// Frames of chunks in packs.
pub mod pack;

// Where each chunk is.
pub mod index;

// Small sealed records.
mod records;

// An open store: refs, and how a chunk is found and read.
mod repo;

// How chunks come in, and the order of a commit.
mod writer;

// Files and memory, built of chunks.
pub mod image;
pub mod tree;

// Operations on a whole store.
mod operations;

// Long operations.
mod backup;
mod restore;
pub mod scrub;

// For the fuzz targets: decoders that are private.
#[doc(hidden)]
pub mod fuzzing;

#[cfg(test)]
mod testing;

pub use backup::{BackupOptions, BackupReport, backup};
pub use chunker::{AVERAGE_LEN as CHUNK_AVERAGE_LEN, MAX_LEN as CHUNK_MAX_LEN, MIN_LEN as CHUNK_MIN_LEN};
pub use clock::Time;
pub use domain::{Domain, DomainKind, KeySource, KeySources, VerifyKey};
pub use error::{Error, Kind, OptionalExt, Result};
pub use host::derived::Derived;
pub use host::disk;
pub use host::lock::{AUTHOR_LOCK, COLLECTOR_LOCK, FileLock, MOVER_LOCK, REWRITER_LOCK};
pub use host::object::Object;
pub use host::state::LocalState;
pub use id::{ChunkId, DirectoryId, DomainId, ImageId, PackId, SnapshotId, StoreId, TreeId, WriterId};
pub use image::{Image, ImageBuilder, ImageKind, ImageStats, Location, PageRun, Space};
pub use operations::check::{CheckOptions, CheckReport, MAX_PROBLEMS, Problem, check, rebuild_index};
pub use operations::domain_inventory::{DomainInventory, check_unopened};
pub use operations::domains::{DomainSummary, Domains, Rotation};
pub use operations::mover::{MoveReport, move_snapshot, packs_of, pins, rebalance, set_pin, warm};
pub use operations::reachable::{Reached, Visitor, chunks_of_directory, chunks_of_image, chunks_of_tree};
pub use operations::stats::{StoreStats, stats};
pub use operations::verify_pack;
pub use pack::ChunkBytes;
pub use page::{GROUP_PAGES, PAGE};
pub use progress::{Progress, Unwatched, Work};
pub use records::reference::{Proposal, Ref, RefEntry, check_name};
pub use records::snapshot::{Snapshot, Totals};
pub use records::{condemned, lost_frames, session};
pub use repo::config::{DataTier, LEVELS, StoreConfig, TierClass};
pub use repo::disk_cache::{CacheUsage, DiskCache};
pub use repo::placement::{Moved, Placement, TierUsage};
pub use repo::refs::Refs;
pub use repo::store::{Pin, Store};
pub use restore::{Refused, RestoreReport, restore};
pub use scrub::{ScrubOptions, ScrubReport, scrub};
pub use throttle::Throttle;
pub use tier::{
    Breaker, Guarantees, LocalTier, MemoryTier, MirrorTier, ObjectInfo, RangeRequest, S3Settings, S3Tier,
    Tier,
};
pub use tree::splice::{Spliced, is_zero, splice, write_with_holes};
pub use tree::{
    Content, ContentReader, ContentWriter, Directory, Entry, EntryInode, Extent, INLINE_MAX, Identity, Inode,
    LinkedInode, Metadata, Node, Tree, TreeRoot,
};
pub use writer::{SnapshotDraft, WriteStats, Writer};
