//! Empty buffers for reuse by any thread. A long buffer that is returned to the system costs a page fault for each of
//! its pages the next time.

use crossbeam_channel::{Receiver, Sender, bounded};

/// Some buffers of one length, up to a fixed number.
#[derive(Clone)]
pub(crate) struct BufferPool {
    give: Sender<Vec<u8>>,
    take: Receiver<Vec<u8>>,
    len_bytes: usize,
}

impl BufferPool {
    /// Keeps up to `count` buffers with room for `len_bytes`.
    pub(crate) fn new(count: usize, len_bytes: usize) -> Self {
        let (give, take) = bounded(count);
        Self { give, take, len_bytes }
    }

    /// An empty buffer with room.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.take.try_recv().unwrap_or_else(|_| Vec::with_capacity(self.len_bytes))
    }

    /// Keeps a buffer, unless there are enough or it is too short.
    pub(crate) fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() >= self.len_bytes {
            buffer.clear();
            let _ = self.give.try_send(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_buffers_come_back_empty_and_short_ones_do_not() {
        let pool = BufferPool::new(1, 100);
        pool.give(vec![1; 10]);
        assert!(pool.take().capacity() >= 100);
        let long = vec![1; 200];
        let place = long.as_ptr();
        pool.give(long);
        pool.give(vec![2; 200]);
        let back = pool.take();
        assert_eq!((back.as_ptr(), back.len()), (place, 0));
        assert_eq!(pool.take().capacity(), 100);
    }
}
