//! PostgreSQL on a mount: its commits are there after it, or the process of its mount, is killed.

use crate::{HELPER, run};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::snapfs_mount::World;

/// How long a server may take to start or, once its first process is gone, to end.
const SERVER_MAX: Duration = Duration::from_secs(60);

/// The sums that pgbench keeps equal in every transaction, and whether every row of the ledger is there.
const CHECK: &str = "
    select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
       and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)
       and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history);
    select count(*) = max(n) from ledger;
    select max(n) from ledger;
";

/// A cluster of databases, whose files are on a mount and whose socket is not.
struct Cluster {
    programs: PathBuf,
    user: (u32, u32),
    files: PathBuf,
    socket: PathBuf,
}

impl Cluster {
    fn new(world: &World, files: PathBuf) -> Self {
        let installed = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
        let newest = installed.map(|entry| entry.unwrap().path()).max().expect("PostgreSQL is installed");
        let home = fs::metadata("/var/lib/postgresql").expect("the user of Debian's package");
        let cluster = Self {
            programs: newest.join("bin"),
            user: (home.uid(), home.gid()),
            files,
            socket: world.make("s"),
        };
        for directory in [&cluster.files, &cluster.socket] {
            fs::create_dir_all(directory).unwrap();
            chown(directory, Some(cluster.user.0), Some(cluster.user.1)).unwrap();
        }
        fs::set_permissions(world.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        run(cluster.command("initdb").args(["--auth=trust", "--pgdata"]).arg(&cluster.files));
        cluster
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.uid(self.user.0).gid(self.user.1).current_dir("/").env("PGHOST", &self.socket);
        command
    }

    /// Starts it and waits until it answers; it recovers its earlier commits first.
    fn start(&self) -> Child {
        let mut command = self.command("postgres");
        command.args(["-c", "listen_addresses=", "-k"]).arg(&self.socket).arg("-D").arg(&self.files);
        let mut server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres");
        let started = Instant::now();
        while !self.command("pg_isready").arg("-q").status().unwrap().success() {
            if server.try_wait().unwrap().is_some() {
                // Not all children of the server before have noticed the end of its first process yet.
                server = command.spawn().expect("postgres");
            }
            assert!(started.elapsed() < SERVER_MAX, "the server answers");
        }
        server
    }

    fn query(&self, text: &str) -> Vec<String> {
        let said = run(self.command("psql").args(["-XAtq", "-c", text, "postgres"]));
        said.lines().map(str::to_owned).collect()
    }

    /// Commits rows one by one until `count` of them are there, beside other load; the last of them.
    fn commit_rows(&self, from: u64, count: u64) -> u64 {
        let mut client = self.command("psql");
        let client = client.args(["-XAtq", "postgres"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = client.spawn().expect("psql");
        let mut answers = BufReader::new(client.stdout.take().unwrap()).lines();
        let mut asks = client.stdin.take().unwrap();
        for row in from + 1..=from + count {
            writeln!(asks, "insert into ledger values ({row}, repeat('x', 2000)) returning n;").unwrap();
            assert_eq!(answers.next().expect("an answer").unwrap(), row.to_string());
        }
        drop(asks);
        assert!(client.wait().unwrap().success());
        from + count
    }
}

fn kill(mut server: Child) {
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn postgresql_keeps_every_commit_when_it_or_its_mount_is_killed() {
    let world = World::with_empty_base(HELPER);
    let mut served = world.mount("base", "mnt", "upper", &[]);
    let cluster = Cluster::new(&world, served.path("cluster"));
    let mut server = cluster.start();
    run(cluster.command("pgbench").args(["-iq", "postgres"]));
    cluster.query("create table ledger (n integer primary key, filler text)");
    let mut committed = 0;
    for round in 0..if tests::is_long() { 20 } else { 2 } {
        let mut load = cluster.command("pgbench");
        let load = load.args(["-n", "-c", "3", "-T", "600", "postgres"]);
        let mut load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench");
        committed = cluster.commit_rows(committed, 60);
        if round % 2 == 0 {
            kill(server);
            load.wait().unwrap();
        } else {
            let report = served.freeze("base");
            committed = cluster.commit_rows(committed, 20);
            served.kill();
            kill(server);
            load.wait().unwrap();
            served = world.mount("base", "mnt", "upper", &[]);
            assert_eq!(served.client().status().unwrap().snapshot, report.snapshot);
        }
        server = cluster.start();
        let said = cluster.query(CHECK);
        assert_eq!(said[..2], ["t", "t"], "round {round}: balances, and every row of the ledger");
        assert!(said[2].parse::<u64>().unwrap() >= committed, "round {round}: {committed} rows, {}", said[2]);
        committed = said[2].parse().unwrap();
    }
    run(cluster.command("pg_amcheck").args(["--install-missing", "postgres"]));
    run(cluster.command("pg_ctl").args(["stop", "--silent", "--mode=fast", "-D"]).arg(&cluster.files));
    assert!(server.wait().unwrap().success());
    served.unmount();
}
