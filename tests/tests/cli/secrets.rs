//! SE2 and SE3: a hundred canaries are written into an encrypted domain in every way there is, read and served in every
//! way there is, and searched for in every byte that stays behind; then the domain is destroyed. And no other process
//! reads the memory of one that holds keys.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::snapctl::{Place, Run, binary};

use crate::domains::Tenant;
use crate::sample;

const PAGE: usize = 4096;
/// Bytes decompressed of each zstd frame that a search meets.
const MAX_DECOMPRESSED: u64 = 4 << 20;

/// The words that must not be found, by where they are put.
struct Canaries(Vec<String>);

impl Canaries {
    fn new() -> Canaries {
        let word = |number: usize| {
            let digits: String =
                sample::noise(number as u64 + 77, 9).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("canary{number:02}{digits}")
        };
        Canaries((0..100).map(word).collect())
    }

    fn group(&self, tens: usize) -> &[String] {
        &self.0[tens * 10..tens * 10 + 10]
    }

    /// Those found in a file: in its bytes, and in the decompressed bytes of any zstd frame in it.
    fn found_in(&self, bytes: &[u8], found: &mut BTreeSet<String>) {
        self.search(bytes, found);
        let magics = bytes.windows(4).enumerate().filter(|(_, window)| *window == [0x28, 0xb5, 0x2f, 0xfd]);
        for (start, _) in magics {
            let Ok(decoder) = zstd::stream::read::Decoder::new(&bytes[start..]) else { continue };
            let mut plain = Vec::new();
            // A frame that does not decompress to its end may hold some all the same.
            let _ = decoder.take(MAX_DECOMPRESSED).read_to_end(&mut plain);
            self.search(&plain, found);
        }
    }

    fn search(&self, bytes: &[u8], found: &mut BTreeSet<String>) {
        for (at, _) in bytes.windows(6).enumerate().filter(|(_, window)| *window == b"canary") {
            let rest = &bytes[at..];
            found.extend(self.0.iter().filter(|word| rest.starts_with(word.as_bytes())).cloned());
        }
    }

    /// Those found below a directory, in contents and names; and how many bytes were searched.
    fn found_below(&self, directory: &Path, found: &mut BTreeSet<String>) -> u64 {
        let mut searched = 0;
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            self.search(entry.file_name().as_encoded_bytes(), found);
            if path.is_dir() {
                searched += self.found_below(&path, found);
            } else if let Ok(bytes) = fs::read(&path) {
                searched += bytes.len() as u64;
                self.found_in(&bytes, found);
            }
        }
        searched
    }
}

/// Tens of canaries: 0 file contents that compress, 1 contents among noise, 2 file names, 3 names of directories and
/// links, 4 attributes, 5 names of refs, 6 labels, 7 memory, 8 state of a machine, 9 data written into a mount.
fn make_source(source: &Path, canaries: &Canaries) {
    fs::create_dir(source).unwrap();
    for (number, word) in canaries.group(0).iter().enumerate() {
        fs::write(source.join(format!("text-{number}")), format!("{word} is a secret. ").repeat(3000))
            .unwrap();
    }
    for (number, word) in canaries.group(1).iter().enumerate() {
        let mut bytes = sample::noise(number as u64, 60_000);
        bytes[30_000..30_000 + word.len()].copy_from_slice(word.as_bytes());
        fs::write(source.join(format!("noise-{number}")), bytes).unwrap();
    }
    for (number, word) in canaries.group(2).iter().enumerate() {
        fs::write(source.join(word), number.to_string()).unwrap();
    }
    for (number, word) in canaries.group(3).iter().enumerate() {
        match number % 2 {
            0 => fs::create_dir(source.join(word)).unwrap(),
            _ => symlink(word, source.join(format!("link-{number}"))).unwrap(),
        }
    }
    for word in canaries.group(4) {
        let file = File::open(source.join("text-0")).unwrap();
        let name = format!("user.{}", &word[..20]);
        rustix::fs::fsetxattr(&file, name, word.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
    }
}

/// Memory with a canary in each of ten pages far apart, and a state file with ten.
fn make_memory(memory: &Path, state: &Path, canaries: &Canaries) {
    let mut pages = vec![0; 400 * PAGE];
    for (number, word) in canaries.group(7).iter().enumerate() {
        let at = (number * 40 + 3) * PAGE;
        pages[at..at + PAGE].copy_from_slice(&sample::noise(number as u64 + 500, PAGE));
        pages[at + 100..at + 100 + word.len()].copy_from_slice(word.as_bytes());
    }
    fs::write(memory, pages).unwrap();
    let text: String = canaries.group(8).iter().map(|word| format!("{word} of a register\n")).collect();
    fs::write(state, text.repeat(300)).unwrap();
}

/// Runs of commands whose standard error is kept: their log.
struct Watched<'a> {
    tenant: &'a Tenant,
    domain: &'a str,
    log: String,
}

impl Watched<'_> {
    fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&mut self, arguments: I) -> Run {
        let variables = [
            ("TORPOR_STORE", self.tenant.place.store.as_os_str()),
            ("TORPOR_DOMAIN", OsStr::new(self.domain)),
            ("TORPOR_LOG", OsStr::new("trace")),
        ];
        let run = self.tenant.place.run_with(&variables, arguments).expect(0);
        self.log.push_str(&run.stderr);
        run
    }
}

/// Writes all canaries into a domain, and reads them back, in every way that leaves something behind.
fn live(tenant: &Tenant, domain: &str, canaries: &Canaries, outside: &Path) -> String {
    let mut watched = Watched { tenant, domain, log: String::new() };
    let [source, memory, state, mounted, upper, target] =
        ["source", "memory", "state", "mounted", "upper", "target"].map(|name| outside.join(name));
    make_source(&source, canaries);
    make_memory(&memory, &state, canaries);
    for directory in [&mounted, &upper] {
        fs::create_dir(directory).unwrap();
    }
    let os = OsStr::new;
    for (name, label) in canaries.group(5).iter().zip(canaries.group(6)) {
        let label = format!("note={label}");
        watched.run([os("backup"), source.as_os_str(), os(name), os("--label"), os(&label)]);
    }
    let (first, second) = (&canaries.group(5)[0], &canaries.group(5)[1]);
    watched.run([
        os("capture"),
        os("vm"),
        os("--firecracker"),
        memory.as_os_str(),
        os("--vmstate"),
        state.as_os_str(),
    ]);
    watched.run([os("capture"), os("raw"), os("--raw"), memory.as_os_str()]);
    watched.run([os("restore"), os(first), target.as_os_str()]);
    for typed in [
        &["snapshots"][..],
        &["show", first],
        &["ls", first, "-lR"],
        &["cat", &format!("{first}:text-0")],
        &["diff", first, second],
        &["stats"],
        &["check", "--read-data"],
        &["gc", "--cycles", "2"],
        &["domain", "list"],
        &["index", "rebuild"],
    ] {
        watched.run(typed);
    }
    watched.run([os("mount"), os(first), mounted.as_os_str(), os("--read-only")]);
    for entry in fs::read_dir(&mounted).unwrap().flatten() {
        let _ = fs::read(entry.path());
    }
    // While it is mounted its session and locks are there, too.
    let mut found = BTreeSet::new();
    canaries.found_below(&tenant.place.store, &mut found);
    if domain != "default" {
        assert!(found.is_empty(), "while mounted: {found:?}");
    }
    watched.run([os("umount"), mounted.as_os_str()]);
    watched.run([os("mount"), os(first), mounted.as_os_str(), os("--upper"), upper.as_os_str()]);
    for (number, word) in canaries.group(9).iter().enumerate() {
        fs::write(mounted.join(format!("written-{number}")), word.repeat(200)).unwrap();
    }
    watched.run([os("freeze"), mounted.as_os_str()]);
    watched.run([os("umount"), mounted.as_os_str()]);
    watched.run(["forget", second, "--keep-last", "1"]);
    watched.log
}

fn outside(place: &Place, name: &str) -> PathBuf {
    let directory = place.path(name);
    fs::create_dir(&directory).unwrap();
    directory
}

#[test]
fn no_canary_of_an_encrypted_domain_is_found_anywhere() {
    let canaries = Canaries::new();
    let tenant = Tenant::new();
    // The search finds all of them where nothing is encrypted.
    let control = Tenant::new();
    live(&control, "default", &canaries, &outside(&control.place, "outside"));
    let mut found = BTreeSet::new();
    canaries.found_below(&control.place.store, &mut found);
    let missed: Vec<&String> = canaries.0.iter().filter(|word| !found.contains(*word)).collect();
    assert!(missed.is_empty(), "the search misses {missed:?}");

    let log = live(&tenant, "acme", &canaries, &outside(&tenant.place, "outside"));
    let mut found = BTreeSet::new();
    let searched = canaries.found_below(&tenant.place.store, &mut found);
    canaries.search(log.as_bytes(), &mut found);
    assert!(found.is_empty(), "in {searched} bytes and {} of log: {found:?}", log.len());
    // Nor are keys found, raw and in hexadecimal.
    let hexadecimal = "29".repeat(32);
    for bytes in all_files(&tenant.place.store).into_iter().chain([log.clone().into_bytes()]) {
        assert!(!bytes.windows(32).any(|window| window == [41; 32]));
        assert!(!bytes.windows(64).any(|window| window == hexadecimal.as_bytes()));
    }
    println!(
        "100 of 100 canaries found in clear, 0 of 100 in {searched} encrypted bytes and {} of log",
        log.len()
    );

    tenant.run(["domain", "destroy", "acme", "--yes-destroy", "acme"]).expect(0);
    let mut found = BTreeSet::new();
    canaries.found_below(&tenant.place.store, &mut found);
    assert!(found.is_empty(), "{found:?}");
    tenant.inside(["snapshots"]).expect(2).complains("destroyed");
    let report = tenant.run(["check", "--read-data", "--json"]).expect(0).json();
    assert!(report["locked_frames"].as_u64().unwrap() > 0, "frames are there that nobody can read");
    tenant.run(["gc", "--cycles", "3"]).expect(0);
    let report = tenant.run(["check", "--read-data", "--json"]).expect(0).json();
    assert_eq!((&report["packs"], &report["locked_frames"]), (&json!(0), &json!(0)));
}

fn all_files(directory: &Path) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(all_files(&path));
        } else if let Ok(bytes) = fs::read(&path) {
            files.push(bytes);
        }
    }
    files
}

/// A process of a user other than root, busy with a domain's data: another of the same user may not look into it.
#[test]
fn nobody_dumps_a_process_that_holds_keys() {
    let tenant = Tenant::new();
    let source = tenant.place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), sample::noise(3, 4 << 20)).unwrap();
    tenant.inside(["backup".as_ref(), source.as_os_str(), "web".as_ref()]).expect(0);
    let nobody = NobodysPlace::of(&tenant);
    for (domain, may_look) in [("default", true), ("acme", false)] {
        let spec = if domain == "acme" { "web:large" } else { "plain:large" };
        if domain == "default" {
            nobody.run(&["backup", source.to_str().unwrap(), "plain"]);
        }
        // Standard output is a pipe that nobody reads: it waits with the keys in its memory.
        let mut child = nobody.command(domain, &["cat", spec]).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        await_writing(pid);
        let looks = [format!("head -c 1 /proc/{pid}/mem"), format!("cat /proc/{pid}/environ")];
        for look in &looks[1..] {
            let seen = nobody.shell(look);
            assert_eq!(seen, may_look, "{domain}: {look}");
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
        let words: Vec<&str> = core.split_whitespace().collect();
        assert_eq!(words[4..6] == ["0", "0"], !may_look, "{core}");
        assert_eq!(nobody.shell(&format!("exec 3< /proc/{pid}/mem")), may_look, "{domain}: its memory");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Waits until a process is blocked in writing to a full pipe.
fn await_writing(pid: u32) {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let stat = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        if stat.contains("pipe") {
            return;
        }
        std::thread::yield_now();
    }
    panic!("the command does not write");
}

/// The tenant's place, owned by the user 65534, and the means to run commands as that user.
struct NobodysPlace {
    store: PathBuf,
    config: PathBuf,
    program: PathBuf,
}

impl NobodysPlace {
    fn of(tenant: &Tenant) -> NobodysPlace {
        let own = |path: &Path| {
            let done = Command::new("chown").arg("-R").arg("65534:65534").arg(path).status().unwrap();
            assert!(done.success());
        };
        let config = tenant.place.path("nobody.toml");
        fs::write(&config, format!("[keys]\nfile = {:?}\n", tenant.key)).unwrap();
        let program = tenant.place.path("snapctl");
        fs::copy(binary(), &program).unwrap();
        for path in [&tenant.place.store, &tenant.key, &config] {
            own(path);
        }
        let scratch = tenant.place.path("");
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).unwrap();
        NobodysPlace { store: tenant.place.store.clone(), config, program }
    }

    fn as_nobody(program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(program);
        command.current_dir("/").env("HOME", "/nonexistent");
        command
    }

    fn command(&self, domain: &str, arguments: &[&str]) -> Command {
        let mut command = NobodysPlace::as_nobody(&self.program);
        command.args(arguments).env("TORPOR_STORE", &self.store).env("TORPOR_CONFIG", &self.config);
        command.env("TORPOR_DOMAIN", domain);
        command
    }

    fn run(&self, arguments: &[&str]) {
        let output = self.command("default", arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether a shell command of that user succeeds.
    fn shell(&self, text: &str) -> bool {
        let mut command = NobodysPlace::as_nobody(Path::new("sh"));
        command.args(["-c", text]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }
}
