//! Questions to the person at the terminal, whatever standard input and output are.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

/// The terminal of this process.
#[derive(Debug)]
pub struct Terminal {
    /// Opened by itself, so that nobody else's reads stop waiting.
    keyboard: Receiver,
    screen: File,
}

impl Terminal {
    /// # Errors
    ///
    /// If there is none, as under cron.
    pub fn open() -> io::Result<Self> {
        let flags = |flags: OFlags| i32::try_from(flags.bits()).map_err(io::Error::other);
        let no_owner = flags(OFlags::NOCTTY)?;
        let screen = OpenOptions::new().write(true).custom_flags(no_owner).open(TERMINAL)?;
        let no_wait = flags(OFlags::NOCTTY | OFlags::NONBLOCK)?;
        let keyboard = OpenOptions::new().read(true).custom_flags(no_wait).open(TERMINAL)?;
        // It is polled as a pipe is: a thread that waits for a line could not be given up.
        Ok(Self { keyboard: Receiver::from_file_unchecked(keyboard)?, screen })
    }

    /// Shows a text, and reads one line. Without `echo`, what is typed is not shown.
    ///
    /// # Errors
    ///
    /// If the terminal goes away.
    pub async fn ask(&mut self, prompt: &str, echo: bool) -> io::Result<String> {
        let hidden = if echo { None } else { Some(Hidden::begin(&self.screen)?) };
        self.write(prompt)?;
        let line = self.line().await;
        if hidden.is_some() {
            drop(hidden);
            self.write("\n")?;
        }
        line
    }

    /// Shows a text.
    ///
    /// # Errors
    ///
    /// If the terminal goes away.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        self.screen.write_all(shown(text).as_bytes())
    }

    async fn line(&mut self) -> io::Result<String> {
        let wrong = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let mut line = Vec::new();
        loop {
            let len = self.keyboard.read_buf(&mut line).await?;
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                line.truncate(end);
                return String::from_utf8(line).map_err(|_| wrong("the answer is not UTF-8"));
            }
            if len == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer came"));
            }
            if line.len() > MAX_LINE {
                return Err(wrong("the answer is too long"));
            }
        }
    }
}

/// A terminal that does not show what is typed, until this is dropped.
#[derive(Debug)]
struct Hidden {
    terminal: File,
    before: Termios,
}

impl Hidden {
    fn begin(terminal: &File) -> io::Result<Self> {
        let terminal = terminal.try_clone()?;
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
        tcsetattr(&terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// A server's text without what a terminal would obey.
pub fn shown(text: &str) -> String {
    let is_plain = |c: &char| !c.is_control() || *c == '\n' || *c == '\t';
    text.chars().filter(is_plain).collect()
}

const TERMINAL: &str = "/dev/tty";

/// How long an answer may be, in bytes.
const MAX_LINE: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_cannot_command_the_terminal() {
        assert_eq!(shown("Code:\x1b[2J\x07\u{9b}1m\r\n\t>"), "Code:[2J1m\n\t>");
    }
}
