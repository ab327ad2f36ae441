//! docs/TASKS.md, played: every command of every section, in order, on a host of its own, with the exit code and the
//! output that the page states.
//!
//! - `page`  the sections as files and commands
//! - `host`  a shell whose directories are scratch
//! - `usage` the commands of the other documents, whose flags are looked at only
//!
//! The preconditions of a section (an app, a bucket, a damaged pack) are its *scene*: commands that run before. Missing
//! programs (systemd as the first process, Firecracker) are played by functions of the shell, which fail for what they
//! do not know.

mod host;
mod page;
mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use tests::servers::{ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedCluster};

use host::Host;
use page::{Step, Task};

/// Functions for every scene.
const PROPS: &str = r#"
app() {
    mkdir -p /srv/app/data
    echo 'port = 8000' > /srv/app/config.toml
    head -c 3000000 /dev/urandom > /srv/app/data/users.db
}
backed_up() { app; snapctl init; snapctl backup /srv/app app; }
mounted() { backed_up; mkdir -p /mnt/app; snapctl mount app /mnt/app; echo 'port = 8080' > /mnt/app/config.toml; }
kek() { (umask 077; head -c 32 /dev/urandom > /etc/torpor/kek); printf '[keys]\nfile = "/etc/torpor/kek"\n' > /etc/torpor/config.toml; }
tenant() { kek; backed_up; snapctl domain create acme; snapctl --domain acme backup /srv/app app; mkdir /mnt/safe; }
copied() { cp --remove-destination /usr/local/bin/snapctl "$1"; }
installed() { copied /run/snapctl; umount /usr/local/bin/snapctl; mv /run/snapctl /usr/local/bin/snapctl; }
bucket() { printf 'access_key = "%s"\nsecret_key = "%s"\n' "$1" "$2" > /etc/torpor/s3.toml; chmod 600 /etc/torpor/s3.toml; }
systemctl() {
    for unit in "${@:3}"; do test -f "/etc/systemd/system/$unit" || return 5; done
    case "$1 $2" in 'enable --now' | 'disable --now') ;; *) return 2 ;; esac
}
"#;

/// One test for each section: its title and its scene.
macro_rules! tasks {
    ($($name:ident: $title:literal, $scene:expr;)*) => {
        const TITLES: &[&str] = &[$($title),*];
        $(#[test] fn $name() { play_section($title, $scene); })*
    };
}

tasks! {
    a_first_backup: "Make a first backup", "app";
    restoring: "Restore one file, or everything", "backed_up; snapctl backup /srv/app app";
    what_changed: "See what changed between two snapshots",
        "backed_up; echo 'port = 80' > /srv/app/config.toml; echo new > /srv/app/data/new.db";
    a_schedule: "Schedule backups and drop old snapshots", "backed_up";
    two_hosts: "Share one bucket between two hosts", "app";
    a_lost_hot_disk: "Replace a lost hot disk of a shared store",
        r#"app; printf 'store = "/var/lib/torpor"\nshared = true\n[tiers.cold]\nbucket = "BUCKET"\nendpoint = "ENDPOINT"
prefix = "fleet-2"\ncredentials = "/etc/torpor/s3.toml"\n' > /etc/torpor/config.toml
bucket ACCESS_KEY SECRET_KEY; snapctl doctor; snapctl init; snapctl backup /srv/app app; rm -r /var/lib/torpor"#;
    a_tenant: "Give a tenant keys of its own", "backed_up; cp -r /srv/app /srv/acme";
    the_end_of_a_tenant: "Destroy a tenant",
        "tenant; mv /etc/torpor/kek /etc/torpor/acme.kek; sed -i 's/kek/acme.kek/' /etc/torpor/config.toml";
    a_copy_of_the_key: "Copy the key file and verify the copy", "tenant";
    rotation: "Rotate keys", "tenant";
    a_lost_key: "Recover from a lost key file",
        r#"tenant; od -An -v -tx1 /etc/torpor/kek | tr -d ' \n' > /mnt/safe/kek.hex
printf '[keys.beta]\nfile = "/etc/torpor/beta.kek"\n' >> /etc/torpor/config.toml
(umask 077; head -c 32 /dev/urandom > /etc/torpor/beta.kek)
snapctl domain create beta; snapctl --domain beta backup /srv/app app; rm /etc/torpor/kek /etc/torpor/beta.kek"#;
    a_full_disk: "Free a full disk",
        "mkdir /var/lib/torpor; mount -t tmpfs -o size=16m tmpfs /var/lib/torpor; backed_up; app; snapctl backup /srv/app app;
         head -c 10500000 /dev/urandom > /srv/app/data/users.db";
    damage: "Repair damaged packs",
        "backed_up; pack=$(find /var/lib/torpor/packs -type f -size +1M)
         printf x | dd of=$pack bs=1 seek=1000000 conv=notrunc";
    checks: "Check a store", "backed_up";
    a_mount: "Mount a snapshot, change it, keep the changes", "backed_up";
    discarding: "Discard the changes of a mount", "mounted";
    a_dead_mount: "Recover a dead mount", r#"backed_up; mkdir /mnt/app; pid=$(snapctl mount app /mnt/app --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
echo 'port = 8080' > /mnt/app/config.toml; kill -KILL $pid
while kill -0 $pid; do sleep 0.1; done"#;
    a_process: "Hibernate and resume a process",
        r#"snapctl init; cd /srv
(setsid python3 -c 'import os, time
os.closerange(3, 1000)
memory = os.urandom(20000000)
with open("/run/pid", "w") as file: file.write(str(os.getpid()))
os.rename("/run/pid", "/run/app.pid")
while True: time.sleep(0.1)' > /srv/app.log 2>&1 &)
until test -e /run/app.pid; do sleep 0.1; done"#;
    a_microvm: "Hibernate and resume a microVM",
        r#"snapctl init; mkdir /run/fc
curl() {
    case "$5" in
    http://fc/snapshot/create) VMM save --memory /run/mem.bin --state /run/vm.state --pages 4096 ;;
    http://fc/snapshot/load) VMM resume --socket /run/guest.sock --state /run/guest.state ;;
    *) return 2 ;;
    esac
}"#;
    a_slow_tier: "Add a slow tier", "backed_up; mkdir -p /mnt/hdd";
    recompression: "Recompress data on a slow tier",
        "mkdir -p /mnt/hdd; app; seq 1000000 > /srv/app/data/users.db; snapctl init; snapctl backup /srv/app app";
    a_cold_bucket: "Move cold data to a bucket", "backed_up; bucket ACCESS_KEY SECRET_KEY";
    a_deleted_app: "Free the space of a deleted app",
        "backed_up; cp -r /srv/app /srv/old; snapctl backup /srv/old old; echo 1 > /srv/old/new; snapctl backup /srv/old old";
    a_lock: "Wait for a locked store",
        "backed_up
(flock 9; touch /run/locked; until grep -aqs '60[0]' /proc/[0-9]*/cmdline; do sleep 0.1; done) 9>> /var/lib/torpor/local/lock &
until test -e /run/locked; do sleep 0.1; done";
    an_upgrade: "Upgrade", "backed_up; installed; mkdir -p target/release; cp /usr/local/bin/snapctl target/release";
    a_move: "Move a store to another host", "mounted; snapctl freeze /mnt/app; echo 'port = 9090' > /mnt/app/config.toml";
    the_end: "Uninstall", "installed; mounted; install -m 644 contrib/systemd/torpor-* /etc/systemd/system/";
}

/// How many sections the page has: one that is lost is noticed.
const TASK_COUNT: usize = 27;

static SEAWEED: LazyLock<SeaweedCluster> = LazyLock::new(SeaweedCluster::start);

fn tasks_of_the_page() -> Vec<Task> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/TASKS.md");
    page::parse(&fs::read_to_string(path).unwrap()).unwrap()
}

fn play_section(title: &str, scene: &str) {
    let tasks = tasks_of_the_page();
    let task = tasks.iter().find(|task| task.title == title).expect("the page has the section");
    play(task, scene).unwrap_or_else(|what| panic!("{title}: {what}"));
}

/// `text` with the example's bucket replaced by the test's, which is started only if it is needed.
fn on_this_machine(text: &str) -> String {
    let text = text.replace("VMM", tests::snapctl::binary().with_file_name("vmm").to_str().unwrap());
    if !text.contains("https://s3.example.net") && !text.contains("_KEY") && !text.contains("AKIA...") {
        return text;
    }
    let text =
        text.replace("https://s3.example.net", &SEAWEED.endpoint()).replace("ENDPOINT", &SEAWEED.endpoint());
    let text =
        text.replace("bucket = \"torpor\"", &format!("bucket = \"{BUCKET}\"")).replace("BUCKET", BUCKET);
    let text = text.replace("ACCESS_KEY", ACCESS_KEY).replace("SECRET_KEY", SECRET_KEY);
    text.replace("\"AKIA...\"", &format!("\"{ACCESS_KEY}\"")).replace("\"...\"", &format!("\"{SECRET_KEY}\""))
}

/// Plays one section, and reports the first difference from the page.
fn play(task: &Task, scene: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let mut hosts = BTreeMap::new();
    for step in &task.steps {
        if let Step::Command(command) = step
            && !hosts.contains_key(&command.host)
        {
            let host = Host::start(&directory.path().join(format!("host-{}", command.host)), &shared);
            hosts.insert(command.host.clone(), host);
        }
    }
    for (name, host) in &mut hosts {
        host.run(PROPS);
        if name.is_empty() {
            let (code, answer) = host.run(&on_this_machine(scene));
            if code != 0 || answer.contains("snapctl: ") {
                return Err(format!("the scene ended with {code}: {answer}"));
            }
        }
    }
    for step in &task.steps {
        match step {
            Step::File { path, text } => {
                let typed = format!("cat > {path} <<'END'\n{}END", on_this_machine(text));
                for host in hosts.values_mut() {
                    let (code, answer) = host.run(&typed);
                    assert_eq!(code, 0, "{path}: {answer}");
                }
            }
            Step::Command(command) => {
                let (code, answer) =
                    hosts.get_mut(&command.host).unwrap().run(&on_this_machine(&command.text));
                let shown = format!("line {}, {}: exit code {code}\n{answer}", command.line, command.text);
                if code != command.exit_code || answer.contains("panicked") {
                    return Err(shown);
                }
                if let Some(line) = page::missing(&command.answer, &answer) {
                    return Err(format!("{shown}\nhas no line {line:?}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_section_of_the_page_is_played() {
    let tasks = tasks_of_the_page();
    let titles: Vec<&str> = tasks.iter().map(|task| task.title.as_str()).collect();
    assert_eq!(titles, TITLES);
    assert_eq!(titles.len(), TASK_COUNT);
    for task in &tasks {
        assert!(
            task.steps.iter().any(|step| matches!(step, Step::Command(_))),
            "{} has no command",
            task.title
        );
    }
}

#[test]
fn a_page_that_is_wrong_is_noticed() {
    let section = |commands: &str| {
        let page = format!("## One\n```console\n$ snapctl init\n{commands}\n```\n");
        play(&page::parse(&page).unwrap()[0], "app")
    };
    section("$ snapctl backup --force-read /srv/app app\napp is now snapshot ...").unwrap();
    for (commands, what) in [
        ("$ snapctl backup --force-raed /srv/app app", "unexpected argument"),
        ("$ snapctl backup /srv/app app # exit 1", "exit code 0"),
        ("$ snapctl show app", "exit code 1"),
        ("$ snapctl snapshots\napp ...", "has no line"),
        ("$ snapctl backup /srv/app app\n$ snapctl bakcup /srv/app app", "line 5"),
        ("$ systemctl enable --now torpor-no.timer", "exit code 5"),
    ] {
        let refused = section(commands).unwrap_err();
        assert!(refused.contains(what), "{commands}: {refused}");
    }
}
