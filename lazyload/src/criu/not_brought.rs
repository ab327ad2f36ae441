//! The pages that a dump misses because they had not been brought yet when it was made: their bytes are still those of
//! the image that was woken.
//!
//! CRIU leaves out a page that is not present, whether it is zero or userfaultfd had still to bring it. A dump whose
//! task carries the mark of a wake is completed from the record of that wake: all changes up to the dump are replayed
//! on the state that the wake began with, and each page that then still belongs to the image, and that the dump misses,
//! is the image's. The dump's own bytes take precedence. Without a record that certainly applies to this dump, it is
//! refused.

use std::collections::BTreeMap;

use store::{Error, Image, Kind, PAGE, Result, Store};

use super::entries::{AnonymousMapping, anonymous_mappings};
use super::mark::mark_of;
use super::page_map::PageMap;
use super::serve::address_space;
use crate::fault::AddressSpace;
use crate::wake_log::{Entry, Line, Stamp, Wake};

const PAGE_BYTES: u64 = PAGE as u64;

/// One task of a dump.
pub(super) struct DumpedTask<'a> {
    /// Its number.
    pub number: u32,
    /// The bytes of its `mm-*.img`.
    pub mappings: &'a [u8],
    /// The pages in the dump.
    pub map: &'a PageMap,
    /// When its pages were dumped.
    pub dumped_at: Stamp,
}

/// A page that a dump misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MissingPage {
    /// Its number in the dump.
    pub page: u64,
    /// The space of the image and the page in it.
    pub space: usize,
    pub image_page: u64,
    /// Whether CRIU may restore it after the task runs.
    pub is_lazy: bool,
}

/// Pages that a dump misses, by ascending number, and the image that has them.
#[derive(Debug)]
pub(super) struct NotBrought {
    pub image: Image,
    pub pages: Vec<MissingPage>,
}

/// The pages that a task's dump misses; `None` when it misses none.
///
/// # Errors
/// `Invalid` when the missing pages cannot be known; those of reading the record and the image.
pub(super) fn not_brought(
    store: &Store,
    parent: Option<&Image>,
    task: &DumpedTask<'_>,
) -> Result<Option<NotBrought>> {
    let Some(mark) = mark_of(task.mappings)? else { return Ok(None) };
    let dump = Dump { task, mappings: anonymous_mappings(task.mappings)? };
    let Some(wake) = Wake::read(store, mark)? else {
        return match parent {
            Some(parent) if dump.has_all_of(parent) => Ok(None),
            _ => Err(refusal(task, "there is no record of that wake on this host")),
        };
    };
    let image = match parent {
        Some(parent) if parent.id() == wake.image => parent.clone(),
        _ => store.image(&wake.image).map_err(|error| {
            refusal(task, &format!("the image {} that was woken is gone", wake.image)).caused_by(error)
        })?,
    };
    let candidates = candidates(store, &image, &wake, task)?;
    let mut answers: Vec<Vec<MissingPage>> =
        candidates.iter().map(|found| dump.find_missing(&image, found.as_ref())).collect();
    let pages = answers.pop().unwrap_or_default();
    if answers.iter().any(|other| *other != pages) {
        return Err(refusal(
            task,
            "it was forked while pages were missing, and its relatives gave back others",
        ));
    }
    Ok((!pages.is_empty()).then_some(NotBrought { image, pages }))
}

/// The error of a dump that misses pages when it cannot be known which.
fn refusal(task: &DumpedTask<'_>, why: &str) -> Error {
    let what = format!(
        "the process was woken lazily, and which of its pages were still to come cannot be known: {why}"
    );
    Error::new(Kind::Invalid, what)
        .object(format!("task {}", task.number))
        .advice("dump it again once `resume` has brought all pages; nothing was captured")
}

struct Dump<'a> {
    task: &'a DumpedTask<'a>,
    mappings: Vec<AnonymousMapping>,
}

impl Dump<'_> {
    /// The private anonymous mapping of a page that the dump misses; `None` when the dump has the page, or the page is
    /// in no such mapping.
    fn mapping_without(&self, page: u64) -> Option<&AnonymousMapping> {
        let entries = &self.task.map.entries;
        let index = entries.partition_point(|entry| entry.pages().end <= page);
        if entries.get(index).is_some_and(|entry| entry.pages().contains(&page)) {
            return None;
        }
        let address = page * PAGE_BYTES;
        let index = self.mappings.partition_point(|mapping| mapping.range.end <= address);
        self.mappings.get(index).filter(|mapping| mapping.range.contains(&address))
    }

    /// The pages of a state that the dump misses, by ascending number.
    fn find_missing(&self, image: &Image, state: Option<&Found>) -> Vec<MissingPage> {
        let Some(state) = state else { return Vec::new() };
        let Some(space) = image.space(state.task.into()) else { return Vec::new() };
        let missing = state.space.backed().filter_map(|(address, image_page)| {
            let page = address / PAGE_BYTES;
            let mapping = self.mapping_without(page)?;
            Some(MissingPage { page, space, image_page, is_lazy: mapping.is_lazy })
        });
        // Regions are in the order of their addresses, and pages within a region, too.
        missing.collect()
    }

    /// Whether the dump has every page that an image has of the task, where the memory is still mapped.
    fn has_all_of(&self, image: &Image) -> bool {
        let runs = image.space(self.task.number.into()).map(|space| image.runs(space));
        runs.is_some_and(|runs| {
            let mut pages =
                runs.iter().flat_map(|run| run.first_page..run.first_page + u64::from(run.page_count));
            pages.all(|page| self.mapping_without(page).is_none())
        })
    }
}

/// The state of a space when the dump was made.
#[derive(Clone)]
struct Found {
    /// The task of the image that its memory comes from.
    task: u32,
    space: AddressSpace,
    is_fork: bool,
    /// No page was missing any more when the dump was made.
    is_complete: bool,
    /// It had ended by then.
    has_ended: bool,
    /// A change that affects the content of a page is later than the dump.
    is_later: bool,
    /// Its end, or that no page is missing any more, is on record.
    is_concluded: bool,
}

/// The states that the memory of a task may have had when it was dumped; `None` stands for complete memory.
fn candidates(
    store: &Store,
    image: &Image,
    wake: &Wake,
    task: &DumpedTask<'_>,
) -> Result<Vec<Option<Found>>> {
    let spaces = replay(store, image, wake, task.dumped_at)?;
    let own = |found: &&Found| !found.is_fork && found.task == task.number;
    let mut candidates: Vec<&Found> = spaces.values().filter(own).collect();
    let mut may_be_newer = false;
    if candidates.iter().all(|found| found.has_ended) {
        // The task is a forked child, of a space on record or of a complete one.
        candidates.extend(spaces.values().filter(|found| found.is_fork && !found.has_ended));
        may_be_newer = spaces.values().any(|found| found.is_complete);
    }
    if candidates.is_empty() && !may_be_newer {
        return Err(refusal(task, "the record of that wake does not know it"));
    }
    let was_seen = wake.lines.iter().any(
        |line| matches!(line.entry, Entry::Traced { from } if (from..=line.at).contains(&task.dumped_at)),
    );
    for found in &candidates {
        if found.is_later && !was_seen {
            return Err(refusal(task, "memory was given back, moved or completed after the dump was made"));
        }
        if !wake.is_served && !found.is_concluded {
            return Err(refusal(task, "the handler that served it ended early"));
        }
    }
    let newer = may_be_newer.then_some(None);
    let known = candidates.into_iter().map(|found| (!found.is_complete).then(|| found.clone()));
    Ok(known.chain(newer).collect())
}

/// The state of every space at a time.
fn replay(store: &Store, image: &Image, wake: &Wake, until: Stamp) -> Result<BTreeMap<u32, Found>> {
    let mut spaces: BTreeMap<u32, Found> = BTreeMap::new();
    for Line { at, space, entry } in &wake.lines {
        let is_before = *at <= until;
        match entry {
            Entry::Image(_) | Entry::Traced { .. } => {}
            Entry::Task(task) => {
                let found = address_space(store, image, *task)?;
                spaces.insert(*space, Found::new(*task, found, false));
            }
            Entry::Fork { parent } => {
                let forked = spaces.get(parent).filter(|_| is_before);
                let forked = forked.map(|parent| Found::new(parent.task, parent.space.forked(), true));
                spaces.extend(forked.map(|forked| (*space, forked)));
            }
            Entry::Complete => {
                let Some(found) = spaces.get_mut(space) else { continue };
                found.is_concluded = true;
                // Of two events in one tick of the clock the dump came first.
                found.is_complete = *at < until;
                found.is_later |= !found.is_complete;
            }
            Entry::Ended { .. } => {
                let Some(found) = spaces.get_mut(space) else { continue };
                found.is_concluded = true;
                found.has_ended = *at < until;
            }
            Entry::Remove { .. } | Entry::Unmap { .. } | Entry::Remap { .. } => {
                let (Some(found), Some(change)) = (spaces.get_mut(space), entry.change()) else { continue };
                found.is_later |= !is_before && !found.is_complete;
                if is_before {
                    found.space.change(change);
                }
            }
        }
    }
    Ok(spaces)
}

impl Found {
    fn new(task: u32, space: AddressSpace, is_fork: bool) -> Self {
        Self {
            task,
            space,
            is_fork,
            is_complete: false,
            has_ended: false,
            is_later: false,
            is_concluded: false,
        }
    }
}
