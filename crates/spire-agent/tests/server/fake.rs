//! A server whose every answer a test can change.

mod ca;
mod nodes;
mod services;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ah_spire_wire::changes::changes_server::ChangesServer;
use ah_spire_wire::server::agent::agent_server::AgentServer;
use ah_spire_wire::server::bundle::bundle_server::BundleServer;
use ah_spire_wire::server::entry::entry_server::EntryServer;
use ah_spire_wire::server::svid::svid_server::SvidServer;
use ah_spire_wire::{Limits, types};
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;

pub(crate) use self::ca::Ca;

pub(crate) const DOMAIN: &str = "example.org";

/// What the server knows, and how it lies.
pub(crate) struct State {
    pub(crate) ca: Arc<Ca>,
    /// Signs the server's own certificate instead of `ca`.
    pub(crate) other_ca: Option<Arc<Ca>>,
    pub(crate) server_id: String,
    /// Not told in the bundle.
    pub(crate) hide_bundle: bool,
    pub(crate) more_authorities: Vec<types::X509Certificate>,
    /// Of the CA, and of a JWT key that is told with it.
    pub(crate) taint: bool,
    pub(crate) sequence: u64,
    pub(crate) federated: BTreeMap<String, types::Bundle>,
    pub(crate) tokens: HashSet<String>,
    /// How nodes attested.
    pub(crate) attestors: Vec<String>,
    /// PEM of the roots of nodes that attest with x509pop.
    pub(crate) node_roots: Option<PathBuf>,
    /// Whoever took a token is answered again, as this project's server does; by token, with the public key.
    pub(crate) takers: Option<BTreeMap<String, Vec<u8>>>,
    pub(crate) reattestable: bool,
    pub(crate) agent_id: String,
    pub(crate) agent_life: Duration,
    pub(crate) entries: BTreeMap<String, types::Entry>,
    pub(crate) svid_life: Duration,
    /// Issue for this ID instead of the right one.
    pub(crate) svid_id: Option<String>,
    /// Issue for a key of our own.
    pub(crate) wrong_key: bool,
    pub(crate) jwt_life: Duration,
    /// Calls of an agent are denied with it.
    pub(crate) denied: Option<types::permission_denied_details::Reason>,
    pub(crate) jwt_down: bool,
    /// As upstream's server before 1.15, which lets no agent tell its status.
    pub(crate) denies_status: bool,
    /// Calls by name, as they come in.
    pub(crate) calls: BTreeMap<&'static str, usize>,
    /// Calls with these names wait until it is empty again.
    pub(crate) held: HashSet<&'static str>,
    /// How many entries were sent whole.
    pub(crate) sent: usize,
    /// Whether it tells of changes; upstream's does not.
    pub(crate) tells: bool,
    /// What agents say that they hold: the bundle's number, and SVIDs of tainted authorities.
    pub(crate) reports: Vec<(u64, u32)>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    /// Sends what it holds to all that listen; an error ends their streams.
    news: broadcast::Sender<Result<(), Option<types::permission_denied_details::Reason>>>,
    pub(crate) address: SocketAddr,
    stop: Arc<Mutex<CancellationToken>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let state = State {
            ca: Ca::new(),
            other_ca: None,
            server_id: format!("spiffe://{DOMAIN}/spire/server"),
            hide_bundle: false,
            more_authorities: vec![],
            taint: false,
            sequence: 1,
            federated: BTreeMap::new(),
            tokens: HashSet::from(["token".to_owned()]),
            attestors: Vec::new(),
            node_roots: None,
            takers: Some(BTreeMap::new()),
            reattestable: false,
            agent_id: format!("spiffe://{DOMAIN}/spire/agent/join_token/token"),
            agent_life: Duration::from_secs(3600),
            entries: BTreeMap::new(),
            svid_life: Duration::from_secs(3600),
            svid_id: None,
            wrong_key: false,
            jwt_life: Duration::from_secs(300),
            denied: None,
            jwt_down: false,
            denies_status: false,
            calls: BTreeMap::new(),
            held: HashSet::new(),
            sent: 0,
            tells: false,
            reports: Vec::new(),
        };
        let mut fake = Self {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::new(watch::Sender::new(0)),
            news: broadcast::Sender::new(64),
            address: ([127, 0, 0, 1], 0).into(),
            stop: Arc::default(),
        };
        let listener = TcpListener::bind(fake.address).await.unwrap();
        fake.address = listener.local_addr().unwrap();
        fake.listen(listener);
        fake
    }

    fn listen(&self, listener: TcpListener) {
        let stop = self.stop.lock().unwrap().clone();
        let fake = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let (fake, stop) = (fake.clone(), stop.clone());
                tokio::spawn(async move {
                    let tls = tokio_rustls::TlsAcceptor::from(fake.tls());
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let routes = Routes::new(AgentServer::new(fake.clone()))
                        .add_service(BundleServer::new(fake.clone()))
                        .add_service(EntryServer::new(fake.clone()))
                        .add_service(SvidServer::new(fake.clone()))
                        .add_service(ChangesServer::new(fake.clone()));
                    let serving = ah_spire_wire::serve(
                        stream,
                        routes,
                        Limits::default(),
                        std::future::pending(),
                    );
                    tokio::select! {
                        () = stop.cancelled() => {}
                        _ = serving => {}
                    }
                });
            }
        });
    }

    /// Tells all that listen that something changed.
    pub(crate) fn tell(&self) {
        self.news.send(Ok(())).unwrap();
    }

    /// Ends the streams of all that listen, with a denial or without a word.
    pub(crate) fn hang_up(&self, reason: Option<types::permission_denied_details::Reason>) {
        self.news.send(Err(reason)).unwrap();
    }

    /// Closes the port and all connections.
    pub(crate) fn go_away(&self) {
        self.stop.lock().unwrap().cancel();
    }

    /// Listens again where it did.
    pub(crate) async fn come_back(&self) {
        self.come_back_at(self.address).await;
    }

    pub(crate) async fn come_back_at(&self, address: SocketAddr) {
        *self.stop.lock().unwrap() = CancellationToken::new();
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.listen(listener);
    }

    fn tls(&self) -> Arc<rustls::ServerConfig> {
        let state = self.state();
        let ca = state.other_ca.as_ref().unwrap_or(&state.ca);
        let key = KeyPair::generate().unwrap();
        let leaf = ca.leaf(&state.server_id, &key, Duration::from_secs(3600));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(state.ca.der.clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![leaf], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_entry(&self, id: &str, path: &str, change: impl FnOnce(&mut types::Entry)) {
        let mut state = self.state();
        let created_at = 100 + i64::try_from(state.entries.len()).unwrap();
        let entry = state
            .entries
            .entry(id.into())
            .or_insert_with(|| types::Entry {
                id: id.into(),
                spiffe_id: Some(types::Spiffeid {
                    trust_domain: DOMAIN.into(),
                    path: path.into(),
                }),
                parent_id: Some(types::Spiffeid {
                    trust_domain: DOMAIN.into(),
                    path: "/spire/agent/join_token/token".into(),
                }),
                selectors: vec![types::Selector {
                    r#type: "unix".into(),
                    value: "uid:1".into(),
                }],
                created_at,
                revision_number: -1,
                ..types::Entry::default()
            });
        entry.revision_number += 1;
        change(entry);
    }

    pub(crate) fn calls(&self, name: &str) -> usize {
        self.state().calls.get(name).copied().unwrap_or(0)
    }

    /// Has a bundle of another trust domain from now on.
    pub(crate) fn federate(&self, domain: &str, ca: &Ca) {
        let bundle = types::Bundle {
            trust_domain: domain.into(),
            x509_authorities: vec![types::X509Certificate {
                asn1: ca.der.to_vec().into(),
                tainted: false,
            }],
            ..types::Bundle::default()
        };
        self.state().federated.insert(domain.into(), bundle);
    }

    /// Waits until `name` was called `more` times from now on.
    pub(crate) async fn called(&self, name: &str, more: usize) {
        let wanted = self.calls(name) + more;
        self.called_in_all(name, wanted).await;
    }

    pub(crate) async fn called_in_all(&self, name: &str, wanted: usize) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while self.calls(name) < wanted {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(ah_testkit::process::DEADLINE, waiting)
            .await
            .unwrap_or_else(|_| panic!("{name} is not called"));
    }

    /// Lets calls that are held go on.
    pub(crate) fn release(&self) {
        self.state().held.clear();
        self.changed.send_modify(|n| *n += 1);
    }

    async fn note(&self, name: &'static str) {
        *self.state().calls.entry(name).or_default() += 1;
        let mut changed = self.changed.subscribe();
        self.changed.send_modify(|n| *n += 1);
        while self.state().held.contains(name) {
            changed.changed().await.unwrap();
        }
    }

    fn authorize(&self) -> Result<(), Status> {
        match self.state().denied {
            Some(reason) => Err(denying(reason)),
            None => Ok(()),
        }
    }

    fn issue(&self, csr: &[u8], id: &str, life: Duration) -> types::X509svid {
        let state = self.state();
        let id = state.svid_id.as_deref().unwrap_or(id);
        let der = if state.wrong_key {
            state.ca.leaf(id, &KeyPair::generate().unwrap(), life)
        } else {
            state.ca.sign(csr, id, life)
        };
        types::X509svid {
            cert_chain: vec![der.to_vec().into()],
            ..types::X509svid::default()
        }
    }
}

/// A status as upstream sends it.
fn denying(reason: types::permission_denied_details::Reason) -> Status {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    let details = types::PermissionDeniedDetails {
        reason: reason.into(),
    };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
        value: details.encode_to_vec(),
    };
    let body = RpcStatus { details: vec![any] }.encode_to_vec();
    Status::with_details(tonic::Code::PermissionDenied, "denied", body.into())
}
