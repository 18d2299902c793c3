//! A data channel inside this process: frames pass as they are, and nothing is encoded.
//!
//! For local copies, and for tests, which can change frames under way, lose them, or cut the
//! channel.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{FrameReceiver, FrameSender, TransportError};
use crate::protocol::buffer::Pool;
use crate::protocol::frame::Frame;

/// Makes a channel in which up to `depth` frames can be under way.
pub fn pair(depth: usize) -> (MemorySender, MemoryReceiver) {
    let (queue, frames) = mpsc::channel(depth.max(1));
    let switch = CutSwitch(Arc::new(watch::Sender::new(false)));
    let receiver = MemoryReceiver { frames, switch: switch.clone(), is_over: false };
    (MemorySender { queue: Some(queue), switch, fault: None }, receiver)
}

/// The sending half.
pub struct MemorySender {
    /// `None` after [`Frame::End`].
    queue: Option<mpsc::Sender<Frame>>,
    switch: CutSwitch,
    fault: Option<Box<Fault>>,
}

type Fault = dyn FnMut(Frame) -> Option<Frame> + Send;

impl MemorySender {
    /// Passes every frame through `fault`, which may change it, or lose it by returning `None`.
    #[must_use]
    pub fn with_fault(self, fault: impl FnMut(Frame) -> Option<Frame> + Send + 'static) -> Self {
        Self { fault: Some(Box::new(fault)), ..self }
    }

    /// What cuts this channel, from anywhere.
    pub fn cut_switch(&self) -> CutSwitch {
        self.switch.clone()
    }
}

impl FrameSender for MemorySender {
    async fn send(&mut self, frame: &Frame) -> Result<(), TransportError> {
        let queue = self.queue.as_ref().ok_or(TransportError::Closed)?;
        let frame = frame.clone();
        let frame = match &mut self.fault {
            Some(fault) => fault(frame),
            None => Some(frame),
        };
        let Some(frame) = frame else { return Ok(()) };
        tokio::select! {
            biased;
            () = self.switch.wait() => Err(TransportError::Closed),
            sent = queue.send(frame) => sent.map_err(|_| TransportError::Closed),
        }
    }

    async fn closed(&mut self) -> TransportError {
        if let Some(queue) = &self.queue {
            tokio::select! {
                () = self.switch.wait() => {}
                () = queue.closed() => {}
            }
        }
        TransportError::Closed
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        let sent = self.send(&Frame::End).await;
        self.queue = None;
        sent
    }
}

impl fmt::Debug for MemorySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemorySender")
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct MemoryReceiver {
    frames: mpsc::Receiver<Frame>,
    switch: CutSwitch,
    is_over: bool,
}

impl FrameReceiver for MemoryReceiver {
    /// The payload stays where the sender has it, so that nothing is taken from the pool.
    async fn receive(&mut self, _: &Pool) -> Result<Frame, TransportError> {
        if self.is_over {
            return Err(TransportError::Closed);
        }
        let frame = tokio::select! {
            biased;
            () = self.switch.wait() => None,
            frame = self.frames.recv() => frame,
        };
        self.is_over = matches!(frame, None | Some(Frame::End));
        frame.ok_or(TransportError::Closed)
    }
}

/// Cuts a channel, as if its connection had broken: what is under way is lost.
#[derive(Clone, Debug)]
pub struct CutSwitch(Arc<watch::Sender<bool>>);

impl CutSwitch {
    /// Cuts it, for good.
    pub fn cut(&self) {
        self.0.send_replace(true);
    }

    async fn wait(&self) {
        // The sender is `self`, so this cannot end in any other way.
        let _ = self.0.subscribe().wait_for(|is_cut| *is_cut).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chunk::{ByteRange, Chunk, EntryId};

    fn hole(entry: u64) -> Frame {
        Frame::Chunk(Chunk::hole(ByteRange::new(EntryId(entry), 0, 1, true).unwrap(), 0))
    }

    fn entry(frame: &Frame) -> u64 {
        let Frame::Chunk(chunk) = frame else { return 0 };
        chunk.range.entry().0
    }

    #[tokio::test]
    async fn frames_arrive_in_order_and_the_end_is_told() {
        let pool = Pool::new(1, 1);
        let (mut sender, mut receiver) = pair(3);
        for n in 1..3 {
            sender.send(&hole(n)).await.unwrap();
        }
        sender.finish().await.unwrap();
        assert!(sender.send(&hole(3)).await.is_err(), "nothing comes after the end");
        for n in 1..3 {
            assert_eq!(entry(&receiver.receive(&pool).await.unwrap()), n);
        }
        assert!(matches!(receiver.receive(&pool).await, Ok(Frame::End)));
        assert!(matches!(receiver.receive(&pool).await, Err(TransportError::Closed)));
    }

    #[tokio::test]
    async fn without_the_end_a_channel_was_lost() {
        let pool = Pool::new(1, 1);
        let (sender, mut receiver) = pair(1);
        drop(sender);
        assert!(matches!(receiver.receive(&pool).await, Err(TransportError::Closed)));
        let (mut sender, receiver) = pair(1);
        drop(receiver);
        assert!(matches!(sender.closed().await, TransportError::Closed));
        assert!(sender.send(&hole(1)).await.is_err());
    }

    #[tokio::test]
    async fn a_cut_reaches_both_ends_and_loses_what_is_under_way() {
        let pool = Pool::new(1, 1);
        let (mut sender, mut receiver) = pair(2);
        let switch = sender.cut_switch();
        sender.send(&hole(1)).await.unwrap();
        let (closed, ()) = tokio::join!(sender.closed(), async { switch.cut() });
        assert!(matches!(closed, TransportError::Closed));
        assert!(sender.send(&hole(2)).await.is_err());
        assert!(matches!(receiver.receive(&pool).await, Err(TransportError::Closed)));
    }

    #[tokio::test]
    async fn a_fault_changes_and_loses_frames() {
        let pool = Pool::new(1, 1);
        let (sender, mut receiver) = pair(4);
        let mut sender = sender.with_fault(|frame| match entry(&frame) {
            1 => None,
            2 => Some(hole(20)),
            _ => Some(frame),
        });
        for n in 1..4 {
            sender.send(&hole(n)).await.unwrap();
        }
        for n in [20, 3] {
            assert_eq!(entry(&receiver.receive(&pool).await.unwrap()), n);
        }
    }
}
