//! One data channel: frames are received while those before are worked on.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::Receiver;
use crate::engine::session::{ChannelEnd, Replaced, SessionError, first_error};
use crate::protocol::frame::Frame;
use crate::protocol::handshake::ChannelSlot;
use crate::storage::Sink;
use crate::transport::{FrameReceiver, TransportError};

impl<K: Sink> Receiver<K> {
    /// Receives from one channel until the sender ends it or it is lost.
    pub async fn receive_on(
        self: Arc<Self>,
        slot: ChannelSlot,
        mut channel: impl FrameReceiver,
        replaced: Replaced,
    ) -> ChannelEnd {
        let mut work: JoinSet<Result<(), SessionError>> = JoinSet::new();
        let mut replaced = std::pin::pin!(replaced.wait());
        loop {
            while work.len() >= WORK_PER_CHANNEL {
                if let Some(Err(error)) = work.join_next().await.map(first_error) {
                    return ChannelEnd::failed(slot, error);
                }
            }
            let received = channel.receive(&self.pool);
            let mut received = std::pin::pin!(received);
            let received = loop {
                tokio::select! {
                    received = &mut received => break received,
                    () = &mut replaced => break Err(TransportError::Closed),
                    // What failed must be known even if nothing more comes.
                    Some(joined) = work.join_next() => {
                        if let Err(error) = first_error(joined) {
                            return ChannelEnd::failed(slot, error);
                        }
                    }
                }
            };
            if let Ok(frame) = &received {
                self.observer.progress.bytes_sent.add(frame.payload().len() as u64);
            }
            let is_over = match received {
                Ok(Frame::Probe | Frame::Ready) => None,
                Ok(Frame::Chunk(chunk)) => {
                    work.spawn(Arc::clone(&self).take_chunk(chunk));
                    None
                }
                Ok(Frame::Pack(pack)) => {
                    work.spawn(Arc::clone(&self).take_pack(pack));
                    None
                }
                Ok(Frame::End) => Some(ChannelEnd::finished(slot)),
                Err(error) => Some(ChannelEnd::lost(slot, error)),
            };
            if let Some(end) = is_over {
                // What came whole counts, whatever became of the channel.
                while let Some(joined) = work.join_next().await {
                    if let Err(error) = first_error(joined) {
                        return ChannelEnd::failed(slot, error);
                    }
                }
                return end;
            }
        }
    }
}

/// How many frames of one channel are worked on while the next is received.
const WORK_PER_CHANNEL: usize = 2;
