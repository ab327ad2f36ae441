//! The promises of every [`Tier`], as one suite: any implementation passes all of it. Each function takes a fresh,
//! empty tier and panics where a promise is broken.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};
use store::{Kind, RangeRequest, Tier};

/// How hard a tier is raced.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Threads of a race.
    pub racers: usize,
    /// Rounds of it.
    pub rounds: usize,
}

/// For a tier that takes no time.
const FULL: Effort = Effort { racers: 8, rounds: 25 };

/// Keys that could leave the root of a tier, or that some backend could not hold.
pub const HOSTILE_KEYS: [&str; 16] = [
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../../b",
    "a/./b",
    ".hidden",
    "a/.hidden",
    "a b",
    "a\0b",
    "a\\b",
    "\u{e4}",
];

/// Runs the complete suite, each part on a tier of its own.
pub fn suite(fresh: &dyn Fn() -> Arc<dyn Tier>) {
    suite_with(FULL, fresh);
}

/// The same with another effort.
pub fn suite_with(effort: Effort, fresh: &dyn Fn() -> Arc<dyn Tier>) {
    suite_of_one_owner(fresh);
    put_race(effort, &fresh());
    swap_race(effort, &fresh());
    put_against_swap_race(effort, &fresh());
    readers_see_whole_objects(effort, &fresh());
}

/// The promises that hold even where each key must have a single owner.
pub fn suite_of_one_owner(fresh: &dyn Fn() -> Arc<dyn Tier>) {
    absence(&*fresh());
    put_once(&*fresh());
    ranges(&*fresh());
    many_ranges(&*fresh());
    swaps(&*fresh());
    listing(&*fresh());
    deletion(&*fresh());
    hostile_keys(&*fresh());
    large_object(&*fresh());
}

fn get(tier: &dyn Tier, key: &str) -> Vec<u8> {
    tier.get(key).unwrap_or_else(|error| panic!("{key}: {error}")).to_vec()
}

fn put(tier: &dyn Tier, key: &str, body: &[u8]) -> bool {
    tier.put_if_absent(key, body).unwrap_or_else(|error| panic!("{key}: {error}"))
}

fn swap(tier: &dyn Tier, key: &str, expected: Option<&[u8]>, body: &[u8]) -> bool {
    tier.compare_and_swap(key, expected, body).unwrap_or_else(|error| panic!("{key}: {error}"))
}

fn len(tier: &dyn Tier, key: &str) -> Option<u64> {
    tier.len_bytes(key).unwrap_or_else(|error| panic!("{key}: {error}"))
}

fn keys(tier: &dyn Tier, prefix: &str) -> Vec<String> {
    let listed = tier.list(prefix).unwrap_or_else(|error| panic!("{prefix}: {error}"));
    listed.into_iter().map(|info| info.key).collect()
}

fn assert_absent(tier: &dyn Tier, key: &str) {
    assert_eq!(tier.get(key).map(|_| ()).expect_err("it is absent").kind(), Kind::NotFound);
    assert_eq!(tier.get_range(key, 0, 1).expect_err("it is absent").kind(), Kind::NotFound);
    assert_eq!(tier.get_range(key, 0, 0).expect_err("it is absent").kind(), Kind::NotFound);
    assert_eq!(len(tier, key), None);
}

fn absence(tier: &dyn Tier) {
    assert_absent(tier, "absent");
    assert_absent(tier, "deep/er/absent");
    assert_eq!(keys(tier, ""), Vec::<String>::new());
    assert_eq!(keys(tier, "no/such/"), Vec::<String>::new());
    assert!(!tier.describe().is_empty());
}

fn put_once(tier: &dyn Tier) {
    assert!(put(tier, "a/b-c_d.e%2F", b"first"));
    assert!(!put(tier, "a/b-c_d.e%2F", b"second"));
    assert_eq!(get(tier, "a/b-c_d.e%2F"), b"first");
    assert!(put(tier, "empty", b""));
    assert_eq!((get(tier, "empty"), len(tier, "empty")), (Vec::new(), Some(0)));
    assert!(!put(tier, "empty", b"no longer"));
    // Index runs may be mapped, and an empty file cannot be.
    assert!(put(tier, "index/empty", b""));
    assert_eq!(get(tier, "index/empty"), b"");
    assert!(put(tier, "index/full", b"entries"));
    assert_eq!(get(tier, "index/full"), b"entries");
}

fn ranges(tier: &dyn Tier) {
    let body: Vec<u8> = (0..=255).collect();
    put(tier, "body", &body);
    for (offset, length) in [(0, 256), (0, 0), (256, 0), (255, 1), (7, 100)] {
        let range = tier.get_range("body", offset, length).expect("it is in the object");
        assert_eq!(range, body[offset as usize..(offset + length) as usize]);
    }
    let past = [(0, 257), (256, 1), (257, 0), (1000, 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)];
    for (offset, length) in past {
        let error = tier.get_range("body", offset, length).expect_err("it ends before");
        assert_eq!(error.kind(), Kind::Corrupt, "{offset} {length}");
    }
}

fn many_ranges(tier: &dyn Tier) {
    let body: Vec<u8> = (0..60_000u32).flat_map(u32::to_le_bytes).collect();
    put(tier, "one", &body);
    put(tier, "two/three", &body[7..]);
    assert!(tier.get_many(&[]).is_empty());
    let range = |key: &str, offset, len_bytes| RangeRequest { key: key.to_owned(), offset, len_bytes };
    let mut requests: Vec<RangeRequest> = (0..100).map(|at| range("one", at * 2000, at * 400)).collect();
    requests.extend((0..100).rev().map(|at| range("two/three", at * 1000, 1000)));
    requests.extend([range("absent", 0, 1), range("../one", 0, 1), range("one", 239_999, 2)]);
    let answers = tier.get_many(&requests);
    assert_eq!(answers.len(), requests.len());
    for (request, answer) in requests.iter().zip(&answers) {
        let start = request.offset as usize + if request.key == "one" { 0 } else { 7 };
        match (request.key.as_str(), answer) {
            ("absent", Err(error)) => assert_eq!(error.kind(), Kind::NotFound),
            ("absent", Ok(_)) => panic!("an absent object has bytes"),
            ("../one", answer) => assert!(answer.is_err()),
            ("one", Err(error)) => assert_eq!((error.kind(), request.offset), (Kind::Corrupt, 239_999)),
            (key, Err(error)) => panic!("{key}: {error}"),
            (_, Ok(bytes)) => assert_eq!(bytes, &body[start..start + request.len_bytes as usize]),
        }
    }
}

fn swaps(tier: &dyn Tier) {
    assert!(!swap(tier, "ref", Some(b"what is not there"), b"one"));
    assert_absent(tier, "ref");
    assert!(swap(tier, "ref", None, b"one"));
    assert!(!swap(tier, "ref", None, b"two"));
    assert!(!swap(tier, "ref", Some(b"other"), b"two"));
    assert!(!swap(tier, "ref", Some(b""), b"two"));
    assert_eq!(get(tier, "ref"), b"one");
    assert!(swap(tier, "ref", Some(b"one"), b"two, which is longer"));
    assert!(swap(tier, "ref", Some(b"two, which is longer"), b""));
    assert!(!swap(tier, "ref", None, b"three"), "an empty object is there");
    assert!(swap(tier, "ref", Some(b""), b"three"));
    assert_eq!(get(tier, "ref"), b"three");
    assert!(!put(tier, "ref", b"four"));
    assert_eq!(keys(tier, ""), ["ref"], "a swap leaves nothing else");
}

fn listing(tier: &dyn Tier) {
    let all = ["a-b/c", "a.x", "a/b", "a/b-2", "a/c/d", "a/c/e", "ab/c", "b", "b.c"];
    for (index, key) in all.iter().enumerate().rev() {
        put(tier, key, &vec![7; index]);
    }
    assert_eq!(keys(tier, ""), all);
    assert_eq!(keys(tier, "a/"), ["a/b", "a/b-2", "a/c/d", "a/c/e"]);
    assert_eq!(keys(tier, "a/c/"), ["a/c/d", "a/c/e"]);
    assert_eq!(keys(tier, "c/"), Vec::<String>::new());
    for (index, info) in tier.list("").expect("it can be listed").iter().enumerate() {
        assert_eq!(info.len_bytes, index as u64, "{}", info.key);
    }
}

fn deletion(tier: &dyn Tier) {
    put(tier, "a/b", b"body");
    put(tier, "a/c", b"body");
    for _ in 0..2 {
        tier.delete("a/b").expect("absence is fine");
        tier.delete("never/was").expect("absence is fine");
    }
    assert_absent(tier, "a/b");
    assert_eq!(keys(tier, ""), ["a/c"]);
    assert!(put(tier, "a/b", b"again"));
    assert_eq!(get(tier, "a/b"), b"again");
}

fn hostile_keys(tier: &dyn Tier) {
    let long = "x".repeat(1025);
    for key in HOSTILE_KEYS.into_iter().chain([long.as_str()]) {
        assert!(tier.put_if_absent(key, b"x").is_err(), "put {key:?}");
        assert!(tier.compare_and_swap(key, None, b"x").is_err(), "swap {key:?}");
        assert!(tier.compare_and_swap(key, Some(b"x"), b"x").is_err(), "swap {key:?}");
        assert!(tier.get(key).is_err(), "get {key:?}");
        assert!(tier.get_range(key, 0, 0).is_err(), "range {key:?}");
        assert!(tier.len_bytes(key).is_err(), "length {key:?}");
        assert!(tier.delete(key).is_err(), "delete {key:?}");
    }
    assert_eq!(keys(tier, ""), Vec::<String>::new());
}

fn large_object(tier: &dyn Tier) {
    let body: Vec<u8> = (0..5_000_000u32).flat_map(u32::to_le_bytes).collect();
    put(tier, "packs/large", &body);
    assert!(get(tier, "packs/large") == body);
    let range = tier.get_range("packs/large", 12_345_678, 100).expect("it is in the object");
    assert_eq!(range, body[12_345_678..12_345_778]);
}

/// Runs `race` in every thread at once and returns their results.
fn at_once<T: Send>(effort: Effort, race: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(effort.racers);
    let (race, barrier) = (&race, &barrier);
    std::thread::scope(|scope| {
        let start = |racer| {
            scope.spawn(move || {
                barrier.wait();
                race(racer)
            })
        };
        let racers: Vec<_> = (0..effort.racers).map(start).collect();
        racers.into_iter().map(|racer| racer.join().expect("no racer panics")).collect()
    })
}

fn assert_one_winner(tier: &dyn Tier, key: &str, won: &[bool]) {
    let winners: Vec<usize> = (0..won.len()).filter(|racer| won[*racer]).collect();
    assert_eq!(winners.len(), 1, "{key}: winners {winners:?}");
    assert_eq!(get(tier, key), body_of(winners[0]), "{key}: the winner's bytes are there");
}

fn body_of(racer: usize) -> Vec<u8> {
    vec![racer as u8; 100 + racer]
}

fn put_race(effort: Effort, tier: &Arc<dyn Tier>) {
    for round in 0..effort.rounds {
        let key = format!("race/{round}/new");
        let won = at_once(effort, |racer| put(&**tier, &key, &body_of(racer)));
        assert_one_winner(&**tier, &key, &won);
    }
}

fn swap_race(effort: Effort, tier: &Arc<dyn Tier>) {
    for round in 0..effort.rounds {
        let key = format!("race/{round}");
        let won = at_once(effort, |racer| swap(&**tier, &key, None, &body_of(racer)));
        assert_one_winner(&**tier, &key, &won);
        let before = get(&**tier, &key);
        // A racer whose body is the expected one may win without changing anything: leave it out.
        let won = at_once(effort, |racer| {
            let body = [body_of(racer), b"next".to_vec()].concat();
            swap(&**tier, &key, Some(&before), &body)
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{key}");
    }
    let counter = "race/counter";
    put(&**tier, counter, &0u64.to_le_bytes());
    at_once(effort, |_| {
        for _ in 0..effort.rounds {
            while !add_one(&**tier, counter) {}
        }
    });
    assert_eq!(
        get(&**tier, counter),
        ((effort.racers * effort.rounds) as u64).to_le_bytes(),
        "no update is lost"
    );
}

fn add_one(tier: &dyn Tier, key: &str) -> bool {
    let current = get(tier, key);
    let value = u64::from_le_bytes(current.as_slice().try_into().expect("a whole number is there"));
    swap(tier, key, Some(&current), &(value + 1).to_le_bytes())
}

fn put_against_swap_race(effort: Effort, tier: &Arc<dyn Tier>) {
    for round in 0..effort.rounds {
        let key = format!("race/{round}");
        let won = at_once(effort, |racer| match racer % 2 {
            0 => put(&**tier, &key, &body_of(racer)),
            _ => swap(&**tier, &key, None, &body_of(racer)),
        });
        assert_one_winner(&**tier, &key, &won);
    }
}

/// While some threads put and swap, others that read and list never see a part of an object.
fn readers_see_whole_objects(effort: Effort, tier: &Arc<dyn Tier>) {
    let bodies: BTreeSet<Vec<u8>> = (0..effort.racers).map(|racer| vec![racer as u8; 200_000]).collect();
    let body = |racer: usize| vec![racer as u8; 200_000];
    put(&**tier, "shared", &body(0));
    at_once(effort, |racer| {
        for round in 0..effort.rounds {
            match racer % 2 {
                0 => {
                    put(&**tier, &format!("new/{racer}-{round}"), &body(racer));
                    let current = get(&**tier, "shared");
                    swap(&**tier, "shared", Some(&current), &body(racer));
                }
                _ => {
                    assert!(bodies.contains(&get(&**tier, "shared")), "part of an object");
                    for info in tier.list("new/").expect("it can be listed") {
                        assert_eq!(info.len_bytes, 200_000, "{} is listed in part", info.key);
                    }
                }
            }
        }
    });
}
