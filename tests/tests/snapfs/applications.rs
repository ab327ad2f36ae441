//! Programs that stress a file system, run on a mount.

use crate::{HELPER, run};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use tests::snapfs_mount::World;

const MAKEFILE: &str = "program: main.o part.o\n\tcc -o program main.o part.o\n%.o: %.c\n\tcc -c -o $@ $<\n";
const MAIN: &str =
    "#include <stdio.h>\nint part(void);\nint main(void) { printf(\"%d\\n\", part()); return 0; }\n";

fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    let names = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "safe.directory=*"];
    command.current_dir(directory).args(names).env("GIT_CONFIG_NOSYSTEM", "1");
    command
}

#[test]
fn git_clones_and_make_builds_inside_a_mount() {
    let world = World::with_empty_base(HELPER);
    let origin = world.make("origin");
    run(git(&origin).args(["init", "--quiet"]));
    fs::write(origin.join("Makefile"), MAKEFILE).unwrap();
    fs::write(origin.join("main.c"), MAIN).unwrap();
    for version in 1..=30 {
        fs::write(origin.join("part.c"), format!("int part(void) {{ return {version}; }}\n")).unwrap();
        run(git(&origin).args(["add", "--all"]));
        run(git(&origin).args(["commit", "--quiet", "--message", &format!("version {version}")]));
    }
    let served = world.mount("base", "mnt", "upper", &[]);
    let clone = served.path("clone");
    run(git(&served.mountpoint).args(["clone", "--quiet"]).arg(&origin).arg("clone"));
    run(Command::new("make").current_dir(&clone));
    assert_eq!(run(&mut Command::new(clone.join("program"))), "30\n", "a program runs from the mount");
    run(git(&clone).args(["checkout", "--quiet", "HEAD~10"]));
    run(Command::new("make").current_dir(&clone));
    assert_eq!(run(&mut Command::new(clone.join("program"))), "20\n", "make sees by its time what changed");
    run(git(&clone).args(["gc", "--quiet"]));
    let report = served.freeze("base");
    served.unmount();
    let restored = world.restore(&report.snapshot, "restored").join("clone");
    let served = world.mount("base", "mnt", "upper", &[]);
    for clone in [served.path("clone"), restored] {
        run(git(&clone).args(["fsck", "--full", "--strict"]));
        let status = run(git(&clone).args(["status", "--porcelain", "--untracked-files=no"]));
        assert_eq!(status, "", "nothing differs from what was checked out");
    }
    served.unmount();
}

/// Commits rows one by one and prints the number of each once it is committed.
const WRITER: &str = "
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute('pragma journal_mode=' + sys.argv[2])
base.execute('pragma synchronous=full')
base.execute('create table if not exists t (n integer primary key, filler blob)')
n = base.execute('select coalesce(max(n), 0) from t').fetchone()[0]
while True:
    n += 1
    base.execute('begin')
    base.execute('insert into t values (?, randomblob(3000))', (n,))
    base.execute('update t set filler = randomblob(2000) where n = ?', (n // 2,))
    base.execute('commit')
    print(n, flush=True)
";

/// Prints the result of the integrity check, the number of rows and the highest number.
const CHECKER: &str = "
import sqlite3, sys
base = sqlite3.connect(sys.argv[1])
print(base.execute('pragma integrity_check').fetchone()[0])
print(*base.execute('select count(*), max(n) from t').fetchone())
";

/// Kills the mount while SQLite commits on it, several times over, and looks at the database afterwards.
fn sqlite_survives_kills(mode: &str) {
    let world = World::with_empty_base(HELPER);
    let mut committed = 0;
    for round in 0..4 {
        let served = world.mount("base", "mnt", "upper", &[]);
        let database = served.path("database");
        let mut writer = Command::new("python3")
            .args(["-c", WRITER])
            .arg(&database)
            .arg(mode)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let stop_at = committed + 25 + 10 * round;
        while committed < stop_at {
            committed = lines.next().expect("the writer goes on").unwrap().parse().unwrap();
        }
        served.kill();
        // It may have committed more before the mount was gone.
        let last = lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).last();
        committed = last.unwrap_or(committed);
        writer.wait().unwrap();
        let served = world.mount("base", "mnt", "upper", &[]);
        let said = run(Command::new("python3").args(["-c", CHECKER]).arg(served.path("database")));
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("ok"), "{mode}, round {round}");
        let (rows, highest): (u64, u64) = {
            let mut numbers = lines.next().unwrap().split(' ').map(|number| number.parse().unwrap());
            (numbers.next().unwrap(), numbers.next().unwrap())
        };
        assert_eq!(rows, highest, "{mode}, round {round}: rows in the middle are missing");
        assert!(
            highest >= committed,
            "{mode}, round {round}: {committed} were committed, {highest} are there"
        );
        committed = highest;
        served.unmount();
    }
}

#[test]
fn sqlite_keeps_every_commit_when_the_mount_is_killed_with_a_rollback_journal() {
    sqlite_survives_kills("delete");
}

#[test]
fn sqlite_keeps_every_commit_when_the_mount_is_killed_with_a_write_ahead_log() {
    sqlite_survives_kills("wal");
}

/// Writes through a shared mapping without closing it, and checks that a private one stays private.
const MAPPER: &str = "
import mmap, sys
with open(sys.argv[1], 'r+b') as file:
    shared = mmap.mmap(file.fileno(), 0)
    private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    private[0:7] = b'private'
    shared[100000:100006] = b'shared'
    shared[5000:5003] = b'two'
    assert open(sys.argv[1], 'rb').read()[100000:100006] == b'shared'
    print('mapped', flush=True)
    sys.stdin.readline()
";

#[test]
fn shared_mappings_reach_the_file_and_the_next_freeze() {
    let world = World::new(HELPER);
    let source = world.make("source");
    fs::write(source.join("file"), vec![b'.'; 200_000]).unwrap();
    world.backup(&source, "base");
    let served = world.mount("base", "mnt", "upper", &[]);
    let mut mapper = Command::new("python3")
        .args(["-c", MAPPER])
        .arg(served.path("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut line = String::new();
    BufReader::new(mapper.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "mapped\n");
    let report = served.freeze("base");
    drop(mapper.stdin.take());
    assert!(mapper.wait().unwrap().success());
    let mut expected = vec![b'.'; 200_000];
    expected[100_000..100_006].copy_from_slice(b"shared");
    expected[5000..5003].copy_from_slice(b"two");
    assert!(fs::read(served.path("file")).unwrap() == expected);
    let restored = world.restore(&report.snapshot, "restored");
    assert!(fs::read(restored.join("file")).unwrap() == expected, "the mapping was open during the freeze");
    served.unmount();
}
