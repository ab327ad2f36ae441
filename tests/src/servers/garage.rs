//! Garage: three nodes that keep every byte three times, really distributed, and without conditional writes.

use super::process::{Process, free_port, http_get};
use super::{ACCESS_KEY, BUCKET, SECRET_KEY};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const NODES: usize = 3;
/// The secret of the nodes of one cluster; worth nothing outside a test.
const RPC_SECRET: &str = "1799bccfd7411eddcf9ebd316bc1f5287ad12a68094e1c6ac6abde7e6feae1ec";

/// A running cluster with one bucket. Its CLI comes from PATH.
#[derive(Debug)]
pub struct Garage {
    nodes: Vec<Option<Process>>,
    ports: Vec<u16>,
    _directory: TempDir,
}

impl Garage {
    /// Starts three nodes and lays them out.
    ///
    /// # Panics
    /// When `garage` is not there or a step fails.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let homes: Vec<PathBuf> =
            (0..NODES).map(|node| directory.path().join(format!("node-{node}"))).collect();
        let ports: Vec<(u16, u16)> = homes.iter().map(|_| (free_port(), free_port())).collect();
        let start = |(home, ports): (&PathBuf, &(u16, u16))| {
            std::fs::create_dir_all(home).expect("a directory can be made");
            std::fs::write(home.join("garage.toml"), configuration(*ports)).expect("a file can be written");
            Process::start("garage", &["-c".into(), "garage.toml".into(), "server".into()], home)
        };
        let nodes: Vec<Process> = homes.iter().zip(&ports).map(start).collect();
        for (node, (_, s3_port)) in nodes.iter().zip(&ports) {
            node.wait_until(|| http_get(*s3_port, "/").is_some());
        }
        let first = |words: &[&str]| garage(&homes[0], words);
        let ids: Vec<String> = homes.iter().map(|home| garage(home, &["node", "id", "-q"])).collect();
        for id in &ids[1..] {
            first(&["node", "connect", id.trim()]);
        }
        for id in &ids {
            let id = id.split('@').next().unwrap_or_default().trim();
            first(&["layout", "assign", "-z", "here", "-c", "1G", id]);
        }
        first(&["layout", "apply", "--version", "1"]);
        first(&["key", "import", "--yes", "-n", "test", ACCESS_KEY, SECRET_KEY]);
        first(&["bucket", "create", BUCKET]);
        first(&["bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", ACCESS_KEY]);
        let ports = ports.into_iter().map(|(_, s3_port)| s3_port).collect();
        Self { nodes: nodes.into_iter().map(Some).collect(), ports, _directory: directory }
    }

    /// The URL of a node.
    pub fn endpoint(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[node])
    }

    /// Kills a node for good.
    pub fn kill_node(&mut self, node: usize) {
        self.nodes[node].take().expect("it is killed once").kill();
    }
}

fn configuration((rpc_port, s3_port): (u16, u16)) -> String {
    format!(
        r#"metadata_dir = "meta"
data_dir = "data"
db_engine = "lmdb"
replication_factor = 3
rpc_bind_addr = "127.0.0.1:{rpc_port}"
rpc_public_addr = "127.0.0.1:{rpc_port}"
rpc_secret = "{RPC_SECRET}"
[s3_api]
s3_region = "us-east-1"
api_bind_addr = "127.0.0.1:{s3_port}"
root_domain = ".s3.test"
"#
    )
}

/// Runs a command of the CLI; returns its output.
fn garage(home: &Path, words: &[&str]) -> String {
    let mut command = Command::new("garage");
    command.args(["-c", "garage.toml"]).args(words).current_dir(home).env("RUST_LOG", "warn");
    let output = command.output().expect("garage can be run");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "garage {words:?}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
