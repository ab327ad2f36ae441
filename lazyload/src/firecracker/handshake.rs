//! The one message that Firecracker sends: a JSON list of memory regions, with its userfaultfd attached.
//!
//! It has neither length nor end mark, so it is read until the JSON is complete; the descriptor may come with any part
//! of it, or later. Unknown keys are ignored, because versions and forks add some. Total: any bytes give regions, a
//! wish for more bytes, or an error. The userfaultfd is in escrow before it leaves the socket, so that it is never
//! lost.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::Deserialize;
use store::{Error, Kind, PAGE, Result};

use crate::connection::Connection;
use crate::reception::Greeting;
use crate::region::{Region, RegionMap};
use crate::served::HUGE_PAGE_BYTES;
use crate::supervisor::Receipt;
use crate::sys::{Received, UserFault, receive};

const READ_BYTES: usize = 64 << 10;
/// Thousands of hot-plugged regions fit; more is not from Firecracker.
const MESSAGE_LIMIT_BYTES: usize = 4 << 20;
/// A userfaultfd, and up to two that forks of Firecracker add.
const DESCRIPTORS_LIMIT: usize = 3;

/// One guest memory region, as Firecracker names its parts.
#[derive(Debug, Deserialize)]
struct GuestRegion {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    /// Older name of the same, in bytes despite its name.
    page_size_kib: Option<u64>,
}

/// The regions of the machine's memory, and the size in bytes of the pages that it is made of.
pub(crate) type Memory = (RegionMap, u64);

/// The part of a handshake that has come so far.
#[derive(Debug)]
pub(crate) struct Handshake {
    image_bytes: u64,
    text: Vec<u8>,
    descriptors: usize,
    regions: Option<Memory>,
    memory: Option<(UserFault, Option<Receipt>)>,
}

impl Handshake {
    /// The handshake of a machine whose image spans `image_bytes`.
    pub(crate) fn new(image_bytes: u64) -> Self {
        Self { image_bytes, text: Vec::new(), descriptors: 0, regions: None, memory: None }
    }

    /// The machine's memory, and its userfaultfd with the receipt for it. `None` before the handshake is complete.
    pub(crate) fn finish(self) -> Option<(Memory, UserFault, Option<Receipt>)> {
        let ((fault, receipt), regions) = self.memory.zip(self.regions)?;
        Some((regions, fault, receipt))
    }

    /// Deposits the userfaultfd among the descriptors of a message that is still in the socket.
    fn deposit(&mut self, seen: Received, connection: &Connection<'_>) -> Result<()> {
        self.descriptors += seen.descriptors.len();
        let came_any = !seen.descriptors.is_empty();
        for descriptor in seen.descriptors {
            // Forks of Firecracker also send others, which are closed.
            if self.memory.is_none()
                && let Ok(fault) = UserFault::adopt(descriptor)
            {
                let escrow = connection.escrow();
                let receipt = escrow.map(|escrow| escrow.deposit(fault.as_fd(), Some(connection.peer())));
                self.memory = Some((fault, receipt.transpose()?));
            }
        }
        match came_any && self.memory.is_none() {
            true => Err(refused("no descriptor that came is a userfaultfd")),
            false if self.descriptors > DESCRIPTORS_LIMIT => {
                Err(refused(&format!("{} descriptors came instead of one", self.descriptors)))
            }
            false => Ok(()),
        }
    }
}

impl Greeting for Handshake {
    fn receive(&mut self, connection: &Connection<'_>) -> Result<bool> {
        let mut buffer = vec![0; READ_BYTES];
        while self.regions.is_none() || self.memory.is_none() {
            let Some(seen) = read(connection, &mut buffer, RecvFlags::PEEK)? else { return Ok(false) };
            if seen.len_bytes == 0 {
                return Err(refused(
                    "the other side closed the connection before the handshake was complete",
                )
                .advice("see the log of the virtual machine monitor"));
            }
            let len_bytes = seen.len_bytes;
            self.deposit(seen, connection)?;
            let Some(taken) = read(connection, &mut buffer[..len_bytes], RecvFlags::empty())? else {
                return Ok(false);
            };
            self.text.extend_from_slice(&buffer[..taken.len_bytes]);
            if self.text.len() > MESSAGE_LIMIT_BYTES {
                return Err(refused("the list of regions does not end"));
            }
            self.regions = parse(&self.text, self.image_bytes)?;
        }
        Ok(true)
    }

    fn has_memory(&self) -> bool {
        self.memory.is_some()
    }
}

/// The bytes that wait in the socket; `None` when there are none.
fn read(connection: &Connection<'_>, buffer: &mut [u8], flags: RecvFlags) -> Result<Option<Received>> {
    match receive(connection.stream(), buffer, flags | RecvFlags::DONTWAIT) {
        Ok(received) => Ok(Some(received)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Error::io("cannot read the handshake", "socket", errno.into())),
    }
}

/// Reads the regions; `None` while the text is incomplete. Text behind the list is ignored.
pub(crate) fn parse(text: &[u8], image_bytes: u64) -> Result<Option<Memory>> {
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
    let page_bytes = listed[0].page_bytes();
    if listed.iter().any(|region| region.page_bytes() != page_bytes) {
        return Err(refused("regions have pages of different sizes"));
    }
    Ok(Some((RegionMap::new(regions)?, page_bytes)))
}

/// Refuses two regions that show the same pages: a page has one state, and would be filled in one region only.
fn check_disjoint(listed: &[GuestRegion]) -> Result<()> {
    let mut shown: Vec<(u64, u64)> = listed.iter().map(|region| (region.offset, region.size)).collect();
    shown.sort_unstable();
    if shown.windows(2).any(|pair| pair[1].0 - pair[0].0 < pair[0].1) {
        return Err(refused("two regions show the same part of the image"));
    }
    Ok(())
}

impl GuestRegion {
    fn page_bytes(&self) -> u64 {
        self.page_size.or(self.page_size_kib).unwrap_or(PAGE as u64)
    }

    fn check(&self, image_bytes: u64) -> Result<Region> {
        let page_bytes = self.page_bytes();
        if ![PAGE as u64, HUGE_PAGE_BYTES].contains(&page_bytes) {
            return Err(refused(&format!("pages of {page_bytes} bytes are not supported"))
                .advice("load the snapshot with pages of 4096 bytes, or of 2 MiB"));
        }
        if !self.base_host_virt_addr.is_multiple_of(page_bytes) || !self.size.is_multiple_of(page_bytes) {
            return Err(refused(&format!("a region is not a whole number of pages of {page_bytes} bytes")));
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
    use std::os::unix::net::UnixStream;

    const IMAGE_BYTES: u64 = 256 << 20;
    const CURRENT: &str = r#"[{"base_host_virt_addr":140000000000000,"size":134217728,"offset":0,"page_size":4096,
        "page_size_kib":4096,"later":{"nested":[1]}},
        {"base_host_virt_addr":139000000000000,"size":134217728,"offset":134217728,"page_size":4096}]"#;

    fn parse_text(text: &str) -> Result<Option<Memory>> {
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
            assert_eq!(map.1, 4096);
            assert_eq!(map.0.regions(), [Region { start: 4096, len_bytes: 8192, first_page: 1 }]);
        }
        assert_eq!(parse_text(CURRENT).expect("understood").expect("complete").0.regions().len(), 2);
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
    fn regions_that_cannot_be_served_are_refused() {
        let refused = [
            r#"[]"#,
            r#"{"mem":1}"#,
            r#"[{"base_host_virt_addr":0,"size":1073741824,"offset":0,"page_size":1073741824}]"#,
            r#"[{"base_host_virt_addr":4096,"size":2097152,"offset":0,"page_size":2097152}]"#,
            r#"[{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size":2097152}]"#,
            r#"[{"base_host_virt_addr":0,"size":2097152,"offset":0,"page_size":2097152},{"base_host_virt_addr":4194304,"size":4096,"offset":2097152}]"#,
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

    /// Receives the bytes sent so far, over a new connection to this process.
    fn receive_sent(stream: &UnixStream, handshake: &mut Handshake) -> Result<bool> {
        let connection = Connection::new(stream.try_clone().expect("copied"), None).expect("a connection");
        handshake.receive(&connection)
    }

    #[test]
    fn the_descriptor_may_come_with_any_part_or_after_the_text() {
        let memory = UserFault::create().expect("userfaultfd");
        let (first, second) = CURRENT.as_bytes().split_at(40);
        let attached = [memory.as_fd()];
        let none = &attached[..0];
        for parts in [
            [(first, &attached[..]), (second, none), (&b"\n"[..], none)],
            [(first, none), (second, &attached[..]), (b"\n", none)],
            [(first, none), (second, none), (b"\n", &attached[..])],
        ] {
            let (monitor, ours) = UnixStream::pair().expect("pair");
            let mut handshake = Handshake::new(IMAGE_BYTES);
            let mut is_complete = false;
            for (bytes, descriptors) in parts {
                assert!(!is_complete || descriptors.is_empty());
                send(&monitor, bytes, descriptors).expect("sent");
                is_complete = receive_sent(&ours, &mut handshake).expect("understood");
            }
            assert!(is_complete && handshake.has_memory());
            let ((regions, _), ..) = handshake.finish().expect("complete");
            assert_eq!(regions.regions().len(), 2);
        }
    }

    #[test]
    fn an_incomplete_handshake_is_waited_for_until_the_connection_closes() {
        let (monitor, ours) = UnixStream::pair().expect("pair");
        let mut handshake = Handshake::new(IMAGE_BYTES);
        assert!(!receive_sent(&ours, &mut handshake).expect("nothing came"));
        send(&monitor, CURRENT.as_bytes(), &[]).expect("sent");
        assert!(!receive_sent(&ours, &mut handshake).expect("no descriptor came"));
        drop(monitor);
        assert_eq!(receive_sent(&ours, &mut handshake).expect_err("closed").kind(), Kind::Invalid);
        assert!(!handshake.has_memory() && handshake.finish().is_none());
    }

    #[test]
    fn garbage_and_other_descriptors_are_no_handshake() {
        let (reader, _writer) = std::io::pipe().expect("pipe");
        for (text, attached) in [("GET / HTTP/1.1", &[][..]), (CURRENT, &[reader.as_fd()][..])] {
            let (monitor, ours) = UnixStream::pair().expect("pair");
            send(&monitor, text.as_bytes(), attached).expect("sent");
            let mut handshake = Handshake::new(IMAGE_BYTES);
            assert_eq!(receive_sent(&ours, &mut handshake).expect_err(text).kind(), Kind::Invalid);
            assert!(!handshake.has_memory());
        }
    }
}
