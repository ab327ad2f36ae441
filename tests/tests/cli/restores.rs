//! Restores to targets that refuse something: each refusal is one path's, all are reported, and the same command
//! completes it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::XattrFlags;
use tests::snapctl::{Place, Run};

use crate::disk::{Disk, mount};
use crate::sample;

/// A place whose store holds `fill`'s directory as `web`.
fn backed_up(fill: impl Fn(&Path)) -> (Place, PathBuf) {
    let place = Place::with_store();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fill(&source);
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    (place, source)
}

fn restore(place: &Place, target: &Path) -> Run {
    place.run(["restore".as_ref(), "web".as_ref(), target.as_os_str()])
}

/// The same, run by another program.
fn restore_under(place: &Place, program: &[&str], target: &Path) -> Run {
    place.run_under(program, ["restore".as_ref(), "web".as_ref(), target.as_os_str()])
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_file_too_large_for_the_target_is_left_out_and_the_rest_is_restored() {
    let (place, source) = backed_up(|source| {
        sample::make(&source.join("sample"));
        fs::write(source.join("large"), sample::noise(1, 20 << 20)).unwrap();
        fs::write(source.join("sample/larger"), sample::noise(2, 3 << 20)).unwrap();
        fs::hard_link(source.join("large"), source.join("twin")).unwrap();
    });
    let target = place.path("target");
    let limit = ["prlimit", "--fsize=2000000"];
    let refused = restore_under(&place, &limit, &target).expect(3);
    let refused =
        refused.complains("large: cannot write file: File too large").complains("sample/larger: cannot");
    assert!(!refused.stderr.contains("interrupted"), "{}", refused.stderr);
    for name in ["large", "twin", "sample/larger"] {
        assert!(!target.join(name).exists(), "{name} is there and incomplete");
    }
    assert_eq!(mode(&target.join("sample")), mode(&source.join("sample")), "directories are done");
    let whole = restore(&place, &target).expect(0);
    whole.says("of them were there");
    sample::assert_same(&source, &target);
    restore(&place, &target).expect(2).complains("not empty");
}

#[test]
fn an_owner_that_a_user_namespace_has_not_is_refused_alone() {
    let (place, source) = backed_up(|source| {
        fs::create_dir_all(source.join("a/b")).unwrap();
        fs::write(source.join("a/b/theirs"), "x").unwrap();
        fs::write(source.join("ours"), "y").unwrap();
        for name in ["a/b", "a/b/theirs"] {
            chown(source.join(name), Some(1234), Some(5678)).unwrap();
        }
        fs::set_permissions(source.join("a/b/theirs"), fs::Permissions::from_mode(0o4755)).unwrap();
    });
    let target = place.path("target");
    let refused = restore_under(&place, &["unshare", "--user", "--map-root-user"], &target).expect(3);
    refused.complains("a/b: owner: Invalid argument").complains("a/b/theirs: owner: Invalid argument");
    assert_eq!(mode(&target.join("a/b/theirs")), 0o755, "it would run with root's rights");
    restore(&place, &target).expect(0);
    sample::assert_same(&source, &target);
    let theirs = fs::metadata(target.join("a/b/theirs")).unwrap();
    assert_eq!((theirs.uid(), theirs.mode() & 0o7777), (1234, 0o4755));
}

/// An attribute that ext4 cannot keep is no full disk, its `lost+found` is not in the way, and a directory may be
/// closed to root.
#[test]
fn what_a_file_system_cannot_keep_is_told_and_costs_nothing_else() {
    let place = Place::with_store();
    let memory = Disk::new(&place, "16m");
    let source = memory.0.join("source");
    fs::create_dir_all(source.join("locked")).unwrap();
    for name in ["plain", "tagged", "locked/inside"] {
        fs::write(source.join(name), name).unwrap();
    }
    rustix::fs::setxattr(source.join("tagged"), "user.long", &[b'x'; 5000], XattrFlags::empty()).unwrap();
    fs::set_permissions(source.join("locked"), fs::Permissions::from_mode(0o750)).unwrap();
    place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let (image, target) = (place.path("image"), place.path("target"));
    fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    fs::create_dir(&target).unwrap();
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096"]).arg(&image));
    mount(&["-o", "loop", image.to_str().unwrap()], &target);
    let _mounted = Disk(target.clone());
    let refused = restore(&place, &target).expect(3);
    let refused = refused.complains("tagged: extended attribute user.long: No space left");
    assert!(!refused.stderr.contains("full"), "{}", refused.stderr);
    assert_eq!(fs::read_to_string(target.join("tagged")).unwrap(), "tagged");
    assert_eq!(mode(&target.join("locked")), 0o750);

    // Now a directory takes nothing.
    fs::remove_file(target.join("locked/inside")).unwrap();
    run(Command::new("chattr").arg("+i").arg(target.join("locked")));
    let refused = restore(&place, &target).expect(3).complains("locked/inside: cannot create file");
    refused.complains("locked: time: Operation not permitted").complains("tagged: extended");
    run(Command::new("chattr").arg("-i").arg(target.join("locked")));
    fs::write(target.join("locked/stranger"), "nobody's").unwrap();
    restore(&place, &target).expect(3).complains("locked/stranger: is there and not in the snapshot");
    assert_eq!(fs::read_to_string(target.join("locked/inside")).unwrap(), "locked/inside");
    assert_eq!(fs::read_to_string(target.join("locked/stranger")).unwrap(), "nobody's");
}

#[test]
fn a_restore_that_a_full_disk_ended_is_completed_by_the_same_command_alone() {
    let (place, source) = backed_up(|source| {
        sample::make(&source.join("sample"));
        for number in 0..12 {
            fs::write(source.join(format!("noise-{number:02}")), sample::noise(number, 1 << 20)).unwrap();
        }
    });
    let disk = Disk::new(&place, "6m");
    let target = disk.0.join("target");
    fs::create_dir(&target).unwrap();
    chown(&target, Some(77), Some(78)).unwrap();
    restore(&place, &target).expect(2).complains("the target is full").complains("goes on from here");
    assert_eq!(fs::metadata(&target).unwrap().uid(), 77, "it is its owner's again");
    fs::write(target.join("noise-00"), "changed by somebody").unwrap();
    let other = place.path("other");
    fs::create_dir(&other).unwrap();
    place.run(["backup".as_ref(), other.as_os_str(), "web".as_ref()]).expect(0);
    disk.remount("size=64m");
    restore(&place, &target).expect(2).complains("a restore of snapshot");
    place.run(["restore".as_ref(), "web~1".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&source, &target);
}

#[test]
fn a_single_file_that_was_cut_short_is_completed_and_one_of_somebody_else_stays() {
    let (place, _) = backed_up(|source| fs::write(source.join("noise"), sample::noise(3, 3 << 20)).unwrap());
    let target = place.path("target");
    let typed: [&OsStr; 3] = ["restore".as_ref(), "web:noise".as_ref(), target.as_os_str()];
    place.run_under(&["prlimit", "--fsize=1000000"], typed).expect(2).complains("File too large");
    place.run(typed).expect(0);
    assert!(fs::read(&target).unwrap() == sample::noise(3, 3 << 20));
    fs::write(&target, "somebody else's").unwrap();
    place.run(typed).expect(2).complains("target is there already");
    assert_eq!(fs::read_to_string(&target).unwrap(), "somebody else's");
}

/// Thousands of refusals: the first are named, all are counted, and every one can be had.
#[test]
fn refusals_are_counted_and_all_of_them_can_be_named() {
    let files = 1500;
    let (place, _) = backed_up(|source| {
        for number in 0..files {
            let path = source.join(format!("file-{number:04}"));
            fs::write(&path, "x").unwrap();
            chown(&path, Some(1234), None).unwrap();
        }
    });
    let target = place.path("target");
    let others = ["unshare", "--user", "--map-root-user"];
    let short = restore_under(&place, &others, &target).expect(3);
    assert!(short.stderr.lines().count() < 40, "{}", short.stderr);
    short.complains("and 1480 more");
    let typed: [&OsStr; 4] = ["restore".as_ref(), "web".as_ref(), target.as_os_str(), "-v".as_ref()];
    place.run_under(&others, typed).expect(3).complains("file-1499: owner");
    let typed: [&OsStr; 4] = ["restore".as_ref(), "web".as_ref(), target.as_os_str(), "--json".as_ref()];
    let told = place.run_under(&others, typed).expect(3).json();
    let refused = told["refused"].as_array().unwrap();
    assert_eq!(refused.len(), files);
    assert!(refused.iter().any(|one| one["path"].as_str().unwrap().ends_with("file-1499")));
}

#[test]
fn a_deep_and_wide_tree_needs_few_descriptors() {
    let (place, source) = backed_up(|source| {
        let mut deep = source.to_owned();
        for level in 0..400 {
            deep.push("d");
            fs::create_dir(&deep).unwrap();
            fs::write(deep.join("file"), level.to_string()).unwrap();
        }
        for number in 0..1000 {
            let wide = source.join(format!("wide-{number}"));
            fs::create_dir(&wide).unwrap();
            fs::write(wide.join("file"), number.to_string()).unwrap();
        }
    });
    let target = place.path("target");
    restore_under(&place, &["prlimit", "--nofile=256"], &target).expect(0);
    sample::assert_same(&source, &target);
}
