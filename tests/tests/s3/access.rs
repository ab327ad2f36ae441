//! A bucket that is met through a proxy, and keys that are allowed no more than they need.

use crate::{SEAWEED, prefix, seaweed_port};
use std::ffi::OsStr;
use std::fs;
use tests::proxy::{Fault, Message, Proxy};
use tests::servers::{ACCESS_KEY, BUCKET, SECRET_KEY};
use tests::snapctl::{Place, Run};

/// A place whose cold tier is a bucket at `endpoint`.
struct Scene {
    place: Place,
    prefix: String,
    endpoint: String,
}

impl Scene {
    fn new(endpoint: &str) -> Self {
        // The cluster runs before anybody is sent to it.
        let _ = SEAWEED.endpoint();
        let (place, prefix) = (Place::new(), prefix("access"));
        fs::write(
            place.path("keys.toml"),
            format!("access_key = {ACCESS_KEY:?}\nsecret_key = {SECRET_KEY:?}\n"),
        )
        .unwrap();
        let source = place.path("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "through and back").unwrap();
        Self { place, prefix, endpoint: endpoint.to_owned() }
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
    assert_eq!(proxy.requests(), Vec::<String>::new(), "who is excepted does not go through it");
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
