//! `cargo xtask dist`: what is handed out. Manual pages and completions come from snapctl itself; the Debian package is made
//! by cargo-deb from the metadata in tools/Cargo.toml, and has exactly the files that are expected of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::crates::CARGO_DEB;
use crate::shell::{self, Context, Failure, Result, cargo, command, output, step, target_dir, workspace};

/// Each shell, and where its completions go.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/snapctl"),
    ("zsh", "usr/share/zsh/vendor-completions/_snapctl"),
    ("fish", "usr/share/fish/vendor_completions.d/snapctl.fish"),
];

pub(crate) fn run() -> Result<()> {
    let dist = target_dir()?.join("dist");
    let snapctl = target_dir()?.join("release/snapctl");
    step("snapctl", || {
        shell::run(&mut cargo(&["build", "--release", "--package", "torpor-tools"]))?;
        Ok("built".into())
    })?;
    step("pages", || {
        let pages = dist.join("man");
        make_empty(&pages)?;
        output(command(&snapctl, ["man"]).arg(&pages))?;
        Ok(format!("{} in {}", names(&pages)?.len(), pages.display()))
    })?;
    step("completions", || {
        let completions = dist.join("completions");
        make_empty(&completions)?;
        for (shell, place) in COMPLETIONS {
            let path = completions.join(Path::new(place).file_name().unwrap_or_default());
            let script = output(&mut command(&snapctl, ["completions", shell]))?;
            fs::write(&path, script).context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(format!("in {}", completions.display()))
    })?;
    if !CARGO_DEB.is_installed() {
        step(CARGO_DEB.name, || CARGO_DEB.install())?;
    }
    step("package", || {
        let mut deb = cargo(&["deb", "--package", "torpor-tools", "--no-build", "--output"]);
        let printed = output(deb.arg(dist.join("deb/")))?;
        let package = workspace().join(printed.lines().last().unwrap_or_default());
        let listing = output(command("dpkg-deb", ["--contents"]).arg(&package))?;
        check(&files_of(&listing), &expected(&dist)?)?;
        Ok(package.display().to_string())
    })?;
    Ok(())
}

fn make_empty(directory: &Path) -> Result<()> {
    let cannot = || format!("cannot make {}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(directory).context(cannot)?;
    }
    fs::create_dir_all(directory).context(cannot)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let cannot = || format!("cannot read {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).context(cannot)? {
        names.push(entry.context(cannot)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// The files that the package is to have: the program, its pages and completions, every unit and every document.
fn expected(dist: &Path) -> Result<BTreeSet<String>> {
    let below = |place: &str, names: Vec<String>, end: &str| -> Vec<String> {
        names.iter().map(|name| format!("{place}/{name}{end}")).collect()
    };
    let documents = ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "copyright"];
    let doc = "usr/share/doc/torpor";
    let mut files = BTreeSet::from(["usr/bin/snapctl".to_owned()]);
    files.extend(below("usr/share/man/man1", names(&dist.join("man"))?, ".gz"));
    files.extend(COMPLETIONS.map(|(_, place)| place.to_owned()));
    files.extend(below("usr/lib/systemd/system", names(&workspace().join("contrib/systemd"))?, ""));
    files.extend(below(&format!("{doc}/docs"), names(&workspace().join("docs"))?, ""));
    files.extend(documents.map(|name| format!("{doc}/{name}")));
    Ok(files)
}

/// The files in a listing of dpkg-deb, without directories.
fn files_of(listing: &str) -> BTreeSet<String> {
    let path = |line: &str| {
        let path = line.split_whitespace().nth(5)?;
        Some(path.trim_start_matches("./").to_owned())
    };
    listing.lines().filter(|line| !line.starts_with('d')).filter_map(path).collect()
}

fn check(found: &BTreeSet<String>, expected: &BTreeSet<String>) -> Result<()> {
    let missing: Vec<&String> = expected.difference(found).collect();
    let surplus: Vec<&String> = found.difference(expected).collect();
    if missing.is_empty() && surplus.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("the package lacks {missing:?} and has {surplus:?} besides")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
drwxr-xr-x 0/0               0 2026-01-01 00:00 ./usr/bin/
-rwxr-xr-x 0/0         1234567 2026-01-01 00:00 ./usr/bin/snapctl
-rw-r--r-- 0/0             567 2026-01-01 00:00 ./usr/share/doc/torpor/README.md
";

    #[test]
    fn a_file_that_is_missing_or_not_expected_is_named() {
        let found = files_of(LISTING);
        let expected = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        check(&found, &expected(&["usr/bin/snapctl", "usr/share/doc/torpor/README.md"])).unwrap();
        let failure = check(&found, &expected(&["usr/bin/snapctl", "usr/bin/other"])).unwrap_err();
        assert!(failure.to_string().contains("lacks [\"usr/bin/other\"]"), "{failure}");
        assert!(failure.to_string().contains("has [\"usr/share/doc/torpor/README.md\"]"), "{failure}");
    }
}
