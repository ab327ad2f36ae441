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
//! backup(&mut writer, &source, "web", &BackupOptions::default(), &Unwatched)?;
//! restore(&store, &store.resolve("web")?, b"", &target, &Unwatched)?;
//! # assert_eq!(std::fs::read(target.join("hello.txt")).expect("it is restored"), b"hello");
//! # Ok::<(), store::Error>(())
//! ```
//!
//! `examples/embed.rs` writes a tree by itself and reads a file of it.
//!
//! Start at [`Store`] for reading and [`Writer`] for writing. The crate knows nothing of FUSE, userfaultfd or command
//! lines, never prints, never deletes a last copy (the collector does), and is blocking throughout.

mod backup;
mod blob;
mod cache;
mod check;
mod chunker;
pub mod clock;
mod codec;
pub mod collector;
mod config;
pub mod damaged;
mod derived;
mod direct;
pub mod disk;
pub mod domain;
mod error;
mod fetch;
mod flat_cache;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod id;
pub mod image;
pub mod index;
mod lock;
mod map;
mod mover;
mod open;
pub mod pack;
mod placement;
mod progress;
mod reach;
mod read;
mod refs;
mod repo;
mod reserve;
mod resolve;
mod restore;
pub mod scrub;
pub mod session;
mod snapshot;
mod spare;
mod spill;
mod splice;
mod state;
mod stats;
mod superblock;
#[cfg(test)]
mod testing;
mod throttle;
pub mod tier;
pub mod tree;
pub mod wire;
mod writer;

pub use backup::{BackupOptions, BackupReport, backup};
pub use check::{CheckOptions, CheckReport, MAX_PROBLEMS, Problem, check, rebuild_index};
pub use chunker::{AVERAGE_LEN as CHUNK_AVERAGE_LEN, MAX_LEN as CHUNK_MAX_LEN, MIN_LEN as CHUNK_MIN_LEN};
pub use clock::Time;
pub use config::{DataTier, LEVELS, StoreConfig, TierClass};
pub use derived::Derived;
pub use domain::{Domain, DomainKind, DomainSummary, KeySource, KeySources, Rotation, VerifyKey};
pub use error::{Error, Kind, Result};
pub use flat_cache::{CacheUsage, FlatCache};
pub use id::{ChunkId, DirectoryId, DomainId, ImageId, PackId, SnapshotId, StoreId, TreeId, WriterId};
pub use image::{GROUP_PAGES, Image, ImageBuilder, ImageKind, ImageStats, Location, PAGE, PageRun, Space};
pub use lock::FileLock;
pub use mover::{MoveReport, move_snapshot, packs_of, pins, rebalance, set_pin, warm};
pub use pack::ChunkBytes;
pub use placement::{Moved, Placement, TierUsage};
pub use progress::{Progress, Unwatched, Work};
pub use reach::{Reached, Visitor, chunks_of_directory, chunks_of_image, chunks_of_tree};
pub use refs::{Proposal, Ref, RefEntry, Refs, check_name};
pub use repo::{Pin, Store};
pub use restore::{Refused, RestoreReport, restore};
pub use scrub::{ScrubOptions, ScrubReport, scrub};
pub use snapshot::{Snapshot, Totals};
pub use splice::{Spliced, is_zero, splice, write_with_holes};
pub use state::LocalState;
pub use stats::{StoreStats, stats};
pub use throttle::Throttle;
pub use tier::{
    Breaker, Guarantees, LocalTier, MemoryTier, MirrorTier, Object, ObjectInfo, RangeRequest, S3Settings,
    S3Tier, Tier,
};
pub use tree::{
    Content, ContentReader, ContentWriter, Directory, Entry, EntryInode, Extent, INLINE_MAX, Identity, Inode,
    LinkedInode, Metadata, Node, Tree, TreeRoot,
};
pub use writer::{SnapshotDraft, WriteStats, Writer};
