//! One answer that is read from its beginning to its end, for those who ask for parts of it: where a
//! server gives no ranges.
//!
//! Parts are asked for in about their order. What is passed over on the way to one is held for a while,
//! as somebody is about to ask for it; what is asked for after that makes it begin anew.

use std::collections::VecDeque;

use bytes::Bytes;

/// An answer, and what of it nobody has asked for yet.
#[derive(Debug)]
pub struct Stream {
    response: reqwest::Response,
    /// How much has come, and is not in `rest`.
    position: u64,
    rest: Bytes,
    /// What was passed over: where it begins, in ascending order.
    passed: VecDeque<(u64, Bytes)>,
    passed_len: usize,
}

/// What became of reading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Served {
    All,
    /// This much was filled. The rest was there once, and is not any more.
    Gone(usize),
    /// This much was filled, and the answer broke off.
    Broken(usize),
    /// This much was filled, and that was the end.
    Ended(usize),
}

impl Stream {
    /// An answer of which nothing was read.
    pub fn new(response: reqwest::Response) -> Self {
        let (rest, passed) = (Bytes::new(), VecDeque::new());
        Self { response, position: 0, rest, passed, passed_len: 0 }
    }

    /// Fills `into` with what is from `offset` on.
    pub async fn serve(&mut self, offset: u64, into: &mut [u8]) -> Served {
        let mut filled = 0;
        while filled < into.len() {
            let at = offset + filled as u64;
            let room = into.get_mut(filled..).unwrap_or_default();
            if at < self.position {
                match self.take_passed(at, room) {
                    0 => return Served::Gone(filled),
                    taken => filled += taken,
                }
                continue;
            }
            if self.rest.is_empty() {
                match self.response.chunk().await {
                    Ok(Some(piece)) => self.rest = piece,
                    Ok(None) => return Served::Ended(filled),
                    Err(_) => return Served::Broken(filled),
                }
                continue;
            }
            let ahead = usize::try_from(at - self.position).unwrap_or(usize::MAX);
            if ahead > 0 {
                let piece = self.rest.split_to(ahead.min(self.rest.len()));
                self.pass(piece);
                continue;
            }
            let piece = self.rest.split_to(room.len().min(self.rest.len()));
            self.position += piece.len() as u64;
            if let Some(room) = room.get_mut(..piece.len()) {
                room.copy_from_slice(&piece);
            }
            filled += piece.len();
        }
        Served::All
    }

    /// Whether the answer is over where a file of this size is, once it was read to there.
    pub async fn ends_at(&mut self, size: u64) -> bool {
        loop {
            let come = self.position + self.rest.len() as u64;
            if come != size {
                return come < size;
            }
            match self.response.chunk().await {
                Ok(None) => return true,
                Ok(Some(piece)) if self.rest.is_empty() => self.rest = piece,
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    }

    /// Holds what nobody has asked for yet, as much of it as there may be.
    fn pass(&mut self, piece: Bytes) {
        let at = self.position;
        self.position += piece.len() as u64;
        self.passed_len += piece.len();
        self.passed.push_back((at, piece));
        while self.passed_len > MAX_PASSED
            && let Some((_, oldest)) = self.passed.pop_front()
        {
            self.passed_len -= oldest.len();
        }
    }

    /// Takes from one of the pieces that were passed over, and returns how much that was.
    fn take_passed(&mut self, at: u64, room: &mut [u8]) -> usize {
        let next = self.passed.partition_point(|(begin, _)| *begin <= at);
        let Some(number) = next.checked_sub(1) else { return 0 };
        let Some((begin, piece)) = self.passed.get(number).cloned() else { return 0 };
        let skip = usize::try_from(at - begin).unwrap_or(usize::MAX);
        let Some(found) = piece.get(skip..).filter(|it| !it.is_empty()) else { return 0 };
        let len = found.len().min(room.len());
        if let (Some(room), Some(found)) = (room.get_mut(..len), found.get(..len)) {
            room.copy_from_slice(found);
        }
        // Each part is asked for once.
        self.passed.remove(number);
        self.passed_len -= piece.len();
        let (before, after) = (piece.slice(..skip), piece.slice(skip + len..));
        let after_begin = at + len as u64;
        for (begin, left) in [(after_begin, after), (begin, before)] {
            if !left.is_empty() {
                self.passed_len += left.len();
                self.passed.insert(number, (begin, left));
            }
        }
        len
    }
}

/// How much is held of one file, in bytes.
const MAX_PASSED: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(data: &'static [u8]) -> Stream {
        let response = http::Response::new(reqwest::Body::from(data));
        Stream::new(response.into())
    }

    async fn part(stream: &mut Stream, offset: u64, len: usize) -> (Served, Vec<u8>) {
        let mut into = vec![0; len];
        let served = stream.serve(offset, &mut into).await;
        (served, into)
    }

    #[tokio::test]
    async fn an_answer_ends_where_the_file_does() {
        for (size, ends) in [(4, false), (10, true), (12, true)] {
            let mut stream = stream(b"0123456789");
            part(&mut stream, 0, 4).await;
            assert_eq!(stream.ends_at(size).await, ends, "{size}");
            if size == 10 {
                part(&mut stream, 4, 6).await;
                assert!(stream.ends_at(10).await);
            }
        }
    }

    #[tokio::test]
    async fn parts_are_served_in_about_their_order() {
        let mut stream = stream(b"0123456789");
        assert_eq!(part(&mut stream, 2, 2).await, (Served::All, b"23".to_vec()));
        assert_eq!(part(&mut stream, 6, 2).await, (Served::All, b"67".to_vec()));
        assert_eq!(part(&mut stream, 4, 2).await, (Served::All, b"45".to_vec()));
        assert_eq!(part(&mut stream, 1, 1).await, (Served::All, b"1".to_vec()));
        assert_eq!(part(&mut stream, 0, 1).await, (Served::All, b"0".to_vec()));
        assert_eq!(stream.passed_len, 0);
        assert_eq!(part(&mut stream, 4, 1).await.0, Served::Gone(0), "once only");
        assert_eq!(part(&mut stream, 8, 4).await, (Served::Ended(2), b"89\0\0".to_vec()));
    }
}
