//! Conditional writes, in one request or in parts, and the outcome of those whose answer was lost.
//!
//! Every write carries a mark of its own in the object's metadata. When a condition is refused after an earlier attempt
//! may have been applied, the mark of the stored object shows whether that attempt succeeded.

use super::client::{Answer, Bucket, Condition, Got, PUT, mark_field};
use super::failure::{Failure, Refusal};
use super::reads::crashed;
use super::retry::{Attempt, Call};
use super::{Shared, call};
use crate::clock;
use crate::error::{Error, Kind, Result};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Parts of an upload sent at once.
const PARTS_AT_ONCE: usize = 4;

/// How a conditional write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The object was stored.
    Stored,
    /// The condition did not hold, and nothing was changed.
    Refused,
    /// The condition does not hold now; this write may have been applied and then replaced.
    Unknown,
}

/// One object to be written.
#[derive(Clone, Copy)]
pub(super) struct Write<'a> {
    pub key: &'a str,
    pub body: &'a [u8],
    pub condition: Condition<'a>,
}

/// Bytes that can be sent more than once without being copied.
struct Body(SdkBody);

impl Body {
    fn new(bytes: &[u8]) -> Self {
        Self(SdkBody::from(bytes.to_vec()))
    }

    fn again(&self) -> SdkBody {
        self.0.try_clone().expect("bytes in memory can be sent again")
    }
}

impl Shared {
    /// Writes an object in one request.
    pub(super) async fn write_object(&self, write: Write<'_>) -> Result<Written> {
        let (body, mark) = (Body::new(write.body), new_mark());
        let object = self.object(write.key);
        let call = Call { verb: "put", object: &object, bytes: write.body.len() as u64 };
        self.caller
            .run(call, async |attempt| {
                let answer = self.bucket.put(write.key, body.again(), &mark, write.condition).await?;
                self.conclude(answer, write, &mark, attempt).await
            })
            .await
    }

    /// Interprets the answer to a conditional write.
    async fn conclude(
        &self,
        answer: Result<(), Refusal>,
        write: Write<'_>,
        mark: &str,
        attempt: Attempt,
    ) -> Result<Written, Failure> {
        let refusal = match answer {
            Ok(()) => return Ok(Written::Stored),
            Err(refusal) => refusal,
        };
        match (write.condition, refusal) {
            (Condition::Absent | Condition::Match(_), Refusal::Condition | Refusal::NoSuchUpload)
            | (Condition::Match(_), Refusal::Absent)
                if attempt.is_unsure =>
            {
                self.find_out(write, mark).await
            }
            (Condition::Absent | Condition::Match(_), Refusal::Condition)
            | (Condition::Match(_), Refusal::Absent) => Ok(Written::Refused),
            (Condition::None, Refusal::NoSuchUpload) if attempt.is_unsure => self.find_out(write, mark).await,
            (_, refusal) => {
                let what = format!("a write is answered as if it were a question ({refusal:?})");
                Err(Failure::Final(Error::new(Kind::Unavailable, what)))
            }
        }
    }

    /// Whether the stored object was written by the call with this mark.
    async fn find_out(&self, write: Write<'_>, mark: &str) -> Result<Written, Failure> {
        let (body, head) = match self.bucket.get(write.key).await? {
            Ok(Got::Whole(body, head)) => (Some(body), head),
            Ok(Got::TooLong(head)) => (None, head),
            Err(_absent) => return Ok(Written::Unknown),
        };
        tracing::info!(key = write.key, "looked what became of a write without an answer");
        let is_same = match &body {
            Some(body) => body == write.body,
            // Longer than any object of Torpor that two writers could write under one key.
            None => head.len_bytes == write.body.len() as u64,
        };
        let is_ours = match &head.mark {
            Some(found) => found == mark,
            // A service without metadata: no other writer stores just these bytes under this key at this moment.
            None => is_same,
        };
        match (is_ours, write.condition) {
            (true, _) if is_same => Ok(Written::Stored),
            (true, _) => Err(Failure::wrong_answer("the bucket holds other bytes than were sent")),
            // An object that may not be replaced was there first.
            (false, Condition::Absent) => Ok(Written::Refused),
            (false, _) => Ok(Written::Unknown),
        }
    }
}

/// A mark that no other call has.
fn new_mark() -> String {
    format!("{:032x}", u128::from_le_bytes(clock::random_bytes()))
}

/// Writes an object in parts. It is invisible before the last step; after a failure no part stays.
pub(super) async fn write_in_parts(
    shared: &Arc<Shared>,
    write: Write<'_>,
    part_bytes: u64,
) -> Result<Written> {
    let mark = new_mark();
    let upload = begin(shared, write.key, &mark).await?;
    let outcome = async {
        let parts = send_parts(shared, write, part_bytes, &upload).await?;
        complete(shared, write, &mark, &upload, parts).await
    };
    let outcome = outcome.await;
    if !matches!(outcome, Ok(Written::Stored)) {
        abort(shared, write.key, &upload).await;
    }
    outcome
}

async fn begin(shared: &Shared, key: &str, mark: &str) -> Result<String> {
    let object = shared.object(key);
    shared
        .caller
        .run(call("begin upload", &object), async |_| {
            let (field, mark) = mark_field(mark);
            let bucket = &shared.bucket;
            let request = bucket.client.create_multipart_upload().bucket(&bucket.name).key(bucket.key(key));
            // Named at the beginning, or the service refuses the parts' checksums at the end.
            let request = request.metadata(field, mark).checksum_algorithm(ChecksumAlgorithm::Crc32);
            match request.send().await {
                Ok(answer) => answer.upload_id.ok_or_else(|| Failure::wrong_answer("an upload has no id")),
                Err(error) => Err(unexpected(Failure::of(error, PUT))),
            }
        })
        .await
}

/// Sends all parts, a few at once; each is retried by itself.
async fn send_parts(
    shared: &Arc<Shared>,
    write: Write<'_>,
    part_bytes: u64,
    upload: &str,
) -> Result<Vec<CompletedPart>> {
    let mut parts = Vec::new();
    let mut running = JoinSet::new();
    let take = |done: Option<Result<Result<CompletedPart>, tokio::task::JoinError>>| -> Result<Option<CompletedPart>> {
        done.map(|done| done.map_err(crashed)?).transpose()
    };
    for (bytes, number) in write.body.chunks(part_bytes as usize).zip(1..) {
        if running.len() >= PARTS_AT_ONCE {
            parts.extend(take(running.join_next().await)?);
        }
        let (shared, key, upload) = (shared.clone(), write.key.to_owned(), upload.to_owned());
        let (body, len) = (Body::new(bytes), bytes.len() as u64);
        running.spawn(async move { send_part(&shared, &key, &upload, number, (body, len)).await });
    }
    while let Some(part) = take(running.join_next().await)? {
        parts.push(part);
    }
    parts.sort_by_key(CompletedPart::part_number);
    Ok(parts)
}

async fn send_part(
    shared: &Shared,
    key: &str,
    upload: &str,
    number: i32,
    (body, len): (Body, u64),
) -> Result<CompletedPart> {
    let object = format!("{} part {number}", shared.object(key));
    let call = Call { verb: "put", object: &object, bytes: len };
    shared
        .caller
        .run(call, async |_| {
            let Bucket { client, name, .. } = &shared.bucket;
            let request = client.upload_part().bucket(name).key(shared.bucket.key(key)).upload_id(upload);
            let body = ByteStream::new(body.again());
            let request = request.part_number(number).checksum_algorithm(ChecksumAlgorithm::Crc32);
            let answer = match request.body(body).send().await {
                Ok(answer) => answer,
                Err(error) => return Err(unexpected(Failure::of(error, PUT))),
            };
            let part = CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag);
            // The server's checksum is compared with the parts once more when they are joined.
            Ok(part.set_checksum_crc32(answer.checksum_crc32).build())
        })
        .await
}

async fn complete(
    shared: &Shared,
    write: Write<'_>,
    mark: &str,
    upload: &str,
    parts: Vec<CompletedPart>,
) -> Result<Written> {
    let object = shared.object(write.key);
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    // Joining parts may take a service as long as writing them.
    let call = Call { verb: "complete upload", object: &object, bytes: write.body.len() as u64 };
    shared
        .caller
        .run(call, async |attempt| {
            let bucket = &shared.bucket;
            let (if_match, if_none_match) = write.condition.headers();
            let request = bucket.client.complete_multipart_upload().bucket(&bucket.name);
            let request =
                request.key(bucket.key(write.key)).upload_id(upload).multipart_upload(parts.clone());
            let sent = request.set_if_match(if_match).set_if_none_match(if_none_match).send().await;
            let answer: Answer<()> = match sent {
                Ok(answer) if answer.e_tag().is_some() => Ok(Ok(())),
                Ok(_) => Err(Failure::wrong_answer("an upload is complete, but has no ETag")),
                Err(error) => Failure::of(error, PUT).map(Err),
            };
            shared.conclude(answer?, write, mark, attempt).await
        })
        .await
}

/// Aborts an upload. A failure costs space until the bucket's own rules clear it.
async fn abort(shared: &Shared, key: &str, upload: &str) {
    if let Err(error) = give_back(shared, key, upload).await {
        tracing::warn!(key, upload, %error, "parts of a failed upload stay in the bucket");
    }
}

async fn give_back(shared: &Shared, key: &str, upload: &str) -> Result<()> {
    let object = shared.object(key);
    shared
        .caller
        .run(call("abort upload", &object), async |_| {
            let bucket = &shared.bucket;
            let request = bucket.client.abort_multipart_upload().bucket(&bucket.name).key(bucket.key(key));
            let needs = |error| Failure::of(error, "s3:AbortMultipartUpload");
            match request.upload_id(upload).send().await.map_err(needs) {
                Ok(_) | Err(Ok(_)) => Ok(()),
                Err(Err(failure)) => Err(failure),
            }
        })
        .await
}

/// Begins an upload and aborts it, if the bucket supports uploads in parts.
///
/// # Errors
/// When it cannot be aborted: every interrupted upload would leave its parts in the bucket.
pub(super) async fn begin_and_give_back(shared: &Shared, key: &str) -> Result<()> {
    match begin(shared, key, &new_mark()).await {
        Ok(upload) => give_back(shared, key, &upload).await,
        Err(error) => {
            tracing::debug!(%error, "the bucket begins no upload in parts");
            Ok(())
        }
    }
}

/// The failure for a refusal that has no meaning here.
fn unexpected(refused: Result<Refusal, Failure>) -> Failure {
    match refused {
        // The upload is gone: a retry begins it again.
        Ok(refusal) => {
            Failure::Final(Error::new(Kind::Unavailable, format!("the bucket answers {refusal:?}")))
        }
        Err(failure) => failure,
    }
}
