//! Emulators of Google Cloud Storage and of Azure Blob Storage on 127.0.0.1, each with one bucket.
//!
//! As with [`super::sshd`], one serves all tests of this binary, below a shell that ends it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use reqsign_azure_storage::{RequestSigner, StaticCredentialProvider};
use reqsign_core::{Context, Signer};

use super::tools::{Server, serve, tool};

pub const BUCKET: &str = "bucket";

/// What every emulator of Azure has.
pub const ACCOUNT: &str = "devstoreaccount1";
pub const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Google's, which the first call starts.
pub fn gcs() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = serve("gcs", |_, port| {
            let mut command = Command::new(tool("gcs/bin/gcp-storage-emulator"));
            command.args(["start", "--in-memory", "--quiet", "--host", "127.0.0.1", "--port"]);
            command.arg(port.to_string());
            command
        });
        let bucket = format!(
            "{{\"name\": \"{BUCKET}\", \"softDeletePolicy\": {{\"retentionDurationSeconds\": 0}}}}"
        );
        let json = [("content-type", "application/json")];
        let answer = ask(server.port, "POST", "/storage/v1/b?project=test", &json, &bucket);
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        server
    })
}

/// Azure's, which the first call starts.
pub fn azure() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = serve("azurite", |directory, port| {
            let mut command = Command::new("node");
            command.arg(tool("azurite/node_modules/azurite/dist/src/blob/main.js"));
            command.args(["--silent", "--disableTelemetry", "--blobHost", "127.0.0.1"]);
            command.args(["--blobPort", &port.to_string(), "--location"]).arg(directory);
            command
        });
        let path = format!("/{ACCOUNT}/{BUCKET}?restype=container");
        let request = http::Request::put(format!("http://127.0.0.1:{}{path}", server.port));
        let request = request.header("x-ms-version", "2021-12-02").body(()).unwrap();
        let (mut parts, ()) = request.into_parts();
        sign(&mut parts, None);
        let headers: Vec<_> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        let answer = ask(server.port, "PUT", &path, &headers, "");
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        server
    })
}

/// A shared access signature for the container.
pub fn shared_access_signature() -> String {
    // Whose name and container are found in a real account's URL.
    let url = format!("https://{ACCOUNT}.blob.core.windows.net/{BUCKET}");
    let (mut parts, ()) = http::Request::get(url).body(()).unwrap().into_parts();
    sign(&mut parts, Some(Duration::from_mins(10)));
    parts.uri.query().unwrap().to_owned()
}

fn sign(parts: &mut http::request::Parts, expires_in: Option<Duration>) {
    let credential = StaticCredentialProvider::new_shared_key(ACCOUNT, KEY);
    let request = RequestSigner::new().with_service_sas_permissions("rcwdl");
    let signer = Signer::new(Context::new(), credential, request);
    // Whoever calls may have a runtime already, and no thread has two.
    let signing = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(signer.sign(parts, expires_in)).unwrap();
    };
    std::thread::scope(|scope| scope.spawn(signing).join().unwrap());
}

/// All objects of Google's emulator whose names begin with something, as it describes them.
pub fn objects(prefix: &str) -> String {
    let path = format!("/storage/v1/b/{BUCKET}/o?prefix={prefix}");
    ask(gcs().port, "GET", &path, &[], "")
}

/// Asks a server of this machine, and returns all that it says.
fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Length: {}\r\n{}\r\n{body}",
        body.len(),
        headers.concat()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
