//! Retention: which snapshots of a ref stay. Rules name how many of the newest to keep for each span of time; a
//! snapshot stays if any rule keeps it. Spans are those of UTC. The newest snapshot always stays.
//!
//! Snapshots may lie in the future, because a clock was wrong. If rules of time counted them, real ones would be
//! forgotten instead: they stay, count for no rule of time, and are marked for the caller.

use std::collections::HashSet;
use std::time::Duration;
use store::{Error, Ref, RefEntry, Result, SnapshotId, Store, Time, clock};

/// How many to keep; a rule that is `None` keeps nothing by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest.
    pub keep_last: Option<u32>,
    /// The newest of each of the last hours that have one.
    pub keep_hourly: Option<u32>,
    /// The same by days.
    pub keep_daily: Option<u32>,
    /// The same by weeks, from Monday.
    pub keep_weekly: Option<u32>,
    /// The same by months.
    pub keep_monthly: Option<u32>,
    /// The same by years.
    pub keep_yearly: Option<u32>,
    /// All that are at most so much older than the newest that does not lie in the future.
    pub keep_within: Option<Duration>,
}

/// A snapshot of a ref and the rules that keep it; none: it is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The snapshot.
    pub entry: RefEntry,
    /// The rules that keep it.
    pub reasons: Vec<&'static str>,
    /// Whether it was made later than now.
    pub is_future: bool,
}

impl Retained {
    /// Whether any rule keeps it.
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// Number of the span of time that contains a moment.
type SpanOf = fn(Time) -> i64;

impl Policy {
    fn rules(&self) -> [(&'static str, Option<u32>, SpanOf); 5] {
        [
            ("hourly", self.keep_hourly, |time| time.seconds.div_euclid(3600)),
            ("daily", self.keep_daily, day),
            ("weekly", self.keep_weekly, |time| (day(time) + 3).div_euclid(7)),
            ("monthly", self.keep_monthly, month),
            ("yearly", self.keep_yearly, |time| month(time).div_euclid(12)),
        ]
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether any rule counts spans of time.
    fn reads_times(&self) -> bool {
        self.keep_within.is_some() || self.rules().iter().any(|(_, count, _)| count.is_some())
    }
}

/// Days since 1970-01-01.
fn day(time: Time) -> i64 {
    time.seconds.div_euclid(86_400)
}

/// Months since January of year 0.
fn month(time: Time) -> i64 {
    let date =
        jiff::Timestamp::from_second(time.seconds).unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC);
    i64::from(date.year()) * 12 + i64::from(date.month()) - 1
}

/// Decides over a history, oldest first; the answer is in the same order. Pure.
pub fn plan(history: &[RefEntry], policy: &Policy, now: Time) -> Vec<Retained> {
    let retained =
        |entry: &RefEntry| Retained { entry: *entry, reasons: Vec::new(), is_future: entry.time > now };
    let mut plan: Vec<Retained> = history.iter().map(retained).collect();
    let past = history.iter().map(|entry| entry.time).filter(|time| *time <= now);
    let newest = past.max().unwrap_or(now);
    for (index, retained) in plan.iter_mut().rev().enumerate() {
        if index == 0 {
            retained.reasons.push("newest");
        }
        if policy.keep_last.is_some_and(|count| index < count as usize) {
            retained.reasons.push("last");
        }
        if retained.is_future {
            if policy.reads_times() {
                retained.reasons.push("future");
            }
            continue;
        }
        let age = newest.seconds.saturating_sub(retained.entry.time.seconds).max(0) as u64;
        if policy.keep_within.is_some_and(|within| age <= within.as_secs()) {
            retained.reasons.push("within");
        }
    }
    for (name, count, span_of) in policy.rules() {
        let mut spans = HashSet::new();
        for retained in plan.iter_mut().rev().filter(|retained| !retained.is_future) {
            if spans.len() < count.unwrap_or(0) as usize && spans.insert(span_of(retained.entry.time)) {
                retained.reasons.push(name);
            }
        }
    }
    plan
}

/// Drops from a ref the snapshots that the policy does not keep. With `dry_run` it only reports.
///
/// # Errors
/// `NotFound` when there is no such ref; `Invalid` for a policy without rules, which would keep one snapshot of all.
pub fn forget(store: &Store, name: &str, policy: &Policy, dry_run: bool) -> Result<Vec<Retained>> {
    forget_at(store, name, policy, dry_run, clock::now())
}

/// The same at another time than now.
///
/// # Errors
/// As [`forget`].
pub fn forget_at(
    store: &Store,
    name: &str,
    policy: &Policy,
    dry_run: bool,
    now: Time,
) -> Result<Vec<Retained>> {
    if policy.is_empty() {
        return Err(Error::invalid("no rule says what to keep")
            .advice("give at least one, for example --keep-last 3"));
    }
    let found: Ref = store.refs().get(name)?.ok_or_else(|| {
        Error::new(store::Kind::NotFound, "no such ref").object(name).advice("`snapctl snapshots` lists them")
    })?;
    let plan = plan(&found.history, policy, now);
    let dropped: HashSet<SnapshotId> =
        plan.iter().filter(|retained| !retained.is_kept()).map(|retained| retained.entry.snapshot).collect();
    if !dry_run && !dropped.is_empty() {
        store.forget(name, |entry| dropped.contains(&entry.snapshot))?;
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(times: impl IntoIterator<Item = i64>) -> Vec<RefEntry> {
        let entry = |(seconds, number): (i64, u8)| RefEntry {
            snapshot: SnapshotId::from_bytes([number; 32]),
            time: Time { seconds, nanos: 0 },
        };
        times.into_iter().zip(0..).map(entry).collect()
    }

    fn kept(history: &[RefEntry], policy: Policy) -> Vec<u8> {
        kept_at(i64::MAX, history, policy)
    }

    fn kept_at(seconds: i64, history: &[RefEntry], policy: Policy) -> Vec<u8> {
        let plan = plan(history, &policy, Time { seconds, nanos: 0 });
        plan.iter().filter(|r| r.is_kept()).map(|r| r.entry.snapshot.as_bytes()[0]).collect()
    }

    #[test]
    fn each_rule_keeps_the_newest_of_its_spans() {
        let day = 86_400;
        let entries = history([0, day, day + 60, 2 * day, 40 * day, 400 * day]);
        assert_eq!(kept(&entries, Policy { keep_last: Some(2), ..Policy::default() }), [4, 5]);
        assert_eq!(kept(&entries, Policy { keep_daily: Some(4), ..Policy::default() }), [2, 3, 4, 5]);
        assert_eq!(kept(&entries, Policy { keep_monthly: Some(9), ..Policy::default() }), [3, 4, 5]);
        assert_eq!(kept(&entries, Policy { keep_yearly: Some(9), ..Policy::default() }), [4, 5]);
        let within = Some(Duration::from_secs(360 * 86_400));
        assert_eq!(kept(&entries, Policy { keep_within: within, ..Policy::default() }), [4, 5]);
        assert_eq!(kept(&entries, Policy::default()), [5]);
    }

    #[test]
    fn snapshots_in_the_future_stay_and_take_no_place_of_others() {
        let (day, year) = (86_400, 365 * 86_400);
        // Number 2 and 4 were made while the clock was a year and two years ahead.
        let entries = history([0, 10 * day, year + 1, 11 * day, 2 * year, 12 * day]);
        let now = 13 * day;
        let within = Some(Duration::from_secs(3 * 86_400));
        assert_eq!(
            kept_at(now, &entries, Policy { keep_within: within, ..Policy::default() }),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(kept_at(now, &entries, Policy { keep_daily: Some(2), ..Policy::default() }), [2, 3, 4, 5]);
        assert_eq!(kept_at(now, &entries, Policy { keep_yearly: Some(1), ..Policy::default() }), [2, 4, 5]);
        assert_eq!(kept_at(now, &entries, Policy { keep_last: Some(2), ..Policy::default() }), [4, 5]);
        // A day later the clock was set back before all of them: nothing is forgotten for that.
        let all = [0, 1, 2, 3, 4, 5];
        assert_eq!(kept_at(-day, &entries, Policy { keep_within: within, ..Policy::default() }), all);
        // Within counts from the newest snapshot, so that an app that is stopped for long keeps its last ones.
        assert_eq!(
            kept_at(
                40 * day,
                &history([0, day, 2 * day]),
                Policy { keep_within: within, ..Policy::default() }
            ),
            [0, 1, 2]
        );
        let newest_ahead = history([0, 10 * day, year]);
        assert_eq!(kept_at(now, &newest_ahead, Policy { keep_within: within, ..Policy::default() }), [1, 2]);
    }
}
