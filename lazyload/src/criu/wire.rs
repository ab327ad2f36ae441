//! A reader of the part of protobuf that CRIU's image files use, and a writer of integers.
//!
//! Total: any bytes give fields or an error, never a panic, and nothing is allocated. The caller knows the meaning of
//! fields.

use store::{Error, Kind, Result};

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// An integer of any width.
    Varint(u64),
    /// A string, bytes, a packed list or a message.
    Bytes(&'a [u8]),
    /// A fixed-width number, which no field read here uses.
    Fixed,
}

/// Iterates over the fields of one message. Ends after an error.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// An iterator over the bytes of a message.
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// How many bytes of the message are not read yet.
    pub(super) fn left_bytes(&self) -> usize {
        self.rest.len()
    }

    fn field(&mut self) -> Result<(u32, Value<'a>)> {
        let key = self.varint()?;
        let number =
            u32::try_from(key >> 3).ok().filter(|number| *number != 0).ok_or_else(|| broken("number"))?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(broken("type")),
        };
        Ok((number, value))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(broken("integer"))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= self.rest.len())
            .ok_or_else(|| broken("length"))?;
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Appends a field that holds an integer.
pub(super) fn put_integer(message: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(message, u64::from(number) << 3);
    put_varint(message, value);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn broken(part: &str) -> Error {
    Error::new(Kind::Corrupt, format!("a field of an image record has a broken {part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_types_that_images_use() {
        let message =
            [0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1D, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8];
        let fields: Vec<_> = Fields::new(&message).map(|field| field.expect("field")).collect();
        assert_eq!(
            fields,
            [(1, Value::Varint(150)), (2, Value::Bytes(b"hi")), (3, Value::Fixed), (4, Value::Fixed)]
        );
    }

    #[test]
    fn the_widest_integer_is_read_and_a_wider_one_refused() {
        let mut widest = vec![0x08];
        widest.extend([0xFF; 9]);
        widest.push(0x01);
        assert_eq!(Fields::new(&widest).next().expect("one").expect("field"), (1, Value::Varint(u64::MAX)));
        widest[10] = 0x02;
        assert!(Fields::new(&widest).next().expect("one").is_err());
    }

    #[test]
    fn a_hostile_length_is_refused() {
        for message in
            [&[0x12, 0x05, b'x'][..], &[0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]]
        {
            let mut fields = Fields::new(message);
            assert_eq!(fields.next().expect("one").expect_err("refused").kind(), Kind::Corrupt);
            assert!(fields.next().is_none());
        }
    }
}
