//! Direct I/O beside the page cache: once a direct write is done, no read through the cache and no mapping is old.

use crate::{HELPER, run};
use std::fs;
use std::process::Command;
use tests::snapfs_mount::World;

/// Writes the file past the cache with the kernel's asynchronous calls, reads it through the cache meanwhile, and
/// compares after each write what a read, a mapping and, once a byte was changed in the mapping, a direct read show.
const ASYNCHRONOUS: &str = r#"
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
SETUP, GETEVENTS, SUBMIT, PWRITE, LEN = 206, 208, 209, 1, 65536

class Control(ctypes.Structure):
    _fields_ = [('data', ctypes.c_uint64), ('key', ctypes.c_uint32), ('flags', ctypes.c_int), ('code', ctypes.c_uint16),
                ('priority', ctypes.c_int16), ('file', ctypes.c_uint32), ('buffer', ctypes.c_uint64),
                ('length', ctypes.c_uint64), ('offset', ctypes.c_int64), ('reserved', ctypes.c_uint64 * 2)]

path = sys.argv[1]
direct, cached = os.open(path, os.O_RDWR | os.O_DIRECT), os.open(path, os.O_RDWR)
mapping, memory, back = mmap.mmap(cached, 0), mmap.mmap(-1, LEN), mmap.mmap(-1, LEN)
place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
context = ctypes.c_ulong()
assert libc.syscall(SETUP, 8, ctypes.byref(context)) == 0
old = [0, 0, 0]
for round in range(100):
    memory[:] = expected = bytes([round + 1]) * LEN
    places = range(0, 8 * LEN, LEN)
    controls = [Control(code=PWRITE, file=direct, buffer=place, length=LEN, offset=offset) for offset in places]
    pointers = (ctypes.POINTER(Control) * 8)(*map(ctypes.pointer, controls))
    assert libc.syscall(SUBMIT, context, 8, pointers) == 8, ctypes.get_errno()
    for offset in places:
        os.pread(cached, LEN, offset)
    events = (ctypes.c_int64 * 4 * 8)()
    assert libc.syscall(GETEVENTS, context, 8, 8, events, None) == 8
    assert all(event[2] == LEN for event in events)
    for offset in places:
        old[0] += os.pread(cached, LEN, offset) != expected
        old[1] += mapping[offset:offset + LEN] != expected
        mapping[offset] = 0
    mapping.flush()
    for offset in places:
        assert os.preadv(direct, [back], offset) == LEN
        old[2] += back[1:] != expected[1:]
print(*old)
"#;

#[test]
fn after_an_asynchronous_direct_write_nobody_sees_old_bytes() {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::write(source.join("file"), vec![0xff; 1 << 20]).unwrap();
    world.backup(&source, "base");
    let served = world.mount("base", "mnt", "upper", &[]);
    let said = run(Command::new("python3").arg("-c").arg(ASYNCHRONOUS).arg(served.path("file")));
    assert_eq!(
        said, "0 0 0\n",
        "old reads through the cache, through a mapping, and bytes that a mapping wrote back"
    );
    served.unmount();
}
