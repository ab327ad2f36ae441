//! An image as memory of this process.

use std::io::{Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use lazyload::map::map;
use store::{Kind, PAGE};

use crate::support::{Fixture, Random};

/// Random pages, zero pages and repeated pages in stretches of random length.
fn pages(count: usize) -> Vec<[u8; PAGE]> {
    let mut random = Random(0xB0BA_CAFE);
    let repeated = random.page();
    let mut pages = Vec::new();
    while pages.len() < count {
        let stretch = 1 + random.below(40) as usize;
        let kind = random.below(4);
        pages.extend((0..stretch).map(|_| match kind {
            0 => [0; PAGE],
            1 => repeated,
            _ => random.page(),
        }));
    }
    pages.truncate(count);
    pages
}

#[test]
fn every_byte_is_right_under_random_access_from_four_threads() {
    let fixture = Fixture::new();
    let pages = pages(4000);
    let (image, stats) = fixture.raw_image(&pages);
    let mapping = map(&image, 0).expect("mapped");
    assert_eq!(mapping.len(), pages.len() * PAGE);
    let read = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            let (mapping, pages, read) = (&mapping, &pages, &read);
            scope.spawn(move || {
                let mut random = Random(thread * 77);
                for _ in 0..6000 {
                    let page = random.below(pages.len() as u64) as usize;
                    assert!(mapping[page * PAGE..][..PAGE] == pages[page], "page {page} differs");
                    read.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(mapping.chunks(PAGE).eq(pages.iter().map(|page| &page[..])), "a page differs");
    assert_eq!(read.load(Ordering::Relaxed), 24_000);
    let report = mapping.unmap().expect("served to the end");
    let data = stats.pages - stats.zero;
    assert_eq!((report.spaces, report.poisoned, report.prefetched), (1, 0, 0));
    assert_eq!(report.pages, data, "each page of data is filled exactly once");
    assert!(report.faults > 0 && report.faults < data, "neighbours come along: {report:?}");
}

#[test]
fn the_kernel_itself_may_read_a_mapping() {
    let fixture = Fixture::new();
    let pages = pages(600);
    let (image, _) = fixture.raw_image(&pages);
    let mapping = map(&image, 0).expect("mapped");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&mapping).expect("written straight from the mapping");
    file.rewind().expect("rewound");
    let mut found = Vec::new();
    file.read_to_end(&mut found).expect("read");
    assert!(found.chunks(PAGE).eq(pages.iter().map(|page| &page[..])), "a page differs");
}

#[test]
fn a_dropped_mapping_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let (image, _) = fixture.raw_image(&pages(100));
    let range = {
        let mapping = map(&image, 0).expect("mapped");
        assert_ne!(mapping[..PAGE].len(), 0);
        format!("{:x}-", mapping.as_ptr() as usize)
    };
    // Another test's mapping may have taken the place, but not with this length.
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let left = maps.lines().filter(|line| line.starts_with(&range) && line.contains("r--p"));
    assert_eq!(left.count(), 0, "{maps}");
    assert_eq!(map(&image, 7).expect_err("no such space").kind(), Kind::NotFound);
}

/// Reads one page of a mapped image in a process of its own.
fn read_in_a_process(store: &std::path::Path, image: &store::Image, page: usize) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_lazyload_handler"))
        .arg("map")
        .arg(store)
        .arg(image.id().to_string())
        .arg(page.to_string())
        .stdin(Stdio::null())
        .output()
        .expect("run")
}

#[test]
fn a_page_that_cannot_be_read_is_a_bus_error_and_not_zero() {
    let fixture = Fixture::new();
    let mut random = Random(42);
    let pages: Vec<_> = (0..256).map(|_| random.page()).collect();
    let (image, _) = fixture.raw_image(&pages);
    let whole = read_in_a_process(&fixture.store_path(), &image, 200);
    assert!(whole.status.success());
    assert_eq!(whole.stdout, pages[200], "the intact store returns the page");

    let (copy, broken) = fixture.broken_copy(&image, 0.0..1.0);
    for page in [0, 17, 200, 255] {
        let output = read_in_a_process(&copy.path().join("store"), &broken, page);
        assert_eq!(output.status.signal(), Some(libc_sigbus()), "page {page}: {:?}", output.status);
        assert!(output.stdout.is_empty(), "page {page} returned bytes");
    }
}

fn libc_sigbus() -> i32 {
    rustix::process::Signal::BUS.as_raw()
}
