//! The verdict on one pack or snapshot record. Pure: inventory, reachability and logical clock in, verdict and reason
//! out; a dry run and a real run share it.

use std::fmt;

/// Epochs between a condemnation and the first run that may delete.
pub(crate) const GRACE_EPOCHS: u64 = 2;

/// The verdict on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Stays.
    Keep,
    /// Stays, and is no longer condemned.
    TakeBack,
    /// Stays, and stays condemned: no writer depends on it again.
    Avoid,
    /// Is condemned in this run.
    Condemn,
    /// Was condemned and waits.
    Wait,
    /// Is deleted in this run.
    Delete,
}

/// The reason of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A ref or a session reaches it.
    Reached,
    /// Condemned before, and reached again.
    ReachedAgain {
        /// The run that had condemned it.
        condemned: u64,
    },
    /// Nothing reaches it.
    Unreached,
    /// Too few runs since it was condemned.
    Grace {
        /// The first run that may delete it.
        until: u64,
    },
    /// A writer that began before the condemnation was known may depend on it, or have stored it.
    OldWriter {
        /// That writer's epoch.
        epoch: u64,
    },
    /// Nothing reached it for long enough.
    Expired {
        /// The run that had condemned it.
        condemned: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached => write!(f, "a ref or session reaches it"),
            Self::ReachedAgain { condemned } => write!(f, "condemned in run {condemned}, reached again"),
            Self::Unreached => write!(f, "no ref or session reaches it"),
            Self::Grace { until } => write!(f, "condemned; run {until} may delete it"),
            Self::OldWriter { epoch } => {
                write!(f, "condemned; a writer from before (run {epoch}) is still at work")
            }
            Self::Expired { condemned } => write!(f, "condemned in run {condemned}, unreached since"),
        }
    }
}

/// The clock and the sessions, as one run sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// This run.
    pub epoch: u64,
    /// The oldest epoch of an open writer's session.
    pub oldest_writer: Option<u64>,
    /// Whether collectors of other hosts may be at work, or be stalled between two steps.
    pub is_shared: bool,
}

impl Clock {
    /// Decides over one object.
    pub(crate) fn decide(&self, reached: bool, condemned: Option<u64>) -> (Verdict, Reason) {
        match (reached, condemned) {
            (true, None) => (Verdict::Keep, Reason::Reached),
            // A stalled collector of another host may yet delete objects that it saw condemned and unreached. That is
            // right as long as no writer depends on them again.
            (true, Some(condemned)) if self.is_shared => (Verdict::Avoid, Reason::ReachedAgain { condemned }),
            (true, Some(condemned)) => (Verdict::TakeBack, Reason::ReachedAgain { condemned }),
            (false, None) => (Verdict::Condemn, Reason::Unreached),
            (false, Some(condemned)) => {
                let until = condemned + GRACE_EPOCHS;
                match self.oldest_writer {
                    _ if self.epoch < until => (Verdict::Wait, Reason::Grace { until }),
                    // A writer of the same epoch may have begun after that run raised it and before it listed packs or
                    // wrote its list: it does not know of the condemnation, and its own packs may be on the list.
                    Some(epoch) if epoch <= condemned => (Verdict::Wait, Reason::OldWriter { epoch }),
                    _ => (Verdict::Delete, Reason::Expired { condemned }),
                }
            }
        }
    }
}

/// The decision over a named object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned<Id> {
    /// The object.
    pub id: Id,
    /// Its size on the tiers; 0 for a snapshot record.
    pub len_bytes: u64,
    /// Its verdict.
    pub verdict: Verdict,
    /// The reason.
    pub reason: Reason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reached_is_ever_deleted_and_nothing_is_deleted_in_haste() {
        for epoch in 1..12 {
            for oldest_writer in (0..12).map(Some).chain([None]) {
                let clock = Clock { epoch, oldest_writer, is_shared: false };
                assert_eq!(clock.decide(false, None).0, Verdict::Condemn);
                let shared = Clock { is_shared: true, ..clock };
                for condemned in 1..=epoch {
                    assert_eq!(clock.decide(true, Some(condemned)).0, Verdict::TakeBack);
                    assert_eq!(shared.decide(true, Some(condemned)).0, Verdict::Avoid);
                    assert_eq!(shared.decide(false, Some(condemned)), clock.decide(false, Some(condemned)));
                    let deletes = clock.decide(false, Some(condemned)).0 == Verdict::Delete;
                    let ripe = epoch >= condemned + 2;
                    let depended_on = oldest_writer.is_some_and(|writer| writer <= condemned);
                    assert_eq!(deletes, ripe && !depended_on, "{clock:?} {condemned}");
                }
            }
        }
    }
}
