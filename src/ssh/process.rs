//! A command that runs, as its caller sees it: a byte stream, what it complains of, and how it ends.
//!
//! It is a child process, or a task that speaks ssh itself and behaves as the child would.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::pipe::fcntl_setpipe_size;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A running command. Dropping it ends the command.
#[derive(Debug)]
pub struct Process {
    running: Running,
    streams: Option<(Input, Output)>,
    complaints: Complaints,
    /// Owns the task that reads the command's standard error, or the one that is the command.
    tasks: JoinSet<()>,
}

#[derive(Debug)]
enum Running {
    Child(Child),
    /// One that does not notice by itself when this process is gone, and who ends it then.
    Guarded {
        child: Child,
        guard: Option<Child>,
    },
    /// Its exit code, once it has ended.
    Task(watch::Receiver<Option<u8>>),
}

/// The other ends of a command's streams, for the task that is the command.
#[derive(Debug)]
pub struct Ends {
    pub input: DuplexStream,
    pub output: DuplexStream,
    pub complaints: Complaints,
}

impl Process {
    /// Starts a child process that ends when it is told nothing more.
    pub(super) fn start(command: Command) -> io::Result<Self> {
        Self::start_as(command, Running::Child)
    }

    /// Starts a child process that may for a long time not see that this one is gone: ssh reads nothing
    /// before it has logged in, and a server that is silent or a prompt can keep it waiting for ever.
    pub(super) fn start_guarded(command: Command) -> io::Result<Self> {
        Self::start_as(command, |child| {
            let guard = child.id().and_then(|id| guard(id).ok());
            Running::Guarded { child, guard }
        })
    }

    fn start_as(mut command: Command, run: impl FnOnce(Child) -> Running) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let mut child = command.spawn()?;
        let complaints = Complaints::default();
        let mut tasks = JoinSet::new();
        if let Some(stderr) = child.stderr.take() {
            tasks.spawn(complaints.clone().collect(stderr));
        }
        let streams = child.stdin.take().zip(child.stdout.take());
        if let Some((input, output)) = &streams {
            // Fewer turns between this process and that one. Where the system allows no more, it works too.
            let _ = fcntl_setpipe_size(input, PIPE_LEN);
            let _ = fcntl_setpipe_size(output, PIPE_LEN);
        }
        let streams = streams.map(|(input, output)| (Input::Child(input), Output::Child(output)));
        Ok(Self { running: run(child), streams, complaints, tasks })
    }

    /// Starts a task that returns an exit code.
    pub(super) fn start_task<F>(task: impl FnOnce(Ends) -> F) -> Self
    where
        F: Future<Output = u8> + Send + 'static,
    {
        let (input, far_input) = duplex(PIPE_LEN);
        let (output, far_output) = duplex(PIPE_LEN);
        let complaints = Complaints::default();
        let ends = Ends { input: far_input, output: far_output, complaints: complaints.clone() };
        let (ended, end) = watch::channel(None);
        let task = task(ends);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let code = task.await;
            ended.send_replace(Some(code));
        });
        let streams = Some((Input::Task(input), Output::Task(output)));
        Self { running: Running::Task(end), streams, complaints, tasks }
    }

    /// Takes the ends of the byte stream. `None` the second time.
    pub fn take_streams(&mut self) -> Option<(Input, Output)> {
        self.streams.take()
    }

    /// The last of what the command wrote to its standard error.
    pub fn complaints(&self) -> String {
        self.complaints.text()
    }

    /// Waits until the command has ended; ends it after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let Ok(status) = tokio::time::timeout(limit, self.running.ended()).await else {
            match &mut self.running {
                Running::Child(child) | Running::Guarded { child, .. } => drop(child.start_kill()),
                Running::Task(_) => self.tasks.abort_all(),
            }
            return None;
        };
        // Whatever it said last is worth having; a grandchild may hold the pipe open for ever.
        let drain = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_millis(200), drain).await;
        status
    }
}

/// Starts what ends a process, and those that it started, as soon as this process is gone, however it
/// went: a shell whose input ends then. It is in a process group of its own, so that a terminal's
/// signals do not reach it.
fn guard(process: u32) -> io::Result<Child> {
    let script = "end() { for child in $(cat /proc/$1/task/$1/children 2>/dev/null); do end $child; done; \
                  kill $1 2>/dev/null; }; read -r _; end $1";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh", &process.to_string()]).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn()
}

impl Running {
    async fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.wait().await.ok(),
            Self::Guarded { child, guard } => {
                let status = child.wait().await.ok();
                // The number may be another process's from now on.
                *guard = None;
                status
            }
            Self::Task(end) => {
                let code = (*end.wait_for(Option::is_some).await.ok()?)?;
                Some(ExitStatus::from_raw(i32::from(code) << 8))
            }
        }
    }
}

/// What a command reads. Dropping it is the end of what it reads.
#[derive(Debug)]
pub enum Input {
    Child(ChildStdin),
    Task(DuplexStream),
}

/// What a command writes.
#[derive(Debug)]
pub enum Output {
    Child(ChildStdout),
    Task(DuplexStream),
}

impl AsyncRead for Output {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Child(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Task(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Child(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Task(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Child(stream) => Pin::new(stream).poll_flush(context),
            Self::Task(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Child(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Task(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Child(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Task(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Child(stream) => stream.is_write_vectored(),
            Self::Task(stream) => stream.is_write_vectored(),
        }
    }
}

/// The last 32 KiB of a command's standard error.
#[derive(Clone, Debug, Default)]
pub struct Complaints(Arc<Mutex<VecDeque<u8>>>);

impl Complaints {
    const LIMIT: usize = 32 << 10;

    pub(super) async fn collect(self, mut stderr: impl AsyncRead + Unpin) {
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = stderr.read(&mut piece).await {
            self.add(&piece[..len]);
        }
    }

    pub(super) fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&bytes[bytes.len().saturating_sub(Self::LIMIT)..]);
        let excess = kept.len().saturating_sub(Self::LIMIT);
        kept.drain(..excess);
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

/// How many bytes wait between a command and its caller in each direction.
const PIPE_LEN: usize = 512 << 10;
