//! A panic of a serving thread: the mounts of this process end at once.
//!
//! The FUSE library does not report a panic, and the request at hand would never be answered: its caller would hang,
//! and after the last thread all callers. An ended mount returns an error to all callers; no answered change is lost.

use crate::attachment::Shared;
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

/// Names of serving threads begin like this: the library's and the control service's.
const SERVING_PREFIXES: [&str; 2] = ["fuser-", "snapfs-control"];

static WATCHED: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
static HOOKED: Once = Once::new();

/// Ends this mount when a serving thread of this process panics.
pub(crate) fn watch(shared: &Arc<Shared>) {
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    watched.retain(|mount| mount.strong_count() > 0);
    watched.push(Arc::downgrade(shared));
    drop(watched);
    HOOKED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            previous(panic);
            let serves = |name: &str| SERVING_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if std::thread::current().name().is_some_and(serves) {
                end_all();
            }
        }));
    });
}

fn end_all() {
    let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    watched.iter().filter_map(Weak::upgrade).for_each(|mount| mount.abort());
}
