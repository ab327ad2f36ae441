//! `rclone serve s3`: a directory served as buckets, which ignores every condition of a write.

use super::process::{Process, free_port, http_get};
use super::{ACCESS_KEY, BUCKET, SECRET_KEY};
use tempfile::TempDir;

/// A running server with one bucket.
#[derive(Debug)]
pub struct Rclone {
    _process: Process,
    port: u16,
    _directory: TempDir,
}

impl Rclone {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When `rclone` is not there or does not start.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let buckets = directory.path().join("buckets");
        std::fs::create_dir_all(buckets.join(BUCKET)).expect("a directory can be made");
        let port = free_port();
        let arguments = [
            "serve".into(),
            "s3".into(),
            format!("--addr=127.0.0.1:{port}"),
            format!("--auth-key={ACCESS_KEY},{SECRET_KEY}"),
            buckets.display().to_string(),
        ];
        let process = Process::start("rclone", &arguments, directory.path());
        process.wait_until(|| http_get(port, "/").is_some());
        Self { _process: process, port, _directory: directory }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
