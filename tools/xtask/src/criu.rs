//! A CRIU that can dump and restore on today's kernels: 4.2.1 or newer, at a prefix of its own.
//!
//! Debian 12 ships 3.17.1 (fails at the vdso of a 6.18 kernel) and Debian 13 ships 4.1.1 (cannot dump a TCP socket
//! there), so the source of Debian's unstable suite is built against the machine's own libraries. Only apt touches the
//! network, with a private state directory: the machine's package sources stay as they are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell::{Context, Failure, Result, kept_dir, output, run_quiet};
use crate::{apt, shell};

const OLDEST: [u32; 3] = [4, 2, 1];
const PREFIX: &str = "/usr/local";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const BY_HAND: &str = "or install criu 4.2.1 or newer by hand and put it in PATH";

/// What the build needs from apt.
pub(crate) const BUILD_PACKAGES: [&str; 15] = [
    "build-essential",
    "pkgconf",
    "protobuf-compiler",
    "protobuf-c-compiler",
    "libprotobuf-dev",
    "libprotobuf-c-dev",
    "python3-protobuf",
    "libnl-3-dev",
    "libnet1-dev",
    "libnftables-dev",
    "libbsd-dev",
    "libcap-dev",
    "libgnutls28-dev",
    "uuid-dev",
    "xz-utils",
];

/// The version of the CRIU that is there, when it is new enough.
pub(crate) fn installed() -> Option<String> {
    let text = output(&mut shell::command("criu", ["--version"])).ok()?;
    let version = version_word(&text)?;
    (parse_version(&version)? >= OLDEST).then_some(version)
}

/// Downloads, builds and installs CRIU. Needs the build packages.
pub(crate) fn install() -> Result<String> {
    let work = kept_dir("criu")?;
    let tarball = match find_tarball(&work)? {
        Some(tarball) => tarball,
        None => download(&work)?,
    };
    let source = unpack(&work, &tarball)?;
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    run_quiet(shell::command("make", [format!("-j{jobs}"), "criu".into()]).current_dir(&source))?;
    run_quiet(shell::command("make", ["install-criu", &format!("PREFIX={PREFIX}")]).current_dir(&source))?;
    fs::remove_dir_all(&source).context(|| format!("cannot remove {}", source.display()))?;
    installed().ok_or_else(|| {
        Failure::new(format!("{} was built, but {PREFIX}/sbin/criu does not run", tarball.display()))
    })
}

fn download(work: &Path) -> Result<PathBuf> {
    let lists = work.join("lists");
    let cache = work.join("cache");
    for directory in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(&directory).context(|| format!("cannot create {}", directory.display()))?;
    }
    let sources = work.join("sources.list");
    let line = machine_mirror()?.source_line("deb-src", "sid", KEYRING);
    fs::write(&sources, line).context(|| format!("cannot write {}", sources.display()))?;
    let options = [
        format!("Dir::Etc::SourceList={}", sources.display()),
        "Dir::Etc::SourceParts=/dev/null".into(),
        format!("Dir::State::Lists={}", lists.display()),
        format!("Dir::Cache={}", cache.display()),
        "APT::Sandbox::User=root".into(),
        "APT::Update::Error-Mode=any".into(),
    ];
    let apt = |arguments: &[&str]| {
        let mut apt = shell::command("apt-get", options.iter().flat_map(|option| ["-o", option]));
        apt.args(arguments).current_dir(work);
        run_quiet(&mut apt).map_err(|failure| {
            let advice = format!("check that this machine reaches its Debian mirror, {BY_HAND}");
            Failure::new(format!("cannot download criu's source: {failure}\n{advice}"))
        })
    };
    apt(&["update"])?;
    // Only the original source is asked for: mirrors drop the packaging part of old versions first.
    apt(&["source", "--download-only", "--tar-only", "criu/sid"])?;
    let missing = || Failure::new(format!("apt-get left no criu source in {}", work.display()));
    find_tarball(work)?.ok_or_else(missing)
}

fn machine_mirror() -> Result<apt::Mirror> {
    let release = fs::read_to_string("/etc/os-release").context(|| "cannot read /etc/os-release".into())?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.map(|suite| suite.trim_matches('"')).unwrap_or("bookworm");
    let mut files = Vec::new();
    let listed = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.path()).collect();
    paths.push("/etc/apt/sources.list".into());
    paths.sort();
    for path in paths {
        let known = path.extension().is_some_and(|extension| extension == "list" || extension == "sources");
        if let (true, Ok(text)) = (known, fs::read_to_string(&path)) {
            files.push((path.display().to_string(), text));
        }
    }
    apt::find_mirror(&files, suite).ok_or_else(|| {
        Failure::new(format!("no source of Debian {suite} main in /etc/apt: add one, {BY_HAND}"))
    })
}

/// The downloaded source with the newest version, if there is one: `criu_4.2.1.orig.tar.xz`.
fn find_tarball(work: &Path) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(work).context(|| format!("cannot list {}", work.display()))?;
    let versioned = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = parse_version(name.strip_prefix("criu_")?.split_once(".orig.tar.")?.0)?;
        Some((version, entry.path()))
    });
    Ok(versioned.filter(|(version, _)| *version >= OLDEST).max().map(|(_, path)| path))
}

fn unpack(work: &Path, tarball: &Path) -> Result<PathBuf> {
    let source = work.join("source");
    if source.exists() {
        fs::remove_dir_all(&source).context(|| format!("cannot remove {}", source.display()))?;
    }
    fs::create_dir(&source).context(|| format!("cannot create {}", source.display()))?;
    let tarball = tarball.as_os_str();
    let arguments = ["xf".as_ref(), tarball, "--strip-components=1".as_ref(), "-C".as_ref()];
    run_quiet(shell::command("tar", arguments).arg(&source))?;
    Ok(source)
}

fn version_word(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("Version:")).map(|version| version.trim().to_owned())
}

/// `4.2.1` or `4.3`; what follows the numbers (`-rc1`, `+dfsg`) does not count.
fn parse_version(text: &str) -> Option<[u32; 3]> {
    let numbers = text.split(|sign: char| !sign.is_ascii_digit() && sign != '.').next()?;
    let mut version = [0; 3];
    for (place, part) in version.iter_mut().zip(numbers.split('.').filter(|part| !part.is_empty())) {
        *place = part.parse().ok()?;
    }
    (version != [0; 3]).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("4.10").expect("a version") > OLDEST);
        assert!(parse_version("4.2.1+dfsg").expect("a version") >= OLDEST);
        assert!(parse_version("4.1.1").expect("a version") < OLDEST);
        assert!(parse_version("3.17.1").expect("a version") < OLDEST);
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn the_version_is_read_from_criu_s_own_words() {
        assert_eq!(version_word("Version: 4.2.1\n").as_deref(), Some("4.2.1"));
        assert_eq!(version_word("GitID: v4.2\n"), None);
    }
}
