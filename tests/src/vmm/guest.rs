//! The guest: a loop that stamps pages, checks them, and reports to its monitor through ports.
//!
//! It runs in 64-bit mode with identity paging. Registers are its arguments and its report; it needs nothing in memory
//! except its code, its page tables and the pages themselves.

#![expect(
    unsafe_code,
    reason = "the guest's code is assembled into the program and read between two symbols"
)]

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// The guest writes to this port when every page is stamped.
pub const STAMPED: u16 = 0x10;
/// When a check begins.
pub const RESUMED: u16 = 0x11;
/// When the first page was right.
pub const FIRST_CHECKED: u16 = 0x12;
/// When all pages were right.
pub const ALL_CHECKED: u16 = 0x13;
/// When a page was wrong.
pub const WRONG: u16 = 0x14;
/// When pages were made zero again.
pub const CLEARED: u16 = 0x15;

/// Where the code lies in guest memory.
pub const CODE: u64 = 0x8000;
/// Where the page tables lie.
const TABLES: u64 = 0x1000;
/// The tables map this much of guest memory, one to one.
pub const MAPPED_BYTES: u64 = 1 << 30;

/// Stamp of page `n`: `SEED + n * STEP`; its last eight bytes hold the complement.
pub const SEED: u64 = 0x5441_4D50_0000_0001;
/// See [`SEED`].
pub const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
/// Pages are checked in this order: every one once, neighbours at a distance.
const STRIDE: u64 = 0x1_3579;

std::arch::global_asm!(
    ".pushsection .rodata",
    ".global torpor_guest_start",
    ".global torpor_guest_end",
    "torpor_guest_start:",
    // rdi: first stamped page; rcx: how many, a power of two; r8, r9: seed and step; r10..r11: pages that may be zero;
    // r12: pages after the stamped ones that are zero; r13: stride.
    "    xor rax, rax",
    "    mov rbx, r8",
    "    mov rsi, rdi",
    "2:  mov [rsi], rbx",
    "    mov rdx, rbx",
    "    not rdx",
    "    mov [rsi + 0xff8], rdx",
    "    add rbx, r9",
    "    add rsi, 0x1000",
    "    inc rax",
    "    cmp rax, rcx",
    "    jb 2b",
    "    out 0x10, al",
    // A resumed machine goes on here, and here again after each complete check.
    "3:  out 0x11, al",
    "    xor rax, rax",
    "    xor r14, r14",
    "    xor r15, r15",
    "4:  mov rbx, r14",
    "    imul rbx, r9",
    "    add rbx, r8",
    "    mov rsi, r14",
    "    shl rsi, 12",
    "    add rsi, rdi",
    "    mov rdx, [rsi]",
    "    cmp rdx, rbx",
    "    jne 7f",
    "    not rbx",
    "    mov rdx, [rsi + 0xff8]",
    "    cmp rdx, rbx",
    "    jne 7f",
    "5:  test rax, rax",
    "    jnz 6f",
    "    out 0x12, al",
    "6:  add r14, r13",
    "    mov rdx, rcx",
    "    dec rdx",
    "    and r14, rdx",
    "    inc rax",
    "    cmp rax, rcx",
    "    jb 4b",
    // The zero pages, in order.
    "    mov r14, rcx",
    "    mov rax, r12",
    "    mov rsi, rcx",
    "    shl rsi, 12",
    "    add rsi, rdi",
    "    xor rbx, rbx",
    "8:  test rax, rax",
    "    jz 9f",
    "    mov rdx, [rsi]",
    "    test rdx, rdx",
    "    jnz 12f",
    "    add rsi, 0x1000",
    "    inc r14",
    "    dec rax",
    "    jmp 8b",
    "9:  out 0x13, al",
    "    jmp 3b",
    // Not the stamp: allowed if it is zero and the page may have been discarded.
    "7:  test rdx, rdx",
    "    jnz 12f",
    "    cmp r14, r10",
    "    jb 12f",
    "    cmp r14, r11",
    "    jae 12f",
    "    inc r15",
    "    jmp 5b",
    "12: out 0x14, al",
    "    jmp 12b",
    // Makes the stamps of rcx pages from rdi zero.
    ".global torpor_guest_clear",
    "torpor_guest_clear:",
    "    xor rax, rax",
    "    mov rsi, rdi",
    "13: mov [rsi], rax",
    "    mov [rsi + 0xff8], rax",
    "    add rsi, 0x1000",
    "    dec rcx",
    "    jnz 13b",
    "    out 0x15, al",
    "torpor_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static torpor_guest_start: u8;
    static torpor_guest_end: u8;
    static torpor_guest_clear: u8;
}

/// Address of the code that makes pages zero again: `rcx` of them from `rdi`.
pub fn clear_code() -> u64 {
    let start = &raw const torpor_guest_start;
    let clear = &raw const torpor_guest_clear;
    CODE + (clear as u64 - start as u64)
}

/// The guest's code.
pub fn code() -> &'static [u8] {
    let start = &raw const torpor_guest_start;
    let end = &raw const torpor_guest_end;
    // SAFETY: both symbols stand in the same read-only section, the end after the start, with only the code between.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Identity page tables: one table of each upper level and one of 2 MiB pages, as (address, entry) pairs.
pub fn page_tables() -> Vec<(u64, u64)> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const HUGE: u64 = 1 << 7;
    let (third, second) = (TABLES + 0x1000, TABLES + 0x2000);
    let mut entries = vec![(TABLES, third | PRESENT_WRITABLE), (third, second | PRESENT_WRITABLE)];
    let huge_pages = MAPPED_BYTES >> 21;
    entries.extend((0..huge_pages).map(|page| (second + page * 8, page << 21 | HUGE | PRESENT_WRITABLE)));
    entries
}

/// Registers of a machine about to stamp `pages` pages at `first`, with `zero_pages` behind them.
pub fn registers(first: u64, pages: u64, zero_pages: u64) -> kvm_regs {
    kvm_regs {
        rip: CODE,
        rflags: 2,
        rdi: first,
        rcx: pages,
        r8: SEED,
        r9: STEP,
        r12: zero_pages,
        r13: STRIDE,
        ..kvm_regs::default()
    }
}

/// Puts the processor into 64-bit mode over the tables above.
pub fn enter_long_mode(sregs: &mut kvm_sregs) {
    let segment = |kind: u8, selector: u16| kvm_segment {
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment { l: 1, ..segment(11, 8) };
    let data = kvm_segment { db: 1, ..segment(3, 16) };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = TABLES;
    sregs.cr4 = 1 << 5;
    sregs.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1;
    sregs.efer = 1 << 10 | 1 << 8;
}
