//! The libraries' tracing events as lines on standard error: warnings by default, more with `-v`, or by `TORPOR_LOG`.
//!
//! Our events name no file, ref or label of an encrypted domain. The FUSE library's name every file that is accessed,
//! and are written only where the filter names that library.

use store::{Error, Kind, Result};
use tracing_subscriber::EnvFilter;

use crate::bounded_log::BoundedLog;
use crate::respawn::Role;

const VARIABLE: &str = "TORPOR_LOG";
/// The library whose events name files.
const NAMES_FILES: &str = "fuser";
/// Warns of every object uploaded in parts: we compare their checksums ourselves.
const NOISE: &str = "aws_sdk_s3::http_response_checksum=error,aws_smithy_checksums=error";

/// Installs the subscriber of this process; once, at the start.
pub(crate) fn install(quiet: bool, verbose: u8) -> Result<()> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(redacted(&text)).map_err(|source| {
            Error::new(Kind::Invalid, "cannot parse the log filter")
                .object(format!("{VARIABLE}={text}"))
                .caused_by(source)
                .advice("write a level such as `debug`, or `store=debug,snapfs=info`")
        })?,
        _ => EnvFilter::new(format!("{},{NOISE}", redacted(default_level(quiet, verbose)))),
    };
    // A mount's log may be on a full disk: a line that cannot be written is lost, and the process goes on.
    let lines = tracing_subscriber::fmt().log_internal_errors(false);
    let lines = lines.with_env_filter(filter).with_ansi(false);
    match Role::current() {
        Role::Background => lines.with_writer(|| BoundedLog).init(),
        Role::Typed | Role::Handler => lines.with_writer(std::io::stderr).init(),
    }
    Ok(())
}

/// The filter without the events that name files, unless it asks for them.
fn redacted(filter: &str) -> String {
    match filter.contains(NAMES_FILES) {
        true => filter.to_owned(),
        false => format!("{filter},{NAMES_FILES}=warn"),
    }
}

fn default_level(quiet: bool, verbose: u8) -> &'static str {
    match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    }
}
