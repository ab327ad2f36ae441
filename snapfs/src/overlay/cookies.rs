//! Cookies of listings: numbers by which readers of a directory say after which name they continue.
//!
//! A cookie stands for a name and not for a place in a list, so it stays valid while names come and go and when the
//! base changes. It means the same to all readers of a directory and is kept until the last of them closes it. Names of
//! the base take no memory: their cookie is the position in the base's directory, as it was at the first read.

use crate::change::{Name, NodeId};
use crate::errno::{Answer, Errno, from_store};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use store::Directory;

/// A place in a listing: the line after which it continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The beginning.
    Begin,
    /// "." was listed.
    Dot,
    /// ".." was listed.
    DotDot,
    /// All names up to this one, in name order, were listed.
    After(Name),
}

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
const FIRST: u64 = 3;

/// The cookies of one directory.
#[derive(Debug)]
pub(super) struct Cookies {
    lower: Option<Directory>,
    lower_len: u64,
    /// Listed names that the base does not have.
    names: Vec<Arc<[u8]>>,
    numbers: HashMap<Arc<[u8]>, u64>,
}

impl Cookies {
    /// The cookies of a directory that begins as `lower`.
    pub(super) fn new(lower: Option<Directory>) -> Self {
        let lower_len = lower.as_ref().map_or(0, Directory::len) as u64;
        Self { lower, lower_len, names: Vec::new(), numbers: HashMap::new() }
    }

    /// The cookie that stands for a place.
    ///
    /// # Errors
    /// `EIO` when the base's directory is damaged.
    pub(super) fn of(&mut self, place: &Place) -> Answer<u64> {
        let name = match place {
            Place::Begin => return Ok(0),
            Place::Dot => return Ok(DOT),
            Place::DotDot => return Ok(DOT_DOT),
            Place::After(name) => name.as_slice(),
        };
        if let Some(lower) = &self.lower
            && let Some(position) = lower.find(name).map_err(from_store)?
        {
            return Ok(FIRST + position as u64);
        }
        if let Some(number) = self.numbers.get(name) {
            return Ok(*number);
        }
        let number = FIRST + self.lower_len + self.names.len() as u64;
        let name: Arc<[u8]> = name.into();
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        Ok(number)
    }

    /// The place that a cookie stands for.
    ///
    /// # Errors
    /// `EINVAL` for an unknown cookie, `EIO` when the base's directory is damaged.
    pub(super) fn place(&self, cookie: u64) -> Answer<Place> {
        let position = match cookie {
            0 => return Ok(Place::Begin),
            DOT => return Ok(Place::Dot),
            DOT_DOT => return Ok(Place::DotDot),
            cookie => cookie - FIRST,
        };
        if let Some(lower) = self.lower.as_ref().filter(|_| position < self.lower_len) {
            return Ok(Place::After(lower.entry(position as usize).map_err(from_store)?.name));
        }
        let name = usize::try_from(position - self.lower_len).ok().and_then(|index| self.names.get(index));
        name.map(|name| Place::After(name.to_vec())).ok_or(Errno::INVAL)
    }
}

/// Open directories, with their numbers of readers, and with cookies once they were read.
#[derive(Debug, Default)]
pub(super) struct OpenDirectories(Mutex<HashMap<NodeId, OpenDirectory>>);

#[derive(Debug, Default)]
struct OpenDirectory {
    readers: u64,
    cookies: Option<Cookies>,
}

impl OpenDirectories {
    /// Adds a reader.
    pub(super) fn open(&self, id: NodeId) {
        self.lock().entry(id).or_default().readers += 1;
    }

    /// Removes a reader; the cookies are dropped with the last.
    pub(super) fn close(&self, id: NodeId) {
        let mut open = self.lock();
        if let Some(directory) = open.get_mut(&id) {
            directory.readers -= 1;
            if directory.readers == 0 {
                open.remove(&id);
            }
        }
    }

    /// Runs `work` with the cookies of a directory that is `lower`, or was when it was first read.
    ///
    /// # Errors
    /// `EBADF` when the directory is not open, and those of `work`.
    pub(super) fn with<T>(
        &self,
        id: NodeId,
        lower: Option<&Directory>,
        work: impl FnOnce(&mut Cookies) -> Answer<T>,
    ) -> Answer<T> {
        let mut open = self.lock();
        let directory = open.get_mut(&id).ok_or(Errno::BADF)?;
        work(directory.cookies.get_or_insert_with(|| Cookies::new(lower.cloned())))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, OpenDirectory>> {
        self.0.lock().expect("no thread panics while it has the cookies")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_stands_for_its_name_until_the_last_reader_is_gone() {
        let open = OpenDirectories::default();
        let id = NodeId(9);
        let number =
            |name: &[u8]| open.with(id, None, |cookies| cookies.of(&Place::After(name.to_vec()))).unwrap();
        let place = |cookie| open.with(id, None, |cookies| cookies.place(cookie));
        assert_eq!(place(0), Err(Errno::BADF));
        open.open(id);
        open.open(id);
        let (b, a) = (number(b"b"), number(b"a"));
        assert!(a != b && number(b"b") == b);
        open.close(id);
        assert_eq!(place(b), Ok(Place::After(b"b".to_vec())));
        assert_eq!(place(a + 1), Err(Errno::INVAL));
        assert_eq!([place(0), place(1), place(2)], [Ok(Place::Begin), Ok(Place::Dot), Ok(Place::DotDot)]);
        open.close(id);
        open.open(id);
        assert_eq!(place(b), Err(Errno::INVAL));
    }
}
