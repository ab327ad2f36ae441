//! Lazy memory: processes and virtual machines run before their memory is there, and a thread fills each page when it
//! is touched.
//!
//! ```
//! use lazyload::map::map;
//! use store::{ImageBuilder, ImageKind, PAGE, SnapshotDraft, Store, StoreConfig};
//!
//! # let directory = tempfile::tempdir().expect("a scratch directory");
//! let store = Store::init(&StoreConfig::directory(directory.path()))?;
//! let mut writer = store.writer("example")?;
//! let mut builder = ImageBuilder::new(&mut writer, ImageKind::Raw, None);
//! builder.begin_space(0, 2 * PAGE as u64)?;
//! builder.page(1, &[7; PAGE])?;
//! let (image, _) = builder.finish()?;
//! writer.commit("memory", SnapshotDraft { image: Some(image), ..SnapshotDraft::default() })?;
//!
//! let mapping = map(&store.image(&image)?, 0)?; // reads nothing
//! assert_eq!((mapping[0], mapping[PAGE]), (0, 7)); // reads the page
//! # Ok::<(), store::Error>(())
//! ```
//!
//! Three ways in: [`firecracker`] for virtual machines, [`criu`] for processes, [`map`] for this process. Each captures
//! into, or serves out of, a memory image of the store. [`supervisor`] makes the death of a serving process safe.
//!
//! How a fault is answered: `sys` reads the event, `fault` decides (pure, over `region` and `pages`), `resolver` reads
//! the bytes, `drive` fills them in, `served` joins these for one address space and `handler` for all of them. `notes`
//! and `wake_log` keep the record that the next capture needs.
//!
//! The promise: a page that is touched shows the image's bytes, or zeroes where the image has none or the owner
//! released the page; otherwise its owner is stopped. Never a zero page in place of data, whichever of handler and
//! supervisor dies: only when both are killed at one moment does the kernel fill missing pages with zeroes (see
//! [`supervisor`]).

// In layers: a module uses modules of the layers above its own, and in its own layer there is no circle.

// Kernel calls, pages and addresses, results.
mod memory_export;
mod pages;
mod region;
mod report;
mod sys;

// The answer to a fault, and the record of a wake.
mod drive;
mod fault;
mod notes;
mod resolver;
mod wake_log;

// Sockets and processes.
mod orphaned;
mod protect;
mod socket;
mod target;

// Two processes: the supervisor holds the descriptors that the handler deposits.
pub mod supervisor;

// One serve: options, connections, address spaces.
mod connection;
mod handler;
mod options;
mod reception;
mod served;

// The ways in.
pub mod criu;
pub mod firecracker;
pub mod map;
pub mod memory_file;

// For the fuzz targets: parsers that are private.
#[doc(hidden)]
pub mod fuzzing;

pub use memory_export::write_memory;
pub use options::ServeOptions;
pub use report::{Captured, ServeReport};
pub use socket::SocketAccess;
pub use sys::{release_free_memory, share_one_heap};
