//! The mark in a dump that its process was woken lazily, and in which wake.
//!
//! A dump does not show which pages userfaultfd had still to bring, so a capture must know that a process was woken at
//! all, even when its directory was copied, its number is in use again or the record of the wake is lost. The mark is
//! in the auxiliary vector that the kernel shows in `/proc/PID/auxv` (the process itself uses the copy on its stack):
//! `AT_FLAGS`, which is zero, becomes `AT_IGNORE` with the number of the wake. CRIU restores and dumps the vector, fork
//! copies it, and exec makes a new one: the mark goes where the memory goes.

use store::{Error, Kind, Result};

use super::entries::{corrupt, mappings_record};
use super::record::{ImageFile, image_file};
use super::wire::{Fields, Value, put_integer};
use crate::wake_log::WakeId;

/// The field of `mm-*.img` that holds the words of the vector.
const AUXILIARY_VECTOR: u32 = 13;
const AT_IGNORE: u64 = 1;
const AT_FLAGS: u64 = 8;

/// The wake that a task's memory comes from, from its `mm-*.img`.
pub(crate) fn mark_of(bytes: &[u8]) -> Result<Option<WakeId>> {
    let words = words(mappings_record(bytes)?)?;
    let mut pairs = words.chunks_exact(2).map(|pair| (pair[0].value, pair[1].value));
    Ok(pairs.find_map(|(kind, value)| (kind == AT_IGNORE).then_some(WakeId::from_number(value)?)))
}

/// The same file with this mark, or with none.
///
/// # Errors
/// `Invalid` when the vector has no place for a mark.
pub(crate) fn marked(bytes: &[u8], mark: Option<WakeId>) -> Result<Vec<u8>> {
    let record = mappings_record(bytes)?;
    let words = words(record)?;
    let is_place = |pair: &&[Word]| match (pair[0].value, pair[1].value) {
        (AT_IGNORE, value) => value != 0,
        (kind, value) => kind == AT_FLAGS && value == 0,
    };
    let Some([kind, value]) = words.chunks_exact(2).find(is_place) else {
        return match mark {
            None => Ok(bytes.to_vec()),
            Some(_) => {
                Err(Error::new(Kind::Invalid, "the auxiliary vector of a task has no place for a mark")
                    .advice("restore it completely: `snapctl restore`, then `criu restore`"))
            }
        };
    };
    let (new_kind, new_value) = mark.map_or((AT_FLAGS, 0), |mark| (AT_IGNORE, mark.number()));
    let mut changed = record[..kind.start].to_vec();
    put_integer(&mut changed, AUXILIARY_VECTOR, new_kind);
    changed.extend_from_slice(&record[kind.end..value.start]);
    put_integer(&mut changed, AUXILIARY_VECTOR, new_value);
    changed.extend_from_slice(&record[value.end..]);
    Ok(image_file(ImageFile::Mappings, std::iter::once(changed)))
}

/// One word of the vector, and the range of its field in the record.
#[derive(Clone, Copy)]
struct Word {
    value: u64,
    start: usize,
    end: usize,
}

fn words(record: &[u8]) -> Result<Vec<Word>> {
    let mut found = Vec::new();
    let mut fields = Fields::new(record);
    loop {
        let start = record.len() - fields.left_bytes();
        let Some(field) = fields.next() else { return Ok(found) };
        let end = record.len() - fields.left_bytes();
        match field? {
            (AUXILIARY_VECTOR, Value::Varint(value)) => found.push(Word { value, start, end }),
            (AUXILIARY_VECTOR, _) => return Err(corrupt("an auxiliary vector is not stored as numbers")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(words: &[u64]) -> Vec<u8> {
        let mut record = Vec::new();
        put_integer(&mut record, 7, 99);
        for word in words {
            put_integer(&mut record, AUXILIARY_VECTOR, *word);
        }
        put_integer(&mut record, 15, 1);
        image_file(ImageFile::Mappings, std::iter::once(record))
    }

    #[test]
    fn a_mark_is_set_changed_and_taken_away() {
        // The value 8 of another entry is no place for it, nor is the value 1.
        let plain = file(&[6, 8, 8, 0, 16, 1, 3, 0x40]);
        let (one, two) = (WakeId::from_number(u64::MAX).expect("one"), WakeId::from_number(5).expect("two"));
        assert_eq!(mark_of(&plain).expect("read"), None);
        let marked_once = marked(&plain, Some(one)).expect("marked");
        assert_eq!(marked_once, file(&[6, 8, 1, u64::MAX, 16, 1, 3, 0x40]));
        assert_eq!(mark_of(&marked_once).expect("read"), Some(one));
        let marked_again = marked(&marked_once, Some(two)).expect("marked");
        assert_eq!(mark_of(&marked_again).expect("read"), Some(two));
        assert_eq!(marked(&marked_again, None).expect("unmarked"), plain);
        assert_eq!(marked(&plain, None).expect("unmarked"), plain);
    }

    #[test]
    fn a_vector_without_a_place_is_refused() {
        for words in [&[][..], &[8, 2], &[6, 8], &[6]] {
            let refused = marked(&file(words), Some(WakeId::from_number(5).expect("a mark")));
            assert_eq!(refused.expect_err("refused").kind(), Kind::Invalid, "{words:?}");
            assert_eq!(marked(&file(words), None).expect("nothing to take away"), file(words));
        }
    }
}
