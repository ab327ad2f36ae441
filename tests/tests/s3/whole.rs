//! A store in a bucket, used as its users do: backups, restores, collections and scrubs of several processes and hosts,
//! and all of that through a network that fails at every third request.

use crate::{SEAWEED, on_seaweed, prefix, seaweed_port};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::tier::Patience;
use store::{Kind, S3Settings, S3Tier, Store, Tier};
use tests::hosts::Host;
use tests::model::{Random, assert_clean};
use tests::proxy::{Fault, Proxy};
use tests::servers::{ACCESS_KEY, SECRET_KEY};
use tests::snapctl::{Place, Run};
use tests::{gc_fixture, servers};

/// A host with its own configuration, state and hot tier.
struct Operator<'a> {
    place: &'a Place,
    config: PathBuf,
}

impl<'a> Operator<'a> {
    fn new(place: &'a Place, name: &str, prefix: &str) -> Self {
        Self::on(place, name, &SEAWEED.endpoint(), prefix, "")
    }

    /// On another server, with `more` in its configuration.
    fn on(place: &'a Place, name: &str, endpoint: &str, prefix: &str, more: &str) -> Self {
        let config = place.path(&format!("{name}.toml"));
        let root = place.path(name);
        let text = format!(
            "store = '{0}/hot'\nstate = '{0}/state'\nshared = true\n{more}[tiers.cold]\nbucket = '{1}'\nendpoint = \
             '{endpoint}'\nprefix = '{prefix}'\npath_style = true\n",
            root.display(),
            servers::BUCKET,
        );
        fs::write(&config, text).unwrap();
        Self { place, config }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let variables = [
            ("TORPOR_CONFIG", self.config.as_os_str()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.as_ref()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.as_ref()),
        ];
        self.place.run_with(&variables, arguments)
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.place.command(arguments);
        command.env_remove("TORPOR_STORE").env("TORPOR_CONFIG", &self.config);
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.stdout(Stdio::null()).spawn().unwrap()
    }
}

/// A directory of files that a seed determines; a part of them is in every such directory.
fn app(path: &Path, seed: u64) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    fs::create_dir_all(path.join("lib")).unwrap();
    for number in 0..12 {
        let seed = if number < 9 { number } else { 1000 * seed + number };
        let bytes = Random::new(seed).bytes(10_000 + 20_000 * number as usize);
        let name = PathBuf::from(format!("lib/{number}"));
        fs::write(path.join(&name), &bytes).unwrap();
        files.insert(name, bytes);
    }
    files
}

fn assert_restored(operator: &Operator<'_>, name: &str, target: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    operator.run(&["restore", name, target.to_str().unwrap()]).expect(0);
    for (path, bytes) in files {
        assert!(fs::read(target.join(path)).unwrap() == *bytes, "{name}: {}", path.display());
    }
}

#[test]
fn processes_of_several_hosts_share_a_bucket() {
    let place = Place::new();
    let prefix = prefix("whole");
    let hosts = ["one", "two", "three"].map(|name| Operator::new(&place, name, &prefix));
    hosts[0].run(&["init"]).expect(0);
    let sources: Vec<_> = (0..3).map(|seed| place.path(&format!("source-{seed}"))).collect();
    let files: Vec<_> = sources.iter().zip(0..).map(|(path, seed)| app(path, seed)).collect();
    let source = |number: usize| sources[number].to_str().unwrap();
    hosts[0].run(&["backup", source(0), "app"]).expect(0);
    // A second host sees, reads and deduplicates.
    assert_restored(&hosts[1], "app", &place.path("restored"), &files[0]);
    let second = hosts[1].run(&["backup", source(1), "other", "--json"]).expect(0).json();
    let new = second["new_bytes"].as_u64().unwrap();
    assert!((1..900_000).contains(&new), "three of twelve files are new: {second}");
    // Three writers at once, to one ref and to refs of their own.
    for round in 0..3 {
        let names: Vec<String> = (0..3).map(|number| format!("own-{number}")).collect();
        let running: Vec<Child> = hosts
            .iter()
            .zip(&sources)
            .zip(&names)
            .map(|((host, path), own)| {
                host.start(&["backup", path.to_str().unwrap(), if round == 1 { own } else { "common" }])
            })
            .collect();
        for mut child in running {
            assert!(child.wait().unwrap().success(), "round {round}");
        }
    }
    for number in 0..3 {
        let reader = &hosts[(number + 1) % 3];
        assert_restored(
            reader,
            &format!("own-{number}"),
            &place.path(&format!("own-{number}")),
            &files[number],
        );
    }
    let history = hosts[0].run(&["snapshots", "common", "--json"]).expect(0).json_lines();
    assert_eq!(history.len(), 6, "{history:?}");
    hosts[2].run(&["forget", "common", "--keep-last", "1"]).expect(0);
    hosts[2].run(&["gc", "--cycles", "4"]).expect(0);
    for host in &hosts {
        host.run(&["check", "--read-data"]).expect(0).says(": ok");
    }
}

/// Retries that go on for longer than `storm`.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(2),
    request: Duration::from_millis(900),
    call: Duration::from_secs(60),
    attempts: 12,
    first_wait: Duration::from_millis(5),
    longest_wait: Duration::from_millis(50),
};

/// A fault at every third request or so.
fn storm(seed: u64) -> impl FnMut(&tests::proxy::Message) -> Fault + Send {
    const FAULTS: [Fault; 11] = [
        Fault::Reset,
        Fault::ResetApplied,
        Fault::UnavailableApplied,
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Truncated,
        Fault::Shortened,
        Fault::WholeObject,
        Fault::WrongContentRange,
        Fault::Delay(Duration::from_millis(20)),
    ];
    let mut random = Random::new(seed);
    move |_| if random.once_in(3) { FAULTS[random.below(FAULTS.len())] } else { Fault::None }
}

#[test]
fn whole_lives_come_through_storms_of_faults() {
    let (mut requests, mut commits, mut refused) = (0, 0, 0);
    let faults = Mutex::new(BTreeMap::<String, u64>::new());
    for seed in 0..4 {
        let settings = on_seaweed("storm");
        store::tier::examine_and_record(&settings).unwrap();
        let proxy = Proxy::new(seaweed_port());
        let through = S3Settings { endpoint: Some(proxy.endpoint()), patience: PATIENCE, ..settings.clone() };
        let stormy: Arc<dyn Tier> = Arc::new(S3Tier::new(&through).unwrap());
        let calm: Arc<dyn Tier> = Arc::new(S3Tier::new(&settings).unwrap());
        let (host, witness) = (Host::new(stormy), Host::new(calm));
        witness.init();
        proxy.script(storm(seed));
        for version in 0..6u64 {
            let outcome = Store::open(&host.config()).and_then(|store| {
                let mut writer = store.writer("test")?;
                gc_fixture::commit(&mut writer, "app", &[1, 2, 3 + version])
            });
            match outcome {
                Ok(_) => commits += 1,
                // A lost answer looks like another writer's change; there is no other writer here.
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Unavailable, "seed {seed}, version {version}: {error}");
                    refused += 1;
                }
            }
            let store = host.open();
            for entry in store.refs().get("app").unwrap().map(|found| found.history).unwrap_or_default() {
                gc_fixture::assert_files(&store, &entry.snapshot, &format!("seed {seed}, version {version}"));
            }
            if version == 3 {
                let newest = store.resolve("app").unwrap();
                store.forget("app", |entry| entry.snapshot != newest).unwrap();
                host.collect(4);
            }
        }
        requests += proxy.requests().len();
        for (fault, count) in proxy.faults() {
            *faults.lock().unwrap().entry(fault).or_default() += count;
        }
        assert_clean(&witness.open(), &format!("seed {seed}, seen by another host in calm weather"));
    }
    let faults = faults.into_inner().unwrap();
    println!("{commits} commits, {refused} refused, {requests} requests, faults {faults:?}");
    assert!(commits >= 20 && faults.values().sum::<u64>() > 300, "{commits} commits, {faults:?}");
}

/// The largest object below `packs/`.
fn largest_pack(tier: &dyn Tier) -> String {
    let packs = tier.list("packs/").unwrap();
    packs.into_iter().max_by_key(|info| info.len_bytes).unwrap().key
}

/// Damage in a bucket is found and repaired from a host's local copy; a second host then reads it.
#[test]
fn a_damaged_pack_in_a_bucket_is_mended_from_a_host_s_copy() {
    let place = Place::new();
    let prefix = prefix("rot");
    let hosts = ["one", "two"].map(|name| Operator::new(&place, name, &prefix));
    hosts[0].run(&["init"]).expect(0);
    let source = place.path("source");
    let files = app(&source, 1);
    hosts[0].run(&["backup", source.to_str().unwrap(), "app"]).expect(0);
    let tier = S3Tier::new(&servers::settings(&SEAWEED.endpoint(), &prefix)).unwrap();
    let pack = largest_pack(&tier);
    let whole = tier.get(&pack).unwrap().to_vec();
    gc_fixture::flip_a_bit(&tier, &pack, whole.len() / 2);
    hosts[1].run(&["scrub"]).expect(2).complains("damaged");
    assert!(tier.get(&pack).unwrap().to_vec() != whole, "nothing is repaired unasked");
    let repaired = hosts[0].run(&["scrub", "--repair", "--json"]).expect(0).json();
    assert_eq!(repaired["repaired_copies"], 1, "{repaired}");
    assert!(tier.get(&pack).unwrap().to_vec() == whole, "byte for byte");
    assert_restored(&hosts[1], "app", &place.path("restored"), &files);
    hosts[1].run(&["scrub"]).expect(0).says(": ok");
}

/// The same where the bucket respects no condition, and one host alone may collect and repair.
#[test]
fn a_damaged_pack_in_a_bucket_without_conditions_is_mended_by_its_collector() {
    let place = Place::new();
    let rclone = servers::Rclone::start();
    let prefix = prefix("rot");
    let operator = |name: &str, more: &str| {
        let owned = format!("owned_refs = '{name}/'\n{more}");
        Operator::on(&place, name, &rclone.endpoint(), &prefix, &owned)
    };
    let (collector, other) = (operator("one", "collector = true\n"), operator("two", ""));
    collector.run(&["doctor"]).expect(1);
    collector.run(&["init"]).expect(0);
    let source = place.path("source");
    let files = app(&source, 1);
    collector.run(&["backup", source.to_str().unwrap(), "one/app"]).expect(0);
    let tier = S3Tier::new(&servers::settings(&rclone.endpoint(), &prefix)).unwrap();
    let pack = largest_pack(&tier);
    let whole = tier.get(&pack).unwrap().to_vec();
    gc_fixture::flip_a_bit(&tier, &pack, whole.len() / 2);
    other.run(&["scrub", "--repair"]).expect(2).complains("1 damaged copies");
    assert!(tier.get(&pack).unwrap().to_vec() != whole, "it has no intact copy");
    let repaired = collector.run(&["scrub", "--repair", "--json"]).expect(0).json();
    assert_eq!(repaired["repaired_copies"], 1, "{repaired}");
    assert!(tier.get(&pack).unwrap().to_vec() == whole, "byte for byte");
    assert_restored(&other, "one/app", &place.path("restored"), &files);
}
