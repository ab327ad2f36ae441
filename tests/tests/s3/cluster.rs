//! A server of the cluster dies while objects are written and read: acknowledged objects stay, intact.

use crate::examined;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use store::{Kind, S3Settings, Tier};
use tests::servers::{SeaweedCluster, settings};

/// Objects written before and after a server dies, each.
const OBJECTS: u64 = 150;
const WRITERS: u64 = 4;

fn body(key: &str) -> Vec<u8> {
    let hash = blake3::hash(key.as_bytes());
    let len = 1000 + u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap()) % 400_000;
    let mut body = vec![0; len as usize];
    blake3::Hasher::new().update(hash.as_bytes()).finalize_xof().fill(&mut body);
    body
}

/// Every object is listed and reads back as it was written.
fn assert_all_there(tier: &dyn Tier, keys: &[String]) {
    let listed: Vec<String> = tier.list("packs/").unwrap().into_iter().map(|info| info.key).collect();
    for key in keys {
        assert!(*tier.get(key).unwrap() == *body(key), "{key}");
        assert!(listed.binary_search(key).is_ok(), "{key} is listed");
    }
}

#[test]
fn a_volume_server_dies_and_nothing_acknowledged_is_lost() {
    let mut cluster = SeaweedCluster::start();
    let settings = S3Settings { part_bytes: 5 << 20, ..settings(&cluster.endpoint(), "killed") };
    let tier = examined(&settings);
    let acknowledged: Mutex<BTreeMap<String, ()>> = Mutex::default();
    let (written, failed, read, wrong) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let (tell, told) = channel();
    let deadline = Instant::now() + Duration::from_secs(100);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (tier, acknowledged, tell) = (tier.clone(), &acknowledged, tell.clone());
            let (written, failed, read, wrong, stop) = (&written, &failed, &read, &wrong, &stop);
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    let key = format!("packs/{writer}/{number}");
                    match tier.put_if_absent(&key, &body(&key)) {
                        Ok(new) => {
                            assert!(new, "{key} is nobody else's");
                            acknowledged.lock().unwrap().insert(key, ());
                            written.fetch_add(1, Ordering::SeqCst);
                            let _ = tell.send(());
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
                            failed.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    // And one that was acknowledged before, by any thread.
                    let key = acknowledged.lock().unwrap().keys().nth(number % 97).cloned();
                    if let Some(key) = key {
                        match tier.get(&key) {
                            Ok(found) if *found == *body(&key) => read.fetch_add(1, Ordering::SeqCst),
                            Ok(_) => wrong.fetch_add(1, Ordering::SeqCst),
                            Err(error) if error.kind() == Kind::Unavailable => {
                                failed.fetch_add(1, Ordering::SeqCst)
                            }
                            Err(_) => wrong.fetch_add(1, Ordering::SeqCst),
                        };
                    }
                    number += 1;
                }
            });
        }
        let wait_for_writes = || {
            for _ in 0..OBJECTS {
                let left = deadline.saturating_duration_since(Instant::now());
                if told.recv_timeout(left).is_err() {
                    break;
                }
            }
        };
        wait_for_writes();
        cluster.kill_volume_server(0);
        wait_for_writes();
        stop.store(true, Ordering::SeqCst);
    });
    let written = written.into_inner();
    assert_eq!(wrong.into_inner(), 0, "what was acknowledged is read as it was written, also meanwhile");
    assert!(written >= 2 * OBJECTS, "writes go on without the server: {written}");
    let keys: Vec<String> = acknowledged.into_inner().unwrap().into_keys().collect();
    assert_all_there(&tier, &keys);
    let (failed, read) = (failed.into_inner(), read.into_inner());
    println!(
        "{written} objects acknowledged, {read} read meanwhile, {failed} calls failed; {} read back after a server died; {} MiB of servers",
        keys.len(),
        cluster.resident_kib() >> 10
    );
}
