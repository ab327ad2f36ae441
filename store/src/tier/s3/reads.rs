//! Reads: of one object, of a range, of many ranges at once.

use super::client::{Got, Head, LONGEST_WHOLE};
use super::failure::Refusal;
use super::retry::Call;
use super::{Shared, call};
use crate::error::{Error, Kind, Result};
use crate::tier::{ObjectInfo, RangeRequest, check_key};
use std::sync::Arc;
use tokio::task::{JoinError, JoinSet};

/// Long objects are read in parts of this length.
const PART_BYTES: u64 = 8 << 20;
/// No object is larger, so no range ends later: 5 TiB.
const LARGEST_OBJECT: u64 = 5 << 40;

impl Shared {
    /// Size and version of an object, `None` when there is none.
    pub(super) async fn head(&self, key: &str) -> Result<Option<Head>> {
        let object = self.object(key);
        let head = self.caller.run(call("look at", &object), async |_| self.bucket.head(key).await).await?;
        present(head)
    }

    /// Exactly `len` bytes from `offset`, in one request when there are any.
    pub(super) async fn get_range(
        &self,
        key: &str,
        offset: u64,
        len: u64,
    ) -> Result<Result<Vec<u8>, Refusal>> {
        let end = offset.saturating_add(len);
        if len == 0 || end > LARGEST_OBJECT {
            return Ok(match self.head(key).await? {
                None => Err(Refusal::Absent),
                Some(head) if len == 0 && offset <= head.len_bytes => Ok(Vec::new()),
                Some(_) => Err(Refusal::PastEnd),
            });
        }
        let object = self.object(key);
        let call = Call { verb: "get range", object: &object, bytes: len };
        self.caller.run(call, async |_| self.bucket.get_range(key, offset..end, None).await).await
    }
}

/// A whole object and its head, `None` when there is none.
pub(super) async fn get(shared: &Arc<Shared>, key: &str) -> Result<Option<(Vec<u8>, Head)>> {
    let object = shared.object(key);
    // The length is known only from the answer; a request that hangs is noticed much sooner.
    let call = Call { verb: "get", object: &object, bytes: LONGEST_WHOLE };
    let got = shared.caller.run(call, async |_| shared.bucket.get(key).await).await?;
    match present(got)? {
        None => Ok(None),
        Some(Got::Whole(body, head)) => Ok(Some((body, head))),
        Some(Got::TooLong(head)) => get_in_parts(shared, key, &head).await.map(|body| Some((body, head))),
    }
}

/// A long object: its parts at once, all of one version.
async fn get_in_parts(shared: &Arc<Shared>, key: &str, head: &Head) -> Result<Vec<u8>> {
    let too_long = |_| Error::invalid("the object does not fit into memory").object(shared.object(key));
    let mut body = vec![0; usize::try_from(head.len_bytes).map_err(too_long)?];
    let mut starts = (0..head.len_bytes).step_by(PART_BYTES as usize);
    let mut running = JoinSet::new();
    loop {
        while running.len() < shared.parallelism
            && let Some(start) = starts.next()
        {
            let range = start..head.len_bytes.min(start + PART_BYTES);
            let (shared, key, etag) = (shared.clone(), key.to_owned(), head.etag.clone());
            running.spawn(async move {
                let object = shared.object(&key);
                let call = Call { verb: "get range", object: &object, bytes: PART_BYTES };
                let get = async |_| shared.bucket.get_range(&key, range.clone(), etag.clone()).await;
                shared.caller.run(call, get).await.map(|bytes| (start, bytes))
            });
        }
        let Some(done) = running.join_next().await else { return Ok(body) };
        match done.map_err(crashed)?? {
            (start, Ok(bytes)) => body[start as usize..][..bytes.len()].copy_from_slice(&bytes),
            (_, Err(refusal)) => {
                let what = format!("an object changed while it was read ({refusal:?})");
                return Err(Error::new(Kind::Unavailable, what).object(shared.object(key)));
            }
        }
    }
}

/// Result of one range: its bytes, or the refusal.
pub(super) type Ranged = Result<Result<Vec<u8>, Refusal>>;

/// Many ranges, with the bucket's parallelism; answers in the order of the requests.
pub(super) async fn get_many(shared: &Arc<Shared>, requests: &[RangeRequest]) -> Vec<Ranged> {
    let mut answers: Vec<Option<Ranged>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.iter().cloned().enumerate();
    let mut running = JoinSet::new();
    let mut crash = None;
    loop {
        while running.len() < shared.parallelism
            && let Some((index, request)) = waiting.next()
        {
            let shared = shared.clone();
            running.spawn(async move {
                let RangeRequest { key, offset, len_bytes } = request;
                let answer = match check_key(&key) {
                    Ok(()) => shared.get_range(&key, offset, len_bytes).await,
                    Err(error) => Err(error),
                };
                (index, answer)
            });
        }
        match running.join_next().await {
            Some(Ok((index, answer))) => answers[index] = Some(answer),
            Some(Err(error)) => crash = Some(error.to_string()),
            None => break,
        }
    }
    let lost = || Err(Error::new(Kind::Internal, format!("a request came to no end: {crash:?}")));
    answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
}

/// All objects below a prefix, by key.
pub(super) async fn list(shared: &Shared, prefix: &str) -> Result<Vec<ObjectInfo>> {
    let object = shared.object(prefix);
    let mut found: Vec<ObjectInfo> = Vec::new();
    let mut next = None;
    loop {
        let list = async |_| shared.bucket.list(prefix, next.clone()).await;
        let page = shared.caller.run(call("list", &object), list).await?;
        let page = page.map_err(|refusal| odd_answer(refusal).object(&object))?;
        found.extend(page.objects.into_iter().filter(|info| check_key(&info.key).is_ok()));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found.dedup_by(|a, b| a.key == b.key);
    Ok(found)
}

/// The error for an answer without a meaning here.
pub(super) fn odd_answer(refusal: Refusal) -> Error {
    Error::new(Kind::Unavailable, format!("the bucket answers {refusal:?}"))
}

/// Absence is an answer to a question about an object; no other refusal is.
fn present<T>(answer: Result<T, Refusal>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Refusal::Absent) => Ok(None),
        Err(refusal) => Err(odd_answer(refusal)),
    }
}

/// A task of the runtime panicked or was cancelled.
pub(super) fn crashed(error: JoinError) -> Error {
    Error::new(Kind::Internal, "a request came to no end").caused_by(error)
}
