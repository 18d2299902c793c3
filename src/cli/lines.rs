//! Lines of a file that may be of any size: one at a time, and none without bound.

use std::io::{self, BufRead, Read as _};

use thiserror::Error;

/// Reads line by line.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    /// How many lines were read.
    number: u64,
}

/// Why there is no further line.
#[derive(Debug, Error)]
pub enum LineError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("line {number} is longer than {} MiB", MAX_LINE_LEN >> 20)]
    TooLong { number: u64 },
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), number: 0 }
    }

    /// The next line without its end, and its number, from 1 on.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or the line is longer than [`MAX_LINE_LEN`].
    pub fn next(&mut self) -> Result<Option<(u64, &[u8])>, LineError> {
        self.line.clear();
        let mut piece = self.reader.by_ref().take(MAX_LINE_LEN + 1);
        if piece.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() as u64 > MAX_LINE_LEN {
            return Err(LineError::TooLong { number: self.number });
        }
        Ok(Some((self.number, &self.line)))
    }
}

/// The longest line, in bytes. The first line of a report has all arguments of a command, of which
/// Linux takes 2 MiB at the default stack size, and JSON makes six bytes of some.
pub const MAX_LINE_LEN: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one_and_have_numbers() {
        let mut lines = Lines::new(&b"a\n\nb\r\nc"[..]);
        for wanted in [(1, &b"a"[..]), (2, b""), (3, b"b\r"), (4, b"c")] {
            assert_eq!(lines.next().unwrap(), Some(wanted));
        }
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn a_line_without_end_is_an_error() {
        let endless = io::BufReader::new(b"a\n".chain(io::repeat(b'x')));
        let mut lines = Lines::new(endless);
        assert!(lines.next().unwrap().is_some());
        let error = lines.next().unwrap_err();
        assert_eq!(error.to_string(), "line 2 is longer than 16 MiB");
        let longest = [vec![b'x'; usize::try_from(MAX_LINE_LEN).unwrap()], b"\ny".into()].concat();
        let mut lines = Lines::new(&longest[..]);
        assert!(lines.next().unwrap().is_some() && lines.next().unwrap().is_some());
    }
}
