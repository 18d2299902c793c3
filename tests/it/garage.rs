//! A real S3 server, Garage, on 127.0.0.1: with one bucket and one key.
//!
//! As with [`super::sshd`], one serves all tests of this binary, below a shell that ends it.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use super::sshd::free_port;
use super::tools::{Server, serve, tool};

pub const BUCKET: &str = "bucket";
pub const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
pub const SECRET_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The server, which the first call starts.
pub fn garage() -> &'static Server {
    static GARAGE: OnceLock<Server> = OnceLock::new();
    GARAGE.get_or_init(|| {
        serve("garage", |directory, port| {
            let (at, rpc) = (directory.display(), free_port());
            let configuration = format!(
                "metadata_dir = \"{at}/meta\"\ndata_dir = \"{at}/data\"\ndb_engine = \"lmdb\"\n\
                 metadata_fsync = false\ndata_fsync = false\nreplication_factor = 1\n\
                 rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\n\
                 rpc_secret = \"{}\"\n[s3_api]\ns3_region = \"garage\"\n\
                 api_bind_addr = \"127.0.0.1:{port}\"\n",
                "ab".repeat(32)
            );
            fs::write(directory.join("garage.toml"), configuration).unwrap();
            let mut command = Command::new(tool("bin/garage"));
            command.arg("-c").arg(directory.join("garage.toml"));
            command.args(["server", "--single-node", "--default-bucket"]);
            command.env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY);
            command.env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY);
            command.env("GARAGE_DEFAULT_BUCKET", BUCKET);
            command
        })
    })
}
