//! A real S3 server, Garage, on 127.0.0.1: with one bucket and one key.
//!
//! As with [`super::sshd`], one serves all tests of this binary, below a shell that ends it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::sshd::free_port;
use super::support::until;

#[derive(Debug)]
pub struct Garage {
    pub port: u16,
    /// Ends when this process does.
    _keeper: Child,
}

pub const BUCKET: &str = "bucket";
pub const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
pub const SECRET_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The server, which the first call starts.
pub fn garage() -> &'static Garage {
    static GARAGE: OnceLock<Garage> = OnceLock::new();
    GARAGE.get_or_init(|| (0..5).find_map(Garage::try_start).expect("the last attempt panics"))
}

impl Garage {
    fn try_start(attempt: u32) -> Option<Self> {
        let program = program();
        assert!(program.is_file(), "{} is missing; scripts/test installs it", program.display());
        let name = format!("garage-{}-{attempt}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        let (port, rpc) = (free_port(), free_port());
        let at = dir.display();
        let configuration = format!(
            "metadata_dir = \"{at}/meta\"\ndata_dir = \"{at}/data\"\ndb_engine = \"lmdb\"\n\
             metadata_fsync = false\ndata_fsync = false\nreplication_factor = 1\n\
             rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\n\
             rpc_secret = \"{}\"\n[s3_api]\ns3_region = \"garage\"\n\
             api_bind_addr = \"127.0.0.1:{port}\"\n",
            "ab".repeat(32)
        );
        fs::write(dir.join("garage.toml"), configuration).unwrap();
        let mut keeper = keep(&program, &dir);
        let mut is_over = || keeper.try_wait().unwrap().is_some();
        let answers = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        until(Duration::from_secs(30), || answers() || is_over());
        if is_over() {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(attempt < 4, "garage does not start. It says:\n{log}");
            return None;
        }
        Some(Self { port, _keeper: keeper })
    }
}

/// Where scripts/test puts it.
fn program() -> PathBuf {
    let tools = std::env::var_os("FASTSYNC_TEST_TOOLS").map(PathBuf::from);
    let cache = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        cache.unwrap_or_else(home).join("fastsync-tests")
    };
    tools.unwrap_or_else(cache).join("bin/garage")
}

/// Starts the server below a shell that outlives this process for a moment.
fn keep(program: &Path, dir: &Path) -> Child {
    let mut command = Command::new("/bin/sh");
    let script = "exec 3<&0; dir=$1; shift; \"$@\" >\"$dir/log\" 2>&1 & server=$!; \
                  (cat >/dev/null; kill $server; rm -rf \"$dir\") <&3 & wait $server";
    command.args(["-c", script, "sh"]).arg(dir).arg(program);
    command.arg("-c").arg(dir.join("garage.toml"));
    command.args(["server", "--single-node", "--default-bucket"]);
    command.env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY);
    command.env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY).env("GARAGE_DEFAULT_BUCKET", BUCKET);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
