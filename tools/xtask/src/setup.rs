//! Makes a Debian machine ready for the tests and the demo. A second run finds everything and touches no network.
//!
//! Nothing is upgraded and nothing that is there under another package's name is installed again: a program found in
//! PATH counts.

use std::fs::{self, OpenOptions};

use crate::shell::{Context, Failure, Result, command, in_path, output, run_quiet, step};
use crate::{crates, criu, servers};

/// A program that the tests or the demo call, and the Debian package that has it.
struct Program {
    name: &'static str,
    package: &'static str,
}

const PROGRAMS: &[Program] = &[
    Program { name: "cc", package: "build-essential" },
    Program { name: "make", package: "build-essential" },
    Program { name: "git", package: "git" },
    Program { name: "python3", package: "python3" },
    Program { name: "sqlite3", package: "sqlite3" },
    Program { name: "node", package: "nodejs" },
    Program { name: "npm", package: "npm" },
    Program { name: "restic", package: "restic" },
    Program { name: "mkfs.erofs", package: "erofs-utils" },
    Program { name: "mkfs.ext4", package: "e2fsprogs" },
    Program { name: "mksquashfs", package: "squashfs-tools" },
    Program { name: "setfacl", package: "acl" },
    Program { name: "setpriv", package: "util-linux" },
    Program { name: "fio", package: "fio" },
    Program { name: "stress-ng", package: "stress-ng" },
    Program { name: "pg_lsclusters", package: "postgresql" },
];

/// Libraries that have no program to look for. libclang is what userfaultfd's bindings are generated with.
const LIBRARIES: &[&str] = &["libclang-dev", "ca-certificates"];

/// `cargo xtask setup`; `long`: also what only the long tests need.
pub(crate) fn run(long: bool) -> Result<()> {
    check_root()?;
    check_devices()?;
    let criu = criu::installed();
    let missing_servers = servers::missing();
    let mut wanted = Vec::new();
    if criu.is_none() {
        wanted.extend(criu::BUILD_PACKAGES);
    }
    if !missing_servers.is_empty() {
        wanted.extend(servers::PACKAGES);
    }
    let missing = missing_packages(&wanted)?;
    if missing.is_empty() {
        println!("{:<12} nothing to install", "packages");
    } else {
        step("packages", || {
            install_packages(&missing, &wanted)?;
            Ok(missing.join(" "))
        })?;
    }
    match criu {
        Some(version) => println!("{:<12} {version} is installed", "criu"),
        None => {
            step("criu", || Ok(format!("{} built and installed", criu::install()?)))?;
        }
    }
    if missing_servers.is_empty() {
        println!("{:<12} are installed", "servers");
    } else {
        step("servers", servers::install)?;
    }
    let garage = long.then_some(crates::GARAGE);
    for program in crates::SUITES.iter().chain(&garage) {
        match program.is_installed() {
            true => println!("{:<12} is installed", program.name),
            false => {
                step(program.name, || program.install())?;
            }
        }
    }
    Ok(())
}

fn check_root() -> Result<()> {
    let status =
        fs::read_to_string("/proc/self/status").context(|| "cannot read /proc/self/status".into())?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    if user.split_whitespace().nth(1) == Some("0") {
        return Ok(());
    }
    Err(Failure::new("run as root: mounting, userfaultfd, KVM and CRIU need it"))
}

fn check_devices() -> Result<()> {
    open_device("/dev/fuse", "load the kernel module fuse (modprobe fuse)")?;
    open_device("/dev/kvm", "enable virtualisation for this machine, or load kvm_intel or kvm_amd")?;
    // Without the device the system call does; it is there when its sysctl is.
    if !fs::exists("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or(false) {
        open_device("/dev/userfaultfd", "use a kernel with CONFIG_USERFAULTFD")?;
    }
    Ok(())
}

fn open_device(path: &str, advice: &str) -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(drop).map_err(|error| {
        Failure::new(format!("cannot open {path}: {error}; the tests and the demo need it: {advice}"))
    })
}

/// What is not installed of the libraries, of the packages of missing programs, and of `also`.
fn missing_packages(also: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut wanted: Vec<&str> = [LIBRARIES, also].concat();
    wanted.extend(PROGRAMS.iter().filter(|program| !in_path(program.name)).map(|program| program.package));
    wanted.sort_unstable();
    wanted.dedup();
    let mut query = command("dpkg-query", ["--show", "--showformat=${Package} ${db:Status-Status}\n"]);
    query.args(&wanted);
    // dpkg-query fails when it knows nothing of one of the names; its answers for the others still count.
    let answer = query.output().context(|| "cannot run dpkg-query: this is not Debian".into())?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    wanted.retain(|package| !answer.lines().any(|line| line == format!("{package} installed")));
    Ok(wanted)
}

fn install_packages(packages: &[&str], also: &[&'static str]) -> Result<()> {
    let advice = |failure| {
        let list = packages.join(" ");
        Failure::new(format!("{failure}\ncheck that this machine reaches its Debian mirror; wanted: {list}"))
    };
    run_quiet(&mut command("apt-get", ["update"])).map_err(advice)?;
    let mut install = command("apt-get", ["install", "--yes", "--no-install-recommends"]);
    install.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    run_quiet(&mut install).map_err(advice)?;
    let still = missing_packages(also)?;
    if still.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("apt-get installed no {}", still.join(" "))))
}

/// The kernel and the machine in one line, for reports.
pub(crate) fn machine() -> Result<String> {
    let kernel = output(&mut command("uname", ["-sr"]))?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").context(|| "cannot read /proc/meminfo".into())?;
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 =
        kib.and_then(|text| text.split_whitespace().next()).and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(format!("{}, {cores} cores, {} GiB", kernel.trim(), kib >> 20))
}
