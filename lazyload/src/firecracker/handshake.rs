//! The one message that Firecracker sends: a JSON list of memory regions, with its userfaultfd attached.
//!
//! It has neither length nor end mark, so it is read until the JSON is complete; the descriptor may come with any part of
//! it, or a little later. Unknown keys are ignored, because versions and forks add some. Total: any bytes give regions, a
//! wish for more bytes, or an error.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use serde::Deserialize;
use store::{Error, Kind, PAGE, Result};

use crate::region::{Region, RegionMap};
use crate::socket::wait_readable;
use crate::sys::receive;

const READ_BYTES: usize = 64 << 10;
/// Thousands of hot-plugged regions fit; more is not from Firecracker.
const MESSAGE_LIMIT_BYTES: usize = 4 << 20;
/// A userfaultfd, and up to two that forks of Firecracker add.
const DESCRIPTORS_LIMIT: usize = 3;
/// How long the descriptor may come after the text.
const DESCRIPTOR_TIMEOUT: Duration = Duration::from_millis(500);

/// One guest memory region, as Firecracker names its parts.
#[derive(Debug, Deserialize)]
struct GuestRegion {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    /// Older name of the same, in bytes despite what it says.
    page_size_kib: Option<u64>,
}

/// What the message says.
#[derive(Debug)]
pub struct Handshake {
    /// Where the machine's memory lies in its process, and which part of the image each region shows.
    pub regions: RegionMap,
    /// The userfaultfd; other descriptors are closed.
    pub descriptor: OwnedFd,
}

/// Receives the handshake.
///
/// # Errors
/// `Unavailable` when it does not come in time or the other side closes, `Invalid` when it is not understood, has pages
/// of another size than 4096 bytes, or shows memory behind the end of the image or the same memory twice.
pub fn accept(stream: &UnixStream, image_bytes: u64, timeout: Duration) -> Result<Handshake> {
    let mut deadline = Instant::now() + timeout;
    let mut text = Vec::new();
    let mut descriptors = Vec::new();
    let mut regions = None;
    loop {
        if regions.is_none() {
            regions = parse(&text, image_bytes)?;
            if regions.is_some() {
                deadline = deadline.min(Instant::now() + DESCRIPTOR_TIMEOUT);
            }
        }
        if regions.is_some() && !descriptors.is_empty() {
            break;
        }
        more(stream, &mut text, &mut descriptors, deadline)?;
    }
    if descriptors.len() > DESCRIPTORS_LIMIT {
        return Err(refused(&format!("{} descriptors came instead of one", descriptors.len())));
    }
    let regions = regions.expect("the loop ends with regions");
    let descriptor = descriptors.into_iter().next().expect("the loop ends with a descriptor");
    Ok(Handshake { regions, descriptor })
}

fn more(
    stream: &UnixStream,
    text: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
    deadline: Instant,
) -> Result<()> {
    let missing = || {
        let what =
            if descriptors.is_empty() { "no userfaultfd came" } else { "the list of regions is incomplete" };
        Error::new(Kind::Unavailable, format!("the handshake was not finished: {what}"))
    };
    if !wait_readable(stream, deadline)? {
        return Err(missing().advice("is a virtual machine monitor loading a snapshot on the other side?"));
    }
    let mut buffer = vec![0; READ_BYTES];
    let received = receive(stream, &mut buffer, RecvFlags::empty())
        .map_err(|errno| Error::io("cannot read the handshake", "socket", errno.into()))?;
    if received.len_bytes == 0 && received.descriptors.is_empty() {
        return Err(missing().advice("the virtual machine monitor has closed the connection; see its log"));
    }
    text.extend_from_slice(&buffer[..received.len_bytes]);
    descriptors.extend(received.descriptors);
    if text.len() > MESSAGE_LIMIT_BYTES {
        return Err(refused("the list of regions does not end"));
    }
    Ok(())
}

/// Reads the regions; `None` while the text is incomplete. What follows the list is ignored.
fn parse(text: &[u8], image_bytes: u64) -> Result<Option<RegionMap>> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Vec<GuestRegion>>();
    let listed = match values.next() {
        None => return Ok(None),
        Some(Ok(listed)) => listed,
        Some(Err(error)) if error.is_eof() => return Ok(None),
        Some(Err(error)) => return Err(refused("the list of regions is not understood").caused_by(error)),
    };
    if listed.is_empty() {
        return Err(refused("the machine has no memory"));
    }
    let regions: Vec<Region> =
        listed.iter().map(|region| region.check(image_bytes)).collect::<Result<_>>()?;
    check_disjoint(&listed)?;
    RegionMap::new(regions).map(Some)
}

/// A page has one state: shown at two places it would be given at one of them only.
fn check_disjoint(listed: &[GuestRegion]) -> Result<()> {
    let mut shown: Vec<(u64, u64)> = listed.iter().map(|region| (region.offset, region.size)).collect();
    shown.sort_unstable();
    if shown.windows(2).any(|pair| pair[1].0 - pair[0].0 < pair[0].1) {
        return Err(refused("two regions show the same part of the image"));
    }
    Ok(())
}

impl GuestRegion {
    fn check(&self, image_bytes: u64) -> Result<Region> {
        let page_size = self.page_size.or(self.page_size_kib).unwrap_or(PAGE as u64);
        if page_size != PAGE as u64 {
            return Err(refused(&format!("pages of {page_size} bytes are not supported"))
                .advice("load the snapshot without huge pages"));
        }
        let is_inside = self.offset.checked_add(self.size).is_some_and(|end| end <= image_bytes);
        if !is_inside || !self.offset.is_multiple_of(PAGE as u64) {
            let region = format!("{} bytes at {}", self.size, self.offset);
            return Err(refused(&format!(
                "a region of {region} does not fit an image of {image_bytes} bytes"
            ))
            .advice("load the state file that belongs to this image"));
        }
        Ok(Region {
            start: self.base_host_virt_addr,
            len_bytes: self.size,
            first_page: self.offset / PAGE as u64,
        })
    }
}

fn refused(what: &str) -> Error {
    Error::new(Kind::Invalid, format!("the handshake is refused: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::send;
    use std::os::fd::AsFd;

    const IMAGE_BYTES: u64 = 256 << 20;
    const CURRENT: &str = r#"[{"base_host_virt_addr":140000000000000,"size":134217728,"offset":0,"page_size":4096,
        "page_size_kib":4096,"later":{"nested":[1]}},
        {"base_host_virt_addr":139000000000000,"size":134217728,"offset":134217728,"page_size":4096}]"#;

    fn parse_text(text: &str) -> Result<Option<RegionMap>> {
        parse(text.as_bytes(), IMAGE_BYTES)
    }

    #[test]
    fn regions_of_every_version_are_read() {
        let one = |page_size: &str| {
            format!(r#"[{{"base_host_virt_addr":4096,"size":8192,"offset":4096{page_size}}}]"#)
        };
        for text in
            [one(""), one(r#","page_size_kib":4096"#), one(r#","page_size":4096,"is_guest_memfd":false"#)]
        {
            let map = parse_text(&text).expect("understood").expect("complete");
            assert_eq!(map.regions(), [Region { start: 4096, len_bytes: 8192, first_page: 1 }]);
        }
        assert_eq!(parse_text(CURRENT).expect("understood").expect("complete").regions().len(), 2);
    }

    #[test]
    fn every_cut_asks_for_more_and_every_flipped_bit_gives_an_answer() {
        for len in 0..CURRENT.len() {
            assert!(parse(&CURRENT.as_bytes()[..len], IMAGE_BYTES).expect("not refused").is_none(), "{len}");
            let mut flipped = CURRENT.as_bytes().to_vec();
            for bit in 0..8 {
                flipped[len] ^= 1 << bit;
                drop(parse(&flipped, IMAGE_BYTES));
                flipped[len] ^= 1 << bit;
            }
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let refused = [
            r#"[]"#,
            r#"{"mem":1}"#,
            r#"[{"base_host_virt_addr":0,"size":2097152,"offset":0,"page_size":2097152}]"#,
            r#"[{"base_host_virt_addr":0,"size":268439552,"offset":0}]"#,
            r#"[{"base_host_virt_addr":0,"size":4096,"offset":18446744073709551615}]"#,
            r#"[{"base_host_virt_addr":18446744073709547520,"size":8192,"offset":0}]"#,
            r#"[{"base_host_virt_addr":1,"size":4096,"offset":0}]"#,
            r#"[{"base_host_virt_addr":0,"size":0,"offset":0}]"#,
            r#"[{"base_host_virt_addr":0,"size":8192,"offset":0},{"base_host_virt_addr":4096,"size":4096,"offset":0}]"#,
            r#"[{"base_host_virt_addr":-1,"size":4096,"offset":0}]"#,
            r#"[{"base_host_virt_addr":0,"size":8192,"offset":4096},{"base_host_virt_addr":65536,"size":8192,"offset":0}]"#,
        ];
        for text in refused {
            assert_eq!(parse_text(text).expect_err(text).kind(), Kind::Invalid);
        }
    }

    #[test]
    fn the_descriptor_may_come_with_any_part_or_after_the_text() {
        let (reader, _writer) = std::io::pipe().expect("pipe");
        let (first, second) = CURRENT.as_bytes().split_at(40);
        let attached = [reader.as_fd()];
        let none = &attached[..0];
        for parts in [
            vec![(first, &attached[..]), (second, none)],
            vec![(first, none), (second, &attached[..])],
            vec![(first, none), (second, none), (&b"\n"[..], &attached[..])],
        ] {
            let (monitor, ours) = UnixStream::pair().expect("pair");
            for (bytes, descriptors) in parts {
                send(&monitor, bytes, descriptors).expect("sent");
            }
            let handshake = accept(&ours, IMAGE_BYTES, Duration::from_secs(5)).expect("accepted");
            assert_eq!(handshake.regions.regions().len(), 2);
        }
    }

    #[test]
    fn a_handshake_that_never_ends_is_given_up() {
        let (monitor, ours) = UnixStream::pair().expect("pair");
        send(&monitor, CURRENT.as_bytes(), &[]).expect("sent");
        let no_descriptor = accept(&ours, IMAGE_BYTES, Duration::from_secs(5)).expect_err("given up");
        assert_eq!(no_descriptor.kind(), Kind::Unavailable);
        drop(monitor);
        let closed = accept(&ours, IMAGE_BYTES, Duration::from_secs(5)).expect_err("closed");
        assert_eq!(closed.kind(), Kind::Unavailable);
    }
}
