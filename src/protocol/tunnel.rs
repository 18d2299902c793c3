//! Records of the tunnel: what travels on the control channel between messages, and is none.
//!
//! A record begins with the four bytes that a message's length has, of which the highest bit tells
//! the two apart. Pure: `transport::tunnel` says what records do.
//!
//! Rules: `protocol-spec/11-paths.md`.

use thiserror::Error;

/// One record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Record<'a> {
    /// Which stream it is about.
    pub stream: u32,
    pub body: Body<'a>,
}

/// What a record says about its stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body<'a> {
    /// It begins.
    Open,
    /// From 1 to [`MAX_DATA_LEN`] bytes of it.
    Data(&'a [u8]),
    /// So many bytes more may be sent.
    Window(u32),
    /// The end that says so sends nothing more.
    Close,
    /// The end that says so has given it up.
    Reset,
}

impl<'a> Record<'a> {
    /// The bytes of a record before its payload: length with its mark 4, kind 1, zeros 3, stream 4.
    pub const HEADER_LEN: usize = HEADER_LEN;

    /// How long the payload is, if these are the first bytes of a record and not of a message.
    ///
    /// # Errors
    ///
    /// If no record has a payload of this length.
    pub fn payload_len(prefix: [u8; 4]) -> Option<Result<usize, RecordError>> {
        let word = u32::from_le_bytes(prefix);
        if word & MARK == 0 {
            return None;
        }
        let len = (word & !MARK) as usize;
        Some(if len <= MAX_DATA_LEN { Ok(len) } else { Err(RecordError::Length(len)) })
    }

    /// The bytes that go on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let number;
        let (kind, payload): (u8, &[u8]) = match self.body {
            Body::Open => (0, &[]),
            Body::Data(data) => (1, data),
            Body::Window(more) => {
                number = more.to_le_bytes();
                (2, &number)
            }
            Body::Close => (3, &[]),
            Body::Reset => (4, &[]),
        };
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX) | MARK;
        let mut out = Vec::with_capacity(Self::HEADER_LEN + payload.len());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(&self.stream.to_le_bytes());
        out.extend_from_slice(payload);
        out
    }

    /// Parses a whole record, header and payload (PATH-8).
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let short = RecordError::Length(bytes.len());
        let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(short)?;
        let [_, _, _, _, kind, z0, z1, z2, s0, s1, s2, s3] = *header;
        if [z0, z1, z2] != [0; 3] {
            return Err(RecordError::Kind(kind));
        }
        let body = match (kind, payload.len()) {
            (0, 0) => Body::Open,
            (1, 1..=MAX_DATA_LEN) => Body::Data(payload),
            (2, 4) => {
                let more = payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                Body::Window(more)
            }
            (3, 0) => Body::Close,
            (4, 0) => Body::Reset,
            (0..=4, len) => return Err(RecordError::Length(len)),
            (kind, _) => return Err(RecordError::Kind(kind)),
        };
        Ok(Self { stream: u32::from_le_bytes([s0, s1, s2, s3]), body })
    }
}

/// How many bytes each stream of a session with so many data channels may send ahead (PATH-9).
pub fn window(streams: u16) -> u32 {
    (ALL_WINDOWS / u32::from(streams.max(1))).clamp(MIN_WINDOW, MAX_WINDOW)
}

/// How many streams the client may have open (PATH-8): a channel that is made anew may overlap with
/// the one before it.
pub fn max_streams(streams: u16) -> usize {
    2 * usize::from(streams)
}

/// The peer sent a record that no correct implementation sends.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RecordError {
    #[error("a record of {0} bytes is not as long as its kind is")]
    Length(usize),
    #[error("there is no record of kind {0}")]
    Kind(u8),
    #[error("stream {0} is not the next one, or was never opened")]
    Number(u32),
    #[error("more streams are open than there may be")]
    TooMany,
    #[error("more was sent than the window allows")]
    OverWindow,
    #[error("data came after the end of its stream")]
    AfterClose,
    #[error("the peer does not read what it makes this end answer")]
    NotHeard,
    #[error("a record came before the session was agreed on")]
    TooEarly,
}

/// The longest payload of a record, in bytes: 64 KiB.
pub const MAX_DATA_LEN: usize = 64 << 10;

const HEADER_LEN: usize = 12;

/// Set in a record's first word, and never in a message's length.
const MARK: u32 = 1 << 31;

/// What all windows of a session may come to, in bytes, if it has not more than 128 streams.
const ALL_WINDOWS: u32 = 32 << 20;
const MIN_WINDOW: u32 = 256 << 10;
const MAX_WINDOW: u32 = 4 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// PATH-8: what is accepted has one encoding, and anything is decided.
        #[test]
        fn any_input_is_decided(mut bytes in proptest::collection::vec(any::<u8>(), 12..40), kind in 0_u8..7) {
            let len = u32::try_from(bytes.len() - Record::HEADER_LEN).unwrap();
            bytes[..4].copy_from_slice(&(len | MARK).to_le_bytes());
            bytes[4] = kind;
            bytes[5] &= 1;
            (bytes[6], bytes[7]) = (0, 0);
            prop_assert_eq!(Record::payload_len(*bytes.first_chunk().unwrap()), Some(Ok(len as usize)));
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }

    /// PATH-8: a message is never taken for a record, nor a record for a message.
    #[test]
    fn the_first_word_tells_them_apart() {
        assert_eq!(Record::payload_len((1_u32 << 20).to_le_bytes()), None);
        let longest = vec![7; MAX_DATA_LEN];
        let record = Record { stream: 3, body: Body::Data(&longest) }.encode();
        assert_eq!(Record::payload_len(*record.first_chunk().unwrap()), Some(Ok(MAX_DATA_LEN)));
        let long = (MARK | 0x1_0001).to_le_bytes();
        assert_eq!(Record::payload_len(long), Some(Err(RecordError::Length(65_537))));
        let error = crate::protocol::message::Message::check_len(MARK as usize);
        assert!(error.is_err());
    }

    /// PATH-9.
    #[test]
    fn windows_share_what_there_is() {
        let windows = [1, 8, 16, 128, 512].map(window);
        assert_eq!(windows, [4 << 20, 4 << 20, 2 << 20, 256 << 10, 256 << 10]);
    }
}
