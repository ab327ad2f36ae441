//! The output and exit code of `backup` when its source moves, has attributes that cannot be read, or is very deep.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use tests::scripted_fuse::{Asked, Node, Nodes, ROOT, ScriptedMount};
use tests::snapctl::Place;

const LEN: usize = 1 << 20;

/// A mount on which `gone` goes when it is opened, `log` grows and `short` shrinks while they are read.
fn restless(place: &Place) -> ScriptedMount {
    let directory = place.path("mount");
    fs::create_dir(&directory).unwrap();
    let nodes = Nodes::from([
        (ROOT, Node::directory(&[("gone", 2), ("log", 3), ("short", 4), ("still", 5)])),
        (2, Node::file(0o644, b"gone")),
        (3, Node::file(0o644, &[b'l'; LEN])),
        (4, Node::file(0o644, &[b's'; LEN])),
        (5, Node::file(0o644, b"still")),
    ]);
    let (mut lookups, mut reads) = (0, [0; 8]);
    ScriptedMount::new(&directory, nodes, move |request, nodes| {
        lookups += usize::from(request.asked == Asked::Lookup && request.name == "gone");
        if lookups == 2 {
            nodes.get_mut(&ROOT).unwrap().names.remove("gone");
        }
        if request.asked == Asked::Read {
            let node = nodes.get_mut(&request.node).unwrap();
            reads[request.node as usize] += 1;
            match request.node {
                3 => node.bytes.extend_from_slice(&[b'x'; LEN]),
                4 if reads[4] == 2 => node.bytes.truncate(LEN / 2),
                _ => {}
            }
            node.len_bytes = node.bytes.len() as u64;
        }
        Ok(())
    })
}

#[test]
fn a_restless_source_is_stored_as_it_was_read_and_what_moved_is_told() {
    let place = Place::with_store();
    let mount = restless(&place);
    let source = place.path("mount");
    let run = place.run(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let run = run.says("1 names vanished").complains("changed while it was read").complains("grew");
    let run = run.complains(&format!("it was {LEN} bytes long and ended after"));
    assert!(!run.stderr.contains("gone") && !run.stderr.contains("still"), "{}", run.stderr);
    assert_eq!(place.run(["ls", "web"]).expect(0).text(), "log\nshort\nstill\n");
    assert_eq!(place.run(["cat", "web:log"]).expect(0).stdout, [b'l'; LEN]);
    assert_eq!(place.run(["cat", "web:short"]).expect(0).stdout, [b's'; LEN / 2]);
    drop(mount);

    let place = Place::with_store();
    let mount = restless(&place);
    let source = place.path("mount");
    let quiet = ["backup".as_ref(), source.as_os_str(), "web".as_ref(), "-q".as_ref(), "--json".as_ref()];
    let run = place.run(quiet).expect(0);
    assert_eq!(run.stderr, "");
    let report = run.json();
    assert_eq!(report["bytes"], LEN + LEN / 2 + 5);
    assert_eq!(report["files"], 3);
    assert_eq!(report["vanished"].as_array().unwrap().len(), 1);
    assert_eq!(report["changed"].as_array().unwrap().len(), 2);
    drop(mount);

    let place = Place::with_store();
    let _mount = restless(&place);
    let source = place.path("mount");
    place
        .run(["backup".as_ref(), source.as_os_str(), "web".as_ref(), "-v".as_ref()])
        .expect(0)
        .complains("vanished: ")
        .complains("mount/gone");
}

#[test]
fn an_attribute_that_cannot_be_read_makes_a_backup_partial() {
    let place = Place::with_store();
    let directory = place.path("mount");
    fs::create_dir(&directory).unwrap();
    let file = Node::file(0o644, b"bytes");
    let nodes = Nodes::from([
        (ROOT, Node::directory(&[("closed", 2), ("f", 3)])),
        (2, Node { list_error: Some(libc::EPERM), ..Node::directory(&[("f", 3)]) }),
        (3, Node { xattrs: [("user.odd\x1b[1m".to_owned(), Err(libc::EIO))].into(), ..file }),
    ]);
    let _mount = ScriptedMount::new(&directory, nodes, |_, _| Ok(()));
    let run = place.run(["backup".as_ref(), directory.as_os_str(), "web".as_ref()]).expect(3);
    let run = run.complains("mount/closed: cannot list its extended attributes").complains("user.odd");
    assert!(!run.stderr.contains('\x1b'), "{:?}", run.stderr);
    assert_eq!(place.run(["ls", "-R", "web"]).expect(0).text(), "closed\nclosed/f\nf\n");
    assert_eq!(place.run(["cat", "web:closed/f"]).expect(0).text(), "bytes");
}

/// Far more directories lie in each other than descriptors may be open.
#[test]
fn a_tree_deeper_than_descriptors_may_be_open_is_stored_whole() {
    let place = Place::with_store();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    let mut at = rustix::fs::open(&source, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for number in 0..1500 {
        let file =
            rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR)
                .unwrap();
        rustix::io::write(&file, number.to_string().as_bytes()).unwrap();
        rustix::fs::mkdirat(&at, "level", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&at, "other", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "level", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    let script = "ulimit -n 1024; exec \"$@\"";
    let run = |command: Command| {
        let mut limited = Command::new("sh");
        limited.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
        limited.env("TORPOR_STORE", &place.store).env("HOME", place.path("home"));
        let output = limited.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let backup = ["backup".as_ref(), source.as_os_str(), "web".as_ref(), "--json".as_ref()];
    let report: serde_json::Value = serde_json::from_slice(&run(place.command(backup))).unwrap();
    assert_eq!((&report["files"], &report["directories"]), (&1500.into(), &3001.into()));
    let bottom = format!("web:{}file", "level/".repeat(1499));
    assert_eq!(run(place.command(["cat", &bottom])), b"1499");
    let removed = Command::new("rm").arg("-rf").arg(&source).status().unwrap();
    assert!(removed.success());
}

#[test]
fn a_pattern_that_is_none_is_refused_by_its_name() {
    let place = Place::with_store();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    for pattern in ["a/[", "*.{o,a}", "!keep", "", "./x", "a\\"] {
        let run = place.run([
            "backup".as_ref(),
            source.as_os_str(),
            "web".as_ref(),
            "--exclude".as_ref(),
            pattern.as_ref(),
        ]);
        run.expect(2).complains(&format!("`{pattern}`")).complains("--help");
    }
    place.run(["backup", "--help"]).expect(0).says("**/x").says("directories only");
}
