//! A bucket that is met through a proxy, and keys that are allowed no more than they need: as a proxy denies it, and as
//! a server does that enforces the policy of the README.

use crate::{SEAWEED, prefix, seaweed_port, write_keys};
use std::ffi::OsStr;
use std::fs;
use tests::proxy::{Fault, Message, Proxy};
use tests::servers::{ACCESS_KEY, BUCKET, ENFORCED, LIMITED_PREFIX, SECRET_KEY, limited_key};
use tests::snapctl::{Place, Run};

/// A place whose cold tier is a bucket at `endpoint`.
struct Scene {
    place: Place,
    prefix: String,
    endpoint: String,
}

impl Scene {
    fn new(endpoint: &str) -> Self {
        // The cluster runs before a command needs it.
        let _ = SEAWEED.endpoint();
        let (place, prefix) = (Place::new(), prefix("access"));
        let source = place.path("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "through and back").unwrap();
        let scene = Self { place, prefix, endpoint: endpoint.to_owned() };
        scene.use_key(ACCESS_KEY);
        scene
    }

    /// A place in the part of the bucket that limited keys may use, and one that may do all but `missing`.
    fn limited(missing: Option<&str>) -> Self {
        let scene = Self::new(&SEAWEED.endpoint());
        scene.use_key(&limited_key(missing));
        let prefix = format!("{LIMITED_PREFIX}/{}", scene.prefix);
        Self { prefix, ..scene }
    }

    fn use_key(&self, key: &str) {
        let text = format!("access_key = {key:?}\nsecret_key = {SECRET_KEY:?}\n");
        write_keys(&self.place.path("keys.toml"), &text);
    }

    fn run(&self, variables: &[(&str, &str)], words: &[&str]) -> Run {
        let config = self.place.path("config.toml");
        let text = format!(
            "store = {:?}\nshared = true\n[tiers.cold]\nbucket = {BUCKET:?}\nprefix = {:?}\n\
             endpoint = {:?}\ncredentials = {:?}\ncall_seconds = 20\nattempts = 2\n",
            self.place.store,
            self.prefix,
            self.endpoint,
            self.place.path("keys.toml")
        );
        fs::write(&config, text).unwrap();
        let mut set = vec![("TORPOR_CONFIG", config.as_os_str())];
        set.extend(variables.iter().map(|(name, value)| (*name, OsStr::new(*value))));
        self.place.run_with(&set, words)
    }

    /// A backup and a restore of it come through.
    fn there_and_back(&self, variables: &[(&str, &str)]) {
        let (source, target) = (self.place.path("source"), self.place.path("target"));
        self.run(variables, &["init"]).expect(0);
        self.run(variables, &["backup", source.to_str().unwrap(), "web"]).expect(0);
        self.run(variables, &["restore", "web", target.to_str().unwrap()]).expect(0);
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "through and back");
        self.run(variables, &["gc"]).expect(0);
        self.run(variables, &["check"]).expect(0);
    }
}

/// The service has a name that only the proxy knows.
#[test]
fn a_bucket_is_reached_through_the_proxy_of_the_environment() {
    let proxy = Proxy::new(seaweed_port());
    let scene = Scene::new("http://storage.invalid:9000");
    scene.there_and_back(&[("HTTP_PROXY", &proxy.endpoint())]);
    let requests = proxy.requests();
    assert!(requests.len() > 20, "{requests:?}");
    assert!(requests.iter().all(|line| line.contains(" http://storage.invalid:9000/")), "{:?}", requests[0]);
    let doctor: &[&str] = &["doctor", "--tier", "cold", "--dry-run"];
    scene.run(&[("http_proxy", &proxy.endpoint())], doctor).expect(0);
    scene.run(&[("ALL_PROXY", &proxy.endpoint())], doctor).expect(0);
    proxy.script(|_| Fault::None);
    for exempt in ["storage.invalid", ".invalid", "*"] {
        let variables = [("HTTP_PROXY", proxy.endpoint()), ("NO_PROXY", exempt.to_owned())];
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        scene.run(&variables, doctor).expect(2).complains("dns error");
    }
    assert_eq!(proxy.requests(), Vec::<String>::new(), "exempt hosts bypass the proxy");
    let nowhere = scene.run(&[("HTTP_PROXY", "http://user:hush@127.0.0.1:9")], doctor).expect(2);
    assert!(!nowhere.stderr.contains("hush"), "{}", nowhere.stderr);
    scene.run(&[("HTTP_PROXY", "socks5://127.0.0.1:9")], doctor).expect(2).complains("socks5");
}

fn is_listing(request: &Message) -> bool {
    request.first.contains("list-type=2")
}

/// Answers as a policy does that allows listings below `prefix` only: absence is a denial.
fn limited(prefix: &str) -> impl FnMut(&Message) -> Fault + Send + use<> {
    let allowed = [format!("prefix={prefix}%2F"), format!("prefix={prefix}/")];
    move |request| match is_listing(request) {
        true if !allowed.iter().any(|prefix| request.first.contains(prefix)) => Fault::Deny,
        _ => Fault::HideAbsence,
    }
}

#[test]
fn keys_that_may_list_their_prefix_only_do_everything() {
    let proxy = Proxy::new(seaweed_port());
    let scene = Scene::new(&proxy.endpoint());
    proxy.script(limited(&scene.prefix));
    let report = scene.run(&[], &["doctor", "--tier", "cold", "--json"]).expect(0).json();
    assert_eq!(report["fit_for"], "many", "{report}");
    scene.there_and_back(&[]);
    assert_eq!(proxy.faults().get("Deny"), None, "every listing is of the prefix");
}

#[test]
fn the_permission_that_lacks_is_named() {
    type Denied = fn(&Message) -> bool;
    let cases: [(&str, Denied); 5] = [
        ("s3:ListBucket", is_listing),
        ("s3:PutObject", |request| request.first.starts_with("PUT ")),
        ("s3:DeleteObject", |request| request.first.starts_with("DELETE ")),
        ("s3:GetObject", |request| request.first.starts_with("GET ") && !is_listing(request)),
        ("s3:AbortMultipartUpload", |request| {
            request.first.starts_with("DELETE ") && request.first.contains("uploadId=")
        }),
    ];
    let proxy = Proxy::new(seaweed_port());
    let scene = Scene::new(&proxy.endpoint());
    for (permission, is_denied) in cases {
        for verb in [["doctor", "--tier=cold"].as_slice(), &["init"]] {
            proxy.script(move |request| if is_denied(request) { Fault::Deny } else { Fault::HideAbsence });
            let run = scene.run(&[], verb).expect(2).complains(permission);
            assert!(!run.stderr.contains("late") && run.stdout.is_empty(), "{}{}", run.text(), run.stderr);
        }
    }
}

#[test]
fn keys_with_the_permissions_of_the_readme_do_everything_and_without_listing_nothing() {
    let mut scene = Scene::limited(None);
    // Packs that are uploaded in parts.
    let words = (0..3_u64 << 20).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let long: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    fs::write(scene.place.path("source/long"), &long).unwrap();
    let report = scene.run(&[], &["doctor", "--tier", "cold", "--json"]).expect(0).json();
    assert_eq!(report["fit_for"], "many", "{report}");
    scene.there_and_back(&[]);
    assert!(fs::read(scene.place.path("target/long")).unwrap() == long);
    fs::remove_file(scene.place.path("source/long")).unwrap();
    let (source, target) = (scene.place.path("source"), scene.place.path("again"));
    let [source, target] = [&source, &target].map(|path| path.to_str().unwrap());
    scene.run(&[], &["backup", source, "web"]).expect(0);
    scene.run(&[], &["forget", "web", "--keep-last", "1"]).expect(0);
    let runs = scene.run(&[], &["gc", "--cycles", "3", "--json"]).expect(0).json_lines();
    let freed: u64 = runs.iter().map(|run| run["deleted_bytes"].as_u64().unwrap()).sum();
    assert!(freed > 8 << 20, "{freed}");

    scene.use_key(&limited_key(Some("s3:ListBucket")));
    let verbs: [&[&str]; 5] =
        [&["backup", source, "web"], &["restore", "web", target], &["gc"], &["check"], &["snapshots"]];
    for verb in verbs {
        scene.run(&[], verb).expect(2).complains("allow these keys s3:ListBucket on the bucket");
    }
    scene.use_key(&limited_key(None));
    scene.run(&[], &["check", "--read-data"]).expect(0);
    // They are limited: elsewhere in the bucket they are denied.
    scene.prefix = prefix("access");
    scene.run(&[], &["doctor", "--tier", "cold"]).expect(2).complains("AccessDenied");
}

#[test]
fn what_a_server_does_not_allow_is_named() {
    for permission in ENFORCED {
        let scene = Scene::limited(Some(permission));
        for verb in [["doctor", "--tier=cold"].as_slice(), &["init"]] {
            let run = scene.run(&[], verb).expect(2).complains(&format!("allow these keys {permission}"));
            assert!(run.stdout.is_empty(), "{}", run.text());
        }
    }
}
