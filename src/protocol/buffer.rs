//! Page-aligned memory for chunks, taken from a pool of fixed size.
//!
//! The pool is what bounds a side's memory: a channel that finds it empty waits, stops reading its
//! socket, and TCP slows the peer down. No other place allocates by a length that a peer sent.

use std::fmt;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use memmap2::MmapMut;
use thiserror::Error;

/// A fixed number of equal buffers, mapped when they are first used and used again afterwards.
#[derive(Clone, Debug)]
pub struct Pool {
    free: flume::Receiver<Slot>,
    home: flume::Sender<Slot>,
    buffer_len: usize,
}

impl Pool {
    /// Makes a pool of `count` buffers of `buffer_len` bytes each. Nothing is mapped yet.
    pub fn new(count: usize, buffer_len: usize) -> Self {
        let (home, free) = flume::bounded(count.max(1));
        for _ in 0..count.max(1) {
            // The queue has exactly this much room, so this cannot fail.
            let _ = home.try_send(Slot(None));
        }
        Self { free, home, buffer_len }
    }

    /// The size of each buffer, in bytes.
    pub fn buffer_len(&self) -> usize {
        self.buffer_len
    }

    /// Waits for a free buffer, and hands it out with a length of `len`.
    ///
    /// # Errors
    ///
    /// If `len` is more than a buffer holds, or the system has no memory left to map.
    pub async fn take(&self, len: usize) -> Result<Buffer, BufferError> {
        if len > self.buffer_len {
            return Err(BufferError::TooLong { asked: len, limit: self.buffer_len });
        }
        // `home` is held by this very struct, so the queue cannot be disconnected.
        let slot = self.free.recv_async().await.unwrap_or(Slot(None));
        let memory = match slot.0 {
            Some(memory) => memory,
            None => match MmapMut::map_anon(self.buffer_len.max(1)) {
                Ok(memory) => memory,
                Err(cause) => {
                    let _ = self.home.try_send(Slot(None));
                    return Err(BufferError::Map(cause));
                }
            },
        };
        Ok(Buffer { memory: Some(memory), len, home: self.home.clone() })
    }
}

/// Room for one buffer: mapped, or not yet.
struct Slot(Option<MmapMut>);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// One buffer of a [`Pool`], which goes back there when it is dropped.
pub struct Buffer {
    /// `None` only while it is being dropped.
    memory: Option<MmapMut>,
    len: usize,
    home: flume::Sender<Slot>,
}

impl Buffer {
    /// How many bytes of it are in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte of it is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps only the first `len` bytes; does nothing if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Freezes the content, so that slices of it can be shared. The buffer goes back to its pool
    /// when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_deref().and_then(|memory| memory.get(..self.len)).unwrap_or(&[])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.memory.as_deref_mut().and_then(|memory| memory.get_mut(..len)).unwrap_or(&mut [])
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.home.try_send(Slot(self.memory.take()));
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// No buffer could be had.
#[derive(Debug, Error)]
pub enum BufferError {
    /// More was asked for than any buffer of the pool holds.
    #[error("{asked} bytes do not fit a buffer of {limit}")]
    TooLong { asked: usize, limit: usize },
    /// The system refused the memory.
    #[error("cannot map memory for a buffer: {0}")]
    Map(std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a future that never has to wait.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn an_empty_pool_makes_its_user_wait_until_a_buffer_comes_back() {
        let pool = Pool::new(1, 4096);
        let buffer = now(pool.take(10)).unwrap().unwrap();
        assert_eq!(buffer.len(), 10);
        assert!(now(pool.take(1)).is_none());
        let shared = buffer.freeze();
        let slice = shared.slice(2..4);
        drop(shared);
        assert!(now(pool.take(1)).is_none(), "a slice still holds the memory");
        drop(slice);
        assert!(now(pool.take(4096)).unwrap().is_ok());
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_memory_is_touched() {
        let pool = Pool::new(1, 4096);
        let refused = now(pool.take(4097)).unwrap();
        assert!(matches!(refused, Err(BufferError::TooLong { asked: 4097, limit: 4096 })));
    }
}
