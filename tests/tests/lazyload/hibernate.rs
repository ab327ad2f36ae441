//! Processes that hibernate again before all their memory was there: pages that userfaultfd had not brought are not in
//! the dump, and must be in the next resume.

use std::path::{Path, PathBuf};
use std::process::Command;

use lazyload::{Captured, criu};
use store::{Image, Kind, Unwatched};

use crate::process::{PatternWriter, capture, criu as criu_command, has_missing_pages, resume};
use crate::support::{Fixture, wait_for};

const PAGES: usize = 4096;

/// A hibernated process, and its image.
fn asleep(fixture: &Fixture, flags: &[&str]) -> (PatternWriter, Image) {
    let mut writer = PatternWriter::start(fixture, PAGES, flags);
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, _) = capture(fixture, &dumped, None);
    (writer, image)
}

/// Resumes a process, has it do something, and dumps it at once.
fn wake_and_dump(
    fixture: &Fixture,
    image: &Image,
    writer: &mut PatternWriter,
    (name, prefetch): (&str, bool),
    act: impl FnOnce(&PatternWriter) + Send,
) -> PathBuf {
    let dumped = fixture.path(&format!("{name} dumped"));
    let (report, ()) = resume(fixture, image, writer, (name, prefetch, &[]), |writer, _| {
        // It answers as soon as it runs, with hardly a page of its own.
        wait_for("the process runs", || writer.try_ask("", "where"));
        act(writer);
        writer.dump(&dumped);
    });
    let report = report.expect("served");
    assert!(prefetch || report.never_brought > 0, "{report:?}");
    dumped
}

/// Resumes a process and has it look at every page.
fn check(fixture: &Fixture, image: &Image, writer: &mut PatternWriter, name: &str) {
    let (report, ()) = resume(fixture, image, writer, (name, true, &[]), |writer, _| {
        assert_eq!(writer.ask("check"), "ok");
        writer.end();
    });
    assert_eq!(report.expect("served").poisoned, 0);
    assert_eq!(writer.bad_page(), None);
}

fn captured(fixture: &Fixture, dumped: &Path, parent: &Image) -> (Image, Captured) {
    capture(fixture, dumped, Some(parent))
}

/// The error of a capture that is refused; nothing moves.
fn refused(fixture: &Fixture, dumped: &Path, parent: Option<&Image>) -> String {
    let error = criu::capture(&mut fixture.writer(), dumped, parent, &Unwatched).expect_err("refused");
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    let text = error.to_string();
    assert!(text.contains("woken lazily"), "{text}");
    text
}

#[test]
fn a_process_that_is_dumped_as_soon_as_it_runs_wakes_with_every_page() {
    let fixture = Fixture::new();
    let (mut writer, mut image) = asleep(&fixture, &[]);
    for (round, prefetch) in [(1, false), (2, true), (3, false)] {
        let name = format!("wake {round}");
        let dumped = wake_and_dump(&fixture, &image, &mut writer, (&name, prefetch), |_| ());
        let (next, again) = captured(&fixture, &dumped, &image);
        assert!(prefetch || again.not_brought > PAGES as u64 / 2, "{again:?}");
        assert!(again.stats.new < 200, "it costs what changed: {again:?}");
        image = next;
    }
    check(&fixture, &image, &mut writer, "checked");
}

#[test]
fn changes_before_the_dump_are_kept() {
    let fixture = Fixture::new();
    let (mut writer, image) = asleep(&fixture, &[]);
    let dumped = wake_and_dump(&fixture, &image, &mut writer, ("wake", false), |writer| {
        for line in ["discard 100 400", "change 30 5", "move", "discard 700 3", "move"] {
            assert_eq!(writer.ask(line), "done", "{line}");
        }
    });
    let (next, again) = captured(&fixture, &dumped, &image);
    assert!(again.not_brought > 2000, "{again:?}");
    check(&fixture, &next, &mut writer, "checked");
    // Discarded pages are zero, whichever image is the parent: the bytes come from the one that was resumed.
    let (alone, _) = capture(&fixture, &dumped, None);
    check(&fixture, &alone, &mut writer, "checked alone");
}

#[test]
fn a_family_and_what_it_forks_keep_their_pages() {
    let fixture = Fixture::new();
    let (mut writer, image) = asleep(&fixture, &["--family"]);
    let dumped = wake_and_dump(&fixture, &image, &mut writer, ("wake", false), |writer| {
        assert_eq!(writer.ask("discard 100 400"), "done");
        assert_eq!(writer.try_ask(".child", "discard 900 50").as_deref(), Some("done"));
        assert!(!writer.ask("brood 2").is_empty());
        let here = format!("{}.here", writer.socket.display());
        wait_for("the children run", || Path::new(&here).exists().then_some(()));
    });
    let (next, again) = captured(&fixture, &dumped, &image);
    assert!(again.not_brought > 4 * PAGES as u64 / 2, "{again:?}");
    let (report, ()) = resume(&fixture, &next, &mut writer, ("checked", true, &[]), |writer, _| {
        assert_eq!(writer.ask("check"), "ok");
        let child = wait_for("the child", || writer.try_ask(".child", "check"));
        assert_eq!(child, "ok");
        writer.release_brood();
        let children = format!("/proc/{0}/task/{0}/children", writer.pid);
        let living = |pid: &&str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        wait_for("the forked children look at everything and end", || {
            let children = std::fs::read_to_string(&children).ok()?;
            (children.split_whitespace().filter(living).count() == 1).then_some(())
        });
        writer.end();
    });
    assert_eq!(report.expect("served").poisoned, 0);
    assert_eq!(writer.bad_page(), None);
}

#[test]
fn a_dump_of_a_process_that_runs_on_is_whole() {
    let fixture = Fixture::new();
    let (mut writer, image) = asleep(&fixture, &[]);
    let dumped = fixture.path("left running");
    let (report, (during, after)) =
        resume(&fixture, &image, &mut writer, ("wake", false, &[]), |writer, _| {
            assert_eq!(writer.ask("discard 100 400"), "done");
            writer.dump_and_leave_running(&dumped);
            let during = captured(&fixture, &dumped, &image);
            // Pages brought after the dump are missing from it.
            assert_eq!(writer.ask("check"), "ok");
            // A change that must not be in the dump.
            assert_eq!(writer.ask("discard 600 10"), "done");
            let after = criu::capture(&mut fixture.writer(), &dumped, Some(&image), &Unwatched);
            writer.end();
            (during, after)
        });
    assert_eq!(report.expect("served").poisoned, 0);
    let (next, first) = during;
    assert!(first.not_brought > 2000, "{first:?}");
    check(&fixture, &next, &mut writer, "checked");
    // Later, that is known if the handler saw the dump being made; otherwise it is refused.
    match after {
        Ok(again) => assert_eq!(again.not_brought, first.not_brought),
        Err(error) => assert!(error.to_string().contains("after the dump was made"), "{error}"),
    }
}

#[test]
fn a_dump_of_a_process_whose_memory_is_all_there_is_taken_as_it_is() {
    let fixture = Fixture::new();
    let (mut writer, image) = asleep(&fixture, &[]);
    let dumped = fixture.path("whole");
    let (report, ()) = resume(&fixture, &image, &mut writer, ("wake", true, &[]), |writer, _| {
        wait_for("the process runs", || writer.try_ask("", "where"));
        wait_for("all memory is there", || (!has_missing_pages(writer.pid)).then_some(()));
        // No handler hears of this any more: pages missing from a complete process are zero.
        assert_eq!(writer.ask("discard 100 400"), "done");
        assert_eq!(writer.ask("move"), "done");
        writer.dump(&dumped);
    });
    assert_eq!(report.expect("served").never_brought, 0);
    let (next, again) = captured(&fixture, &dumped, &image);
    assert_eq!(again.not_brought, 0, "{again:?}");
    check(&fixture, &next, &mut writer, "checked");
}

#[test]
fn without_the_knowledge_a_dump_is_refused() {
    let fixture = Fixture::new();
    let (mut writer, image) = asleep(&fixture, &[]);
    let dumped = wake_and_dump(&fixture, &image, &mut writer, ("wake", false), |writer| {
        assert_eq!(writer.ask("discard 100 400"), "done");
    });
    let page_map = dumped.join(format!("pagemap-{}.img", writer.pid));
    let written = page_map.metadata().and_then(|found| found.modified()).expect("its time");
    let set = |time| std::fs::File::open(&page_map).and_then(|file| file.set_modified(time)).expect("set");
    set(written - std::time::Duration::from_secs(3600));
    let text = refused(&fixture, &dumped, Some(&image));
    assert!(text.contains("after the dump was made"), "{text}");
    set(written);

    let records = fixture.store.state_dir().join("wakes");
    let hidden = fixture.path("hidden");
    std::fs::rename(&records, &hidden).expect("hidden");
    for parent in [None, Some(&image)] {
        let text = refused(&fixture, &dumped, parent);
        assert!(text.contains("no record"), "{text}");
    }
    std::fs::rename(&hidden, &records).expect("back");
    // A killed handler reports nothing at the end.
    for entry in std::fs::read_dir(&records).expect("listed") {
        let path = entry.expect("listed").path();
        let text = std::fs::read_to_string(&path).expect("lines");
        let kept: String =
            text.lines().filter(|line| !line.contains("ended")).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, kept).expect("cut");
        let error = refused(&fixture, &dumped, Some(&image));
        assert!(error.contains("handler"), "{error}");
        std::fs::write(&path, text).expect("complete again");
    }
    let (next, _) = captured(&fixture, &dumped, &image);
    check(&fixture, &next, &mut writer, "checked");
}

#[test]
fn a_whole_directory_is_restored_by_criu_alone_and_one_with_holes_is_not() {
    let fixture = Fixture::new();
    let (mut writer, image) = asleep(&fixture, &[]);
    let dumped = wake_and_dump(&fixture, &image, &mut writer, ("wake", false), |_| ());
    let (image, _) = captured(&fixture, &dumped, &image);
    let (lazy, whole) = (fixture.path("lazy"), fixture.path("whole"));
    criu::materialize(&image, &fixture.store, &lazy).expect("materialized");
    criu::restore(&image, &fixture.store, &whole, &Unwatched).expect("restored");
    let plain = |images: &Path| -> Command {
        let mut command = criu_command();
        command.arg("restore").arg("-d").arg("-D").arg(images).args(["-o", "restore.log"]);
        command
    };
    let status = plain(&lazy).status().expect("criu runs");
    assert!(!status.success(), "a directory with holes was restored");
    writer.wait_until_free();
    let status = plain(&whole).status().expect("criu runs");
    assert!(status.success(), "{}", std::fs::read_to_string(whole.join("restore.log")).unwrap_or_default());
    assert_eq!(writer.ask("check"), "ok");
    assert_eq!(writer.bad_page(), None);
    writer.end();
}

#[test]
fn arguments_and_environment_are_there_before_the_other_pages() {
    let fixture = Fixture::new();
    let mut writer = PatternWriter::start(&fixture, PAGES, &[]);
    let shown =
        |pid: i32| ["cmdline", "environ"].map(|name| std::fs::read(format!("/proc/{pid}/{name}")).ok());
    let before = shown(writer.pid);
    assert!(before.iter().flatten().all(|bytes| !bytes.is_empty()));
    let dumped = fixture.path("dumped");
    writer.dump(&dumped);
    let (image, _) = capture(&fixture, &dumped, None);
    let more = ("stopped", false, &["--leave-stopped"][..]);
    let (report, after) = resume(&fixture, &image, &mut writer, more, |writer, images| {
        let log = || std::fs::read_to_string(images.join("restore.log")).unwrap_or_default();
        wait_for("the restore", || log().contains("Restore finished successfully").then_some(()));
        let after = shown(writer.pid);
        assert!(has_missing_pages(writer.pid));
        writer.end();
        after
    });
    assert!(report.expect("served").never_brought > PAGES as u64 / 2);
    assert_eq!(before, after);
}
