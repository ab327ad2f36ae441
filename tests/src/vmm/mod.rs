//! The tests' own virtual machine monitor: one processor, two memory regions, real KVM.
//!
//! It does on its side what Firecracker does: saves a paused machine as a flat memory file and a state file, and
//! resumes by registering empty memory with a userfaultfd and handing that to the process that listens on a socket.
//!
//! - `changes` the guest's changes between snapshots, and Diff files of them
//! - `guest`   the code that runs inside, and the processor state that it needs
//! - `memory`  mappings, discarded pages, page fault registration

#![expect(unsafe_code, reason = "KVM is told of raw memory")]

mod changes;
pub mod guest;
pub mod memory;

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use memory::{Faults, PAGE, Region};

/// The lower region holds code and page tables; the upper one, distant in the guest, the stamped pages.
const LOW_BYTES: usize = 4 << 20;
const HIGH_GUEST: u64 = 256 << 20;
/// The larger pages that memory can be made of.
pub const HUGE_PAGE: u64 = 2 << 20;

/// A machine with its memory.
#[derive(Debug)]
pub struct Machine {
    vcpu: VcpuFd,
    /// The machine of the processor above, which must not close before it.
    vm: VmFd,
    regions: [Arc<Region>; 2],
    pages: u64,
    is_tracked: bool,
    /// Kept open to the end, as Firecracker does: the handler takes its end for ours.
    handler: Option<(Faults, UnixStream)>,
}

/// The guest's findings, and how long after the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    /// The guest ran its first instruction.
    pub resumed: Duration,
    /// It had seen its first page.
    pub first_page: Duration,
    /// It had seen all its pages.
    pub all_pages: Duration,
    /// Pages that it found discarded.
    pub zero_pages: u64,
}

/// A page with wrong contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The guest read something other than the stamp.
    WrongPage {
        /// Counted from the first stamped page.
        page: u64,
        /// The word that was read.
        found: u64,
        /// The stamp.
        expected: u64,
    },
    /// The processor stopped: a page could not be had.
    Stopped,
}

/// Pages behind the stamped ones that were never written.
fn zero_pages(pages: u64) -> u64 {
    pages / 2
}

fn map_regions(pages: u64, page_size: u64) -> [Arc<Region>; 2] {
    assert!(pages.is_power_of_two(), "the guest counts pages with a mask");
    let high = (pages + zero_pages(pages)) as usize * PAGE;
    assert!(HIGH_GUEST + high as u64 <= guest::MAPPED_BYTES, "{pages} pages are more than the guest maps");
    let low = Region::map(0, 0, LOW_BYTES, page_size);
    [low, Region::map(HIGH_GUEST, LOW_BYTES as u64, high, page_size)].map(Arc::new)
}

impl Machine {
    /// A machine about to stamp `pages` pages, a power of two. Diffs can be saved of it if it tracks written pages.
    pub fn boot(pages: u64, is_tracked: bool) -> Self {
        let regions = map_regions(pages, PAGE as u64);
        regions[0].write(guest::CODE as usize, guest::code());
        for (address, entry) in guest::page_tables() {
            regions[0].write(address as usize, &entry.to_le_bytes());
        }
        let mut machine = Self::build(regions, pages, is_tracked);
        let mut sregs = machine.vcpu.get_sregs().expect("special registers");
        guest::enter_long_mode(&mut sregs);
        machine.set_state(&guest::registers(HIGH_GUEST, pages, zero_pages(pages)), &sregs);
        machine
    }

    fn build(regions: [Arc<Region>; 2], pages: u64, is_tracked: bool) -> Self {
        let kvm = Kvm::new().expect("/dev/kvm");
        let vm = kvm.create_vm().expect("a machine");
        for (slot, region) in (0..).zip(&regions) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: if is_tracked { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                guest_phys_addr: region.guest,
                memory_size: region.len as u64,
                userspace_addr: region.host,
            };
            // SAFETY: the region stays mapped as long as the machine that holds both, and is only accessed through raw
            // pointers, so the guest may write it at any time.
            unsafe { vm.set_user_memory_region(slot) }.expect("guest memory");
        }
        let vcpu = vm.create_vcpu(0).expect("a processor");
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("processor features");
        vcpu.set_cpuid2(&cpuid).expect("processor features");
        Self { vcpu, vm, regions, pages, is_tracked, handler: None }
    }

    fn set_state(&mut self, regs: &kvm_regs, sregs: &kvm_sregs) {
        self.vcpu.set_sregs(sregs).expect("special registers");
        self.vcpu.set_regs(regs).expect("registers");
    }

    /// Runs until the guest has stamped its pages.
    pub fn stamp(&mut self) {
        assert_eq!(self.run(), Ok(guest::STAMPED));
    }

    /// Runs until the guest reports something.
    fn run(&mut self) -> Result<u16, Failure> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::WRONG, _)) => {
                    let regs = self.vcpu.get_regs().expect("registers");
                    return Err(Failure::WrongPage { page: regs.r14, found: regs.rdx, expected: regs.rbx });
                }
                Ok(VcpuExit::IoOut(port, _)) => return Ok(port),
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
                Ok(_) | Err(_) => return Err(Failure::Stopped),
            }
        }
    }

    /// Runs until the guest has checked every page. Pages in `may_be_zero`, counted from the first stamped one, may
    /// also have been discarded.
    pub fn check(&mut self, start: Instant, may_be_zero: std::ops::Range<u64>) -> Result<Checked, Failure> {
        let mut regs = self.vcpu.get_regs().expect("registers");
        (regs.r10, regs.r11) = (may_be_zero.start, may_be_zero.end);
        self.vcpu.set_regs(&regs).expect("registers");
        let mut checked = Checked::default();
        loop {
            match self.run()? {
                // The state may have been saved before the processor went past this instruction.
                guest::STAMPED => {}
                guest::RESUMED => checked.resumed = start.elapsed(),
                guest::FIRST_CHECKED => checked.first_page = start.elapsed(),
                guest::ALL_CHECKED => break,
                port => panic!("the guest wrote to port {port:#x}"),
            }
        }
        checked.all_pages = start.elapsed();
        checked.zero_pages = self.vcpu.get_regs().expect("registers").r15;
        Ok(checked)
    }

    /// Closes its own ends of the page faults: the handler's ends must suffice.
    pub fn hang_up(&mut self) {
        self.handler = None;
    }

    /// The region that holds the stamped pages.
    pub fn stamped(&self) -> Arc<Region> {
        Arc::clone(&self.regions[1])
    }

    /// How many pages are stamped.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Writes all of the memory and the state file of the paused machine, both synced. With `has_holes` pages of zeroes
    /// are missing from the file, as in a sparse copy of it.
    pub fn save(&self, memory: &Path, state: &Path, has_holes: bool) {
        let file = File::create(memory).expect("the memory file is created");
        let total = self.regions.iter().map(|region| region.len as u64).sum();
        file.set_len(total).expect("the memory file is sized");
        let mut bytes = [0; PAGE];
        for region in &self.regions {
            for page in 0..region.len / PAGE {
                region.read_page(page, &mut bytes);
                if !has_holes || bytes.iter().any(|byte| *byte != 0) {
                    file.write_all_at(&bytes, region.offset + (page * PAGE) as u64)
                        .expect("memory is written");
                }
            }
        }
        file.sync_all().expect("the memory file is synced");
        if self.is_tracked {
            self.take_dirty();
        }
        self.save_state(state);
    }

    fn save_state(&self, state: &Path) {
        let regs = self.vcpu.get_regs().expect("registers");
        let sregs = self.vcpu.get_sregs().expect("special registers");
        let text = json!({ "pages": self.pages, "regs": regs, "sregs": sregs }).to_string();
        std::fs::write(state, text).expect("the state file is written");
    }

    /// A machine out of a state file, its memory empty and handed to the handler that listens on `socket`. The
    /// handshake says that its pages have `page_size` bytes, and they have if those are 4096 or 2 MiB.
    pub fn resume(socket: &Path, state: &Path, page_size: u64) -> std::io::Result<Self> {
        let state: Value = serde_json::from_slice(&std::fs::read(state)?)?;
        let pages = state["pages"].as_u64().expect("a state file of this monitor");
        let regs: kvm_regs = serde_json::from_value(state["regs"].clone())?;
        let sregs: kvm_sregs = serde_json::from_value(state["sregs"].clone())?;
        let mapped_size = if page_size == HUGE_PAGE { page_size } else { PAGE as u64 };
        let regions = map_regions(pages, mapped_size);
        let faults = Faults::register(&regions);
        let stream = UnixStream::connect(socket)?;
        hand_over(&stream, &faults, &regions, page_size)?;
        let mut machine = Self::build(regions, pages, false);
        machine.handler = Some((faults, stream));
        machine.set_state(&regs, &sregs);
        Ok(machine)
    }
}

/// The handshake, word for word as Firecracker sends it.
fn hand_over(
    stream: &UnixStream,
    faults: &Faults,
    regions: &[Arc<Region>],
    page_size: u64,
) -> std::io::Result<()> {
    let listed: Vec<Value> = regions
        .iter()
        .map(|region| {
            json!({
                "base_host_virt_addr": region.host,
                "size": region.len,
                "offset": region.offset,
                "page_size": page_size,
                "page_size_kib": page_size,
            })
        })
        .collect();
    send(stream, &serde_json::to_vec(&listed)?, &[faults.as_fd()])
}

/// Sends bytes with descriptors attached, at most one.
pub fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty())?;
    assert_eq!(sent, bytes.len());
    Ok(())
}
