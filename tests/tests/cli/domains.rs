//! Domains through the command line: creating, working in one, rotating, destroying, trusting; refusals and their
//! reasons.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::snapctl::{Place, Run};
use tests::tenants::write_key;

use crate::sample;

/// A place whose store has the encrypted domain `acme`, its key named by the configuration.
pub(crate) struct Tenant {
    pub place: Place,
    pub key: PathBuf,
}

impl Tenant {
    pub(crate) fn new() -> Tenant {
        let place = Place::with_store();
        let key = place.path("kek");
        write_key(&key, [41; 32]);
        let tenant = Tenant { place, key };
        tenant.configure(&format!("[keys]\nfile = {:?}\n", tenant.key));
        tenant.run(["domain", "create", "acme"]).expect(0);
        tenant
    }

    pub(crate) fn configure(&self, text: &str) {
        let path = self.place.path("home/config/torpor/config.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs a command with the user's configuration.
    pub(crate) fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Run {
        self.place.run(arguments)
    }

    /// Runs a command in the domain `acme`.
    pub(crate) fn inside<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Run {
        let variables =
            [("TORPOR_STORE", self.place.store.as_os_str()), ("TORPOR_DOMAIN", OsStr::new("acme"))];
        self.place.run_with(&variables, arguments)
    }

    fn backup(&self, source: &Path, name: &str) -> Value {
        self.inside(["backup".as_ref(), source.as_os_str(), name.as_ref(), "--json".as_ref()])
            .expect(0)
            .json()
    }
}

fn listed(run: &Run) -> Vec<(String, String, bool)> {
    let lines = run.json_lines();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    lines
        .iter()
        .map(|line| (text(&line["domain"]), text(&line["kind"]), line["opens"] == json!(true)))
        .collect()
}

#[test]
fn a_domain_is_created_worked_in_and_listed() {
    let tenant = Tenant::new();
    let source = tenant.place.path("source");
    sample::make(&source);
    let stored = tenant.backup(&source, "shop/web");
    assert!(tenant.run(["snapshots", "--json"]).expect(0).text().is_empty(), "the plain domain has none");
    let shown = tenant.inside(["snapshots", "--json"]).expect(0).json();
    assert_eq!(shown["snapshot"], stored["snapshot"]);
    tenant.run(["--domain", "acme", "show", "shop/web"]).expect(0);
    tenant.run(["show", "shop/web"]).expect(1);
    let target = tenant.place.path("target");
    tenant.inside(["restore".as_ref(), "shop/web".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&source, &target);
    let again = tenant.backup(&source, "shop/web");
    assert_eq!(again["new_bytes"], json!(0));
    tenant.inside(["check", "--read-data"]).expect(0);
    tenant.inside(["stats"]).expect(0);
    tenant.inside(["gc"]).expect(0);

    tenant.run(["domain", "create", "public", "--public"]).expect(0).text().contains("verify = ");
    let names = ["acme", "default", "public"].map(str::to_owned);
    let found = listed(&tenant.run(["domain", "list", "--json"]).expect(0));
    assert_eq!(found.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>(), names);
    assert!(found.iter().all(|(.., opens)| *opens));
    let table = tenant.run(["domain", "list"]).expect(0).text();
    assert!(table.contains("acme") && table.contains("encrypted") && table.contains("public"), "{table}");
}

#[test]
fn keys_are_refused_that_are_missing_wrong_or_open_to_others() {
    let tenant = Tenant::new();
    tenant.configure("");
    tenant.inside(["snapshots"]).expect(2).complains("[keys]");
    tenant.run(["domain", "create", "other"]).expect(2).complains("[keys]");
    assert_eq!(
        listed(&tenant.run(["domain", "list", "--json"]).expect(0))[0],
        ("acme".to_owned(), "encrypted".to_owned(), false)
    );
    tenant.run(["check", "--read-data"]).expect(0);
    let wrong = tenant.place.path("wrong");
    write_key(&wrong, [42; 32]);
    tenant.configure(&format!("[keys.acme]\nfile = {wrong:?}\n"));
    tenant.inside(["snapshots"]).expect(2).complains("wrapped by key");
    fs::set_permissions(&tenant.key, fs::Permissions::from_mode(0o640)).unwrap();
    tenant.configure(&format!("[keys.acme]\nfile = {:?}\n", tenant.key));
    tenant.inside(["snapshots"]).expect(2).complains("chmod 600");
    fs::set_permissions(&tenant.key, fs::Permissions::from_mode(0o600)).unwrap();
    tenant.configure(&format!("domain = 'acme'\n[keys]\ncommand = ['cat', {:?}]\n", tenant.key));
    tenant.run(["snapshots"]).expect(0);
    tenant.configure("[keys]\ncommand = ['sh', '-c', 'echo no answer from the key service >&2; exit 3']\n");
    tenant.inside(["snapshots"]).expect(2).complains("no answer from the key service").complains("failed");
    // A process without the keys of every domain deletes nothing.
    tenant.configure("");
    tenant.run(["gc"]).expect(2).complains("acme");
    tenant.inside(["domain", "create", "Bad"]).expect(2);
    tenant.run(["--domain", "nobody", "snapshots"]).expect(2).complains("domain create");
}

#[test]
fn a_domain_is_rotated_repacked_and_wrapped_anew() {
    let tenant = Tenant::new();
    let source = tenant.place.path("source");
    sample::make(&source);
    tenant.backup(&source, "web");
    let rotated = tenant.run(["domain", "rotate", "acme", "--json"]).expect(0).json();
    assert_eq!(rotated["key_epoch"], json!(2));
    fs::write(source.join("added"), sample::noise(9, 100_000)).unwrap();
    tenant.backup(&source, "web");
    let repacked = tenant.run(["domain", "rotate", "acme", "--repack", "--json"]).expect(0).json();
    assert_eq!((&repacked["key_epoch"], &repacked["old_epochs"]), (&json!(2), &json!([])));
    assert!(repacked["frames"].as_u64().unwrap() > 0);
    let repacked = tenant.run(["domain", "rotate", "acme", "--repack", "--json"]).expect(0).json();
    assert_eq!((&repacked["key_epoch"], &repacked["old_epochs"]), (&json!(3), &json!([])));

    let new = tenant.place.path("new kek");
    write_key(&new, [43; 32]);
    tenant
        .run(["domain".as_ref(), "rotate".as_ref(), "acme".as_ref(), "--kek".as_ref(), new.as_os_str()])
        .expect(0);
    tenant.inside(["snapshots"]).expect(2).complains("wrapped by key");
    tenant.configure(&format!("[keys]\nfile = {new:?}\n"));
    let target = tenant.place.path("target");
    tenant.inside(["restore".as_ref(), "web".as_ref(), target.as_os_str()]).expect(0);
    sample::assert_same(&source, &target);
    tenant.inside(["check", "--read-data"]).expect(0);
    tenant.run(["domain", "rotate", "nobody"]).expect(1);
    tenant.run(["domain", "rotate", "default"]).expect(2);
}

#[test]
fn a_domain_is_destroyed_only_when_that_is_said_twice() {
    let tenant = Tenant::new();
    let source = tenant.place.path("source");
    sample::make(&source);
    tenant.backup(&source, "web");
    for typed in
        [&["domain", "destroy", "acme"][..], &["domain", "destroy", "acme", "--yes-destroy", "acme2"]]
    {
        tenant.run(typed).expect(2).complains("--yes-destroy acme");
    }
    tenant.inside(["show", "web"]).expect(0);
    tenant.run(["domain", "destroy", "acme", "--yes-destroy", "acme"]).expect(0);
    tenant.inside(["snapshots"]).expect(2).complains("destroyed");
    tenant.run(["domain", "create", "acme"]).expect(2).complains("never used twice");
    let collected = tenant.run(["gc", "--cycles", "3", "--json"]).expect(0).json();
    assert_eq!(collected["kept_bytes"], json!(0));
    tenant.run(["check", "--read-data"]).expect(0);
    assert_eq!(listed(&tenant.run(["domain", "list", "--json"]).expect(0))[0].1, "destroyed");
}

#[test]
fn an_older_ref_put_back_is_told_and_can_be_accepted() {
    let tenant = Tenant::new();
    let source = tenant.place.path("source");
    fs::create_dir(&source).unwrap();
    let record = |place: &Place| {
        let refs: Vec<_> = fs::read_dir(place.store.join("refs/acme")).unwrap().flatten().collect();
        refs[0].path()
    };
    tenant.backup(&source, "web");
    let path = record(&tenant.place);
    let old = fs::read(&path).unwrap();
    fs::write(source.join("file"), "new").unwrap();
    tenant.backup(&source, "web");
    fs::write(&path, &old).unwrap();
    for typed in [&["show", "web"][..], &["snapshots"], &["snapshots", "web"]] {
        tenant
            .inside(typed)
            .expect(2)
            .complains("an old copy was put back")
            .complains("snapctl domain trust acme");
    }
    tenant.run(["gc"]).expect(2).complains("nothing was deleted");
    tenant.run(["domain", "trust", "acme", "web"]).expect(0);
    assert_eq!(tenant.inside(["snapshots", "--json"]).expect(0).json_lines().len(), 1);
    fs::remove_file(&path).unwrap();
    tenant.inside(["show", "web"]).expect(2).complains("is gone");
    tenant.run(["domain", "trust", "acme"]).expect(0);
    tenant.inside(["show", "web"]).expect(1);
}

/// Changes are in clear until they are frozen: the operator has to say where that is right.
#[test]
fn a_writable_mount_of_an_encrypted_domain_asks_for_an_upper() {
    let tenant = Tenant::new();
    let source = tenant.place.path("source");
    sample::make(&source);
    tenant.backup(&source, "web");
    let (directory, upper) = (tenant.place.path("mounted"), tenant.place.path("upper"));
    fs::create_dir(&directory).unwrap();
    let mount = |more: &[&OsStr]| {
        let typed = ["mount".as_ref(), "web".as_ref(), directory.as_os_str()];
        tenant.inside(typed.iter().copied().chain(more.iter().copied()))
    };
    mount(&[]).expect(2).complains("--upper").complains("--read-only");
    assert!(!tenant.place.store.join("local/uppers").exists());
    mount(&["--read-only".as_ref()]).expect(0);
    assert_eq!(fs::read_to_string(directory.join("hello.txt")).unwrap(), "hello, store\n");
    tenant.run(["umount".as_ref(), directory.as_os_str()]).expect(0);
    mount(&["--upper".as_ref(), upper.as_os_str()]).expect(0);
    fs::write(directory.join("hello.txt"), "changed").unwrap();
    let frozen = tenant.run(["freeze".as_ref(), directory.as_os_str(), "--json".as_ref()]).expect(0).json();
    assert_eq!(frozen["ref"], json!("web"));
    tenant.run(["domain", "destroy", "acme", "--yes-destroy", "acme"]).expect(2).complains("in use");
    tenant.run(["umount".as_ref(), directory.as_os_str()]).expect(0);
    assert_eq!(tenant.inside(["cat", "web:hello.txt"]).expect(0).text(), "changed");
}
