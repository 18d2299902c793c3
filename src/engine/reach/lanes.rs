//! Further logins: one ssh process for each data channel, because one connection of ssh carries no
//! more than its window of 2 MiB in a round trip.
//!
//! Only where the user's ssh logs in without asking (`BatchMode`). A server admits few connections at
//! a time that have not logged in; the first that is refused ends it, and what has connected stays.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::protocol::handshake::MagicScanner;
use crate::ssh::{Login, Started};
use crate::transport::channel::{ByteStream, Pipe};
use crate::transport::join;

/// What a further login needs.
#[derive(Clone, Debug)]
pub struct Lanes {
    login: Login,
    /// What the login shell of the other host is to run.
    command: String,
    /// Where the agent waits for it.
    meeting: Vec<u8>,
    /// Logins at a time.
    logging_in: Arc<Semaphore>,
    /// The first has to succeed before there is a second.
    is_careful: Arc<AtomicBool>,
    is_refused: Arc<AtomicBool>,
}

impl Lanes {
    /// `is_careful` if somebody else may be asked to let them in, such as a jump host: then the first
    /// has to succeed before there is a second.
    pub fn new(login: Login, command: String, meeting: Vec<u8>, is_careful: bool) -> Self {
        let logging_in = Arc::new(Semaphore::new(if is_careful { 1 } else { MAX_LOGGING_IN }));
        let is_careful = Arc::new(AtomicBool::new(is_careful));
        Self { login, command, meeting, logging_in, is_careful, is_refused: Arc::default() }
    }

    /// Logs in once more, and returns a byte stream to the agent; or why not.
    pub async fn connect(self) -> Result<ByteStream, String> {
        let Ok(_place) = self.logging_in.acquire().await else { return Err(REFUSED.to_owned()) };
        if self.is_refused.load(Ordering::Relaxed) {
            return Err(REFUSED.to_owned());
        }
        let connected = timeout(PATIENCE, self.log_in()).await;
        let connected = connected.unwrap_or_else(|_| Err("a further login took too long".into()));
        if connected.is_err() {
            self.is_refused.store(true, Ordering::Relaxed);
        } else if self.is_careful.swap(false, Ordering::Relaxed) {
            self.logging_in.add_permits(MAX_LOGGING_IN - 1);
        }
        connected
    }

    async fn log_in(&self) -> Result<ByteStream, String> {
        let mut process = self
            .login
            .start_further(Started::Command(&self.command))
            .map_err(|error| error.to_string())?;
        let (mut stdin, mut stdout) = process.take_streams().ok_or("it has no input")?;
        let mut scanner = MagicScanner::default();
        let rest = loop {
            let mut bytes = vec![0; 4096];
            let len = stdout.read(&mut bytes).await.map_err(|error| error.to_string())?;
            if len == 0 {
                process.wait(Duration::from_secs(1)).await;
                return Err(process.complaints());
            }
            bytes.truncate(len);
            if let Some(rest) = scanner.push(&bytes).map_err(|error| error.to_string())? {
                break rest;
            }
        };
        let named = join::named(&self.meeting);
        stdin.write_all(&named).await.map_err(|error| error.to_string())?;
        Ok(ByteStream::Pipe(Pipe {
            reader: Box::new(Cursor::new(rest).chain(stdout)),
            writer: Box::new(stdin),
            owner: Box::new(process),
        }))
    }
}

/// How many logins may be under way at a time: OpenSSH's servers drop some above ten.
const MAX_LOGGING_IN: usize = 7;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(20);

const REFUSED: &str = "a further login was refused before";
