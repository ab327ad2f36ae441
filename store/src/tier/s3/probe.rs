//! Examines a bucket: runs the operations that Torpor needs, and races of them; only observed behaviour counts.
//!
//! A documented promise or an accepted header does not count: some services answer 200 to a condition that they do not
//! know. All requests are below one key of the examination's own, and its objects are removed again.

use super::client::{Answer, Condition, PUT};
use super::failure::{Failure, Refusal};
use super::settings::S3Settings;
use super::upload::{Write, Written, begin_and_give_back, write_in_parts};
use super::{S3Tier, Shared, call, reads};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::keys;
use crate::tier::examination::{Examination, Finding, Property, median_us};
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// Maximum rounds of each race, unless one of them settles it.
const MOST_ROUNDS: usize = 5;
/// Minimum rounds, where a round takes long: some services let writers waiting for one key take turns by the second.
const LEAST_ROUNDS: usize = 2;
/// No further round begins after this time, once the minimum is reached.
const RACES_TIME: Duration = Duration::from_secs(5);
/// Writers of a race.
const RACERS: usize = 8;
/// Small requests timed.
const TIMED: usize = 15;

/// Examines the guarantees of a bucket. Writes and removes some objects below `doctor/`, a few MiB in all.
///
/// # Errors
/// When objects cannot be written and read at all.
pub fn examine_bucket(settings: &S3Settings) -> Result<Examination> {
    let tier = S3Tier::new(settings)?;
    let random = u64::from_le_bytes(clock::random_bytes());
    let probe = Probe { shared: tier.shared.clone(), place: format!("doctor/{random:016x}") };
    tier.runtime.block_on(async {
        let examination = probe.run().await;
        probe.clean_up().await;
        examination
    })
}

/// Examines a bucket and stores the record there.
///
/// # Errors
/// As [`examine_bucket`], or when the record cannot be written.
pub fn examine_and_record(settings: &S3Settings) -> Result<Examination> {
    let examination = examine_bucket(settings)?;
    let record = examination.record().encode();
    let tier = S3Tier::new(settings)?;
    let write = Write { key: keys::BUCKET, body: &record, condition: Condition::None };
    tier.runtime.block_on(tier.shared.write_object(write))?;
    Ok(examination)
}

/// The properties of a bucket, in the order of the report.
const LOOKED_AT: [Property; 10] = [
    Property::ReadAfterWrite,
    Property::ListAfterWrite,
    Property::Ranges,
    Property::PutIfAbsent,
    Property::CompareAndSwap,
    Property::ConditionalDelete,
    Property::Multipart,
    Property::MultipartCondition,
    Property::Checksums,
    Property::Marks,
];

#[derive(Clone)]
struct Probe {
    shared: Arc<Shared>,
    place: String,
}

/// Result of a step: whether the property holds, and the evidence.
type Seen = Result<(bool, String)>;

impl Probe {
    async fn run(&self) -> Result<Examination> {
        self.check_permissions().await?;
        // A bucket that cannot store and return objects has no properties.
        let (put_us, get_us) = self.time().await?;
        let mut running = JoinSet::new();
        for property in LOOKED_AT {
            let probe = self.clone();
            running.spawn(async move { (property, probe.look(property).await) });
        }
        let mut findings = Vec::new();
        while let Some(done) = running.join_next().await {
            let (property, seen) = done.map_err(reads::crashed)?;
            let (holds, evidence) = seen.unwrap_or_else(|error| (false, error.to_string()));
            findings.push(Finding { property, holds, evidence });
        }
        findings.sort_by_key(|finding| LOOKED_AT.iter().position(|property| *property == finding.property));
        Ok(Examination { findings, put_us, get_us })
    }

    /// Makes each necessary request once, so that a missing permission is named, not taken for a property of the
    /// bucket.
    async fn check_permissions(&self) -> Result<()> {
        let key = self.key("permitted");
        self.list(&format!("{}/", self.place)).await?;
        self.get(&key).await?;
        self.put(&key, b"x", Condition::None).await?;
        self.get(&key).await?;
        self.delete(&key).await?;
        begin_and_give_back(&self.shared, &key).await
    }

    async fn look(&self, property: Property) -> Seen {
        match property {
            Property::ReadAfterWrite => self.read_after_write().await,
            Property::ListAfterWrite => self.list_after_write().await,
            Property::Ranges => self.ranges().await,
            Property::PutIfAbsent => self.put_if_absent(false).await,
            Property::CompareAndSwap => self.compare_and_swap().await,
            Property::ConditionalDelete => self.conditional_delete().await,
            Property::Multipart => self.multipart().await,
            Property::MultipartCondition => self.put_if_absent(true).await,
            Property::Checksums => self.checksums().await,
            Property::Marks => self.marks().await,
            other => Err(Error::new(Kind::Internal, format!("{other:?} is no property of a bucket"))),
        }
    }

    fn key(&self, name: impl std::fmt::Display) -> String {
        format!("{}/{name}", self.place)
    }

    async fn put(&self, key: &str, body: &[u8], condition: Condition<'_>) -> Result<Written> {
        self.shared.write_object(Write { key, body, condition }).await
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(reads::get(&self.shared, key).await?.map(|(body, _)| body))
    }

    async fn etag(&self, key: &str) -> Result<String> {
        let head = self.shared.head(key).await?;
        head.and_then(|head| head.etag).ok_or_else(|| Error::corrupt("an object has no ETag").object(key))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let object = self.shared.object(key);
        let delete = async |_| self.shared.bucket.delete(key).await;
        self.shared.caller.run(call("delete", &object), delete).await.map(|_| ())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let infos = reads::list(&self.shared, prefix).await?;
        Ok(infos.into_iter().map(|info| info.key).collect())
    }

    async fn clean_up(&self) {
        let cleaned = async {
            for key in self.list(&format!("{}/", self.place)).await? {
                self.delete(&key).await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = cleaned.await {
            tracing::warn!(place = self.place, %error, "objects of the examination stay in the bucket");
        }
    }

    async fn time(&self) -> Result<(u32, u32)> {
        let body = clock::random_bytes::<4096>();
        let (mut puts, mut gets) = (Vec::new(), Vec::new());
        for number in 0..TIMED {
            let key = self.key(format!("timed/{number}"));
            let start = Instant::now();
            self.put(&key, &body, Condition::None).await?;
            puts.push(start.elapsed());
            let start = Instant::now();
            if self.get(&key).await?.as_deref() != Some(&body[..]) {
                return Err(Error::corrupt("an object is not what was just written").object(&key));
            }
            gets.push(start.elapsed());
        }
        Ok((median_us(puts), median_us(gets)))
    }

    /// Right after a write, an overwrite and a deletion; also right after a read found nothing.
    async fn read_after_write(&self) -> Seen {
        let rounds = 10;
        for round in 0..rounds {
            let key = self.key(format!("read/{round}"));
            if self.get(&key).await?.is_some() {
                return Ok((false, format!("round {round}: an object exists that this test did not write")));
            }
            for version in ["one", "two, which is longer", "three"] {
                self.put(&key, version.as_bytes(), Condition::None).await?;
                if self.get(&key).await?.as_deref() != Some(version.as_bytes()) {
                    return Ok((false, format!("round {round}: a read does not show the write before it")));
                }
            }
            self.delete(&key).await?;
            if self.get(&key).await?.is_some() {
                return Ok((false, format!("round {round}: a read shows what was deleted before it")));
            }
        }
        Ok((true, format!("{rounds} rounds of writes, overwrites and deletions were seen at once")))
    }

    async fn list_after_write(&self) -> Seen {
        let rounds = 12;
        let mut expected = Vec::new();
        let prefix = self.key("list/");
        for round in 0..rounds {
            let key = self.key(format!("list/{round:02}"));
            self.put(&key, b"x", Condition::None).await?;
            expected.push(key);
            if self.list(&prefix).await? != expected {
                return Ok((false, format!("round {round}: a listing lacks what was written before it")));
            }
        }
        while let Some(key) = expected.pop() {
            self.delete(&key).await?;
            if self.list(&prefix).await? != expected {
                return Ok((false, "a listing shows what was deleted before it".to_owned()));
            }
        }
        Ok((true, format!("{rounds} writes and deletions were listed at once")))
    }

    async fn ranges(&self) -> Seen {
        let body: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
        let key = self.key("ranges");
        self.put(&key, &body, Condition::None).await?;
        for (start, end) in [(0, 1), (1000, 66_536), (199_999, 200_000), (0, 200_000)] {
            let got = self.once(self.shared.bucket.get_range(&key, start..end, None)).await?;
            if got.as_deref() != Ok(&body[start as usize..end as usize]) {
                return Ok((false, format!("bytes {start} to {end} are not what was asked for")));
            }
        }
        let past = self.once(self.shared.bucket.get_range(&key, 199_999..200_001, None)).await?;
        let beyond = self.once(self.shared.bucket.get_range(&key, 200_000..200_001, None)).await?;
        let is_refused = past == Err(Refusal::PastEnd) && beyond == Err(Refusal::PastEnd);
        Ok((is_refused, "ranges come as asked for, and past the end nothing does".to_owned()))
    }

    /// One request without retries: only the first answer counts.
    async fn once<T>(&self, request: impl Future<Output = Answer<T>>) -> Result<Result<T, Refusal>> {
        request.await.map_err(Failure::into_error)
    }

    async fn put_if_absent(&self, in_parts: bool) -> Seen {
        let name = if in_parts { "absent-parts" } else { "absent" };
        let key = self.key(format!("{name}/twice"));
        let first = self.write(&key, b"first", Condition::Absent, in_parts).await?;
        let second = self.write(&key, b"second", Condition::Absent, in_parts).await?;
        if (first, second) != (Written::Stored, Written::Refused) {
            return Ok((false, format!("two writers one after the other: {first:?}, {second:?}")));
        }
        if self.get(&key).await?.as_deref() != Some(b"first") {
            return Ok((false, "a refused write replaced the object".to_owned()));
        }
        let start = Instant::now();
        let mut winners: Vec<usize> = Vec::new();
        // A service may lock objects stored at once but not those in parts, and pass two rounds by luck.
        let least = if in_parts { MOST_ROUNDS } else { LEAST_ROUNDS };
        while is_unsettled(&winners, least, start) {
            let key = self.key(format!("{name}/race-{}", winners.len()));
            winners.push(self.race(&key, None, in_parts).await?);
        }
        Ok(judge_races(&winners))
    }

    async fn compare_and_swap(&self) -> Seen {
        let key = self.key("swap/once");
        let absent = self
            .put(&key, b"nothing to replace", Condition::Match("\"0123456789abcdef0123456789abcdef\""))
            .await;
        if matches!(absent, Ok(Written::Stored)) {
            return Ok((false, "a condition on the version of an absent object was ignored".to_owned()));
        }
        self.put(&key, b"one", Condition::None).await?;
        let old = self.etag(&key).await?;
        let right = self.put(&key, b"two", Condition::Match(&old)).await?;
        let wrong = self.put(&key, b"three", Condition::Match(&old)).await?;
        if (right, wrong) != (Written::Stored, Written::Refused) {
            return Ok((
                false,
                format!("with the right version, then with an old one: {right:?}, {wrong:?}"),
            ));
        }
        if self.get(&key).await?.as_deref() != Some(b"two") {
            return Ok((false, "a refused write replaced the object".to_owned()));
        }
        let start = Instant::now();
        let mut winners: Vec<usize> = Vec::new();
        while is_unsettled(&winners, LEAST_ROUNDS, start) {
            let key = self.key(format!("swap/race-{}", winners.len()));
            self.put(&key, b"before", Condition::None).await?;
            let etag = self.etag(&key).await?;
            winners.push(self.race(&key, Some(etag), false).await?);
        }
        Ok(judge_races(&winners))
    }

    async fn conditional_delete(&self) -> Seen {
        let key = self.key("delete");
        self.put(&key, b"one", Condition::None).await?;
        let old = self.etag(&key).await?;
        self.put(&key, b"two", Condition::None).await?;
        let is_refused = self.once(self.shared.bucket.delete_version(&key, &old)).await?.is_err();
        if self.get(&key).await?.is_none() {
            return Ok((false, "another version than the one named was deleted".to_owned()));
        }
        let current = self.etag(&key).await?;
        self.once(self.shared.bucket.delete_version(&key, &current)).await?.map_err(|refusal| {
            Error::corrupt(format!("the version that is there cannot be deleted by its name: {refusal:?}"))
        })?;
        let is_gone = self.get(&key).await?.is_none();
        Ok((is_gone && is_refused, "only the version named was deleted".to_owned()))
    }

    async fn multipart(&self) -> Seen {
        let part = super::MIN_PART_BYTES;
        let body: Vec<u8> = (0..=part).map(|at| (at / 7) as u8).collect();
        let key = self.key("parts");
        let written = self.write_parts(&key, &body, Condition::None, part).await?;
        let is_same = self.get(&key).await?.as_deref() == Some(&body[..]);
        Ok((written == Written::Stored && is_same, "an object stored in two parts reads back".to_owned()))
    }

    async fn checksums(&self) -> Seen {
        let key = self.key("damaged");
        let bucket = &self.shared.bucket;
        let request = bucket.client.put_object().bucket(&bucket.name).key(bucket.key(&key));
        let request = request.body(ByteStream::from_static(b"as it was sent")).customize();
        let sent = request.interceptor(DamageBody(b"as it came out")).send().await;
        match sent {
            Ok(_) => Ok((false, "a body that was changed on its way was stored".to_owned())),
            Err(error) => {
                let said = match Failure::of(error, PUT) {
                    Ok(refusal) => format!("{refusal:?}"),
                    Err(failure) => failure.into_error().to_string(),
                };
                let is_absent = self.get(&key).await?.is_none();
                Ok((is_absent, format!("a body that was changed on its way was refused: {said}")))
            }
        }
    }

    async fn marks(&self) -> Seen {
        let key = self.key("mark");
        self.put(&key, b"x", Condition::None).await?;
        let mark = self.shared.head(&key).await?.and_then(|head| head.mark);
        match mark {
            Some(_) => Ok((true, "an object tells which call stored it".to_owned())),
            None => Ok((false, "metadata of objects is not kept".to_owned())),
        }
    }

    async fn write(
        &self,
        key: &str,
        body: &[u8],
        condition: Condition<'_>,
        in_parts: bool,
    ) -> Result<Written> {
        if in_parts {
            self.write_parts(key, body, condition, super::MIN_PART_BYTES).await
        } else {
            self.put(key, body, condition).await
        }
    }

    async fn write_parts(
        &self,
        key: &str,
        body: &[u8],
        condition: Condition<'_>,
        part: u64,
    ) -> Result<Written> {
        write_in_parts(&self.shared, Write { key, body, condition }, part).await
    }

    /// Lets many writers write at once: over the version `etag`, or where nothing is. Returns how many were told that
    /// they succeeded; 0 also when the object is not from one of those.
    async fn race(&self, key: &str, etag: Option<String>, in_parts: bool) -> Result<usize> {
        let barrier = Arc::new(Barrier::new(RACERS));
        let mut running = JoinSet::new();
        for racer in 0..RACERS {
            let (barrier, etag, key) = (barrier.clone(), etag.clone(), key.to_owned());
            let probe = self.clone();
            running.spawn(async move {
                barrier.wait().await;
                let condition = etag.as_deref().map_or(Condition::Absent, Condition::Match);
                let written = probe.write(&key, &body_of(racer), condition, in_parts).await?;
                Ok::<_, Error>((racer, written))
            });
        }
        let mut winners = Vec::new();
        while let Some(done) = running.join_next().await {
            let (racer, written) = done.map_err(reads::crashed)??;
            if written == Written::Stored {
                winners.push(body_of(racer));
            }
        }
        let there = self.get(key).await?;
        let is_a_winners = there.is_some_and(|body| winners.contains(&body));
        Ok(if is_a_winners { winners.len() } else { 0 })
    }
}

fn body_of(racer: usize) -> Vec<u8> {
    format!("racer {racer}").into_bytes()
}

/// Whether a race needs another round.
fn is_unsettled(winners: &[usize], least: usize, start: Instant) -> bool {
    let rounds = winners.len();
    let has_time = rounds < MOST_ROUNDS && start.elapsed() < RACES_TIME;
    winners.iter().all(|winners| *winners == 1) && (rounds < least || has_time)
}

fn judge_races(winners: &[usize]) -> (bool, String) {
    let holds = winners.iter().all(|winners| *winners == 1);
    let list: Vec<String> = winners.iter().map(usize::to_string).collect();
    (holds, format!("{RACERS} writers at once, {} rounds, winners: {}", winners.len(), list.join(", ")))
}

/// Sends another body of the same length than the one signed and checksummed.
#[derive(Debug)]
struct DamageBody(&'static [u8]);

impl Intercept for DamageBody {
    fn name(&self) -> &'static str {
        "DamageBody"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        *context.request_mut().body_mut() = SdkBody::from(self.0);
        Ok(())
    }
}
