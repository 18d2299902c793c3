//! Programs as files: the one that is brought along, and on the other host the one that was.
//!
//! Rules: `protocol-spec/10-bootstrap.md`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::control::Pulse;
use crate::protocol::bootstrap::{Machine, Program, is_name, is_unfinished};
use crate::protocol::chunk::Digest;

/// A program of this machine that another host may be given. It is opened once, so that what was
/// hashed is what is sent, even where an upgrade replaces it meanwhile.
#[derive(Debug)]
pub struct Executable {
    file: Arc<File>,
    pub program: Program,
}

impl Executable {
    /// Opens and hashes a program, or the running one.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is no program for Linux.
    pub async fn open(path: Option<&Path>) -> io::Result<Self> {
        let path = path.unwrap_or(Path::new(OWN)).to_owned();
        on_thread(move || Self::read(&path)).await
    }

    fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut header = [0; 20];
        let no_program =
            || io::Error::new(io::ErrorKind::InvalidData, "it is no program for Linux");
        file.read_exact_at(&mut header, 0).map_err(|_| no_program())?;
        let machine = Machine::of_program(&header).ok_or_else(no_program)?;
        let (size, digest) = hash(&file)?;
        Ok(Self { file: Arc::new(file), program: Program { size, digest, machine } })
    }

    /// Writes all its bytes. Each piece that is taken is a sign of life of the other end.
    pub async fn send(&self, to: &mut (impl AsyncWrite + Unpin), pulse: &Pulse) -> io::Result<()> {
        let mut at = 0;
        while at < self.program.size {
            let file = Arc::clone(&self.file);
            let len = PIECE_LEN.min(usize::try_from(self.program.size - at).unwrap_or(PIECE_LEN));
            let piece = on_thread(move || {
                let mut piece = vec![0; len];
                file.read_exact_at(&mut piece, at)?;
                Ok(piece)
            });
            to.write_all(&piece.await?).await?;
            pulse.beat();
            at += len as u64;
        }
        to.flush().await
    }
}

/// Makes the running program durable, and says what its digest is (BOOT-5).
///
/// # Errors
///
/// If it cannot be read or synced.
pub fn own_digest() -> io::Result<Digest> {
    let file = File::open(OWN)?;
    file.sync_all()?;
    Ok(hash(&file)?.1)
}

/// What a program does that was started from where it was brought to, which is the working
/// directory: it notes that it is used, tidies up beside itself (BOOT-7), and goes to the user's home.
pub fn settle() {
    let directory = std::env::current_dir();
    if let Some(home) = std::env::home_dir() {
        let _ = std::env::set_current_dir(home);
    }
    // Nobody waits for it, and nobody misses it.
    std::thread::spawn(move || {
        let now = SystemTime::now();
        let _ = File::open(OWN).and_then(|own| own.set_modified(now));
        if let (Ok(directory), Ok(own)) = (directory, fs::metadata(OWN)) {
            let _ = tidy(&directory, &own, now);
        }
    });
}

/// Removes what nobody has used for long.
fn tidy(directory: &Path, own: &fs::Metadata, now: SystemTime) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let limit = match name.as_bytes() {
            name if is_name(name) => UNUSED,
            name if is_unfinished(name) => UNFINISHED,
            _ => continue,
        };
        let metadata = entry.metadata()?;
        let age = now.duration_since(metadata.modified()?).unwrap_or_default();
        let is_own = (metadata.dev(), metadata.ino()) == (own.dev(), own.ino());
        let is_old = metadata.is_file() && age > limit && !is_own;
        if is_old && !is_running(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Whether a program runs on this host: such a file cannot be opened for writing.
fn is_running(path: &PathBuf) -> bool {
    let opened = OpenOptions::new().write(true).open(path);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy)
}

/// The length and the digest of a file, read from its start.
fn hash(mut file: &File) -> io::Result<(u64, Digest)> {
    let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE_LEN]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((hasher.count(), Digest(hasher.finalize().into()))),
            len => hasher.update(piece.get(..len).unwrap_or_default()),
        };
    }
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The running program, whatever has become of its name.
const OWN: &str = "/proc/self/exe";

/// How much is read at once, in bytes.
const PIECE_LEN: usize = 1 << 20;

/// After how long a program that was not used goes.
const UNUSED: Duration = Duration::from_hours(30 * 24);

/// After how long an upload that was not finished goes.
const UNFINISHED: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_is_sent_as_it_was_hashed() {
        let own = Executable::open(None).await.unwrap();
        assert_eq!(own.program.digest, own_digest().unwrap());
        assert_eq!(own.program.size, fs::metadata(OWN).unwrap().len());
        assert_eq!(own.program.machine.name(), std::env::consts::ARCH);
        let mut sent = Vec::new();
        own.send(&mut sent, &Pulse::new()).await.unwrap();
        assert_eq!(Digest::of(&sent), own.program.digest);
        let temp = tempfile::tempdir().unwrap();
        let script = temp.path().join("script");
        fs::write(&script, "#!/bin/sh\necho this is no program for Linux\n").unwrap();
        let error = Executable::open(Some(&script)).await.unwrap_err();
        assert_eq!(error.to_string(), "it is no program for Linux");
    }

    /// BOOT-7.
    #[test]
    fn what_nobody_uses_is_removed_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let hours = |hours| now - Duration::from_hours(hours);
        let name = |version: &str| format!("fastsync-{version}-x86_64-{}", "ab".repeat(16));
        let make = |name: &str, modified| {
            let file = File::create(temp.path().join(name)).unwrap();
            file.set_modified(modified).unwrap();
        };
        make(&name("0.1.0"), hours(24 * 31));
        make(&name("0.2.0"), hours(24 * 29));
        make(&name("0.3.0"), hours(24 * 31));
        make(&format!(".{}.host.1", name("0.2.0")), hours(25));
        make(&format!(".{}.host.2", name("0.2.0")), hours(1));
        make("fastsync-0.0.9", hours(24 * 365));
        make("notes", hours(24 * 365));
        let running = name("0.4.0");
        fs::copy("/bin/sleep", temp.path().join(&running)).unwrap();
        let mut sleep = std::process::Command::new(temp.path().join(&running))
            .arg("60")
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        File::open(temp.path().join(&running)).unwrap().set_modified(hours(24 * 31)).unwrap();
        let own = fs::metadata(temp.path().join(name("0.3.0"))).unwrap();
        tidy(temp.path(), &own, now).unwrap();
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        let left = fs::read_dir(temp.path()).unwrap();
        let mut left: Vec<_> =
            left.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let unfinished = format!(".{}.host.2", name("0.2.0"));
        let kept = [unfinished, "fastsync-0.0.9".into(), name("0.2.0"), name("0.3.0"), running];
        assert_eq!(left, [&kept[..], &["notes".into()]].concat());
    }
}
