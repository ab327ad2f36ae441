//! Permissions: access control lists and set-id bits are on a mount what they are on the file system beside it.

use crate::{HELPER, run};
use std::path::Path;
use std::process::Command;
use tests::snapfs_mount::World;

/// Makes files with lists by every way there is, in the directory that is its argument.
const MAKE_LISTS: &str = r#"
set -e
cd "$0"; umask 027
mkdir d; setfacl -m u:1001:rwx,g:1002:r-x d; setfacl -d -m u:1001:rw-,g:1002:--- d
touch d/f; mkdir d/sub; touch d/sub/g; (umask 0; touch d/open; mkdir d/opendir); mkfifo d/pipe; ln -s f d/link
(umask 077; touch d/tight; mkdir d/tightdir); mknod d/null c 1 3
chmod 2775 d/opendir; mkdir d/opendir/x; touch d/opendir/y
setfacl -k d/sub; touch d/sub/after
echo x > denied; setfacl -m u:1001:--- denied; chmod 644 denied
echo x > masked; setfacl -m u:1001:rw- masked; chmod 640 masked; cp -a masked copy; chmod g+w masked
echo x > none; setfacl -m u:1001:rw- none; setfacl -x u:1001 none
echo x > gone; setfacl -m u:1001:rw- gone; setfacl -b gone
echo x > narrow; setfacl -m m::r,u:1001:rwx narrow
echo x > plain; setfacl -m u::rw,g::r,o::- plain
as() { setpriv --reuid 1001 --regid 1001 "$@"; }
for group in 1001 1002; do
  echo x > by$group; chown 1001:1002 by$group; chmod 2755 by$group
  as --groups $group setfacl -m u:1003:r by$group
done
! as --clear-groups setfacl -m u:1001:r denied 2>/dev/null
! setfacl -d -m u:1001:r denied 2>/dev/null
"#;

/// Prints the list and the mode of everything below its argument, and what three users may read and write.
const SHOW_LISTS: &str = r#"
cd "$0"
find . ! -type l | sort | while read -r path; do stat -c "%n %a %u %g" "$path"; getfacl -pn "$path"; done
for user in 1001 1002 1003; do for path in denied masked copy none gone narrow plain d/f d/open d/tight d/sub/g; do
  as="setpriv --reuid $user --regid $user --clear-groups sh -c"
  if $as "cat $path" >/dev/null 2>&1; then echo "$user reads $path"; fi
  if $as ": >> $path" >/dev/null 2>&1; then echo "$user writes $path"; fi
done; done
"#;

fn sh(script: &str, directory: &Path) -> String {
    run(Command::new("sh").arg("-c").arg(script).arg(directory))
}

#[test]
fn access_lists_are_enforced_inherited_and_kept_by_snapshots() {
    let world = World::with_empty_base(HELPER);
    let beside = world.make("beside");
    sh("chmod 755 \"$0\"", world.directory.path());
    let served = world.mount("base", "mnt", "upper", &[]);
    for directory in [&beside, &served.mountpoint] {
        sh(MAKE_LISTS, directory);
    }
    let expected = sh(SHOW_LISTS, &beside);
    assert!(expected.contains("1001 reads masked") && !expected.contains("1001 reads denied"), "{expected}");
    let assert_same = |found: &str, context: &str| assert_eq!(found, expected, "{context}");
    assert_same(&sh(SHOW_LISTS, &served.mountpoint), "as it was made");
    served.unmount();
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_same(&sh(SHOW_LISTS, &served.mountpoint), "by the journal");
    let report = served.freeze("base");
    assert_same(&sh(SHOW_LISTS, &served.mountpoint), "after a freeze");
    served.unmount();
    let restored = world.restore(&report.snapshot, "restored");
    assert_same(&sh(SHOW_LISTS, &restored), "restored");
    let served = world.mount("base", "mnt", "upper", &[]);
    assert_same(&sh(SHOW_LISTS, &served.mountpoint), "of the snapshot");
    sh("chmod 600 \"$0/masked\"", &served.mountpoint);
    sh("chmod 600 \"$0\"/masked", &beside);
    assert_eq!(
        sh(SHOW_LISTS, &served.mountpoint),
        sh(SHOW_LISTS, &beside),
        "a list of the snapshot, changed"
    );
    served.unmount();
}

/// Changes files in every way by callers of every kind and prints the mode that each file has afterwards, and whether
/// its file capability is still there.
const CHANGE_SET_ID: &str = r#"
import ctypes, itertools, mmap, os, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
KEEP_CAPABILITIES, FSETID = 8, 4

def become(user, is_member, may_keep):
    os.setgroups([1002] if is_member else [])
    os.setresgid(user, user, user)
    libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setresuid(user, user, user)
    held = 1 << FSETID if may_keep else 0
    words = (ctypes.c_uint32 * 6)(held, held, 0, 0, 0, 0)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert libc.capset(head, words) == 0

def allocate(mode, offset, length):
    def change(path):
        file = os.open(path, os.O_RDWR)
        assert libc.fallocate(file, mode, ctypes.c_long(offset), ctypes.c_long(length)) == 0
    return change

def direct(path):
    file = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.pwritev(file, [mmap.mmap(-1, 4096)], 0)

def mapped(path):
    with mmap.mmap(os.open(path, os.O_RDWR), 4096) as memory:
        memory[0:1] = b'x'
        memory.flush()

def copy(path):
    os.copy_file_range(os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR), 100, 0, 8000)

changes = {
    'truncate': lambda path: os.truncate(path, 10),
    'ftruncate': lambda path: os.ftruncate(os.open(path, os.O_RDWR), 10),
    'open': lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
    'allocate': allocate(0, 0, 100_000), 'punch': allocate(3, 0, 4096), 'zero': allocate(16, 0, 4096),
    'copy': copy, 'write': lambda path: os.write(os.open(path, os.O_RDWR), b'x'),
    'append': lambda path: os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'x'),
    'direct': direct, 'mapped': mapped, 'chown': lambda path: os.chown(path, -1, 1002),
}
modes = [0o6777, 0o6767, 0o2666, 0o6666, 0o2676, 0o4644]
for user, is_member, may_keep, mode, change in itertools.product([0, 1001], [0, 1], [0, 1], modes, changes):
    for capability in [0, 1]:
        path = f'{user}{is_member}{may_keep}{mode:o}{change}{capability}'
        with open(path, 'wb') as file:
            file.write(bytes(20_000))
        os.chown(path, user if change == 'chown' else 0, 1002)
        os.chmod(path, mode | 0o006)
        # Root's write to a file with both is left out: SEMANTICS.md says what differs.
        if capability and may_keep:
            continue
        if capability:
            os.setxattr(path, 'security.capability', bytes([0, 0, 0, 2]) + bytes(16))
        child = os.fork()
        if child == 0:
            become(user, is_member, may_keep)
            try:
                changes[change](path)
            except PermissionError:
                print(path, 'refused', flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, path
        names = os.listxattr(path)
        # The shell's stat asks for the mode alone, which the kernel may answer by itself.
        print(path, oct(statx_mode(path)), names, flush=True)
        os.unlink(path)
"#;

/// Asks for the mode alone: the kernel answers from what it remembers, unless it was made to forget.
const MODE_ALONE: &str = r#"
import ctypes
def statx_mode(path):
    buffer = (ctypes.c_uint8 * 256)()
    assert ctypes.CDLL(None).statx(-100, path.encode(), 0, 2, buffer) == 0
    return int.from_bytes(bytes(buffer[28:30]), 'little')
"#;

#[test]
fn set_id_bits_and_file_capabilities_go_as_on_the_file_system_beside() {
    let world = World::with_empty_base(HELPER);
    let beside = world.make("beside");
    sh("chmod 755 \"$0\"", world.directory.path());
    let served = world.mount("base", "mnt", "upper", &[]);
    let script = format!("{MODE_ALONE}{CHANGE_SET_ID}");
    let change = |directory: &Path| run(Command::new("python3").arg("-c").arg(&script).arg(directory));
    let (expected, found) = (change(&beside), change(&served.mountpoint));
    for (expected, found) in expected.lines().zip(found.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
    served.unmount();
}
