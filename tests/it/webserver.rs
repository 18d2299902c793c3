//! Real web servers on 127.0.0.1, nginx, Apache and SabreDAV, and a small one that misbehaves as it is told.
//!
//! One of each real one serves all tests of this binary.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::sshd::free_port;
use super::tools::{Server, serve};

/// A server that runs as long as this process does.
#[derive(Debug)]
pub struct Web {
    /// What it serves.
    pub root: PathBuf,
    pub port: u16,
    /// The same with TLS, if it has that: by a certificate, and by one that has expired.
    pub secure: Option<(u16, u16)>,
    _server: Server,
}

impl Web {
    /// Starts it, with all that it has in a directory of its own; what it serves is in `root`.
    fn start(name: &str, secure: Option<(u16, u16)>, make: impl Fn(&Path, u16) -> Command) -> Self {
        let chosen = Mutex::new(PathBuf::new());
        let server = serve(name, |directory, port| {
            *chosen.lock().unwrap() = directory.join("root");
            fs::create_dir_all(directory.join("root")).unwrap();
            make(directory, port)
        });
        Self { root: chosen.into_inner().unwrap(), port: server.port, secure, _server: server }
    }

    /// A URL's beginning, without a slash at its end.
    pub fn at(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// What signed the certificates.
    pub fn authority(&self) -> PathBuf {
        self.root.parent().unwrap().join("authority.pem")
    }
}

/// nginx: index pages and ranges everywhere; `/dav/` takes WebDAV, `/put/` takes PUT and makes directories for it, `/plain/` does not, `/private/` wants a
/// login, `/slow/` gives 4 MiB a second to each connection, `/json/` tells the index of all in JSON.
pub fn nginx() -> &'static Web {
    static NGINX: OnceLock<Web> = OnceLock::new();
    NGINX.get_or_init(|| {
        let secure = (free_port(), free_port());
        Web::start("nginx", Some(secure), |directory, port| {
            configure_nginx(directory, port, secure)
        })
    })
}

/// Apache, which takes WebDAV everywhere, and files part by part.
pub fn apache() -> &'static Web {
    static APACHE: OnceLock<Web> = OnceLock::new();
    APACHE.get_or_init(|| Web::start("apache", None, configure_apache))
}

/// SabreDAV, which takes parts by PATCH; below [`CLOUD`] it takes chunks in folders, as Nextcloud does.
pub fn sabredav() -> &'static Web {
    static SABREDAV: OnceLock<Web> = OnceLock::new();
    SABREDAV.get_or_init(|| Web::start("sabredav", None, configure_sabredav))
}

/// Where the files of users are.
pub const CLOUD: &str = "remote.php/dav/files";

/// Users: chunks have to be of five megabytes at the least, but of `short` they may be of any length;
/// `alone` has no place for them.
pub const USERS: [&str; 4] = ["me", "short", "tidy", "alone"];

/// Python's own, which has no ranges; one for each caller.
pub fn python(root: &Path) -> Web {
    Web::start("python", None, |_, port| {
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
        command.arg(root).arg(port.to_string());
        command
    })
}

/// What a login to `/private/` is.
pub const USER: &str = "me";
pub const PASSWORD: &str = "pass word";

fn configure_nginx(dir: &Path, port: u16, (secure, expired): (u16, u16)) -> Command {
    for name in ["root/dav", "root/put", "root/plain", "root/private", "root/slow", "tmp"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    make_certificates(dir);
    fs::write(dir.join("users"), format!("{USER}:{{PLAIN}}{PASSWORD}\n")).unwrap();
    let at = dir.display();
    let tls = |port, name| {
        format!(
            "server {{ listen 127.0.0.1:{port} ssl; root {at}/root; autoindex on;\n\
             ssl_certificate {at}/{name}.pem; ssl_certificate_key {at}/{name}.key; }}\n"
        )
    };
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let configuration = format!(
        "load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;\n\
         daemon off; {user} pid {at}/pid; error_log {at}/error.log; worker_processes 2; events {{}}\n\
         http {{ access_log off; client_max_body_size 0; client_body_temp_path {at}/tmp;\n\
         proxy_temp_path {at}/tmp; fastcgi_temp_path {at}/tmp; scgi_temp_path {at}/tmp;\n\
         uwsgi_temp_path {at}/tmp;\n\
         server {{ listen 127.0.0.1:{port}; root {at}/root; autoindex on;\n\
         location /json/ {{ alias {at}/root/; autoindex on; autoindex_format json; }}\n\
         location /dav/ {{ dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS; }}\n\
         location /plain/ {{ dav_methods PUT DELETE MOVE; dav_ext_methods PROPFIND OPTIONS; }}\n\
         location /put/ {{ dav_methods PUT DELETE; create_full_put_path on; }}\n\
         location /private/ {{ auth_basic x; auth_basic_user_file {at}/users; }}\n\
         location /slow/ {{ limit_rate 4m; }} }}\n{}{} }}\n",
        tls(secure, "server"),
        tls(expired, "expired")
    );
    fs::write(dir.join("nginx.conf"), configuration).unwrap();
    let mut command = Command::new(installed("/usr/sbin/nginx"));
    command.arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
    command
}

fn configure_apache(dir: &Path, port: u16) -> Command {
    fs::create_dir_all(dir.join("lock")).unwrap();
    let at = dir.display();
    let modules = ["mpm_event", "authz_core", "dav", "dav_fs", "autoindex", "mime", "dir"];
    let load = |name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n");
    let modules = modules.map(load).concat();
    let configuration = format!(
        "{modules}ServerRoot {at}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {at}/pid\n\
         ErrorLog {at}/error.log\nTypesConfig /etc/mime.types\nDocumentRoot {at}/root\n\
         MaxKeepAliveRequests 0\n\
         ThreadsPerChild 64\nMaxRequestWorkers 512\nServerLimit 8\nDavLockDB {at}/lock/db\nFileETag INode MTime Size\nAllowEncodedSlashes On\n\
         LimitXMLRequestBody 0\n<Directory {at}/root>\nDav On\nOptions Indexes\nIndexOptions FancyIndexing\n\
         DirectoryIndex disabled\nRequire all granted\nAllowOverride None\n</Directory>\n"
    );
    fs::write(dir.join("apache.conf"), configuration).unwrap();
    if rustix::process::geteuid().is_root() {
        // It serves as nobody, and what it serves is its own.
        let owned = Command::new("chown").args(["-R", "nobody"]).arg(dir).status();
        assert!(owned.unwrap().success());
        let user = "User nobody\nGroup nogroup\n";
        fs::OpenOptions::new()
            .append(true)
            .open(dir.join("apache.conf"))
            .unwrap()
            .write_all(user.as_bytes())
            .unwrap();
    }
    let mut command = Command::new(installed("/usr/sbin/apache2"));
    command.arg("-f").arg(dir.join("apache.conf")).arg("-DFOREGROUND");
    command
}

fn configure_sabredav(dir: &Path, port: u16) -> Command {
    for user in USERS {
        for kind in ["files", "uploads"].into_iter().take(1 + usize::from(user != "alone")) {
            fs::create_dir_all(dir.join("root/remote.php/dav").join(kind).join(user)).unwrap();
        }
    }
    fs::create_dir_all(dir.join("notes")).unwrap();
    installed("/usr/share/php/Sabre/autoload.php");
    // The script goes with the tests, which may run on another machine than they were built on.
    fs::write(dir.join("server.php"), include_str!("sabredav.php")).unwrap();
    let mut command = Command::new(installed("/usr/bin/php"));
    // Each process would remember for two minutes what was a file, and is a directory by now.
    let settings = ["-d", "memory_limit=1G", "-d", "realpath_cache_size=0", "-S"];
    command.args(settings).arg(format!("127.0.0.1:{port}"));
    command.arg(dir.join("server.php"));
    command.env("ROOT", dir.join("root")).env("PHP_CLI_SERVER_WORKERS", "8");
    command
}

fn installed(program: &str) -> &str {
    assert!(Path::new(program).is_file(), "{program} is missing; scripts/test installs it");
    program
}

/// An authority, a certificate for 127.0.0.1, and one that has expired.
fn make_certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    write_pem(&dir.join("authority.pem"), "CERTIFICATE", authority.der());
    let issuer = Issuer::new(params, key);
    for name in ["server", "expired"] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        if name == "expired" {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write_pem(&dir.join(format!("{name}.pem")), "CERTIFICATE", certificate.der());
        write_pem(&dir.join(format!("{name}.key")), "PRIVATE KEY", &key.serialize_der());
    }
}

fn write_pem(path: &Path, label: &str, der: &[u8]) {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    let pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    fs::write(path, pem).unwrap();
}

/// What was asked of a [`Tiny`] server.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// By their names in small letters.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    /// The first and the last byte that are asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().unwrap(), last.parse().unwrap()))
    }
}

/// What a [`Tiny`] server answers.
#[derive(Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// In pieces, of which nobody knows how many will come.
    pub is_chunked: bool,
    /// The connection ends before all of it has come.
    pub is_cut: bool,
    /// What is waited for when half of it has gone.
    pub at_half: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A file, or the part of it that is asked for, as a good server would answer.
    pub fn file(asked: &Asked, data: &[u8]) -> Self {
        match asked.range() {
            Some((first, last)) => {
                let last = last.min(data.len() - 1);
                let range = format!("bytes {first}-{last}/{}", data.len());
                Self { body: data[first..=last].to_vec(), ..Self::status(206) }
                    .with("content-range", range)
            }
            None => Self { body: data.to_vec(), ..Self::status(200) },
        }
    }
}

/// A server that answers whatever a function says.
pub struct Tiny {
    pub port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Tiny {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let noted = Arc::clone(&asked);
        // It ends with this process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
                thread::spawn(move || answer_one(&stream, &noted, &*answer));
            }
        });
        Self { port, asked }
    }

    pub fn at(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// One request on each connection.
fn answer_one(stream: &TcpStream, noted: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Asked) -> Answer) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
    let headers: HashMap<_, _> =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let len = headers.get("content-length").map_or(0, |it| it.parse().unwrap());
    let mut body = vec![0; len];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let asked = Asked { method, path, headers, body };
    noted.lock().unwrap().push(asked.clone());
    let said = answer(&asked);
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", said.status);
    for (name, value) in &said.headers {
        head.extend([*name, ": ", value, "\r\n"]);
    }
    let len = (said.body.len() + usize::from(said.is_cut)).to_string();
    head.extend(if said.is_chunked {
        ["transfer-encoding: ", "chunked", "\r\n\r\n"]
    } else {
        ["content-length: ", &len, "\r\n\r\n"]
    });
    let mut stream = stream;
    let _ = stream.write_all(head.as_bytes());
    if asked.method == "HEAD" {
        return;
    }
    if said.is_chunked {
        for piece in said.body.chunks(10_000) {
            let _ = stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes());
            let _ = stream.write_all(piece).and_then(|()| stream.write_all(b"\r\n"));
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    } else {
        let (one, other) = said.body.split_at(said.body.len() / 2);
        let _ = stream.write_all(one);
        if let Some(wait) = &said.at_half {
            wait();
        }
        let _ = stream.write_all(other);
    }
}
