//! `tiers.cold` of a configuration file: a directory, or a bucket and its access.
//!
//! Keys of a bucket come from the file that `credentials` names, or from the AWS_* variables; they are never in the
//! configuration itself, and are never shown.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use store::domain::is_private;
use store::tier::{MIN_PART_BYTES, S3Credentials, S3Proxy};
use store::{Error, Kind, LocalTier, Result, S3Settings, S3Tier, Tier};
use toml::{Table, Value};

use super::size::Size;

/// Location of the cold tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cold {
    /// A directory; absolute.
    Directory(PathBuf),
    /// A bucket.
    Bucket(Box<S3Settings>),
}

impl Cold {
    /// The tier there. Touches nothing.
    pub(crate) fn tier(&self) -> Result<Arc<dyn Tier>> {
        match self {
            Cold::Directory(path) => Ok(Arc::new(LocalTier::new(path))),
            Cold::Bucket(settings) => Ok(Arc::new(S3Tier::new(settings)?)),
        }
    }
}

/// `tiers.cold` as written: a path, or a table.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Value")]
pub(super) struct ColdFile(Place);

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Bucket(BucketFile),
}

/// A directory as written in a table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectoryFile {
    path: PathBuf,
}

/// A bucket as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BucketFile {
    bucket: String,
    endpoint: Option<String>,
    region: Option<String>,
    #[serde(default)]
    prefix: String,
    path_style: Option<bool>,
    credentials: Option<PathBuf>,
    parallelism: Option<u16>,
    part_bytes: Option<Size>,
    attempts: Option<u16>,
    request_seconds: Option<u16>,
    call_seconds: Option<u16>,
}

impl TryFrom<Value> for ColdFile {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<ColdFile, String> {
        match value {
            Value::String(path) => Ok(ColdFile(Place::Directory(path.into()))),
            Value::Table(table) => place(table).map(ColdFile),
            _ => Err("`tiers.cold` is neither a path nor a table".into()),
        }
    }
}

fn place(table: Table) -> std::result::Result<Place, String> {
    let wrong = |error: toml::de::Error| format!("in `tiers.cold`: {}", error.to_string().trim_end());
    match (table.contains_key("bucket"), table.contains_key("path")) {
        (true, true) => Err("`path` and `bucket` stand both in `tiers.cold`".into()),
        (false, false) => Err("neither `path` nor `bucket` stands in `tiers.cold`".into()),
        (false, true) => {
            let file = DirectoryFile::deserialize(table)
                .map_err(|error| format!("{}: without `bucket` this is a directory", wrong(error)))?;
            Ok(Place::Directory(file.path))
        }
        (true, false) => {
            let file = BucketFile::deserialize(table).map_err(wrong)?;
            file.check().map_err(|what| format!("`tiers.cold.{what}"))?;
            Ok(Place::Bucket(file))
        }
    }
}

impl ColdFile {
    /// The directory, if it is one.
    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.0 {
            Place::Directory(path) => Some(path),
            Place::Bucket(_) => None,
        }
    }

    /// The validated settings, including keys.
    pub(super) fn settle(self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Cold> {
        match self.0 {
            Place::Directory(path) => Ok(Cold::Directory(path)),
            Place::Bucket(file) => file.settle(variable).map(|settings| Cold::Bucket(Box::new(settings))),
        }
    }
}

impl BucketFile {
    fn check(&self) -> std::result::Result<(), String> {
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if self.bucket.is_empty() || self.bucket.contains(['/', ' ']) {
            return Err("bucket` is no name of a bucket".into());
        }
        if self.endpoint.as_ref().is_some_and(|endpoint| !is_url(endpoint)) {
            return Err("endpoint` does not begin with http:// or https://".into());
        }
        let is_plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        };
        if !self.prefix.is_empty() && !self.prefix.split('/').all(is_plain) {
            return Err("prefix` is not made of names with `/` between them".into());
        }
        if self.credentials.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("credentials` is not an absolute path".into());
        }
        let numbers = [
            ("parallelism", self.parallelism.map(u64::from), 1..=1000),
            ("part_bytes", self.part_bytes.map(|Size(bytes)| bytes), MIN_PART_BYTES..=(5 << 30)),
            ("attempts", self.attempts.map(u64::from), 1..=100),
            ("request_seconds", self.request_seconds.map(u64::from), 1..=3600),
            ("call_seconds", self.call_seconds.map(u64::from), 1..=3600),
        ];
        for (key, value, range) in numbers {
            if value.is_some_and(|value| !range.contains(&value)) {
                return Err(format!(
                    "{key}` is out of range: it may be {} to {}",
                    range.start(),
                    range.end()
                ));
            }
        }
        Ok(())
    }

    fn settle(self, variable: &dyn Fn(&str) -> Option<String>) -> Result<S3Settings> {
        let endpoint = self
            .endpoint
            .or_else(|| variable("AWS_ENDPOINT_URL_S3"))
            .or_else(|| variable("AWS_ENDPOINT_URL"));
        let credentials = match &self.credentials {
            Some(path) => read_credentials(path)?,
            None => environment_credentials(variable)?,
        };
        let mut settings = S3Settings::new(self.bucket, endpoint);
        let region =
            self.region.or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
        settings.region = region.unwrap_or(settings.region);
        settings.prefix = self.prefix;
        settings.credentials = Some(credentials);
        settings.proxy = environment_proxy(settings.endpoint.as_deref(), variable)?;
        settings.path_style = self.path_style.unwrap_or(settings.path_style);
        settings.parallelism = self.parallelism.map_or(settings.parallelism, usize::from);
        settings.part_bytes = self.part_bytes.map_or(settings.part_bytes, |Size(bytes)| bytes);
        let patience = &mut settings.patience;
        patience.attempts = self.attempts.map_or(patience.attempts, u32::from);
        let seconds = |value: Option<u16>, otherwise| {
            value.map_or(otherwise, |value| Duration::from_secs(value.into()))
        };
        patience.request = seconds(self.request_seconds, patience.request);
        patience.call = seconds(self.call_seconds, patience.call);
        Ok(settings)
    }
}

/// A file of keys. No error quotes its text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialsFile {
    access_key: String,
    secret_key: String,
    session_token: Option<String>,
}

fn read_credentials(path: &Path) -> Result<S3Credentials> {
    let failed = |source| Error::io("cannot read the bucket's keys", path.display(), source);
    let mut opened = File::open(path).map_err(failed)?;
    if !is_private(&opened.metadata().map_err(failed)?) {
        return Err(Error::new(Kind::Invalid, "others than its owner may read or change the bucket's keys")
            .object(path.display())
            .advice("make it a file of yours alone: `chmod 600`; if it was ever readable, draw other keys"));
    }
    let mut text = String::new();
    opened.read_to_string(&mut text).map_err(failed)?;
    // Not the parser's own message: it quotes the line.
    let file: CredentialsFile = toml::from_str(&text).map_err(|_| {
        Error::new(Kind::Invalid, "the file of the bucket's keys is wrong")
            .object(path.display())
            .advice("it has the lines access_key = \"...\", secret_key = \"...\" and, for temporary keys, session_token = \"...\"")
    })?;
    Ok(S3Credentials::new(file.access_key, file.secret_key, file.session_token))
}

fn environment_credentials(variable: &dyn Fn(&str) -> Option<String>) -> Result<S3Credentials> {
    match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        (Some(access), Some(secret)) => Ok(S3Credentials::new(access, secret, variable("AWS_SESSION_TOKEN"))),
        _ => Err(Error::new(Kind::Invalid, "nothing says with which keys the bucket is reached").advice(
            "name a file as `credentials` in `tiers.cold`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )),
    }
}

/// The proxy that the environment names for a service, as most programs read it: HTTPS_PROXY or, for an `http://`
/// endpoint, HTTP_PROXY, else ALL_PROXY, each also in lower case; NO_PROXY exempts hosts. This machine itself needs
/// none.
fn environment_proxy(
    endpoint: Option<&str>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<S3Proxy>> {
    let either = |name: &str| {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        set(name).or_else(|| set(&name.to_lowercase()))
    };
    let is_plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let own = if is_plain { "HTTP_PROXY" } else { "HTTPS_PROXY" };
    let Some(url) = either(own).or_else(|| either("ALL_PROXY")) else { return Ok(None) };
    if endpoint.is_some_and(is_loopback) {
        return Ok(None);
    }
    S3Proxy::new(url.trim(), &either("NO_PROXY").unwrap_or_default()).map(Some)
}

fn is_loopback(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => authority.split(':').next(),
    };
    let host = host.unwrap_or_default();
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn settled(text: &str, variables: &[(&str, &str)]) -> Result<Cold> {
        let file: ColdFile = Value::Table(toml::from_str(text).unwrap()).try_into().unwrap();
        file.settle(&|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hush")];

    #[test]
    fn a_bucket_is_what_the_file_says_then_the_environment_then_the_defaults() {
        let environment =
            [KEYS.as_slice(), &[("AWS_REGION", "eu-1"), ("AWS_ENDPOINT_URL", "http://e")]].concat();
        let Cold::Bucket(plain) = settled("bucket = 'b'", &KEYS).unwrap() else { panic!("a bucket") };
        assert_eq!((plain.endpoint, plain.region.as_str(), plain.path_style), (None, "us-east-1", false));
        let Cold::Bucket(found) = settled("bucket = 'b'", &environment).unwrap() else { panic!("a bucket") };
        assert_eq!((found.endpoint.as_deref(), found.region.as_str()), (Some("http://e"), "eu-1"));
        assert!(found.path_style);
        let text = "bucket = 'b'\nendpoint = 'https://f'\nregion = 'r'\nprefix = 'a/b'\npath_style = false\n\
                    parallelism = 3\npart_bytes = '16M'\nattempts = 2\nrequest_seconds = 4\ncall_seconds = 5";
        let Cold::Bucket(all) = settled(text, &environment).unwrap() else { panic!("a bucket") };
        assert_eq!((all.endpoint.as_deref(), all.region.as_str()), (Some("https://f"), "r"));
        assert_eq!((all.url().as_str(), all.path_style, all.parallelism), ("s3://b/a/b", false, 3));
        assert_eq!((all.part_bytes, all.patience.attempts), (16_000_000, 2));
        assert_eq!((all.patience.request.as_secs(), all.patience.call.as_secs()), (4, 5));
    }

    #[test]
    fn the_proxy_is_the_one_that_the_environment_names_for_the_service() {
        let proxy = |endpoint: &str, set: &[(&str, &str)]| {
            let environment = [KEYS.as_slice(), set].concat();
            let text = if endpoint.is_empty() { String::new() } else { format!("endpoint = '{endpoint}'") };
            settled(&format!("bucket = 'b'\n{text}"), &environment).map(|cold| match cold {
                Cold::Bucket(settings) => settings.proxy,
                Cold::Directory(_) => panic!("a bucket"),
            })
        };
        let (one, other) = (("HTTP_PROXY", "http://one:1"), ("https_proxy", "other:2"));
        let all = ("all_proxy", "http://all:3");
        let is = |url: &str, exempt: &str| Some(S3Proxy::new(url, exempt).unwrap());
        assert_eq!(proxy("http://s3.example", &[one, other]).unwrap(), is("http://one:1", ""));
        assert_eq!(proxy("https://s3.example", &[one, other]).unwrap(), is("http://other:2", ""));
        assert_eq!(proxy("", &[one, other]).unwrap(), is("http://other:2", ""), "AWS itself");
        assert_eq!(proxy("https://s3.example", &[one]).unwrap(), None);
        assert_eq!(proxy("https://s3.example", &[one, all]).unwrap(), is("http://all:3", ""));
        let exempt = ("no_proxy", "s3.example,10.0.0.0/8");
        assert_eq!(
            proxy("http://s3.example", &[one, exempt]).unwrap(),
            is("http://one:1", "s3.example,10.0.0.0/8")
        );
        assert_eq!(proxy("http://s3.example", &[("HTTP_PROXY", ""), all]).unwrap(), is("http://all:3", ""));
        for near in ["http://127.0.0.1:8333", "http://localhost", "http://[::1]:9000/x"] {
            assert_eq!(proxy(near, &[one]).unwrap(), None, "{near}");
        }
        let error = proxy("http://s3.example", &[("HTTP_PROXY", "socks5://hush@proxy")]).unwrap_err();
        assert!(error.to_string().contains("socks5") && !error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn keys_come_from_a_file_or_the_environment_and_are_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let text = format!("bucket = 'b'\ncredentials = {path:?}");
        assert_eq!(settled("bucket = 'b'", &[]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(settled(&text, &KEYS).unwrap_err().kind(), Kind::NotFound);
        std::fs::write(&path, "access_key = 'id'\nsecret_key = 'hush'").unwrap();
        let permit = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        for mode in [0o644, 0o640, 0o620] {
            permit(mode);
            let error = settled(&text, &[]).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{mode:o}: {error}");
        }
        permit(0o600);
        let from_file = settled(&text, &[]).unwrap();
        assert_eq!(settled("bucket = 'b'", &KEYS).unwrap(), from_file);
        assert!(!format!("{from_file:?}").contains("hush"));
        std::fs::write(&path, "access_key = 'id'\nsecret_key = 'hush").unwrap();
        let error = settled(&text, &[]).unwrap_err().to_string();
        assert!(error.contains("secret_key = ") && !error.contains("hush"), "{error}");
    }
}
