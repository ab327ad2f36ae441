//! Programs of the tests and of `dist` that crates.io has: built from their sources with their own lock files, once.

use std::fs;
use std::path::Path;

use crate::shell::{Context, Failure, Result, cargo, in_path, kept_dir, run_quiet};

/// Where the programs go; in every PATH.
const PREFIX: &str = "/usr/local/bin";

/// A program, which its package is named after, and the version that the tests were written for.
pub(crate) struct Program {
    pub name: &'static str,
    version: &'static str,
    /// Flags of `cargo install`, beside the version.
    flags: &'static [&'static str],
}

/// Suites of others for file systems: two minutes of two cores each.
pub(crate) const SUITES: [Program; 2] = [
    Program { name: "pjdfstest", version: "0.2.2", flags: &[] },
    Program { name: "fsx", version: "0.3.2", flags: &[] },
];
/// Makes Debian packages: a few minutes of two cores.
pub(crate) const CARGO_DEB: Program = Program { name: "cargo-deb", version: "3.8.0", flags: &[] };
/// An object store. Not optimised and without what the tests do not use, since its release build takes an hour.
pub(crate) const GARAGE: Program = Program {
    name: "garage",
    version: "2.5.0",
    flags: &["--debug", "--no-default-features", "--features", "bundled-libs,lmdb"],
};

impl Program {
    /// Whether it is there.
    pub(crate) fn is_installed(&self) -> bool {
        in_path(self.name)
    }

    /// Builds it and puts it in its place.
    pub(crate) fn install(&self) -> Result<String> {
        let root = kept_dir(self.name)?;
        let mut install = cargo(&["install", self.name, "--locked", "--version", self.version, "--root"]);
        run_quiet(install.arg(&root).args(self.flags)).map_err(|failure| {
            let by_hand = format!("or install {} {} by hand and put it in PATH", self.name, self.version);
            Failure::new(format!("{failure}\ncheck that cargo reaches its registry, {by_hand}"))
        })?;
        put(&root.join("bin").join(self.name))?;
        Ok(format!("{} built and installed", self.version))
    }
}

/// Copies a program to its place; a process that runs the old one keeps it.
pub(crate) fn put(program: &Path) -> Result<()> {
    let name = program.file_name().unwrap_or_default();
    let (target, new) =
        (Path::new(PREFIX).join(name), Path::new(PREFIX).join(format!(".{}.new", name.display())));
    fs::create_dir_all(PREFIX).context(|| format!("cannot create {PREFIX}"))?;
    fs::copy(program, &new).context(|| format!("cannot copy {}", program.display()))?;
    fs::rename(&new, &target).context(|| format!("cannot write {}", target.display()))
}
