//! Failures of one request, and whether a retry may help. Pure but for reading the client's errors.

use crate::error::{Error, Kind};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use std::error::Error as StdError;
use std::time::Duration;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// A retry would fail the same way.
    Final(Error),
    /// As `Final`: the credentials may not do it, or may not learn that the object is absent.
    Denied(Error),
    /// A retry may help.
    Again {
        /// The error.
        error: Error,
        /// How long the server asks the client to wait.
        wait: Option<Duration>,
        /// Whether the request may have been applied nevertheless.
        may_be_applied: bool,
    },
}

/// Answers that are not failures: the object or condition asked about does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such object.
    Absent,
    /// There is no such multipart upload (any more).
    NoSuchUpload,
    /// The condition of the request does not hold.
    Condition,
    /// The object ends before the range begins.
    PastEnd,
}

impl Failure {
    /// No answer in time.
    pub(super) fn timeout(after: Duration) -> Self {
        let what = format!("no complete answer within {:.1} s", after.as_secs_f64());
        Self::Again { error: Error::new(Kind::Unavailable, what), wait: None, may_be_applied: true }
    }

    /// An answer with unexpected content.
    pub(super) fn wrong_answer(what: impl Into<String>) -> Self {
        Self::Again { error: Error::corrupt(what), wait: None, may_be_applied: true }
    }

    /// A body that broke off, or failed its checksum.
    pub(super) fn body(error: impl StdError + Send + Sync + 'static) -> Self {
        let text = format!("{}", DisplayErrorContext(&error));
        let is_mismatch = text.contains("checksum");
        let error = match is_mismatch {
            true => Error::corrupt("the body fails its checksum"),
            false => Error::new(Kind::Unavailable, format!("the body broke off: {text}")),
        };
        Self::Again { error, wait: None, may_be_applied: true }
    }

    /// Names the permission that may be missing.
    pub(super) fn needs(self, action: &str) -> Self {
        match self {
            Self::Denied(error) => {
                let advice =
                    format!("allow these keys {action}; `snapctl doctor --help` names all that is needed");
                Self::Final(error.advice(advice))
            }
            other => other,
        }
    }

    /// The error.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Denied(error) | Self::Again { error, .. } => error,
        }
    }

    /// Interprets the client's error: a refusal with a meaning for the caller, or a failure. `needs`: the permission
    /// that the request needs.
    pub(super) fn of<E>(error: SdkError<E, HttpResponse>, needs: &str) -> Result<Refusal, Self>
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        Self::of_read(error).map_err(|failure| failure.needs(needs))
    }

    /// As [`Self::of`], for a request for an object, where a denial may mean that it is absent.
    pub(super) fn of_read<E>(error: SdkError<E, HttpResponse>) -> Result<Refusal, Self>
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(service) => {
                let raw = service.raw();
                let answer = Answer {
                    status: raw.status().as_u16(),
                    code: service.err().code().unwrap_or_default(),
                    message: service.err().message().unwrap_or_default(),
                    retry_after: raw.headers().get("retry-after"),
                };
                answer.judge()
            }
            SdkError::ConstructionFailure(_) => Err(Self::Final(
                Error::invalid(format!("cannot make the request: {}", cause(&error)))
                    .advice("check endpoint, bucket and region of the configuration"),
            )),
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                let text = cause(&error);
                Err(Self::wrong_answer(format!("status {status} with an answer that makes no sense: {text}")))
            }
            _ => {
                let what = format!("no answer: {}", cause(&error));
                Err(Self::Again {
                    error: Error::new(Kind::Unavailable, what),
                    wait: None,
                    may_be_applied: true,
                })
            }
        }
    }
}

/// The causes of an error in one line, without its own sentence.
fn cause(error: &dyn StdError) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    if parts.is_empty() { error.to_string() } else { parts.join(": ") }
}

/// The relevant parts of an error answer.
struct Answer<'a> {
    status: u16,
    code: &'a str,
    message: &'a str,
    retry_after: Option<&'a str>,
}

impl Answer<'_> {
    fn judge(&self) -> Result<Refusal, Failure> {
        match (self.status, self.code) {
            (404, "NoSuchBucket") => Err(self.wrong("create the bucket, or name another", Kind::Invalid)),
            (404, "NoSuchUpload") => Ok(Refusal::NoSuchUpload),
            (404, _) => Ok(Refusal::Absent),
            (412, _) => Ok(Refusal::Condition),
            (416, _) => Ok(Refusal::PastEnd),
            (_, "RequestTimeTooSkewed") => Err(self.wrong("set this host's clock", Kind::Invalid)),
            // The answer to HEAD has no code.
            (403, "AccessDenied" | "") => Err(Failure::Denied(Error::new(Kind::Invalid, self.text()))),
            (401 | 403, _) => {
                Err(self.wrong("check the keys and what they are allowed to do", Kind::Invalid))
            }
            (301 | 307 | 308, _) => Err(self.wrong("check endpoint and region", Kind::Invalid)),
            (507, _) | (_, "XMinioStorageFull" | "QuotaExceeded") => {
                Err(self.wrong("free some space in the bucket; nothing stored was changed", Kind::Full))
            }
            (501, _) => Err(self.wrong("use a service that has this operation", Kind::Invalid)),
            // Two requests conflicted; one may be retried.
            (409, _) => Err(self.again(Kind::Unavailable, false)),
            (
                400,
                "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch",
            ) => Err(self.again(Kind::Corrupt, false)),
            (400, "RequestTimeout" | "IncompleteBody") | (408 | 425 | 429, _) => {
                Err(self.again(Kind::Unavailable, false))
            }
            // Some operations begin to answer before they know their outcome.
            (200..=299, _) => Err(self.again(Kind::Unavailable, true)),
            // A gateway that timed out does not know whether the server behind it finished.
            (500.., _) => Err(self.again(Kind::Unavailable, true)),
            _ => Err(self.wrong("check the configuration of the bucket", Kind::Invalid)),
        }
    }

    fn wrong(&self, advice: &str, kind: Kind) -> Failure {
        Failure::Final(Error::new(kind, self.text()).advice(advice))
    }

    fn again(&self, kind: Kind, may_be_applied: bool) -> Failure {
        let wait = self.retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        Failure::Again { error: Error::new(kind, self.text()), wait, may_be_applied }
    }

    fn text(&self) -> String {
        let mut text = format!("the bucket answers {}", self.status);
        for part in [self.code, self.message].into_iter().filter(|part| !part.is_empty()) {
            text.push(' ');
            text.push_str(part);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, code: &str) -> Result<Refusal, Failure> {
        Answer { status, code, message: "because", retry_after: Some("3") }.judge()
    }

    #[test]
    fn refusals_are_answers() {
        assert_eq!(judged(404, "NoSuchKey").unwrap(), Refusal::Absent);
        assert_eq!(judged(404, "").unwrap(), Refusal::Absent);
        assert_eq!(judged(404, "NoSuchUpload").unwrap(), Refusal::NoSuchUpload);
        assert_eq!(judged(412, "PreconditionFailed").unwrap(), Refusal::Condition);
        assert_eq!(judged(416, "InvalidRange").unwrap(), Refusal::PastEnd);
    }

    #[test]
    fn what_passes_by_is_tried_again_after_the_wait_asked_for() {
        for (status, code) in
            [(503, "SlowDown"), (500, ""), (504, ""), (429, ""), (400, "RequestTimeout"), (409, "")]
        {
            let Err(Failure::Again { error, wait, .. }) = judged(status, code) else {
                panic!("{status} {code}")
            };
            assert_eq!(
                (error.kind(), wait),
                (Kind::Unavailable, Some(Duration::from_secs(3))),
                "{status} {code}"
            );
        }
        let Err(Failure::Again { error, .. }) = judged(400, "BadDigest") else { panic!("it is tried again") };
        assert_eq!(error.kind(), Kind::Corrupt);
    }

    #[test]
    fn what_is_denied_names_the_permission() {
        for code in ["AccessDenied", ""] {
            let Err(failure) = judged(403, code) else { panic!("it is no answer") };
            assert!(matches!(failure, Failure::Denied(_)), "{code}");
            let Failure::Final(error) = failure.needs("s3:PutObject") else { panic!("it is final") };
            assert!(error.to_string().contains("allow these keys s3:PutObject"), "{error}");
        }
    }

    #[test]
    fn what_stays_wrong_is_final_and_says_what_to_do() {
        let cases = [
            (403, "InvalidAccessKeyId", Kind::Invalid, "keys"),
            (403, "RequestTimeTooSkewed", Kind::Invalid, "clock"),
            (404, "NoSuchBucket", Kind::Invalid, "create the bucket"),
            (301, "PermanentRedirect", Kind::Invalid, "region"),
            (400, "InvalidArgument", Kind::Invalid, "configuration"),
            (501, "NotImplemented", Kind::Invalid, "service"),
            (507, "", Kind::Full, "free some space"),
        ];
        for (status, code, kind, advice) in cases {
            let Err(Failure::Final(error)) = judged(status, code) else { panic!("{status} {code}") };
            assert_eq!(error.kind(), kind, "{status} {code}");
            let text = error.to_string();
            assert!(text.contains(advice) && text.contains("because"), "{text}");
        }
    }
}
