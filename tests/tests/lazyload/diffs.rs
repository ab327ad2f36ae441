//! Firecracker's Diff files: applied to their parent image without reading the parts that they leave out, and refused
//! where it is not certain which those are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lazyload::memory_file::{self, MemorySource, MemoryType};
use lazyload::{Captured, firecracker};
use rustix::fs::{FallocateFlags, SeekFrom};
use store::{Error, Image, Kind, PAGE, Result, Unwatched};

use crate::guest::{Saved, resume};
use crate::support::{Fixture, Random, Running, json};

const PAGES: u64 = 4096;
const PAGE_BYTES: u64 = PAGE as u64;

fn capture_machine(
    fixture: &Fixture,
    memory: &Path,
    state: &Path,
    diff_to: Option<&Image>,
) -> (Image, Captured) {
    let memory_type = diff_to.map(|_| MemoryType::Diff);
    let memory = MemorySource { path: memory, memory_type, parent: diff_to };
    let mut captured = None;
    let image = fixture.commit("vm", |writer| {
        let found = firecracker::capture(writer, memory, state, &Unwatched).expect("captured");
        captured = Some(found);
        found.image
    });
    (image, captured.expect("captured"))
}

/// Plain memory as an image, if it is taken.
fn capture(
    fixture: &Fixture,
    path: &Path,
    memory_type: Option<MemoryType>,
    parent: Option<&Image>,
) -> Result<(Image, Captured)> {
    let mut writer = fixture.writer();
    let found = memory_file::capture(&mut writer, MemorySource { path, memory_type, parent }, &Unwatched)?;
    let draft = store::SnapshotDraft { image: Some(found.image), ..store::SnapshotDraft::default() };
    writer.commit("raw", draft)?;
    Ok((fixture.store.image(&found.image)?, found))
}

/// Puts the data of a file over bytes, and leaves them where the file has holes.
fn apply(bytes: &mut [u8], path: &Path) {
    let file = File::open(path).expect("a memory file");
    let mut offset = 0;
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(offset)) {
        offset = rustix::fs::seek(&file, SeekFrom::Hole(data)).expect("every stretch of data ends");
        file.read_exact_at(&mut bytes[data as usize..offset as usize], data).expect("read");
    }
}

fn assert_holds(image: &Image, expected: &[u8]) {
    let mut found = [0; PAGE];
    for (page, expected) in (0..).zip(expected.as_chunks::<PAGE>().0) {
        image.read_page(0, page, &mut found).expect("read");
        assert!(found == *expected, "page {page} differs");
    }
}

#[test]
fn diffs_of_a_guest_are_applied_one_after_the_other_and_every_page_is_right() {
    let fixture = Fixture::new();
    let (memory, state) = (fixture.path("memory"), fixture.path("state"));
    let mut save = Command::new(env!("CARGO_BIN_EXE_vmm"));
    save.arg("save").arg("--memory").arg(&memory).arg("--state").arg(&state);
    let (status, _) = Running::start(save.args(["--pages", &PAGES.to_string(), "--diffs", "2"])).finish();
    assert!(status.success(), "the machine is saved");
    let next = |path: &Path, number: &str| path.with_extension(number);

    let (full, _) = capture_machine(&fixture, &memory, &state, None);
    let mut expected = std::fs::read(&memory).expect("the memory file");
    let mut images = vec![full];
    for number in ["1", "2"] {
        let (memory, state) = (next(&memory, number), next(&state, number));
        apply(&mut expected, &memory);
        let (image, captured) = capture_machine(&fixture, &memory, &state, images.last());
        assert!((50..2000).contains(&captured.stats.new), "only what changed is written: {captured:?}");
        assert!(captured.stats.inherited > PAGES / 2 && captured.stats.zeroed > 0, "{captured:?}");
        assert_holds(&image, &expected);
        images.push(image);
    }
    // The guest itself finds wrong pages in the first two, and none in the last.
    for (image, number) in images.into_iter().zip(0..) {
        let state = if number == 0 { state.clone() } else { next(&state, &number.to_string()) };
        let directory = tempfile::tempdir().expect("a directory");
        let fixture = Fixture { store: image.store().clone(), directory };
        let saved = Saved { fixture, memory: PathBuf::new(), state, image };
        let (report, machine) = resume(&saved, true, &[]);
        let (status, line) = machine.finish();
        assert_eq!(status.code(), Some(if number == 2 { 0 } else { 3 }), "{}", json(line));
        report.expect("served");
    }
}

/// A file of so many pages with data in the given ones only.
fn sparse_file(fixture: &Fixture, name: &str, pages: u64, data: &[(u64, &[u8])]) -> PathBuf {
    let path = fixture.path(name);
    let file = File::create(&path).expect("created");
    file.set_len(pages * PAGE_BYTES).expect("sized");
    for (page, bytes) in data {
        file.write_all_at(bytes, page * PAGE_BYTES).expect("written");
    }
    path
}

fn noise(seed: u64, pages: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..pages).flat_map(|_| random.page()).collect()
}

#[test]
fn a_chain_of_diffs_stays_right_and_in_few_frames() {
    let fixture = Fixture::new();
    let mut expected = noise(1, 600);
    expected[300 * PAGE..350 * PAGE].fill(0);
    let path = fixture.path("full");
    std::fs::write(&path, &expected).expect("written");
    let (mut image, _) = capture(&fixture, &path, None, None).expect("captured");
    let mut random = Random(2);
    let mut declined = 0;
    for number in 0..40 {
        let pages: Vec<(u64, [u8; PAGE])> = (0..30)
            .map(|_| (random.below(600), if random.below(8) == 0 { [0; PAGE] } else { random.page() }))
            .collect();
        let data: Vec<(u64, &[u8])> = pages.iter().map(|(page, bytes)| (*page, bytes.as_slice())).collect();
        let path = sparse_file(&fixture, &format!("diff {number}"), 600, &data);
        for (page, bytes) in &pages {
            expected[*page as usize * PAGE..][..PAGE].copy_from_slice(bytes);
        }
        let (next, captured) =
            capture(&fixture, &path, Some(MemoryType::Diff), Some(&image)).expect("captured");
        assert!(captured.stats.new + captured.stats.zero <= 30, "{captured:?}");
        declined += captured.stats.declined;
        assert_holds(&next, &expected);
        image = next;
    }
    assert!(declined > 0, "pages of sparse groups are written again");
    assert!(image.frame_count() < 3 * 600 / 16, "{} frames", image.frame_count());
}

fn assert_refused(outcome: Result<(Image, Captured)>, part: &str) {
    let error: Error = outcome.map(drop).expect_err(part);
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    assert!(error.to_string().contains(part), "{part:?} is not said: {error}");
}

#[test]
fn what_may_be_a_diff_or_a_full_file_is_refused_until_it_is_said() {
    let fixture = Fixture::new();
    let full = fixture.path("full");
    let expected = noise(3, 64);
    std::fs::write(&full, &expected).expect("written");
    let changed = noise(4, 1);
    let diff = sparse_file(&fixture, "diff", 64, &[(10, &changed)]);
    let filled = fixture.path("filled");
    std::fs::write(&filled, std::fs::read(&diff).expect("read")).expect("written");
    let cut = fixture.path("cut");
    std::fs::write(&cut, &expected[..60 * PAGE]).expect("written");

    assert_refused(capture(&fixture, &diff, None, None), "holes");
    let (parent, _) = capture(&fixture, &full, None, None).expect("captured");
    assert_refused(capture(&fixture, &diff, None, Some(&parent)), "--diff");
    assert_refused(capture(&fixture, &filled, None, Some(&parent)), "63 of the 64 pages");
    assert_refused(capture(&fixture, &cut, None, Some(&parent)), "cut short");
    // Declared full, each is the complete memory, holes and all.
    for path in [&diff, &filled, &cut] {
        let (image, _) = capture(&fixture, path, Some(MemoryType::Full), Some(&parent)).expect("captured");
        assert_holds(&image, &std::fs::read(path).expect("read"));
        assert_eq!(image.spaces()[0].len_bytes, path.metadata().expect("there").len());
    }
}

#[test]
fn a_diff_that_does_not_say_for_sure_what_it_leaves_out_is_refused() {
    let fixture = Fixture::new();
    let full = fixture.path("full");
    let expected = noise(5, 64);
    std::fs::write(&full, &expected).expect("written");
    let (parent, _) = capture(&fixture, &full, None, None).expect("captured");
    let is_diff = Some(MemoryType::Diff);
    let (one, half) = (noise(6, 1), noise(7, 1)[..1024].to_vec());

    let longer = sparse_file(&fixture, "longer", 65, &[(1, &one)]);
    assert_refused(capture(&fixture, &longer, is_diff, Some(&parent)), "266240");
    let diff = sparse_file(&fixture, "diff", 64, &[(1, &one)]);
    assert_refused(capture(&fixture, &diff, is_diff, None), "--parent");
    assert_refused(capture(&fixture, &full, is_diff, Some(&parent)), "no hole");
    // The same memory, but of a machine.
    let state = fixture.path("state");
    std::fs::write(&state, "state").expect("written");
    let machine = fixture.commit("vm", |writer| {
        let source = MemorySource { path: &full, memory_type: None, parent: None };
        firecracker::capture(writer, source, &state, &Unwatched).expect("captured").image
    });
    assert_refused(capture(&fixture, &diff, is_diff, Some(&machine)), "kind Firecracker");
    // A file system that knows nothing of holes smaller than its huge pages, and one that is not known at all.
    let _mounted = Mount::new(&fixture, "huge", &["-t", "tmpfs", "-o", "huge=always,size=64m", "none"]);
    let huge = sparse_file(&fixture, "huge/diff", 64, &[(1, &half)]);
    assert_refused(capture(&fixture, &huge, is_diff, Some(&parent)), "bytes a block");
    let _mounted = Mount::new(&fixture, "ram", &["-t", "ramfs", "none"]);
    let ram = sparse_file(&fixture, "ram/diff", 64, &[(1, &one)]);
    assert_refused(capture(&fixture, &ram, is_diff, Some(&parent)), "not known to keep holes");

    let (image, captured) = capture(&fixture, &diff, is_diff, Some(&parent)).expect("captured");
    assert_eq!((captured.stats.inherited, captured.stats.new), (63, 1));
    let mut expected = expected;
    apply(&mut expected, &diff);
    assert_holds(&image, &expected);
}

#[test]
fn space_that_was_allocated_ahead_and_read_is_a_hole_all_the_same() {
    let fixture = Fixture::new();
    let full = fixture.path("full");
    let mut expected = noise(8, 64);
    std::fs::write(&full, &expected).expect("written");
    let (parent, _) = capture(&fixture, &full, None, None).expect("captured");
    let path = fixture.path("diff");
    let file = File::create_new(&path).expect("created");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 64 * PAGE_BYTES).expect("allocated");
    let one = noise(9, 1);
    file.write_all_at(&one, 20 * PAGE_BYTES).expect("written");
    std::fs::read(&path).expect("read");
    let (image, _) = capture(&fixture, &path, Some(MemoryType::Diff), Some(&parent)).expect("captured");
    expected[20 * PAGE..21 * PAGE].copy_from_slice(&one);
    assert_holds(&image, &expected);
}

/// A file system mounted in the fixture's directory until dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(fixture: &Fixture, name: &str, arguments: &[&str]) -> Self {
        let path = fixture.path(name);
        std::fs::create_dir(&path).expect("a directory");
        let status = Command::new("mount").args(arguments).arg(&path).status().expect("mount");
        assert!(status.success(), "{arguments:?} is mounted");
        Self(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    }
}
