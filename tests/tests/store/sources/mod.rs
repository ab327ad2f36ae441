//! Sources that move while they are backed up, answer with errors, or cannot be written to.

mod failing;
mod moving;

use crate::scratch::Scratch;
use crate::trees::back_up;
use std::fs;
use std::path::PathBuf;
use store::{BackupReport, Store};
use tempfile::TempDir;
use tests::model::{Body, Files, files_of_store};
use tests::scripted_fuse::{Node, Nodes, Request, ScriptedMount};

/// A scripted mount and a store.
struct World {
    mount: ScriptedMount,
    place: PathBuf,
    store: Store,
    _scratch: Scratch,
    _directory: TempDir,
}

impl World {
    fn new(
        nodes: Nodes,
        before: impl FnMut(&Request, &mut Nodes) -> Result<(), i32> + Send + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("mount");
        fs::create_dir(&place).unwrap();
        let (scratch, _) = Scratch::in_memory();
        let mount = ScriptedMount::new(&place, nodes, before);
        Self { mount, place, store: scratch.open(), _scratch: scratch, _directory: directory }
    }

    fn back_up(&self) -> (BackupReport, Files) {
        let report = back_up(&self.store, &self.place, "web");
        let files = files_of_store(&self.store, &report.snapshot).unwrap();
        (report, files)
    }

    /// How the report names a path.
    fn shown(&self, name: &str) -> String {
        self.place.join(name).display().to_string()
    }
}

fn nodes<const N: usize>(nodes: [(u64, Node); N]) -> Nodes {
    Nodes::from(nodes)
}

fn body<'a>(files: &'a Files, path: &str) -> &'a Body {
    &files.get(path.as_bytes()).unwrap_or_else(|| panic!("{path} is not in the snapshot")).body
}

fn file(bytes: &[u8]) -> Body {
    Body::File(bytes.to_vec())
}
