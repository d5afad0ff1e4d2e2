//! A server and an agent in a folder of their own, and connections to them.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::agent::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest, attest_agent_request,
    attest_agent_response,
};
use ah_spire_wire::server::bundle::GetBundleRequest;
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::entry::BatchCreateEntryRequest;
use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::{Channel, types};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::client::Resumption;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::suite::{LOAD_CORE, Running, SERVER_CORE, pinned};
use crate::tls;

/// The two binaries.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    server: PathBuf,
    agent: PathBuf,
}

impl Programs {
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self {
            server: folder.join("spire-server"),
            agent: folder.join("spire-agent"),
        }
    }
}

/// The datastore in a server's folder.
const SQLITE: &str = "datastore.sqlite3";

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a server keeps what it knows.
#[derive(Clone, Debug)]
pub(super) enum Datastore {
    /// In its own folder.
    Sqlite,
    /// In this database, which several servers may share.
    Postgres(String),
}

/// A server.
pub(super) struct Site {
    programs: Programs,
    folder: TempDir,
    port: u16,
    pub(super) server: Running,
}

impl Site {
    /// Starts a server with an empty datastore.
    pub(super) async fn start(programs: &Programs) -> io::Result<Self> {
        Self::start_on(programs, &Datastore::Sqlite).await
    }

    /// Starts a server on `datastore`.
    pub(super) async fn start_on(programs: &Programs, datastore: &Datastore) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ah-bench-spire-")
            .tempdir()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let at = folder.path().display();
        let (kind, place) = match datastore {
            Datastore::Sqlite => ("sqlite3", format!("{at}/{SQLITE}")),
            Datastore::Postgres(url) => ("postgres", url.clone()),
        };
        let text = format!(
            r#"server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{at}/server.sock"
  trust_domain = "example.org"
  data_dir = "{at}/server"
  log_level = "ERROR"
  ratelimit {{ attestation = false signing = false }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "{kind}" connection_string = "{place}" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{at}/keys.json" }} }}
}}
"#
        );
        fs::create_dir_all(folder.path().join("server"))?;
        fs::write(folder.path().join("server.conf"), text)?;
        let server = Self::spawn_server(programs, folder.path())?;
        let site = Self {
            programs: programs.clone(),
            folder,
            port,
            server,
        };
        site.local().await?;
        Ok(site)
    }

    fn spawn_server(programs: &Programs, folder: &Path) -> io::Result<Running> {
        let mut command = pinned(SERVER_CORE, &programs.server);
        command
            .args(["run", "-config"])
            .arg(folder.join("server.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running::start(&mut command)
    }

    /// Ends the server, starts it anew, and says how long it took until an agent was given its entries.
    pub(super) async fn restart(&mut self, identity: &Identity) -> io::Result<Duration> {
        self.server.end()?;
        let began = Instant::now();
        self.server = Self::spawn_server(&self.programs, self.folder.path())?;
        loop {
            if let Ok(channel) = self.connect(Some(identity)).await
                && super::server::authorized(channel).await.is_ok()
            {
                return Ok(began.elapsed());
            }
            if began.elapsed() > PATIENCE {
                return Err(io::Error::other("the server does not come back"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the server as a crash would.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        self.server.kill()
    }

    /// Kills the server, and starts another one in its place.
    pub(super) fn replace_server(&self) -> io::Result<Running> {
        kill(
            Pid::from_raw(self.server.pid().cast_signed()),
            Signal::SIGKILL,
        )?;
        Self::spawn_server(&self.programs, self.folder.path())
    }

    /// Starts the server again.
    pub(super) async fn revive(&mut self) -> io::Result<()> {
        self.server = Self::spawn_server(&self.programs, self.folder.path())?;
        self.local().await.map(drop)
    }

    /// The administrative socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("server.sock")
    }

    /// Ends the server, writes `entries` into its SQLite datastore, as many below each of `parents`, and starts it again.
    /// A hundred thousand over the API would take minutes.
    pub(super) async fn fill(
        &mut self,
        parents: &[types::Spiffeid],
        entries: u32,
    ) -> io::Result<()> {
        self.server.end()?;
        super::fill::entries(&self.folder.path().join(SQLITE), parents, entries)
            .await
            .map_err(io::Error::other)?;
        self.revive().await
    }

    /// Starts an agent on the load core's other side: it shares the server's core.
    pub(super) async fn agent(&self) -> io::Result<Agent> {
        let token = self.join_token().await?;
        let folder = self.folder.path();
        let at = folder.display();
        let port = self.port;
        let text = format!(
            r#"agent {{
  data_dir = "{at}/agent"
  log_level = "ERROR"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{at}/agent.sock"
  trust_domain = "example.org"
  join_token = "{token}"
  insecure_bootstrap = true
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{at}/agent" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
        );
        fs::create_dir_all(folder.join("agent"))?;
        fs::write(folder.join("agent.conf"), text)?;
        let process = self.start_agent()?;
        let socket = folder.join("agent.sock");
        until("the agent", || async { Channel::unix(&socket).await }).await?;
        Ok(Agent {
            process,
            socket,
            id: agent_id(&token),
        })
    }

    /// The process of the agent that [`Self::agent`] configured.
    pub(super) fn start_agent(&self) -> io::Result<Running> {
        let mut command = pinned(SERVER_CORE, &self.programs.agent);
        command
            .args(["run", "-config"])
            .arg(self.folder.path().join("agent.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running::start(&mut command)
    }

    /// The administrative socket.
    pub(super) async fn local(&self) -> io::Result<Channel> {
        let socket = self.socket();
        until("the server", || async {
            let channel = Channel::unix(&socket).await?;
            let mut bundles = BundleClient::with_origin(channel.clone(), Channel::origin());
            let bundle = bundles.get_bundle(GetBundleRequest::default()).await;
            bundle.map_err(io::Error::other)?;
            Ok(channel)
        })
        .await
    }

    async fn join_token(&self) -> io::Result<String> {
        let mut agents = AgentClient::with_origin(self.local().await?, Channel::origin());
        let request = CreateJoinTokenRequest {
            ttl: 600,
            ..Default::default()
        };
        let token = agents.create_join_token(request).await;
        Ok(token.map_err(io::Error::other)?.into_inner().value)
    }

    /// A connection as agents make it.
    pub(super) async fn connect(&self, identity: Option<&Identity>) -> io::Result<Channel> {
        let roots = match identity {
            Some(identity) => identity.roots.clone(),
            None => self.roots().await?,
        };
        let pair = identity.map(|identity| (identity.chain.clone(), identity.key.clone_key()));
        let mut config = tls::spire_client(roots, pair)?;
        config.resumption = Resumption::disabled();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("spire-server").map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        Channel::over(stream).await
    }

    async fn roots(&self) -> io::Result<Vec<CertificateDer<'static>>> {
        let mut bundles = BundleClient::with_origin(self.local().await?, Channel::origin());
        let bundle = bundles.get_bundle(GetBundleRequest::default()).await;
        let bundle = bundle.map_err(io::Error::other)?.into_inner();
        let der = |authority: types::X509Certificate| authority.asn1.to_vec().into();
        Ok(bundle.x509_authorities.into_iter().map(der).collect())
    }

    /// Attests an agent of its own by join token, over the wire.
    pub(super) async fn attest(&self) -> io::Result<Identity> {
        let token = self.join_token().await?;
        let roots = self.roots().await?;
        let (key, csr) = key_and_csr()?;
        let channel = self.connect(None).await?;
        let mut agents = AgentClient::with_origin(channel, Channel::origin());
        let request = AttestAgentRequest {
            step: Some(attest_agent_request::Step::Params(
                attest_agent_request::Params {
                    data: Some(types::AttestationData {
                        r#type: "join_token".to_owned(),
                        payload: token.clone().into_bytes().into(),
                    }),
                    params: Some(AgentX509svidParams { csr }),
                },
            )),
        };
        // The stream stays open until the answer is there: some servers take its end for a farewell.
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        sender.send(request).await.map_err(io::Error::other)?;
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = agents
            .attest_agent(requests)
            .await
            .map_err(io::Error::other)?
            .into_inner();
        let answer = answers.message().await.map_err(io::Error::other)?;
        let Some(attest_agent_response::Step::Result(result)) = answer.and_then(|it| it.step)
        else {
            return Err(io::Error::other("no SVID came of the attestation"));
        };
        let chain = result.svid.unwrap_or_default().cert_chain;
        Ok(Identity {
            id: agent_id(&token),
            chain: chain.into_iter().map(|der| der.to_vec().into()).collect(),
            key,
            roots,
        })
    }

    /// Creates entries, 500 a call.
    pub(super) async fn create(&self, entries: Vec<types::Entry>) -> io::Result<()> {
        let mut client = EntryClient::with_origin(self.local().await?, Channel::origin());
        for batch in entries.chunks(500) {
            let request = BatchCreateEntryRequest {
                entries: batch.to_vec(),
                ..Default::default()
            };
            let results = client.batch_create_entry(request).await;
            for result in results.map_err(io::Error::other)?.into_inner().results {
                let status = result.status.unwrap_or_default();
                if status.code != 0 {
                    return Err(io::Error::other(status.message));
                }
            }
        }
        Ok(())
    }
}

/// An agent process.
pub(super) struct Agent {
    pub(super) process: Running,
    pub(super) socket: PathBuf,
    pub(super) id: types::Spiffeid,
}

/// An agent that is only a key and a certificate.
pub(super) struct Identity {
    pub(super) id: types::Spiffeid,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

fn agent_id(token: &str) -> types::Spiffeid {
    types::Spiffeid {
        trust_domain: "example.org".to_owned(),
        path: format!("/spire/agent/join_token/{token}"),
    }
}

/// A P-256 key and a request for a certificate for it.
pub(super) fn key_and_csr() -> io::Result<(PrivateKeyDer<'static>, Vec<u8>)> {
    let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .map_err(io::Error::other)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((der, csr.der().to_vec()))
}

/// Entry number `number` below `parent`, for no workload there is.
pub(super) fn entry(parent: &types::Spiffeid, number: u32) -> types::Entry {
    types::Entry {
        spiffe_id: Some(types::Spiffeid {
            trust_domain: "example.org".to_owned(),
            path: format!("/workload/{number}"),
        }),
        parent_id: Some(parent.clone()),
        selectors: vec![types::Selector {
            r#type: "unix".to_owned(),
            value: format!("uid:{}", 1_000_000 + number),
        }],
        ..Default::default()
    }
}

/// Attempts something until it succeeds, for as long as anything may take to come up.
pub(super) async fn until<T, F: Future<Output = io::Result<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> io::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => {
                return Err(io::Error::other(format!("{what} does not answer: {error}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Moves this process to the load core: what it measures has the other one.
pub(super) fn stay_on_load_core() -> io::Result<()> {
    let mut cores = nix::sched::CpuSet::new();
    cores.set(LOAD_CORE as usize)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores)?;
    Ok(())
}
