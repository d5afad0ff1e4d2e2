//! The servers that the suite compares.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::{LOAD_CORE, Running, SERVER_CORE, Server, pinned};
use crate::load::Protocol;
use crate::pki::{self, Authority, Files};

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// `ah agent access-point`.
    AccessPoint,
    /// The access point's accept path alone.
    Accept,
    /// Bare tokio-rustls.
    Tcp,
    /// Bare hyper HTTP/2 over rustls.
    H2,
    Nginx,
    Ghostunnel,
    GrpcGo,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AccessPoint => "access point",
            Self::Accept => "accept path",
            Self::Tcp => "bare tokio-rustls",
            Self::H2 => "bare hyper-h2",
            Self::Nginx => "nginx",
            Self::Ghostunnel => "ghostunnel",
            Self::GrpcGo => "grpc-go",
        }
    }

    /// What the load generator speaks with it.
    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::AccessPoint => Protocol::Fleet,
            Self::Accept | Self::Tcp | Self::Ghostunnel => Protocol::Tcp,
            Self::H2 | Self::GrpcGo => Protocol::H2,
            Self::Nginx => Protocol::Http1,
        }
    }
}

/// Where programs and files are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Authority and server identity.
    pub(crate) pki: PathBuf,
    /// Folder for everything a server writes; the run removes it.
    pub(crate) scratch: PathBuf,
    /// Folder on a real disk, which the scratch folder need not be.
    pub(crate) disk: PathBuf,
    /// The `ah` binary.
    pub(crate) ah: PathBuf,
    /// Peers that are built and not installed.
    pub(crate) tools: PathBuf,
}

impl Places {
    pub(crate) fn files(&self) -> Files {
        Files::at(&self.pki)
    }

    /// Starts `subject` on the server core with an empty state.
    pub(crate) fn start(&self, subject: Subject) -> io::Result<Server> {
        let started = match subject {
            Subject::AccessPoint => AccessPoint::new(self)?.start(),
            Subject::Accept => self.bare("accept", SERVER_CORE),
            Subject::Tcp => self.bare("tcp", SERVER_CORE),
            Subject::H2 => self.bare("h2", SERVER_CORE),
            Subject::Nginx => self.nginx(),
            Subject::Ghostunnel => self.ghostunnel(),
            Subject::GrpcGo => self.grpc_go(),
        };
        started.map_err(|error| io::Error::other(format!("{}: {error}", subject.name())))
    }

    fn bare(&self, kind: &str, core: u32) -> io::Result<Server> {
        let mut command = pinned(core, std::env::current_exe()?);
        command.args(["serve", kind, "--pki"]).arg(&self.pki);
        Server::start(&mut command, false)
    }

    fn grpc_go(&self) -> io::Result<Server> {
        let files = self.files();
        let mut command = pinned(SERVER_CORE, built_peer("grpc-go")?);
        command.env("GOMAXPROCS", "1");
        command.arg("-cert").arg(files.server());
        command.arg("-key").arg(files.server_key());
        command.arg("-ca").arg(files.ca());
        Server::start(&mut command, false)
    }

    /// Takes ghostunnel from the tools folder or `PATH`. What it forwards to runs on the load core.
    fn ghostunnel(&self) -> io::Result<Server> {
        let own = self.tools.join("ghostunnel");
        let binary = if own.exists() {
            own
        } else {
            on_path("ghostunnel")?
        };
        let behind = self.bare("plain", LOAD_CORE)?;
        let address = free_address()?;
        let files = self.files();
        let mut command = pinned(SERVER_CORE, binary);
        command.env("GOMAXPROCS", "1");
        command.arg("server").arg(format!("--listen={address}"));
        command.arg(format!("--target={}", behind.address));
        command.arg("--cert").arg(files.server());
        command.arg("--key").arg(files.server_key());
        command.arg("--cacert").arg(files.ca());
        command.args(["--allow-all", "--quiet=all"]);
        Ok(Server::start_silent(&mut command, address)?.with_behind(behind))
    }

    /// One process without a master, so that its process id is the worker's.
    fn nginx(&self) -> io::Result<Server> {
        let program = on_path("nginx")?;
        let address = free_address()?;
        let dir = self.scratch.join("nginx");
        fs::create_dir_all(&dir)?;
        let files = self.files();
        let config = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr warn;\n\
             events {{ worker_connections 20000; }}\n\
             http {{\n\
               access_log off; keepalive_timeout 3600s; keepalive_requests 1000000;\n\
               client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
               uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
               server {{\n\
                 listen {address} ssl backlog=4096;\n\
                 ssl_certificate {cert}; ssl_certificate_key {key};\n\
                 ssl_client_certificate {ca}; ssl_verify_client on; ssl_verify_depth 2;\n\
                 ssl_protocols TLSv1.3; ssl_ecdh_curve X25519;\n\
                 ssl_session_tickets off; ssl_session_cache off;\n\
                 location / {{ return 200 \"!\"; }}\n\
               }}\n\
             }}\n",
            dir = dir.display(),
            cert = files.server().display(),
            key = files.server_key().display(),
            ca = files.ca().display(),
        );
        let path = dir.join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = pinned(SERVER_CORE, program);
        command.arg("-p").arg(&dir).arg("-c").arg(&path);
        command.args(["-e", "stderr"]);
        Server::start_silent(&mut command, address)
    }
}

/// How to start the access point.
#[derive(Clone, Debug)]
pub(crate) struct AccessPoint {
    program: PathBuf,
    files: Files,
    /// State of this access point; a restart uses it again.
    state: PathBuf,
    listen: SocketAddr,
    database: String,
    source: Source,
    extra: Vec<String>,
}

/// Where an access point's identity comes from.
#[derive(Clone, Debug)]
enum Source {
    Files,
    /// The socket of a Workload API.
    WorkloadApi(PathBuf),
    Exec,
    Vault(VaultRole),
    Dev,
}

/// A role of a Vault, and who may use it.
#[derive(Clone, Debug)]
pub(crate) struct VaultRole {
    pub(crate) url: String,
    pub(crate) token: String,
    /// `--vault-pki-path`
    pub(crate) path: String,
}

impl AccessPoint {
    /// One with new, empty state.
    pub(crate) fn new(places: &Places) -> io::Result<Self> {
        if !places.ah.exists() {
            let ah = places.ah.display();
            return Err(io::Error::other(format!("no {ah}: build ah-cli first")));
        }
        let state = tempfile::Builder::new()
            .prefix("access-point-")
            .tempdir_in(&places.scratch)?
            .keep();
        Ok(Self {
            program: places.ah.clone(),
            files: places.files(),
            database: format!("sqlite:{}", state.join("registry.db").display()),
            state,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            source: Source::Files,
            extra: Vec::new(),
        })
    }

    /// Keeps the registry in `file`.
    pub(crate) fn registry(mut self, file: &Path) -> Self {
        self.database = format!("sqlite:{}", file.display());
        self
    }

    pub(crate) fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Takes the identity from a Workload API.
    pub(crate) fn workload_api(mut self, socket: &Path) -> Self {
        self.source = Source::WorkloadApi(socket.to_owned());
        self
    }

    /// Takes the identity from a command, which prints the files.
    pub(crate) fn exec(mut self) -> Self {
        self.source = Source::Exec;
        self
    }

    /// Takes the identity from a Vault.
    pub(crate) fn vault(mut self, role: VaultRole) -> Self {
        self.source = Source::Vault(role);
        self
    }

    /// Takes the identity from a development CA of its own.
    pub(crate) fn dev(mut self) -> Self {
        self.source = Source::Dev;
        self
    }

    /// The certificate of that CA, once the access point has made it.
    pub(crate) fn dev_ca(&self) -> PathBuf {
        self.state.join("dev/ca.pem")
    }

    pub(crate) fn option(mut self, name: &str, value: &str) -> Self {
        self.extra.extend([name.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.state.join("admin.sock")
    }

    /// An executor process enrolled with `server`, its certificate beside the access point's state.
    pub(crate) fn executor(&self, server: &Server) -> io::Result<Running> {
        let authority = Authority::open(&self.files)?;
        let leaf = authority.executor(&Authority::executor_key()?, 0)?;
        let (certificate, key) = leaf.write(&self.state, "executor")?;
        let mut command = pinned(LOAD_CORE, &self.program);
        command.args(["agent", "enroll"]);
        command.arg(format!("--remote-server=https://{}", server.address));
        command.args(["--identity", "files"]);
        command.arg("--cert").arg(certificate);
        command.arg("--key").arg(key);
        command.arg("--ca").arg(self.files.ca());
        command.env("STATE_DIRECTORY", &self.state);
        command.env("RUNTIME_DIRECTORY", &self.state);
        command.stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Running::start(&mut command)
    }

    pub(crate) fn start(&self) -> io::Result<Server> {
        let mut command = pinned(SERVER_CORE, &self.program);
        command.args(["agent", "access-point"]);
        command.arg("--fleet-listen").arg(self.listen.to_string());
        let (chain, key) = (self.files.server(), self.files.server_key());
        match &self.source {
            Source::WorkloadApi(socket) => {
                command.args(["--server-identity", "spiffe"]);
                command.arg("--spiffe-socket").arg(socket);
            }
            Source::Exec => {
                let (chain, key, ca) = (chain.display(), key.display(), self.files.ca());
                command.args(["--server-identity", "exec"]);
                command.arg("--exec-command");
                command.arg(format!("cat '{chain}' '{key}' '{}'", ca.display()));
            }
            Source::Vault(role) => {
                command.env("VAULT_ADDR", &role.url);
                command.env("VAULT_TOKEN", &role.token);
                command.args(["--server-identity", "vault"]);
                command.args(["--vault-pki-path", &role.path]);
                command.args(["--vault-cert-cn", "localhost", "--vault-cert-ttl", "1h"]);
                command.args(["--vault-cert-san-ip", "127.0.0.1"]);
                command.args(["--vault-cert-san-uri", &pki::server_id()]);
            }
            Source::Dev => {
                command.args(["--server-identity", "dev"]);
                command.arg("--ca").arg(self.files.ca());
            }
            Source::Files => {
                command.args(["--server-identity", "files"]);
                command.arg("--cert").arg(chain);
                command.arg("--key").arg(key);
                command.arg("--ca").arg(self.files.ca());
            }
        }
        command.args(["--executor-san-uri-prefix", &pki::executor_prefix()]);
        command.args(["--db", &self.database]);
        command
            .arg("--audit-log")
            .arg(self.state.join("audit.jsonl"));
        command.arg("--admin-socket").arg(self.admin_socket());
        command.args(["--http-listen", "127.0.0.1:0"]);
        command.args(&self.extra);
        // Nothing of the machine's own configuration may take part.
        command.env("STATE_DIRECTORY", &self.state);
        command.env("RUNTIME_DIRECTORY", &self.state);
        command.env_remove("RUST_LOG");
        Server::start(&mut command, true)
    }
}

/// The program of `peers/NAME`, built when it is not there yet.
pub(crate) fn built_peer(name: &str) -> io::Result<PathBuf> {
    let binary = tools().join(format!("{name}-peer"));
    if !binary.exists() {
        fs::create_dir_all(tools())?;
        let built = Command::new("go")
            .args(["build", "-o"])
            .arg(&binary)
            .arg(".")
            .current_dir(
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("peers")
                    .join(name),
            )
            .output()?;
        if !built.status.success() {
            let said = String::from_utf8_lossy(&built.stderr);
            let first = said.lines().next().unwrap_or("go build failed").to_owned();
            return Err(io::Error::other(first));
        }
    }
    Ok(binary)
}

/// Where peers are that are built and not installed.
pub(crate) fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench-tools")
}

/// The `ah` binary that was built with this one.
pub(crate) fn sibling_ah() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or_else(|| Path::new(".")).join("ah"))
}

fn on_path(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Where Debian keeps servers, which is not on everyone's path.
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| io::Error::other("not installed"))
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
