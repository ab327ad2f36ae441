//! Single requests, each answer checked: status, Content-Range, lengths. Nothing is retried, except a denied read:
//! without the right to list, an absent object is answered as denied. A listing of just its key then decides.

use super::failure::{Failure, Refusal};
use super::settings::S3Settings;
use crate::error::{Error, Result};
use crate::tier::ObjectInfo;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::ChecksumMode;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

/// Metadata field that names the call that stored an object.
const MARK: &str = "torpor-call";
/// Longer objects are read in parts.
pub(super) const LONGEST_WHOLE: u64 = 64 << 20;

/// Permissions, as policies name them.
pub(super) const PUT: &str = "s3:PutObject";
const DELETE: &str = "s3:DeleteObject";
const LIST: &str = "s3:ListBucket on the bucket, at least for the prefix";
const READ: &str = "s3:GetObject";

/// Outcome of one request: an answer, a refusal with a meaning, or a failure.
pub(super) type Answer<T> = Result<Result<T, Refusal>, Failure>;

/// The condition of a write.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition<'a> {
    /// Nothing.
    None,
    /// There is no object of this key.
    Absent,
    /// The object has this ETag.
    Match(&'a str),
}

impl Condition<'_> {
    /// The headers If-Match and If-None-Match.
    pub(super) fn headers(self) -> (Option<String>, Option<String>) {
        match self {
            Self::None => (None, None),
            Self::Absent => (None, Some("*".to_owned())),
            Self::Match(etag) => (Some(etag.to_owned()), None),
        }
    }
}

/// Metadata of an object.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// Its size.
    pub len_bytes: u64,
    /// Identifies this version.
    pub etag: Option<String>,
    /// The mark of the call that stored it.
    pub mark: Option<String>,
}

/// Result of a request for a whole object.
#[derive(Debug)]
pub(super) enum Got {
    /// All of it.
    Whole(Vec<u8>, Head),
    /// Nothing: it is too long for one request.
    TooLong(Head),
}

/// One page of a listing.
#[derive(Debug)]
pub(super) struct Page {
    /// Objects, keys without the bucket's prefix.
    pub objects: Vec<ObjectInfo>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// The client and its target.
#[derive(Debug)]
pub(super) struct Bucket {
    /// The client, shared by all requests: its connections are pooled.
    pub client: Client,
    /// The bucket's name.
    pub name: String,
    prefix: String,
    first_byte: Duration,
}

impl Bucket {
    /// A client with these settings. Sends nothing.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn new(settings: &S3Settings) -> Result<Self> {
        if settings.bucket.is_empty() {
            return Err(Error::invalid("the bucket has no name"));
        }
        let https = https(settings.parallelism, proxy_of(settings)?);
        let patience = &settings.patience;
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(https)
            .region(Region::new(settings.region.clone()))
            .force_path_style(settings.path_style)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(patience.connect).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
            // Ranges have no checksum of their own, and some services send that of the whole object with them.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        config = match &settings.credentials {
            Some(credentials) => {
                let (access, secret, token) = credentials.reveal();
                let token = token.map(str::to_owned);
                config.credentials_provider(Credentials::new(access, secret, token, None, "torpor"))
            }
            None => config.allow_no_auth(),
        };
        let prefix = match settings.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let (client, name) = (Client::from_conf(config.build()), settings.bucket.clone());
        Ok(Self { client, name, prefix, first_byte: patience.request })
    }

    /// The full key of an object in the bucket.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Size, ETag and mark of an object.
    pub(super) async fn head(&self, key: &str) -> Answer<Head> {
        let sent = self.client.head_object().bucket(&self.name).key(self.key(key)).send().await;
        let head = match sent {
            Ok(head) => head,
            Err(error) => return self.not_read(key, Failure::of_read(error)).await,
        };
        let len_bytes = told_length(head.content_length())?;
        let mark = head.metadata().and_then(|metadata| metadata.get(MARK)).cloned();
        Ok(Ok(Head { len_bytes, etag: head.e_tag, mark }))
    }

    /// A whole object of at most [`LONGEST_WHOLE`]; its checksum is compared where the server sends one.
    pub(super) async fn get(&self, key: &str) -> Answer<Got> {
        let request = self.client.get_object().bucket(&self.name).key(self.key(key));
        let sent = self.soon(request.checksum_mode(ChecksumMode::Enabled).send()).await?;
        let mut answer = match sent {
            Ok(answer) => answer,
            Err(error) => return self.not_read(key, Failure::of_read(error)).await,
        };
        let len_bytes = told_length(answer.content_length())?;
        let mark = answer.metadata().and_then(|metadata| metadata.get(MARK)).cloned();
        let head = Head { len_bytes, etag: answer.e_tag, mark };
        if len_bytes > LONGEST_WHOLE {
            return Ok(Ok(Got::TooLong(head)));
        }
        let body = self.read_exactly(&mut answer.body, len_bytes).await?;
        Ok(Ok(Got::Whole(body, head)))
    }

    /// Exactly the bytes of `range`, which is not empty, of the version with this ETag, if one is given; past the end
    /// as [`Refusal::PastEnd`].
    pub(super) async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
        etag: Option<String>,
    ) -> Answer<Vec<u8>> {
        let (offset, last, len) = (range.start, range.end - 1, range.end - range.start);
        let request = self.client.get_object().bucket(&self.name).key(self.key(key)).set_if_match(etag);
        let request = request.range(format!("bytes={offset}-{last}"));
        let mut answer = match self.soon(request.send()).await? {
            Ok(answer) => answer,
            Err(error) => return self.not_read(key, Failure::of_read(error)).await,
        };
        let len_bytes = told_length(answer.content_length())?;
        let Some(told) = answer.content_range() else {
            // The whole object is a right answer when the range covers all of it.
            if offset == 0 && len_bytes == len {
                return self.read_exactly(&mut answer.body, len).await.map(Ok);
            }
            let what =
                format!("bytes {offset} to {last} were asked for, and a whole object of {len_bytes} comes");
            return Err(Failure::wrong_answer(what));
        };
        let (first, end, size) = parse_content_range(told)
            .ok_or_else(|| Failure::wrong_answer(format!("no range in Content-Range {told:?}")))?;
        if first == offset && end < last && size == Some(end + 1) {
            return Ok(Err(Refusal::PastEnd));
        }
        if (first, end) != (offset, last) || size.is_some_and(|size| size <= last) {
            return Err(Failure::wrong_answer(format!(
                "bytes {offset} to {last} were asked for, Content-Range is {told:?}"
            )));
        }
        if len_bytes != len {
            return Err(Failure::wrong_answer(format!(
                "{len} bytes were asked for, {len_bytes} are announced"
            )));
        }
        self.read_exactly(&mut answer.body, len).await.map(Ok)
    }

    /// Stores an object in one request.
    pub(super) async fn put(
        &self,
        key: &str,
        body: SdkBody,
        mark: &str,
        condition: Condition<'_>,
    ) -> Answer<()> {
        let (if_match, if_none_match) = condition.headers();
        let request = self.client.put_object().bucket(&self.name).key(self.key(key));
        let request = request.set_if_match(if_match).set_if_none_match(if_none_match);
        let sent = request.metadata(MARK, mark).body(ByteStream::new(body)).send().await;
        sent.map_or_else(|error| Failure::of(error, PUT).map(Err), |_| Ok(Ok(())))
    }

    /// Removes an object; absence is fine.
    pub(super) async fn delete(&self, key: &str) -> Answer<()> {
        let sent = self.client.delete_object().bucket(&self.name).key(self.key(key)).send().await;
        match sent.map_err(|error| Failure::of(error, DELETE)) {
            Ok(_) | Err(Ok(Refusal::Absent)) => Ok(Ok(())),
            Err(other) => other.map(Err),
        }
    }

    /// Removes an object if it has this ETag.
    pub(super) async fn delete_version(&self, key: &str, etag: &str) -> Answer<()> {
        let request = self.client.delete_object().bucket(&self.name).key(self.key(key)).if_match(etag);
        request.send().await.map_or_else(|error| Failure::of(error, DELETE).map(Err), |_| Ok(Ok(())))
    }

    /// One page of the objects below a prefix.
    pub(super) async fn list(&self, prefix: &str, page: Option<String>) -> Answer<Page> {
        let request = self.client.list_objects_v2().bucket(&self.name).prefix(self.key(prefix));
        let answer = match request.set_continuation_token(page).send().await {
            Ok(answer) => answer,
            Err(error) => return Failure::of(error, LIST).map(Err),
        };
        let mut objects = Vec::new();
        for object in answer.contents() {
            let key = object.key().and_then(|key| key.strip_prefix(self.prefix.as_str()));
            let key = key.filter(|key| key.starts_with(prefix));
            let (Some(key), Some(size)) = (key, object.size()) else {
                return Err(Failure::wrong_answer("a listing names what was not asked for"));
            };
            objects.push(ObjectInfo { key: key.to_owned(), len_bytes: told_length(Some(size))? });
        }
        let next = answer.next_continuation_token().map(str::to_owned);
        if answer.is_truncated() == Some(true) && next.is_none() {
            return Err(Failure::wrong_answer("a listing goes on, but does not say where"));
        }
        Ok(Ok(Page { objects, next: next.filter(|_| answer.is_truncated() == Some(true)) }))
    }

    /// The meaning of a failed read: without the right to list, an absent object is answered as denied.
    async fn not_read<T>(&self, key: &str, judged: Result<Refusal, Failure>) -> Answer<T> {
        let denied = match judged {
            Err(Failure::Denied(error)) => error,
            other => return other.map(Err),
        };
        let whole = self.key(key);
        // Of all keys with this prefix, it is the first.
        let request = self.client.list_objects_v2().bucket(&self.name).prefix(&whole).max_keys(1);
        match request.send().await {
            Ok(listed) if listed.contents().iter().any(|object| object.key() == Some(&whole)) => {
                Err(Failure::Denied(denied).needs(READ))
            }
            Ok(_) => Ok(Err(Refusal::Absent)),
            Err(error) => match Failure::of_read(error) {
                Err(Failure::Denied(_)) => {
                    let needs =
                        format!("{READ}, and {LIST}: without it an absent object is reported as forbidden");
                    Err(Failure::Denied(denied).needs(&needs))
                }
                other => other.map(Err),
            },
        }
    }

    /// Waits for the head of an answer, or its next bytes.
    async fn soon<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        let bound = self.first_byte;
        tokio::time::timeout(bound, answer).await.map_err(|_elapsed| Failure::timeout(bound))
    }

    /// Reads a body that must have this length; stops at the first byte too many.
    async fn read_exactly(&self, stream: &mut ByteStream, len: u64) -> Result<Vec<u8>, Failure> {
        let len =
            usize::try_from(len).map_err(|_| Failure::wrong_answer("the body does not fit into memory"))?;
        // The announced length is not trusted: memory is taken as bytes come.
        let mut body = Vec::with_capacity(len.min(LONGEST_WHOLE as usize));
        while let Some(bytes) = self.soon(stream.next()).await? {
            body.extend_from_slice(&bytes.map_err(Failure::body)?);
            if body.len() > len {
                return Err(Failure::wrong_answer(format!("the body goes on behind its {len} bytes")));
            }
        }
        if body.len() < len {
            return Err(Failure::wrong_answer(format!("the body ends after {} of {len} bytes", body.len())));
        }
        Ok(body)
    }
}

/// The HTTP connections to the service, and their proxy.
fn https(parallelism: usize, proxy: ProxyConfig) -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring));
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.pool_max_idle_per_host(parallelism).proxy_config(proxy.clone()).build()
    })
}

fn proxy_of(settings: &S3Settings) -> Result<ProxyConfig> {
    let Some(proxy) = &settings.proxy else { return Ok(ProxyConfig::disabled()) };
    let (url, exempt) = proxy.reveal();
    let config = ProxyConfig::all(url).map_err(|_| Error::invalid("the proxy's URL is none"))?;
    Ok(config.no_proxy(exempt))
}

/// The field of metadata for a mark, for uploads in parts.
pub(super) fn mark_field(mark: &str) -> (String, String) {
    (MARK.to_owned(), mark.to_owned())
}

fn told_length(len: Option<i64>) -> Result<u64, Failure> {
    len.and_then(|len| u64::try_from(len).ok())
        .ok_or_else(|| Failure::wrong_answer("the answer does not tell its length"))
}

/// `bytes 5-9/100`: first and last byte, and the total size unless it is `*`.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5, 9, Some(100))));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, 0, None)));
        for wrong in [
            "",
            "bytes",
            "bytes 5-9",
            "5-9/100",
            "bytes 9-5/100",
            "bytes -5/100",
            "bytes */100",
            "bytes 1-2/x",
        ] {
            assert_eq!(parse_content_range(wrong), None, "{wrong}");
        }
    }
}
