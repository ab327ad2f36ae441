//! A process with stamped memory, made to be dumped and resumed.
//!
//! `pattern_writer SOCKET PAGES [--family]` stamps PAGES pages in two areas and answers on a unix socket, one line per
//! line: `check` looks at every byte; `change COUNT VERSION` stamps pages again; `discard FIRST COUNT` discards pages;
//! `move` moves the second area and grows it; `fork` lets a new child check everything; `brood COUNT` forks children
//! that make SOCKET.here, discard a page and check everything once SOCKET.go exists, and names them; `where` lists the
//! areas. With `--family` a child does the same on SOCKET.child, and another child is a zombie. A page that is neither
//! its stamp nor rightly zero is answered with `bad PAGE` and noted in SOCKET.bad.

#![expect(unsafe_code, reason = "fork, mremap and madvise over stamped memory have no safe interface")]

use std::ffi::c_void;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
/// The expected version of a discarded page.
const DISCARDED: u64 = u64::MAX;
/// Pages by which `move` grows the second area.
const GROWTH: usize = 16;

/// A mapping that holds consecutive stamped pages, then perhaps zero pages.
struct Area {
    address: usize,
    first_page: usize,
    pages: usize,
    zero_pages: usize,
}

struct PatternWriter {
    areas: [Area; 2],
    versions: Vec<u64>,
    socket: String,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, pages, flags @ ..] = &arguments[..] else {
        panic!("usage: pattern_writer SOCKET PAGES [--family]")
    };
    let pages = pages.parse().expect("a number of pages");
    rustix::process::setsid().expect("a session of its own");
    let mut writer = PatternWriter::new(socket.clone(), pages);
    if flags.iter().any(|flag| flag == "--family") {
        if fork() == 0 {
            writer.socket += ".child";
        } else if fork() == 0 {
            std::process::exit(0);
        }
    }
    writer.serve();
}

/// Forks this single-threaded process; 0 in the child.
fn fork() -> i32 {
    // SAFETY: there is only this thread, so the child has no lock that another one holds.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    pid
}

fn stamp(page: usize, version: u64, word: usize) -> u64 {
    let mut mixed = (page as u64) << 20 ^ version << 52 ^ (word % 128) as u64 ^ 0x5DEE_CE66_D1CE_4E5B;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ mixed >> 31) | 1
}

fn map(pages: usize) -> usize {
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    let mapped = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            pages * PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    mapped.expect("memory") as usize
}

impl Area {
    fn word(&self, place: usize, word: usize) -> *mut u64 {
        assert!(place < self.pages + self.zero_pages && word < WORDS);
        (self.address + place * PAGE + word * 8) as *mut u64
    }

    fn write(&self, place: usize, version: u64) {
        for word in 0..WORDS {
            let value = stamp(self.first_page + place, version, word);
            // SAFETY: inside the mapping (asserted by `word`), aligned, and no reference into it exists.
            unsafe { self.word(place, word).write_volatile(value) };
        }
    }

    fn is_right(&self, place: usize, version: u64) -> bool {
        (0..WORDS).all(|word| {
            // SAFETY: as in `write`.
            let found = unsafe { self.word(place, word).read_volatile() };
            let is_zero = version == DISCARDED || place >= self.pages;
            found == if is_zero { 0 } else { stamp(self.first_page + place, version, word) }
        })
    }
}

impl PatternWriter {
    fn new(socket: String, pages: usize) -> Self {
        let second = pages / 4;
        let first = pages - second;
        let areas = [
            Area { address: map(first), first_page: 0, pages: first, zero_pages: 0 },
            Area { address: map(second), first_page: first, pages: second, zero_pages: 0 },
        ];
        let writer = Self { areas, versions: vec![0; pages], socket };
        for area in &writer.areas {
            (0..area.pages).for_each(|place| area.write(place, 0));
        }
        writer
    }

    /// The first wrong page, searched in large strides.
    fn find_bad(&self) -> Option<usize> {
        let total: usize = self.areas.iter().map(|area| area.pages + area.zero_pages).sum();
        let stride = ((total / 2) | 1..).find(|stride| gcd(*stride, total) == 1).expect("primes are endless");
        (0..total).map(|step| step * stride % total).find(|page| {
            let split = self.areas[0].pages;
            let (area, place) =
                if *page < split { (&self.areas[0], *page) } else { (&self.areas[1], *page - split) };
            let version = self.versions.get(area.first_page + place).copied().unwrap_or(0);
            !area.is_right(place, version)
        })
    }

    fn check(&self) -> String {
        let Some(page) = self.find_bad() else { return "ok".to_owned() };
        std::fs::write(format!("{}.bad", self.socket), page.to_string()).expect("the wrong page is noted");
        format!("bad {page}")
    }

    fn change(&mut self, count: usize, version: u64) {
        let area = &self.areas[0];
        for place in (0..count).map(|step| step * (area.pages / count)) {
            area.write(place, version);
            self.versions[place] = version;
        }
    }

    fn discard(&mut self, first: usize, count: usize) {
        assert!(first + count <= self.areas[0].pages);
        let start = (self.areas[0].address + first * PAGE) as *mut c_void;
        // SAFETY: inside the first area (asserted), into which no reference exists.
        unsafe { rustix::mm::madvise(start, count * PAGE, Advice::LinuxDontNeed) }.expect("given back");
        self.versions[first..first + count].fill(DISCARDED);
    }

    fn relocate(&mut self) {
        let area = &mut self.areas[1];
        let new_pages = area.pages + area.zero_pages + GROWTH;
        let target = map(new_pages) as *mut c_void;
        let (old_len, new_len) = ((area.pages + area.zero_pages) * PAGE, new_pages * PAGE);
        let source = area.address as *mut c_void;
        // SAFETY: the source is the area's own mapping, the target was just mapped and is nobody's; no reference into
        // either exists.
        let moved =
            unsafe { rustix::mm::mremap_fixed(source, old_len, new_len, MremapFlags::MAYMOVE, target) };
        area.address = moved.expect("moved") as usize;
        area.zero_pages += GROWTH;
    }

    fn check_in_child(&self) -> String {
        let child = fork();
        if child == 0 {
            std::process::exit(if self.check() == "ok" { 0 } else { 1 });
        }
        let child = rustix::process::Pid::from_raw(child);
        let (_, status) = rustix::process::waitpid(child, rustix::process::WaitOptions::empty())
            .expect("the child is waited for")
            .expect("the child has ended");
        if status.exit_status() == Some(0) { "ok".to_owned() } else { format!("bad child {status:?}") }
    }

    /// Forks children that make a file, wait for another, discard a page and then look at everything.
    fn brood(&mut self, children: usize) -> String {
        let mut pids = Vec::new();
        for _ in 0..children {
            match fork() {
                0 => {
                    // SAFETY: nothing in this child uses a descriptor that it has inherited.
                    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                    let go = format!("{}.go", self.socket);
                    while !std::path::Path::new(&go).exists() {
                        std::thread::park_timeout(std::time::Duration::from_millis(5));
                        std::fs::write(format!("{}.here", self.socket), "").expect("written");
                    }
                    self.discard(0, 1);
                    self.check();
                    std::process::exit(0);
                }
                pid => pids.push(pid.to_string()),
            }
        }
        pids.join(" ")
    }

    fn answer(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words[index].parse().expect("a number");
        match words[0] {
            "check" => return self.check(),
            "fork" => return self.check_in_child(),
            "change" => self.change(number(1), number(2) as u64),
            "discard" => self.discard(number(1), number(2)),
            "move" => self.relocate(),
            "brood" => return self.brood(number(1)),
            "where" => {
                let listed = self.areas.iter().map(|area| format!("{} {}", area.address, area.pages));
                return listed.collect::<Vec<_>>().join(" ");
            }
            unknown => panic!("unknown request {unknown}"),
        }
        "done".to_owned()
    }

    fn serve(&mut self) {
        let listener = UnixListener::bind(&self.socket).expect("the socket is free");
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            for line in BufReader::new(&stream).lines() {
                // The asking process may be gone before the answer.
                let Ok(line) = line else { break };
                let answer = self.answer(&line);
                if writeln!(&stream, "{answer}").is_err() {
                    break;
                }
            }
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
