//! Where the pages of an image lie in a running address space.
//!
//! A region is one mapping (or part of one): run-time addresses on one side, image pages on the other. Regions move
//! when the owner moves memory, shrink when it unmaps, never overlap, and a fill must not cross their borders. All
//! arithmetic is checked when regions are made; afterwards no sum can overflow.

use store::{Error, Kind, PAGE, Result};

const PAGE_BYTES: u64 = PAGE as u64;

/// A stretch of run-time addresses that shows consecutive image pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// First run-time address, a multiple of the page size.
    pub start: u64,
    /// A multiple of the page size, not zero.
    pub len_bytes: u64,
    /// Image page shown at `start`.
    pub first_page: u64,
}

impl Region {
    /// The run-time address after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len_bytes
    }

    /// The image page at a run-time address inside the region.
    pub(crate) fn page_at(&self, address: u64) -> u64 {
        self.first_page + (address - self.start) / PAGE_BYTES
    }

    /// The run-time address of an image page, if the region shows it.
    pub(crate) fn address_of(&self, page: u64) -> Option<u64> {
        let place = page.checked_sub(self.first_page)?;
        (place < self.len_bytes / PAGE_BYTES).then(|| self.start + place * PAGE_BYTES)
    }

    fn check(&self) -> Result<()> {
        let aligned = self.start.is_multiple_of(PAGE_BYTES) && self.len_bytes.is_multiple_of(PAGE_BYTES);
        let bounded = self.start.checked_add(self.len_bytes).is_some()
            && self.first_page.checked_add(self.len_bytes / PAGE_BYTES).is_some();
        if aligned && bounded && self.len_bytes > 0 {
            return Ok(());
        }
        Err(Error::new(
            Kind::Invalid,
            "a memory region is empty, unaligned or past the end of the address space",
        )
        .object(format!("{:#x}+{:#x}", self.start, self.len_bytes)))
    }

    /// The part of the region inside `start..end`, if any.
    fn clip(&self, start: u64, end: u64) -> Option<Self> {
        let start = self.start.max(start);
        let end = self.end().min(end);
        (start < end).then(|| Self { start, len_bytes: end - start, first_page: self.page_at(start) })
    }
}

/// The regions of one address space, by ascending run-time address.
#[derive(Clone, Debug, Default)]
pub(crate) struct RegionMap(Vec<Region>);

impl RegionMap {
    /// # Errors
    /// `Invalid` when a region is malformed or two overlap.
    pub(crate) fn new(mut regions: Vec<Region>) -> Result<Self> {
        regions.iter().try_for_each(Region::check)?;
        regions.sort_by_key(|region| region.start);
        if let Some(pair) = regions.windows(2).find(|pair| pair[0].end() > pair[1].start) {
            return Err(Error::new(Kind::Invalid, "two memory regions overlap")
                .object(format!("{:#x}", pair[1].start)));
        }
        Ok(Self(regions))
    }

    /// All regions.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.0
    }

    /// The region that holds a run-time address.
    pub(crate) fn find(&self, address: u64) -> Option<Region> {
        let after = self.0.partition_point(|region| region.start <= address);
        let region = self.0[after.checked_sub(1)?];
        (address < region.end()).then_some(region)
    }

    /// The parts of regions inside `start..end`.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Region> + '_ {
        let first = self.0.partition_point(|region| region.end() <= start);
        self.0[first..].iter().map_while(move |region| region.clip(start, end))
    }

    /// Removes `start..end` from all regions.
    pub(crate) fn unmap(&mut self, start: u64, end: u64) {
        if self.overlapping(start, end).next().is_none() {
            return;
        }
        let kept = self.0.iter().flat_map(|region| [region.clip(0, start), region.clip(end, u64::MAX)]);
        self.0 = kept.flatten().collect();
    }

    /// Moves `source..source + len_bytes` to `target`, replacing what was there.
    pub(crate) fn remap(&mut self, source: u64, target: u64, len_bytes: u64) {
        let (Some(source_end), Some(target_end)) =
            (source.checked_add(len_bytes), target.checked_add(len_bytes))
        else {
            return;
        };
        let moved: Vec<Region> = self.overlapping(source, source_end).collect();
        self.unmap(source, source_end);
        self.unmap(target, target_end);
        self.0.extend(moved.into_iter().map(|part| Region { start: part.start - source + target, ..part }));
        self.0.sort_by_key(|region| region.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start_page: u64, pages: u64, first_page: u64) -> Region {
        Region { start: start_page * PAGE_BYTES, len_bytes: pages * PAGE_BYTES, first_page }
    }

    /// The image page that each run-time page shows, the slow way.
    fn shown(map: &RegionMap) -> Vec<Option<u64>> {
        (0..64)
            .map(|page| map.find(page * PAGE_BYTES).map(|region| region.page_at(page * PAGE_BYTES)))
            .collect()
    }

    #[test]
    fn malformed_and_overlapping_regions_are_refused() {
        let bad = [
            Region { start: 1, len_bytes: PAGE_BYTES, first_page: 0 },
            Region { start: 0, len_bytes: 0, first_page: 0 },
            Region { start: u64::MAX - PAGE_BYTES + 1, len_bytes: 2 * PAGE_BYTES, first_page: 0 },
            Region { start: 0, len_bytes: PAGE_BYTES, first_page: u64::MAX },
        ];
        for region in bad {
            assert_eq!(RegionMap::new(vec![region]).expect_err("refused").kind(), Kind::Invalid);
        }
        assert!(RegionMap::new(vec![region(0, 4, 0), region(3, 1, 9)]).is_err());
        assert!(RegionMap::new(vec![region(4, 4, 0), region(0, 4, 9)]).is_ok());
    }

    #[test]
    fn unmap_and_remap_agree_with_a_plain_array() {
        let mut seed = 0x9E37_79B9_u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..500 {
            let mut map = RegionMap::new(vec![region(2, 20, 100), region(30, 10, 500), region(40, 4, 0)])
                .expect("regions");
            let mut model = shown(&map);
            for _ in 0..12 {
                let len = 1 + random(12);
                let (source, target) = (random(64 - len), random(64 - len));
                if random(2) == 0 {
                    map.unmap(source * PAGE_BYTES, (source + len) * PAGE_BYTES);
                    model[source as usize..(source + len) as usize].fill(None);
                } else if source.abs_diff(target) >= len {
                    map.remap(source * PAGE_BYTES, target * PAGE_BYTES, len * PAGE_BYTES);
                    let moved = model[source as usize..(source + len) as usize].to_vec();
                    model[source as usize..(source + len) as usize].fill(None);
                    model[target as usize..(target + len) as usize].copy_from_slice(&moved);
                }
                assert_eq!(shown(&map), model);
            }
        }
    }

    #[test]
    fn pages_and_addresses_are_inverse() {
        let region = region(7, 3, 40);
        assert_eq!(region.address_of(41), Some(8 * PAGE_BYTES));
        assert_eq!(region.page_at(8 * PAGE_BYTES + 17), 41);
        assert_eq!((region.address_of(39), region.address_of(43)), (None, None));
    }
}
