//! What is known of a file that is not complete, and outlives the process that writes it.

/// What tells a temporary file from another that took its name: an inode number, an upload's
/// identifier, part of a name. Only the sink that gave it understands it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Token(Box<[u8]>);

impl Token {
    /// The longest, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// `None` if that is longer than any may be.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Self::MAX_LEN).then(|| Self(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The number that it was made of, if it may have been.
    pub fn number(&self) -> Option<u64> {
        self.0.first_chunk().filter(|_| self.0.len() == 8).map(|bytes| u64::from_le_bytes(*bytes))
    }
}

impl From<u64> for Token {
    fn from(number: u64) -> Self {
        Self(Box::new(number.to_le_bytes()))
    }
}

/// What a sink said of a chunk that it has, for when it is to put the whole file in its place. Empty
/// where there is nothing to say.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Receipt(Box<[u8]>);

impl Receipt {
    /// The longest, in bytes.
    pub const MAX_LEN: usize = 255;

    /// `None` if that is longer than any may be.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Self::MAX_LEN).then(|| Self(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What an earlier process left of a file, as the journal tells it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Left {
    pub token: Token,
    /// The chunks that were written, by number.
    pub receipts: Vec<(u64, Receipt)>,
}

/// A temporary file that was taken up again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reopened<F> {
    pub file: F,
    /// The chunks that were written and are not there any more.
    pub lost: Vec<u64>,
}

/// How much of what a sink acknowledged it still has later.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Remembers {
    /// All of it.
    Always,
    /// All of it until the host boots again; after that, what was synced.
    #[default]
    UntilBoot,
    /// What was synced. The rest is to be read again before it counts.
    Reread,
    /// Nothing: every run begins anew.
    Nothing,
}
