//! A bucket that is 20 ms away: SeaweedFS behind the proxy of the tests, which holds every request back for so long.
//!
//! Floors: of a read, one plain GET of the frame it lies in; of a restore, the same GETs, as many at once, whose bytes
//! are dropped. `weed` must be in PATH (`cargo xtask setup`).

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use store::tier::BucketRecord;
use store::{
    ContentReader, DataTier, Guarantees, RangeRequest, S3Settings, S3Tier, SnapshotId, Store, StoreConfig,
    Tier, TierClass, Unwatched, move_snapshot,
};
use tests::proxy::{Fault, Message, Proxy};
use tests::servers::{SeaweedCluster, settings};

use crate::measure::{Pairs, Result, Row, percentiles, time};
use crate::random::{READ_LEN, chunk_at, content};
use crate::storage::back_up;
use crate::workload::{Noise, files};

const ROUND_TRIP: Duration = Duration::from_millis(20);
const FILES: usize = 128;
const FILE_LEN: usize = 8 << 20;
const READS: usize = 200;
const ROUNDS: usize = 3;
const PREFIX: &str = "bench";

/// The delayed bucket, and its content.
struct Scene {
    proxy: Proxy,
    settings: S3Settings,
    path: std::path::PathBuf,
    snapshot: SnapshotId,
    _cluster: SeaweedCluster,
}

pub(crate) fn bucket(scratch: &Path) -> Result<Vec<Row>> {
    let source = scratch.join("source");
    files(&source, FILES, FILE_LEN, 11)?;
    let scene = Scene::prepare(scratch, &source)?;
    fs::remove_dir_all(&source)?;
    let mut rows = vec![scene.reads()?];
    rows.push(scene.restore(&scratch.join("target"))?);
    Ok(rows)
}

impl Scene {
    /// Stores the files, and moves them to the bucket without the delay.
    fn prepare(scratch: &Path, source: &Path) -> Result<Self> {
        let cluster = SeaweedCluster::start();
        let near = settings(&cluster.endpoint(), PREFIX);
        // Not examined: no other process writes here.
        let record =
            BucketRecord { guarantees: Guarantees::ALL, examined: store::clock::now(), put_us: 0, get_us: 0 };
        S3Tier::new(&near)?.put_if_absent(store::keys::BUCKET, &record.encode())?;
        let path = scratch.join("store");
        let bucket = DataTier::new(TierClass::Cold, Arc::new(S3Tier::new(&near)?));
        let store = Store::init(&StoreConfig::directory(&path).with_tier(bucket))?;
        let snapshot = back_up(&store, source)?;
        move_snapshot(&store, &snapshot, TierClass::Cold, None, &Unwatched)?;
        let proxy = Proxy::new(cluster.port());
        let settings = S3Settings { endpoint: Some(proxy.endpoint()), ..near };
        proxy.script(|_| Fault::Delay(ROUND_TRIP));
        Ok(Self { proxy, settings, path, snapshot, _cluster: cluster })
    }

    /// The store through the delay, with nothing in its caches.
    fn open(&self, cache_bytes: u64) -> Result<Store> {
        let bucket = DataTier::new(TierClass::Cold, Arc::new(S3Tier::new(&self.settings)?));
        let near = StoreConfig::directory(&self.path);
        Ok(Store::open(&StoreConfig { cache_bytes, disk_cache_bytes: 0, ..near }.with_tier(bucket))?)
    }

    fn reads(&self) -> Result<Row> {
        let store = self.open(32 << 20)?;
        let tier = S3Tier::new(&self.settings)?;
        let contents = (0..FILES.min(100)).map(|file| {
            let path = format!("{:04}/{:02}", file / 100, file % 100);
            content(&store, &self.snapshot, path.as_bytes())
        });
        let contents = contents.collect::<Result<Vec<ContentReader>>>()?;
        let mut noise = Noise::new(12);
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for number in 0..=READS {
            let content = &contents[noise.below(contents.len() as u64) as usize];
            let offset = noise.below((FILE_LEN - READ_LEN) as u64);
            let id = chunk_at(content, offset)?;
            let place = store.index().find_in(&id, |_| true).ok_or("the chunk was stored")?;
            let raw = time(|| Ok(tier.get_range(&place.pack.key(), place.offset, place.len_bytes)?))?;
            let mut buffer = vec![0; READ_LEN];
            let start = Instant::now();
            content.read_at(offset, &mut buffer)?;
            if number > 0 {
                ours.push(start.elapsed().as_secs_f64());
                floor.push(raw);
            }
        }
        let note = format!("{READS} reads, every request 20 ms late; some lie in two frames");
        Ok(percentiles("random 64 KiB read from a bucket / GET of one frame", &ours, &floor, note))
    }

    fn restore(&self, target: &Path) -> Result<Row> {
        let restore = || {
            let store = self.open(256 << 20)?;
            let seconds = time(|| Ok(store::restore(&store, &self.snapshot, b"", target, &Unwatched)?))?;
            fs::remove_dir_all(target)?;
            Ok(seconds)
        };
        let asked = Arc::new(Mutex::new(Vec::new()));
        let list = asked.clone();
        self.proxy.script(move |message| {
            list.lock().unwrap_or_else(PoisonError::into_inner).extend(range_of(message));
            Fault::Delay(ROUND_TRIP)
        });
        restore()?;
        self.proxy.script(|_| Fault::Delay(ROUND_TRIP));
        let requests = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
        let floor = || {
            let tier = S3Tier::new(&self.settings)?;
            time(|| get_all(&tier, &requests, self.settings.parallelism))
        };
        let pairs = Pairs::measure(ROUNDS, restore, floor)?;
        let sum: u64 = requests.iter().map(|request| request.len_bytes).sum();
        let note = format!(
            "{} MB in {} GETs, {} at once",
            sum / 1_000_000,
            requests.len(),
            self.settings.parallelism
        );
        Ok(pairs.throughput(
            "restore of 1 GiB from a bucket / the same GETs",
            (FILES * FILE_LEN) as u64,
            note,
        ))
    }
}

/// The range that a request asks for, where it is one of a pack.
fn range_of(message: &Message) -> Option<RangeRequest> {
    let (_, behind) = message.first.strip_prefix("GET ")?.split_once(&format!("/{PREFIX}/"))?;
    let key = behind.split(['?', ' ']).next()?.to_owned();
    let (first, last) = message.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    key.starts_with("packs/").then_some(RangeRequest { key, offset: first, len_bytes: last + 1 - first })
}

/// Gets all ranges, so many at once, and drops them.
fn get_all(tier: &S3Tier, requests: &[RangeRequest], parallelism: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            std::hint::black_box(tier.get_range(&request.key, request.offset, request.len_bytes)?);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..parallelism).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })
}
