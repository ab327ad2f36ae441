//! Access to a bucket. Plain values: their source (files, environment) is the caller's business.
//!
//! Secrets are in here and nowhere else above the client: neither `Debug` nor any error shows them, and their memory is
//! cleared when they are dropped.

use crate::error::{Error, Result};
use std::fmt;
use std::time::Duration;
use zeroize::Zeroizing;

/// Smallest part of a multipart upload that S3 takes (but for the last).
pub const MIN_PART_BYTES: u64 = 5 << 20;

/// Location of a bucket and limits of its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Settings {
    /// Name of the bucket.
    pub bucket: String,
    /// Prefix of every key, without slashes at its ends; may be empty.
    pub prefix: String,
    /// URL of the service. None: AWS in `region`.
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    pub region: String,
    /// HTTP proxy. None: straight to the service.
    pub proxy: Option<S3Proxy>,
    /// Credentials. None: requests are not signed.
    pub credentials: Option<S3Credentials>,
    /// Whether the bucket's name stands in the path of URLs (else in the host's name).
    pub path_style: bool,
    /// Requests at once, 1 or more.
    pub parallelism: usize,
    /// Bodies longer than this go up in parts of this length; at least [`MIN_PART_BYTES`].
    pub part_bytes: u64,
    /// Time limits and number of attempts.
    pub patience: Patience,
}

/// Bounds of a call. A request for `n` bytes gets one second more for each MiB of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until the connection is established.
    pub connect: Duration,
    /// For one request, from sending it to the last byte of the answer.
    pub request: Duration,
    /// For a call with all its requests and the waits between them.
    pub call: Duration,
    /// Requests of one call, 1 or more.
    pub attempts: u32,
    /// The wait before the second request is up to this, before the third up to twice this, and so on.
    pub first_wait: Duration,
    /// No wait is longer.
    pub longest_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            request: Duration::from_secs(10),
            call: Duration::from_secs(40),
            attempts: 8,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
        }
    }
}

impl S3Settings {
    /// A bucket of AWS or, at `endpoint`, of another service; everything else by default.
    pub fn new(bucket: impl Into<String>, endpoint: Option<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            // Services other than AWS seldom have a host name for each bucket.
            path_style: endpoint.is_some(),
            endpoint,
            region: "us-east-1".to_owned(),
            proxy: None,
            credentials: None,
            parallelism: 16,
            part_bytes: 8 << 20,
            patience: Patience::default(),
        }
    }

    /// `s3://bucket/prefix`, for texts.
    pub fn url(&self) -> String {
        match self.prefix.as_str() {
            "" => format!("s3://{}", self.bucket),
            prefix => format!("s3://{}/{prefix}", self.bucket),
        }
    }
}

/// An access key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Credentials {
    access_key: String,
    secret_key: Zeroizing<String>,
    session_token: Option<Zeroizing<String>>,
}

impl S3Credentials {
    /// The session token is there for temporary keys only.
    pub fn new(access_key: String, secret_key: String, session_token: Option<String>) -> Self {
        let (secret_key, session_token) = (Zeroizing::new(secret_key), session_token.map(Zeroizing::new));
        Self { access_key, secret_key, session_token }
    }

    /// Access key, secret key, session token: for the client alone.
    pub(super) fn reveal(&self) -> (&str, &str, Option<&str>) {
        (&self.access_key, &self.secret_key, self.session_token.as_deref().map(String::as_str))
    }
}

/// An HTTP proxy, whose URL may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Proxy {
    url: Zeroizing<String>,
    exempt: String,
}

impl S3Proxy {
    /// The proxy at a URL of `http://` or `https://`, with user and password if it needs them. `exempt`: hosts, domains
    /// and networks reached without it, separated by commas, as in `NO_PROXY`; `*` is all.
    ///
    /// # Errors
    /// `Invalid` for another kind of proxy.
    pub fn new(url: &str, exempt: &str) -> Result<Self> {
        let url = match url.split_once("://") {
            None => format!("http://{url}"),
            Some(("http" | "https", _)) => url.to_owned(),
            Some((kind, _)) => {
                return Err(Error::invalid(format!("a proxy of kind `{kind}` cannot be used"))
                    .advice("use one of http:// or https://, or except the service in NO_PROXY"));
            }
        };
        Ok(Self { url: Zeroizing::new(url), exempt: exempt.to_owned() })
    }

    /// URL and exemptions: for the client alone.
    pub(super) fn reveal(&self) -> (&str, &str) {
        (&self.url, &self.exempt)
    }
}

impl fmt::Debug for S3Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Proxy").field("exempt", &self.exempt).finish_non_exhaustive()
    }
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let credentials = S3Credentials::new("AKIA".into(), "hush".into(), Some("quiet".into()));
        let settings = S3Settings { credentials: Some(credentials), ..S3Settings::new("b", None) };
        let shown = format!("{settings:?}");
        assert!(shown.contains("S3Credentials"), "{shown}");
        assert!(!shown.contains("hush") && !shown.contains("quiet") && !shown.contains("AKIA"), "{shown}");
    }

    #[test]
    fn proxies_speak_http_and_keep_their_passwords() {
        for url in ["http://user:hush@proxy:3128", "https://proxy", "proxy:3128"] {
            let shown = format!("{:?}", S3Proxy::new(url, "localhost").unwrap());
            assert!(shown.contains("localhost") && !shown.contains("hush"), "{shown}");
        }
        let error = S3Proxy::new("socks5://user:hush@proxy", "").unwrap_err().to_string();
        assert!(error.contains("socks5") && !error.contains("hush"), "{error}");
    }

    #[test]
    fn a_url_names_bucket_and_prefix() {
        let mut settings = S3Settings::new("b", None);
        assert_eq!(settings.url(), "s3://b");
        settings.prefix = "some/where".into();
        assert_eq!(settings.url(), "s3://b/some/where");
    }
}
