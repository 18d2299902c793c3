//! Servers that scripts/test installs: where they are, and how they are run.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::sshd::free_port;
use super::support::until;

/// A server on 127.0.0.1.
#[derive(Debug)]
pub struct Server {
    pub port: u16,
    /// What it keeps there is removed with it.
    pub directory: PathBuf,
    /// Ends when this process does.
    _keeper: Child,
}

/// Starts a server that `start` makes the command of, for a directory and a port. Another one may take the
/// port first, so several are tried.
pub fn serve(name: &str, start: impl Fn(&Path, u16) -> Command) -> Server {
    (0..5).find_map(|attempt| try_serve(name, attempt, &start)).expect("the last attempt panics")
}

fn try_serve(name: &str, attempt: u32, start: impl Fn(&Path, u16) -> Command) -> Option<Server> {
    let directory = format!("{name}-{}-{attempt}", std::process::id());
    // Whatever user a server runs as has to get there, which nobody can promise of where this is built.
    let directory = std::env::temp_dir().join(format!("served-{directory}"));
    fs::create_dir_all(&directory).unwrap();
    let port = free_port();
    let mut keeper = keep(&directory, &start(&directory, port));
    let mut is_over = || keeper.try_wait().unwrap().is_some();
    let answers = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    until(Duration::from_mins(1), || answers() || is_over());
    if is_over() {
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        assert!(attempt < 4, "{name} does not start. It says:\n{log}");
        return None;
    }
    Some(Server { port, directory, _keeper: keeper })
}

/// Starts a server below a shell that outlives this process for a moment.
fn keep(directory: &Path, server: &Command) -> Child {
    let mut command = Command::new("/bin/sh");
    // A group of its own, as some have children who do not end with them.
    let script = "exec 3<&0; dir=$1; shift; setsid \"$@\" >\"$dir/log\" 2>&1 & server=$!; \
                  (cat >/dev/null; kill -- -$server; rm -rf \"$dir\") <&3 & wait $server";
    command.args(["-c", script, "sh"]).arg(directory);
    command.arg(server.get_program()).args(server.get_args());
    command.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Something that scripts/test installs.
pub fn tool(path: impl AsRef<OsStr>) -> PathBuf {
    let tools = std::env::var_os("FASTSYNC_TEST_TOOLS").map(PathBuf::from);
    let cache = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        cache.unwrap_or_else(home).join("fastsync-tests")
    };
    let tool = tools.unwrap_or_else(cache).join(Path::new(path.as_ref()));
    assert!(tool.is_file(), "{} is missing; scripts/test installs it", tool.display());
    tool
}
