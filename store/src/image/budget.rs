//! The dedup budget: the groups of its parent from which an image takes no pages, although they are equal.
//!
//! A page taken over costs no bytes, and makes the image depend on one frame more than if it were written beside its
//! neighbours. After one hibernation this hardly shows. But each one keeps the unchanged pages of older groups, and a
//! resume would in the end fetch a frame for every few pages. So the frames of an image have a limit, a multiple of the
//! fewest that could hold it; above it, the pages of the sparsest groups are written again (docs/TUNING.md). An image
//! of few frames has none: it resumes at once, however its pages lie. Pure.

use super::table::Space;
use crate::id::ChunkId;
use crate::page::GROUP_PAGES;
use std::collections::{BTreeSet, HashMap};

/// Multiple of the fewest frames above which an image passes its sparsest groups on to no child.
const SPREAD_LIMIT: u64 = 2;
/// An image of at most this many frames has no limit.
const FEW_FRAMES: u64 = 32;

/// A group and the base that it is a delta against: the frames that reading it fetches.
pub(super) type Frames = (ChunkId, Option<ChunkId>);

/// The groups to drop so that the frames of an image are within the limit, counting the frames that their pages fill
/// when written again.
pub(super) fn sparsest(spaces: &[Space], groups: &[Frames]) -> BTreeSet<u32> {
    beyond(|fewest| FEW_FRAMES.max(fewest * SPREAD_LIMIT), spaces, groups)
}

/// The same, with a limit that depends on the fewest frames.
fn beyond(limit: impl Fn(u64) -> u64, spaces: &[Space], groups: &[Frames]) -> BTreeSet<u32> {
    let mut used_pages = vec![0_u64; groups.len()];
    let mut fewest = 0;
    for space in spaces {
        space.runs.iter().for_each(|run| used_pages[run.group as usize] += u64::from(run.page_count));
        let pages: u64 = space.runs.iter().map(|run| u64::from(run.page_count)).sum();
        fewest += pages.div_ceil(GROUP_PAGES as u64);
    }
    let mut needed: HashMap<ChunkId, u32> = HashMap::new();
    let frames_of = |group: u32| {
        let (id, base) = groups[group as usize];
        std::iter::once(id).chain(base)
    };
    (0..groups.len() as u32).flat_map(frames_of).for_each(|frame| *needed.entry(frame).or_default() += 1);
    let mut sparsest_first: Vec<u32> = (0..groups.len() as u32).collect();
    sparsest_first.sort_by_key(|group| used_pages[*group as usize]);
    let (mut declined, mut declined_pages) = (BTreeSet::new(), 0_u64);
    for group in sparsest_first {
        if needed.len() as u64 + declined_pages.div_ceil(GROUP_PAGES as u64) <= limit(fewest) {
            break;
        }
        for frame in frames_of(group) {
            let count = needed.get_mut(&frame).expect("every frame was counted");
            *count -= 1;
            if *count == 0 {
                needed.remove(&frame);
            }
        }
        declined.insert(group);
        declined_pages += used_pages[group as usize];
    }
    declined
}

#[cfg(test)]
mod tests {
    use super::super::table::PageRun;
    use super::*;

    /// The groups beyond a limit of twice the fewest frames.
    fn declined(groups: &[(u32, Option<u8>)]) -> Vec<u32> {
        let (space, frames) = image(groups);
        beyond(|fewest| fewest * SPREAD_LIMIT, &[space], &frames).into_iter().collect()
    }

    /// An image of one space whose groups have these counts of used pages and these bases.
    fn image(groups: &[(u32, Option<u8>)]) -> (Space, Vec<Frames>) {
        let id = |number: u8| ChunkId::from_bytes([number; 32]);
        let (mut runs, mut frames, mut first_page) = (Vec::new(), Vec::new(), 0);
        for ((page_count, base), group) in groups.iter().zip(0..) {
            runs.push(PageRun { first_page, page_count: *page_count, group, first_slot: 0 });
            first_page += u64::from(*page_count);
            frames.push((id(group as u8), base.map(id)));
        }
        (Space { id: 0, len_bytes: first_page * 4096, runs }, frames)
    }

    #[test]
    fn the_sparsest_groups_go_until_the_rest_is_within_the_limit() {
        assert_eq!(declined(&[]), []);
        assert_eq!(declined(&[(1, None), (1, None)]), [], "two frames where one could do");
        assert_eq!(declined(&[(1, None), (2, None), (1, None)]), [0, 2], "they make one");
        let sparse = [(3, None), (16, None), (1, None), (8, None), (2, None), (1, None), (1, None)];
        assert_eq!(declined(&sparse), [2, 4, 5, 6], "three of seven stay, and the others make one");
    }

    #[test]
    fn few_frames_are_never_too_many() {
        let (space, frames) = image(&[(1, None); 32]);
        assert_eq!(sparsest(&[space], &frames), BTreeSet::new());
        let (space, frames) = image(&[(1, None); 33]);
        assert_eq!(sparsest(&[space], &frames), BTreeSet::from([0, 1]), "31 frames and one for both");
    }

    #[test]
    fn a_base_is_a_frame_as_long_as_anything_needs_it() {
        let full = [(16, Some(100)), (16, Some(101)), (16, Some(102))];
        assert_eq!(declined(&full), [], "full groups are within the limit, each with a base of its own");
        assert_eq!(
            declined(&[(2, Some(100)), (3, Some(100)), (4, None)]),
            [0, 1],
            "both go before their base does"
        );
        assert_eq!(declined(&[(2, Some(2)), (3, None), (4, None)]), [0, 1], "a base that is a group stays");
    }
}
