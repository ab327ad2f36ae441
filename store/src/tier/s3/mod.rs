//! A tier in a bucket of S3 or a service that speaks its protocol.
//!
//! The only asynchronous code of Torpor: a private runtime of a few threads serves many requests at once below blocking
//! methods. The bucket's guarantees are in a record in it, written by `snapctl doctor`; without conditional writes,
//! put-if-absent is HEAD and PUT and compare-and-swap is GET, compare and PUT: correct only while each key has a single
//! owner, which the caller must ensure.

mod client;
mod failure;
mod probe;
mod reads;
mod retry;
mod settings;
mod upload;

pub use probe::{examine_and_record, examine_bucket};
pub use settings::{MIN_PART_BYTES, Patience, S3Credentials, S3Proxy, S3Settings};

use super::guarantees::{BucketRecord, Guarantees};
use super::{ObjectInfo, RangeRequest, Tier, absent, check_key, past_end};
use crate::error::{Error, Kind, OptionalExt, Result};
use crate::host::object::Object;
use crate::keys;
use client::{Bucket, Condition};
use failure::Refusal;
use retry::{Call, Caller};
use std::fmt;
use std::sync::{Arc, OnceLock};
use tokio::runtime::Runtime;
use upload::{Write, Written};

/// Threads of the runtime: they wait for sockets and copy bytes.
const THREADS: usize = 2;

/// Objects in a bucket. Clones share its connections.
#[derive(Clone)]
pub struct S3Tier {
    shared: Arc<Shared>,
    runtime: Arc<Runtime>,
    /// The guarantees in the bucket's record, once read.
    guarantees: Arc<OnceLock<Guarantees>>,
    part_bytes: u64,
}

/// Shared by the requests of a tier.
#[derive(Debug)]
struct Shared {
    bucket: Bucket,
    caller: Caller,
    url: String,
    parallelism: usize,
}

impl Shared {
    /// An object's name in texts.
    fn object(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }
}

/// A call that moves few bytes.
fn call<'a>(verb: &'static str, object: &'a str) -> Call<'a> {
    Call { verb, object, bytes: 0 }
}

impl S3Tier {
    /// The tier in a bucket. Sends nothing: the bucket's guarantees are read when first needed.
    ///
    /// # Errors
    /// `Invalid` when the settings are wrong.
    pub fn new(settings: &S3Settings) -> Result<Self> {
        let parallelism = settings.parallelism.max(1);
        let shared = Shared {
            bucket: Bucket::new(settings)?,
            caller: Caller::new(settings.patience, parallelism),
            url: settings.url(),
            parallelism,
        };
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(THREADS).thread_name("s3").enable_all().build();
        let runtime = runtime.map_err(|error| Error::io("cannot start threads for", &shared.url, error))?;
        Ok(Self {
            shared: Arc::new(shared),
            runtime: Arc::new(runtime),
            guarantees: Arc::default(),
            part_bytes: settings.part_bytes.max(MIN_PART_BYTES),
        })
    }

    /// The known guarantees of the bucket: none if it was never examined.
    fn known_guarantees(&self) -> Result<Guarantees> {
        if let Some(known) = self.guarantees.get() {
            return Ok(*known);
        }
        let record = self.bucket_record()?;
        let guarantees = record.map_or(Guarantees::NONE, |record| record.guarantees);
        Ok(*self.guarantees.get_or_init(|| guarantees))
    }

    /// The result of the bucket's examination, `None` when there was none.
    ///
    /// # Errors
    /// `Corrupt`, or as the bucket answers.
    pub fn bucket_record(&self) -> Result<Option<BucketRecord>> {
        let Some(record) = self.get(keys::BUCKET).optional()? else { return Ok(None) };
        let read = BucketRecord::decode(&record);
        let advice = "run `snapctl doctor` to examine the bucket again";
        read.map(Some).map_err(|error| error.object(self.shared.object(keys::BUCKET)).advice(advice))
    }

    /// Writes an object under a condition that the bucket respects, in parts where that pays.
    fn write(&self, write: Write<'_>) -> Result<Written> {
        let guarantees = self.known_guarantees()?;
        let may_split = match write.condition {
            Condition::None => guarantees.multipart,
            Condition::Absent => guarantees.multipart && guarantees.multipart_condition,
            Condition::Match(_) => false,
        };
        self.runtime.block_on(async {
            if may_split && write.body.len() as u64 > self.part_bytes {
                upload::write_in_parts(&self.shared, write, self.part_bytes).await
            } else {
                self.shared.write_object(write).await
            }
        })
    }

    /// The error for a range without bytes.
    fn no_range(&self, key: &str, (offset, len): (u64, u64), refusal: Refusal) -> Error {
        match refusal {
            Refusal::Absent => absent(self, key),
            Refusal::PastEnd => past_end(key, offset, len),
            refusal => reads::odd_answer(refusal).object(self.shared.object(key)),
        }
    }

    /// The last resort: the caller must look again.
    fn outcome_unknown(&self, key: &str) -> Error {
        Error::new(
            Kind::Unavailable,
            "a write got no answer, and another client has changed the object since",
        )
        .object(self.shared.object(key))
        .advice("look what is there, then try again")
    }
}

impl fmt::Debug for S3Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Tier").field("url", &self.shared.url).finish_non_exhaustive()
    }
}

impl Tier for S3Tier {
    fn describe(&self) -> String {
        self.shared.url.clone()
    }

    fn guarantees(&self) -> Result<Guarantees> {
        self.known_guarantees()
    }

    fn get(&self, key: &str) -> Result<Object> {
        check_key(key)?;
        let found = self.runtime.block_on(reads::get(&self.shared, key))?;
        found.map(|(body, _head)| Object::Owned(body)).ok_or_else(|| absent(self, key))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        check_key(key)?;
        let got = self.runtime.block_on(self.shared.get_range(key, offset, len))?;
        got.map_err(|refusal| self.no_range(key, (offset, len), refusal))
    }

    fn get_many(&self, requests: &[RangeRequest]) -> Vec<Result<Vec<u8>>> {
        let answers = self.runtime.block_on(reads::get_many(&self.shared, requests));
        let read = |(request, answer): (&RangeRequest, reads::Ranged)| {
            answer?
                .map_err(|refusal| self.no_range(&request.key, (request.offset, request.len_bytes), refusal))
        };
        requests.iter().zip(answers).map(read).collect()
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        check_key(key)?;
        let head = self.runtime.block_on(self.shared.head(key))?;
        Ok(head.map(|head| head.len_bytes))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        check_key(key)?;
        let mut condition = Condition::Absent;
        if !self.known_guarantees()?.put_if_absent {
            if self.len_bytes(key)?.is_some() {
                return Ok(false);
            }
            condition = Condition::None;
        }
        match self.write(Write { key, body, condition })? {
            Written::Stored => Ok(true),
            Written::Refused => Ok(false),
            Written::Unknown => Err(self.outcome_unknown(key)),
        }
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        let Some(expected) = expected else { return self.put_if_absent(key, body) };
        check_key(key)?;
        let found = self.runtime.block_on(reads::get(&self.shared, key))?;
        let Some((_, head)) = found.filter(|(current, _)| current == expected) else { return Ok(false) };
        let condition = match (self.known_guarantees()?.compare_and_swap, &head.etag) {
            (true, Some(etag)) => Condition::Match(etag),
            (true, None) => {
                let what = "the bucket names no version of an object that is to be replaced";
                return Err(Error::new(Kind::Unavailable, what).object(self.shared.object(key)));
            }
            (false, _) => Condition::None,
        };
        match self.write(Write { key, body, condition })? {
            Written::Stored => Ok(true),
            Written::Refused => Ok(false),
            Written::Unknown => Err(self.outcome_unknown(key)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.runtime.block_on(reads::list(&self.shared, prefix))
    }

    fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let object = self.shared.object(key);
        let delete = async |_| self.shared.bucket.delete(key).await;
        let deleted = self.runtime.block_on(self.shared.caller.run(call("delete", &object), delete))?;
        deleted.map_err(|refusal| reads::odd_answer(refusal).object(object))
    }
}
