//! What a server hashes by itself, so that nobody has to read it back: the extension `check-file`
//! (draft-ietf-secsh-filexfer-extensions-00, section 3).
//!
//! In: parts that were written, and the receipts that they were given. Out: whether the server still has
//! what they are receipts for. A server that does not say it clearly has said nothing.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use super::packet::{self, HASH_LEN};
use crate::protocol::chunk::{ByteRange, ChunkSize};
use crate::storage::Receipt;

/// What is known of how a server hashes.
#[derive(Debug, Default)]
pub struct Checks {
    /// Found out with the first large file.
    pub able: OnceCell<Able>,
    /// That of the last hole, as most of them are of one length.
    hole: Mutex<Option<(u32, Receipt)>>,
}

/// What a server can hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Able {
    Nothing,
    AnyRange,
    /// Ranges at the beginning of a file. `ProFTPD` before 1.3.9 hashes too much of others: it takes
    /// where a range ends for its length.
    Beginnings,
}

impl Able {
    /// By the answer to [`trial`]: one hash is right, and two are what is said of [`Self::Beginnings`].
    pub fn of(answer: Bytes) -> Self {
        match packet::hashes(answer).map(|hashes| hashes.len() / HASH_LEN) {
            Some(1) => Self::AnyRange,
            Some(2) => Self::Beginnings,
            Some(_) | None => Self::Nothing,
        }
    }
}

impl Checks {
    pub fn hole(&self, len: u32, data: &[Bytes]) -> Receipt {
        // Every change is a single step, so a panic elsewhere spoils nothing.
        let mut hole = self.hole.lock().unwrap_or_else(PoisonError::into_inner);
        match &*hole {
            Some((known, receipt)) if *known == len => receipt.clone(),
            _ => hole.insert((len, receipt(data))).1.clone(),
        }
    }
}

/// A request that shows what a server can hash, of a file of at least [`TRIAL_LEN`] bytes.
pub fn trial(path: &[u8]) -> packet::Request {
    packet::Request::check_file(path, TRIAL_LEN / 2, TRIAL_LEN / 2, MIN_BLOCK)
}

/// What data that was written can be told by later.
pub fn receipt(data: &[Bytes]) -> Receipt {
    let mut hasher = Sha256::new();
    for piece in data {
        hasher.update(piece);
    }
    Receipt::new(&[TAG, &hasher.finalize()[..]].concat()).unwrap_or_default()
}

/// The hash in a receipt. A journal may have been tampered with.
fn hash_of(receipt: &Receipt) -> Option<&[u8]> {
    receipt.as_bytes().strip_prefix(TAG).filter(|hash| hash.len() == HASH_LEN)
}

/// One question: parts that lie next to each other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    pub offset: u64,
    pub len: u64,
    pub block_len: u32,
    /// Which of the parts it answers.
    pub parts: Range<usize>,
}

/// What has to be asked about parts, which ascend.
pub fn questions(
    able: Able,
    chunk_size: ChunkSize,
    parts: &[(ByteRange, Receipt)],
) -> Vec<Question> {
    let Ok(block_len) = u32::try_from(chunk_size.bytes()) else { return Vec::new() };
    let max_len = match able {
        Able::Nothing => return Vec::new(),
        Able::AnyRange => MAX_LEN,
        Able::Beginnings => MAX_BEGINNING_LEN,
    };
    let max_len = max_len.min(MAX_BLOCKS * chunk_size.bytes());
    let mut questions: Vec<Question> = Vec::new();
    for (number, (range, receipt)) in parts.iter().enumerate() {
        let end = range.offset() + u64::from(range.len());
        if hash_of(receipt).is_none() {
            continue;
        }
        if let Some(last) = questions.last_mut()
            && last.continues_at(able, range.offset())
            && end - last.offset <= max_len
        {
            (last.len, last.parts.end) = (end - last.offset, number + 1);
            continue;
        }
        let offset = match able {
            Able::AnyRange => range.offset(),
            Able::Beginnings if questions.is_empty() && end <= max_len => 0,
            Able::Beginnings | Able::Nothing => break,
        };
        let parts = number..number + 1;
        questions.push(Question { offset, len: end - offset, block_len, parts });
    }
    questions
}

impl Question {
    /// Whether a part that begins there may be part of this.
    fn continues_at(&self, able: Able, offset: u64) -> bool {
        able == Able::Beginnings || self.offset + self.len == offset
    }

    pub fn request(&self, path: &[u8]) -> packet::Request {
        packet::Request::check_file(path, self.offset, self.len, self.block_len)
    }

    /// What an answer says of the parts that were asked about; `None` where it says nothing.
    pub fn judge(&self, answer: Bytes, parts: &[(ByteRange, Receipt)]) -> Vec<Option<bool>> {
        let blocks = self.len.div_ceil(u64::from(self.block_len));
        let hashes = packet::hashes(answer).filter(|it| (it.len() / HASH_LEN) as u64 == blocks);
        let judged = parts.iter().map(|(range, receipt)| {
            let block = range.offset().checked_sub(self.offset)? / u64::from(self.block_len);
            let at = usize::try_from(block).ok()?.checked_mul(HASH_LEN)?;
            let found = hashes.as_ref()?.get(at..at.checked_add(HASH_LEN)?)?;
            Some(found == hash_of(receipt)?)
        });
        judged.collect()
    }
}

/// What receipts begin with that have a SHA-256.
const TAG: &[u8] = b"sha256:";

/// How much of a file a trial is about, in bytes.
pub const TRIAL_LEN: u64 = 2 * MIN_BLOCK as u64;

/// The shortest block that the draft allows, in bytes.
const MIN_BLOCK: u32 = 256;

/// How much is asked for at a time, in bytes: the connection answers nothing else meanwhile.
const MAX_LEN: u64 = 256 << 20;

/// The same where only the beginning of a file can be asked for: what is behind is read back.
const MAX_BEGINNING_LEN: u64 = 8 << 30;

/// How many blocks are asked for at a time: the answer is half as long as the longest packet.
const MAX_BLOCKS: u64 = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::chunk::EntryId;

    const CHUNK: u64 = 64 << 10;

    /// Parts of a file of `count` chunks and a bit, those that `has` a receipt with one.
    fn parts(count: u64, has: impl Fn(u64) -> bool) -> Vec<(ByteRange, Receipt)> {
        let size = count * CHUNK + 9;
        let part = |index| {
            let range = ChunkSize::MIN.range(EntryId(1), index, size).unwrap();
            let receipt =
                if has(index) { receipt(&[content(index, range)]) } else { Receipt::default() };
            (range, receipt)
        };
        (0..=count).map(part).collect()
    }

    fn content(index: u64, range: ByteRange) -> Bytes {
        vec![u8::try_from(index % 251).unwrap(); range.len() as usize].into()
    }

    /// What a server says of a question about that file.
    fn answer(question: &Question, parts: &[(ByteRange, Receipt)]) -> Vec<u8> {
        let mut answer = b"\0\0\0\x06sha256".to_vec();
        for (range, _) in parts {
            let is_asked =
                (question.offset..question.offset + question.len).contains(&range.offset());
            if is_asked {
                answer.extend(Sha256::digest(content(range.offset() / CHUNK, *range)));
            }
        }
        answer
    }

    #[test]
    fn neighbours_are_asked_for_together() {
        let ask = |able, parts: &[_]| questions(able, ChunkSize::MIN, parts);
        let question = |offset, len, parts| {
            let block_len = u32::try_from(CHUNK).unwrap();
            Question { offset: offset * CHUNK, len, block_len, parts }
        };
        let whole = parts(4, |_| true);
        for able in [Able::AnyRange, Able::Beginnings] {
            assert_eq!(ask(able, &whole), [question(0, 4 * CHUNK + 9, 0..5)]);
        }
        assert_eq!(ask(Able::Nothing, &whole), []);
        assert_eq!(ChunkSize::MIN.bytes(), CHUNK);
        let some = parts(4, |index| index != 0 && index != 3);
        let wanted = [question(1, 2 * CHUNK, 1..3), question(4, 9, 4..5)];
        assert_eq!(ask(Able::AnyRange, &some), wanted);
        assert_eq!(ask(Able::Beginnings, &some), [question(0, 4 * CHUNK + 9, 1..5)]);
        assert_eq!(ask(Able::AnyRange, &some[3..4]), []);
        // No answer is longer than a packet may be, and what is behind is asked for next, if it can be.
        let many = parts(2 * MAX_BLOCKS, |_| true);
        let len = MAX_BLOCKS * CHUNK;
        let count = usize::try_from(MAX_BLOCKS).unwrap();
        assert!(count * HASH_LEN < packet::MAX_PACKET_LEN / 2 + 1024);
        let first = question(0, len, 0..count);
        assert_eq!(ask(Able::Beginnings, &many), std::slice::from_ref(&first));
        let wanted = [
            first,
            question(MAX_BLOCKS, len, count..2 * count),
            question(2 * MAX_BLOCKS, 9, 2 * count..2 * count + 1),
        ];
        assert_eq!(ask(Able::AnyRange, &many), wanted);
        assert_eq!(ask(Able::Beginnings, &many[count..]), []);
    }

    #[test]
    fn only_clear_answers_count() {
        let whole = parts(3, |index| index != 1);
        for able in [Able::AnyRange, Able::Beginnings] {
            for question in questions(able, ChunkSize::MIN, &whole) {
                let asked = &whole[question.parts.clone()];
                let right = answer(&question, &whole);
                let judge = |answer: Vec<u8>| question.judge(answer.into(), asked);
                let told = asked.iter().map(|it| (!it.1.is_empty()).then_some(true));
                assert_eq!(judge(right.clone()), told.collect::<Vec<_>>());
                let mut other = right.clone();
                *other.last_mut().unwrap() ^= 1;
                assert_eq!(judge(other).last(), Some(&Some(false)));
                for unclear in
                    [&right[..right.len() - 1], &right[..10], &[&right[..], &[0; 32]].concat()]
                {
                    assert_eq!(judge(unclear.to_vec()), vec![None; asked.len()]);
                }
            }
        }
    }

    #[test]
    fn a_trial_shows_what_a_server_can_do() {
        let able = |len| Able::of([&b"\0\0\0\x06sha256"[..], &vec![0; len]].concat().into());
        assert_eq!([32, 64].map(able), [Able::AnyRange, Able::Beginnings]);
        assert_eq!([0, 31, 96].map(able), [Able::Nothing; 3]);
        assert_eq!(Able::of(Bytes::from_static(b"\0\0\0\x03md5")), Able::Nothing);
    }

    #[test]
    fn holes_have_receipts_of_zeros() {
        let checks = Checks::default();
        for len in [5, 5, 7, 5] {
            let zeros = [Bytes::from(vec![0; len])];
            assert_eq!(checks.hole(u32::try_from(len).unwrap(), &zeros), receipt(&zeros));
        }
    }

    proptest! {
        /// Whatever a server answers and a journal has, nothing is taken for there that is not.
        #[test]
        fn nothing_is_believed_without_a_reason(
            rest in proptest::collection::vec(any::<u8>(), 0..200),
            is_named in any::<bool>(),
            kept in proptest::collection::vec(any::<u8>(), 0..50),
            able in prop_oneof![Just(Able::AnyRange), Just(Able::Beginnings)],
        ) {
            let mut parts = parts(3, |_| true);
            parts[1].1 = Receipt::new(&kept).unwrap();
            let head: &[u8] = if is_named { b"\0\0\0\x06sha256" } else { b"" };
            let answer = Bytes::from([head, &rest].concat());
            Able::of(answer.clone());
            for question in questions(able, ChunkSize::MIN, &parts) {
                let asked = &parts[question.parts.clone()];
                let judged = question.judge(answer.clone(), asked);
                prop_assert_eq!(judged.len(), asked.len());
                prop_assert!(!judged.contains(&Some(true)));
            }
        }
    }
}
