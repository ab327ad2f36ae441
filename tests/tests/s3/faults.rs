//! Faults of networks and overloaded servers, one at a time, before a real server: the outcome is right, or an error
//! that says so, within a bound.

use crate::{on_seaweed, seaweed_port};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use store::tier::{BucketRecord, Patience};
use store::{Guarantees, Kind, RangeRequest, S3Settings, S3Tier, Tier};
use tests::proxy::{Fault, Message, Proxy};

/// Patience that a test can wait for.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(2),
    request: Duration::from_millis(700),
    call: Duration::from_secs(15),
    attempts: 4,
    first_wait: Duration::from_millis(20),
    longest_wait: Duration::from_millis(100),
};

/// A proxy, the tier behind it, and the same place without the proxy.
struct Scene {
    proxy: Proxy,
    tier: S3Tier,
    direct: S3Tier,
}

impl Scene {
    fn new(name: &str) -> Self {
        Self::with_patience(name, PATIENCE)
    }

    fn with_patience(name: &str, patience: Patience) -> Self {
        let settings = on_seaweed(name);
        // Not examined: this test has no races, and SeaweedFS respects conditions of uploads in parts only when there
        // is none.
        let record =
            BucketRecord { guarantees: Guarantees::ALL, examined: store::clock::now(), put_us: 0, get_us: 0 };
        let unknown = S3Tier::new(&settings).unwrap();
        assert!(unknown.put_if_absent(store::keys::BUCKET, &record.encode()).unwrap());
        let direct = S3Tier::new(&settings).unwrap();
        assert_eq!(direct.guarantees().unwrap(), Guarantees::ALL);
        let proxy = Proxy::new(seaweed_port());
        let tier = S3Tier::new(&S3Settings {
            endpoint: Some(proxy.endpoint()),
            patience,
            part_bytes: 5 << 20,
            ..settings
        });
        let tier = tier.unwrap();
        assert!(
            tier.guarantees().unwrap().is_fit_for_many(),
            "what is guaranteed is read before any harm is done"
        );
        Self { proxy, tier, direct }
    }
}

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 / 7) as u8).collect()
}

const READ_FAULTS: [Fault; 10] = [
    Fault::Delay(Duration::from_millis(50)),
    Fault::Reset,
    Fault::ResetApplied,
    Fault::UnavailableApplied,
    Fault::Status(500),
    Fault::Status(429),
    Fault::RetryAfter(1),
    Fault::Truncated,
    Fault::Hang,
    Fault::HangInBody,
];

#[test]
fn reads_come_through_every_fault() {
    let scene = Scene::new("reads");
    let (proxy, tier) = (&scene.proxy, &scene.tier);
    let whole = body(300_000);
    scene.direct.put_if_absent("packs/one", &whole).unwrap();
    let requests = |fault| if matches!(fault, Fault::Delay(_)) { 1 } else { 2 };
    let mut count = 0;
    for fault in READ_FAULTS {
        let mut check = |what: &str, is_right: bool| {
            assert!(is_right, "{fault:?}: {what}");
            assert_eq!(proxy.requests().len(), requests(fault), "{fault:?}: {what}: {:?}", proxy.requests());
            count += 1;
        };
        proxy.next(&[fault]);
        check("get", *tier.get("packs/one").unwrap() == *whole);
        proxy.next(&[fault]);
        check("range", tier.get_range("packs/one", 1000, 70_000).unwrap() == whole[1000..71_000]);
        proxy.next(&[fault]);
        check("list", tier.list("packs/").unwrap().iter().map(|info| info.key.as_str()).eq(["packs/one"]));
        if !matches!(fault, Fault::Truncated | Fault::HangInBody) {
            proxy.next(&[fault]);
            check("length", tier.len_bytes("packs/one").unwrap() == Some(300_000));
        }
    }
    println!("{count} reads came through a fault each");
}

#[test]
fn answers_that_only_look_right_are_asked_for_again() {
    let scene = Scene::new("lies");
    let (proxy, tier) = (&scene.proxy, &scene.tier);
    let whole = body(300_000);
    tier.put_if_absent("packs/one", &whole).unwrap();
    for fault in [Fault::WholeObject, Fault::WrongContentRange, Fault::Shortened] {
        proxy.next(&[fault, fault]);
        let range = tier.get_range("packs/one", 1000, 70_000).unwrap();
        assert!(range == whole[1000..71_000], "{fault:?}");
        assert_eq!(proxy.requests().len(), 3, "{fault:?}");
        // A range of all of it is a range too.
        proxy.next(&[fault, fault]);
        assert!(tier.get_range("packs/one", 0, 300_000).unwrap() == whole, "{fault:?}");
        proxy.script(move |_| fault);
        let error = tier.get_range("packs/one", 1000, 70_000).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{fault:?}: {error}");
        assert!(error.to_string().contains("after 4 attempts"), "{error}");
    }
    // Of a complete object the server keeps the checksum.
    for fault in [Fault::FlippedBit, Fault::Shortened] {
        proxy.next(&[fault, fault]);
        assert!(*tier.get("packs/one").unwrap() == *whole, "{fault:?}");
        assert_eq!(proxy.requests().len(), 3, "{fault:?}");
    }
}

#[test]
fn patience_ends_and_says_so() {
    let scene = Scene::new("patience");
    let (proxy, tier) = (&scene.proxy, &scene.tier);
    tier.put_if_absent("one", b"body").unwrap();
    for (fault, said) in [
        (Fault::Status(503), "503 SlowDown injected"),
        (Fault::Reset, "no answer"),
        (Fault::Hang, "no complete answer within"),
        (Fault::Truncated, "broke off"),
    ] {
        proxy.script(move |_| fault);
        let start = Instant::now();
        let error = tier.get("one").map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), Kind::Unavailable, "{fault:?}: {text}");
        assert!(
            text.contains("after 4 attempts in ") && text.contains(said) && text.contains("/one"),
            "{text}"
        );
        assert!(start.elapsed() < Duration::from_secs(5), "{fault:?}: {:?}", start.elapsed());
        assert_eq!(proxy.requests().len(), 4, "{fault:?}");
    }
    // Errors that no retry helps, and a wait that is too long.
    for (fault, kind) in [
        (Fault::Status(403), Kind::Invalid),
        (Fault::Status(400), Kind::Invalid),
        (Fault::Status(507), Kind::Full),
        (Fault::RetryAfter(3600), Kind::Unavailable),
    ] {
        proxy.script(move |_| fault);
        assert_eq!(tier.get("one").map(|_| ()).unwrap_err().kind(), kind, "{fault:?}");
        assert_eq!(proxy.requests().len(), 1, "{fault:?}");
    }
}

const WRITE_FAULTS: [Fault; 9] = [
    Fault::Delay(Duration::from_millis(50)),
    Fault::Reset,
    Fault::ResetApplied,
    Fault::UnavailableApplied,
    Fault::Status(500),
    Fault::Status(503),
    Fault::Status(409),
    Fault::Truncated,
    Fault::Hang,
];

/// A request that changes something: a PUT of an object or of a part, a completed upload.
fn is_write(request: &Message) -> bool {
    request.first.starts_with("PUT ") || request.first.starts_with("POST ")
}

/// Applies this fault to the first write, and none to other requests.
fn first_write(fault: Fault) -> impl FnMut(&Message) -> Fault + Send {
    let mut left = Some(fault);
    move |request| if is_write(request) { left.take().unwrap_or(Fault::None) } else { Fault::None }
}

#[test]
fn a_write_whose_answer_is_lost_is_still_one_write() {
    let scene = Scene::new("writes");
    let (proxy, tier, direct) = (&scene.proxy, &scene.tier, &scene.direct);
    for (number, fault) in WRITE_FAULTS.into_iter().enumerate() {
        let key = format!("refs/{number}");
        proxy.script(first_write(fault));
        assert!(tier.put_if_absent(&key, b"ours").unwrap(), "{fault:?}: it was our own");
        proxy.script(first_write(fault));
        assert!(!tier.put_if_absent(&key, b"late").unwrap(), "{fault:?}: another was there");
        // Even the very same bytes belong to another writer when that wrote them.
        proxy.script(first_write(fault));
        assert!(!tier.put_if_absent(&key, b"ours").unwrap(), "{fault:?}: another's, though the same");
        proxy.script(first_write(fault));
        assert!(tier.compare_and_swap(&key, Some(b"ours"), b"next").unwrap(), "{fault:?}");
        proxy.script(first_write(fault));
        assert!(!tier.compare_and_swap(&key, Some(b"ours"), b"lost").unwrap(), "{fault:?}");
        assert_eq!(*direct.get(&key).unwrap(), *b"next", "{fault:?}");
        proxy.next(&[fault]);
        tier.delete(&key).unwrap();
        assert_eq!(direct.len_bytes(&key).unwrap(), None, "{fault:?}");
    }
    println!("{} writes came through a fault each", WRITE_FAULTS.len() * 6);
}

#[test]
fn a_swap_that_cannot_be_told_from_another_is_an_error() {
    let scene = Scene::new("contended");
    for (fault, applied) in [(Fault::ResetApplied, true), (Fault::Reset, false)] {
        let key = format!("refs/{applied}");
        scene.direct.put_if_absent(&key, b"one").unwrap();
        let (direct, place, writes) = (scene.direct.clone(), key.clone(), Arc::new(AtomicU32::new(0)));
        scene.proxy.script(move |request| {
            if !is_write(request) {
                return Fault::None;
            }
            match writes.fetch_add(1, Ordering::SeqCst) {
                0 => fault,
                // Before it is sent again, another host changes the object.
                _ => {
                    let current = direct.get(&place).unwrap().to_vec();
                    assert_eq!(current == b"ours", applied);
                    assert!(direct.compare_and_swap(&place, Some(&current), b"theirs").unwrap());
                    Fault::None
                }
            }
        });
        let error = scene.tier.compare_and_swap(&key, Some(b"one"), b"ours").unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert_eq!(*scene.direct.get(&key).unwrap(), *b"theirs");
    }
}

#[test]
fn packs_go_up_in_parts_through_every_fault() {
    let scene = Scene::new("parts");
    let (proxy, tier, direct) = (&scene.proxy, &scene.tier, &scene.direct);
    let pack = body((11 << 20) + 12_345);
    // Begin, three parts and the end: the fault comes to each of them in turn.
    let mut count = 0;
    for (number, fault) in WRITE_FAULTS.into_iter().enumerate() {
        let key = format!("packs/{number}");
        let at = number % 5;
        let mut writes = 0;
        proxy.script(move |request| {
            let is_due = is_write(request) && writes == at;
            writes += usize::from(is_write(request));
            if is_due { fault } else { Fault::None }
        });
        assert!(tier.put_if_absent(&key, &pack).unwrap(), "{fault:?} at {at}");
        assert!(*direct.get(&key).unwrap() == *pack, "{fault:?} at {at}");
        assert!(proxy.requests().len() >= 5, "in parts: {:?}", proxy.requests());
        assert!(!tier.put_if_absent(&key, &pack[1..]).unwrap(), "{fault:?} at {at}");
        count += 1;
    }
    // A lost answer to the last step.
    for fault in [Fault::ResetApplied, Fault::UnavailableApplied] {
        let key = format!("packs/last-{fault:?}");
        let mut left = Some(fault);
        proxy.script(move |request| {
            let is_end = request.first.starts_with("POST ") && !request.first.contains("?uploads");
            if is_end { left.take().unwrap_or(Fault::None) } else { Fault::None }
        });
        assert!(tier.put_if_absent(&key, &pack).unwrap(), "{fault:?}");
        assert!(*direct.get(&key).unwrap() == *pack, "{fault:?}");
        count += 1;
    }
    // A part that never arrives: no object is there, and the upload is aborted.
    proxy.script(
        |request| if request.first.contains("partNumber=2") { Fault::Status(503) } else { Fault::None },
    );
    assert_eq!(tier.put_if_absent("packs/never", &pack).unwrap_err().kind(), Kind::Unavailable);
    let requests = proxy.requests();
    let is_abort = |request: &String| request.starts_with("DELETE ") && request.contains("uploadId=");
    assert!(requests.iter().any(is_abort), "{requests:?}");
    assert_eq!(direct.len_bytes("packs/never").unwrap(), None);
    println!("{count} packs of 11 MiB came through a fault each");
}

#[test]
fn many_ranges_come_through_a_storm() {
    let scene = Scene::with_patience("storm", Patience { attempts: 12, ..PATIENCE });
    let whole = body(2_000_000);
    scene.direct.put_if_absent("packs/one", &whole).unwrap();
    let faults = [
        Fault::Reset,
        Fault::Status(503),
        Fault::Truncated,
        Fault::WholeObject,
        Fault::WrongContentRange,
        Fault::Shortened,
        Fault::None,
    ];
    let mut count = 0;
    scene.proxy.script(move |_| {
        count += 1;
        if count % 3 == 0 { faults[count / 3 % faults.len()] } else { Fault::None }
    });
    let requests: Vec<RangeRequest> = (0..300)
        .map(|number| RangeRequest {
            key: "packs/one".into(),
            offset: number * 6000,
            len_bytes: 5000 + number,
        })
        .collect();
    for (request, answer) in requests.iter().zip(scene.tier.get_many(&requests)) {
        let start = request.offset as usize;
        assert!(answer.unwrap() == whole[start..start + request.len_bytes as usize]);
    }
    println!("300 ranges at once through {:?}", scene.proxy.faults());
}

#[test]
fn a_small_read_costs_one_round_trip() {
    let scene = Scene::new("cost");
    let whole = body(32 << 20);
    scene.direct.put_if_absent("packs/one", &whole).unwrap();
    let round_trip = Duration::from_millis(20);
    scene.proxy.script(move |_| Fault::Delay(round_trip));
    let mut times = Vec::new();
    for number in 0..41u64 {
        let start = Instant::now();
        let bytes = scene.tier.get_range("packs/one", number * 700_000, 65_536).unwrap();
        times.push(start.elapsed());
        assert!(bytes == whole[number as usize * 700_000..][..65_536]);
    }
    assert_eq!(scene.proxy.requests().len(), 41, "nothing but the reads themselves");
    assert!(scene.proxy.connections() <= 1, "connections are kept: {}", scene.proxy.connections());
    times.sort_unstable();
    let (median, worst) = (times[20], times[40]);
    println!("64 KiB with {round_trip:?} injected: median {median:?}, worst {worst:?}");
    assert!(median < round_trip * 2, "{median:?}");
}
