//! A host of its own for the commands of a page: a shell in namespaces of its own, where every directory that the
//! commands name is scratch.
//!
//! Invariants: nothing outside the scratch directory changes, and no mount of snapfs by another test is seen; every process of
//! the host ends with the host; none lives longer than its bound.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// No host may live longer, in seconds.
const BOUND_SECONDS: &str = "240";

/// Makes the host's directories; `SCRATCH`, `BINARY`, `SOURCES` and `SHARED` are in the environment.
const SET_UP: &str = r#"
set -e
findmnt -rn -t fuse.torpor -o TARGET | while read -r target; do umount -l "$(printf '%b' "$target")" || :; done
mount -t tmpfs tmpfs "$SCRATCH"
for directory in etc var/lib usr/local; do
    own="$SCRATCH/${directory////-}"
    mkdir -p "$own/upper" "$own/work"
    mount -t overlay -o "lowerdir=/$directory,upperdir=$own/upper,workdir=$own/work" overlay "/$directory"
done
rm -rf /etc/torpor /var/lib/torpor
mkdir -p /etc/torpor /usr/local/src/torpor "$SCRATCH/home"
cp -r "$SOURCES/contrib" /usr/local/src/torpor
touch /usr/local/bin/snapctl
mount --bind "$BINARY" /usr/local/bin/snapctl
mkdir "$SCRATCH/shared"
mount --bind "$SHARED" "$SCRATCH/shared"
for directory in srv mnt run; do
    mount -t tmpfs tmpfs "/$directory"
done
mkdir /mnt/transfer
mount --bind "$SCRATCH/shared" /mnt/transfer
cd /usr/local/src/torpor
set +e
"#;

/// A shell that runs one command after the other.
pub(super) struct Host {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The output of the commands, a file for each.
    answers: PathBuf,
    commands: usize,
}

impl Host {
    /// A host whose scratch files are in `directory`, which is new; `shared` is the same for all hosts of a task.
    pub(super) fn start(directory: &Path, shared: &Path) -> Host {
        let (scratch, answers) = (directory.join("scratch"), directory.join("answers"));
        for path in [&scratch, &answers] {
            fs::create_dir_all(path).unwrap();
        }
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", BOUND_SECONDS, "unshare", "--mount", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "bash", "--noprofile", "--norc"]).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", scratch.join("home")).env("SCRATCH", scratch).env("SHARED", shared);
        command.env("BINARY", tests::snapctl::binary());
        command.env("SOURCES", Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let (input, output) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let mut host = Host { shell, input, output: BufReader::new(output), answers, commands: 0 };
        let (code, answer) = host.run(SET_UP);
        assert_eq!(code, 0, "the host could not be set up: {answer}");
        host
    }

    /// Runs a command in the shell and returns its exit code and its output.
    pub(super) fn run(&mut self, command: &str) -> (i32, String) {
        let file = self.answers.join(self.commands.to_string());
        self.commands += 1;
        let typed = format!("{{ {command}\n}} < /dev/null > '{}' 2>&1; echo $?\n", file.display());
        self.input.write_all(typed.as_bytes()).unwrap();
        let mut code = String::new();
        self.output.read_line(&mut code).unwrap();
        let answer = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
        let code = code.trim().parse();
        (code.unwrap_or_else(|_| panic!("the shell ended in {command:?}: {answer}")), answer)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The shell is the first process of its namespace: all others end with it, and its mounts go.
        drop(self.shell.kill());
        drop(self.shell.wait());
    }
}
