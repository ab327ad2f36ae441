//! A tier in memory, for tests and temporary data.

use super::{ObjectInfo, Tier, absent, check_key, past_end};
use crate::error::Result;
use crate::host::object::Object;
use crate::sync::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

/// Objects in a map. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryTier {
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl MemoryTier {
    /// An empty tier.
    pub fn new() -> Self {
        Self::default()
    }

    /// A separate tier with the same objects.
    pub fn fork(&self) -> Self {
        Self { objects: Arc::new(Mutex::new(self.objects().clone())) }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.objects.lock()
    }
}

impl Tier for MemoryTier {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn get(&self, key: &str) -> Result<Object> {
        check_key(key)?;
        self.objects().get(key).map(|body| Object::Owned(body.clone())).ok_or_else(|| absent(self, key))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        check_key(key)?;
        let objects = self.objects();
        let body = objects.get(key).ok_or_else(|| absent(self, key))?;
        let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok());
        let range = usize::try_from(offset).ok().zip(end).and_then(|(start, end)| body.get(start..end));
        range.map(<[u8]>::to_vec).ok_or_else(|| past_end(key, offset, len))
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        check_key(key)?;
        Ok(self.objects().get(key).map(|body| body.len() as u64))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> Result<bool> {
        check_key(key)?;
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Ok(false);
        }
        objects.insert(key.to_owned(), body.to_vec());
        Ok(true)
    }

    fn compare_and_swap(&self, key: &str, expected: Option<&[u8]>, body: &[u8]) -> Result<bool> {
        check_key(key)?;
        let mut objects = self.objects();
        if objects.get(key).map(Vec::as_slice) != expected {
            return Ok(false);
        }
        objects.insert(key.to_owned(), body.to_vec());
        Ok(true)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let objects = self.objects();
        let matching = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(matching
            .map(|(key, body)| ObjectInfo { key: key.clone(), len_bytes: body.len() as u64 })
            .collect())
    }

    fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        self.objects().remove(key);
        Ok(())
    }
}
