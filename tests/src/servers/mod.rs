//! Real object stores as processes of the test: each in a private directory, on free ports of 127.0.0.1, killed with
//! the test's own process however it ends.

mod garage;
mod process;
mod rclone;
mod seaweed;

pub use garage::Garage;
pub use process::{Process, free_port, http_get};
pub use rclone::Rclone;
pub use seaweed::{ENFORCED, LIMITED_PREFIX, SeaweedCluster, VOLUME_SERVERS, limited_key};

use store::S3Settings;
use store::tier::S3Credentials;

/// The bucket that every server has.
pub const BUCKET: &str = "torpor-test";
/// The key that every server knows; of the form that Garage wants.
pub const ACCESS_KEY: &str = "GK31c2f218a2e44f485b94239e";
/// Its secret.
pub const SECRET_KEY: &str = "b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835";

/// Settings for the bucket of a server, or of a proxy before it; keys begin with `prefix`.
pub fn settings(endpoint: &str, prefix: &str) -> S3Settings {
    let credentials = S3Credentials::new(ACCESS_KEY.to_owned(), SECRET_KEY.to_owned(), None);
    S3Settings {
        prefix: prefix.to_owned(),
        credentials: Some(credentials),
        ..S3Settings::new(BUCKET, Some(endpoint.to_owned()))
    }
}
