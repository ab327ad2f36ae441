//! `snapctl init`: a new, empty store.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;
use store::{Error, Store};

use super::doctor::{self, Fitness};
use super::ls::json_path;
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::Show;

#[derive(Serialize)]
struct Made {
    store: String,
    path: String,
    /// Its bytes when it is not UTF-8, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    /// The fitness of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket_fit_for: Option<Fitness>,
}

impl Show for Made {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "made store {} in {}", self.store, self.path)?;
        match self.bucket_fit_for {
            None => Ok(()),
            Some(Fitness::Many) => writeln!(out, "the bucket is fit for many hosts"),
            Some(_) => writeln!(out, "the bucket is fit for a single host only; `snapctl doctor` says why"),
        }
    }
}

pub(super) fn run(context: &mut Context) -> anyhow::Result<Outcome> {
    let config = context.config()?;
    let bucket_fit_for = doctor::prepare_bucket(&config)?;
    if bucket_fit_for == Some(Fitness::Nothing) {
        let what = "the bucket does not guarantee what the store needs";
        return Err(Error::invalid(what).advice("run `snapctl doctor` to see what is missing").into());
    }
    let store = Store::init(&config.store()?)?;
    let (path, path_hex) = json_path(config.hot.as_os_str().as_bytes());
    let made = Made { store: store.id().to_string(), path, path_hex, bucket_fit_for };
    context.output.report(&made)?;
    Ok(Outcome::Done)
}
