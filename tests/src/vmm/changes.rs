//! The guest's changes between snapshots, and their Diff files: only the pages that KVM saw being written, at their
//! places in a file that has holes everywhere else, as Firecracker writes it.
//!
//! Pages are made wrong before the Full snapshot, and corrected one part before each Diff: the guest finds all of them
//! right only if every Diff was applied, and to the right parent.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_bindings::kvm_regs;

use super::memory::PAGE;
use super::{HIGH_GUEST, Machine, guest, zero_pages};

/// The stretches of pages that part `part` of `parts` is made of, counted from the first stamped page: single ones all
/// over, a longer one, and some of those behind the stamped ones, which must be zero.
fn stretches(pages: u64, part: u64, parts: u64) -> Vec<Range<u64>> {
    let behind = pages + part * 50;
    let single = (0..pages).filter(|page| page % (101 * parts) == 101 * part).map(|page| page..page + 1);
    let long = pages / 2 + part * 100;
    [behind..behind + 17, long..long + 40].into_iter().chain(single).collect()
}

impl Machine {
    /// Makes every part wrong: other stamps, and stamps where zero belongs.
    pub fn spoil(&mut self, parts: u64) {
        let pages = self.pages;
        for stretch in (0..parts).flat_map(|part| stretches(pages, part, parts)) {
            self.restamp(stretch, !guest::SEED);
        }
        self.go_on();
    }

    /// Makes one part right, and leaves the guest where it will check all.
    pub fn mend(&mut self, part: u64, parts: u64) {
        for stretch in stretches(self.pages, part, parts) {
            if stretch.start >= self.pages {
                let count = stretch.end - stretch.start;
                self.run_at(
                    guest::clear_code(),
                    guest::registers(address(stretch.start), count, 0),
                    guest::CLEARED,
                );
            } else {
                let seed = guest::SEED.wrapping_add(stretch.start.wrapping_mul(guest::STEP));
                self.restamp(stretch, seed);
            }
        }
        self.go_on();
    }

    /// From the end of any stamping the guest goes on to check all.
    fn go_on(&mut self) {
        let rip = self.vcpu.get_regs().expect("registers").rip;
        let whole = guest::registers(HIGH_GUEST, self.pages, zero_pages(self.pages));
        self.vcpu.set_regs(&kvm_regs { rip, ..whole }).expect("registers");
    }

    fn restamp(&mut self, stretch: Range<u64>, seed: u64) {
        let registers = guest::registers(address(stretch.start), stretch.end - stretch.start, 0);
        self.run_at(guest::CODE, kvm_regs { r8: seed, ..registers }, guest::STAMPED);
    }

    fn run_at(&mut self, rip: u64, registers: kvm_regs, until: u16) {
        self.vcpu.set_regs(&kvm_regs { rip, ..registers }).expect("registers");
        assert_eq!(self.run(), Ok(until));
    }

    /// Writes the guest's changes since the last snapshot, and the state file, both synced. The memory file must be
    /// new.
    pub fn save_diff(&self, memory: &Path, state: &Path) {
        let file = File::create_new(memory).expect("the memory file is created");
        let total = self.regions.iter().map(|region| region.len as u64).sum();
        file.set_len(total).expect("the memory file is sized");
        let mut bytes = [0; PAGE];
        for (region, dirty) in self.regions.iter().zip(self.take_dirty()) {
            for page in dirty {
                region.read_page(page, &mut bytes);
                file.write_all_at(&bytes, region.offset + (page * PAGE) as u64).expect("memory is written");
            }
        }
        file.sync_all().expect("the memory file is synced");
        self.save_state(state);
    }

    /// The pages of each region that were written since this was asked last.
    pub(super) fn take_dirty(&self) -> Vec<Vec<usize>> {
        let of_region = |(slot, len)| {
            let words: Vec<u64> = self.vm.get_dirty_log(slot, len).expect("written pages are logged");
            let is_set = |page: &usize| words[page / 64] >> (page % 64) & 1 == 1;
            (0..len / PAGE).filter(is_set).collect()
        };
        (0..).zip(self.regions.iter().map(|region| region.len)).map(of_region).collect()
    }
}

/// The guest's address of a page.
fn address(page: u64) -> u64 {
    HIGH_GUEST + page * PAGE as u64
}
