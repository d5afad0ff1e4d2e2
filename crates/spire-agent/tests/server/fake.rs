//! A server whose every answer a test can change.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use ah_spire_wire::server::agent::agent_server::{Agent, AgentServer};
use ah_spire_wire::server::agent::*;
use ah_spire_wire::server::bundle::bundle_server::{Bundle, BundleServer};
use ah_spire_wire::server::bundle::*;
use ah_spire_wire::server::entry::entry_server::{Entry, EntryServer};
use ah_spire_wire::server::entry::*;
use ah_spire_wire::server::svid::svid_server::{Svid, SvidServer};
use ah_spire_wire::server::svid::*;
use ah_spire_wire::{Limits, types};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const DOMAIN: &str = "example.org";

/// A CA that signs what it is asked to.
pub(crate) struct Ca {
    pub(crate) der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, uuid());
        params.subject_alt_names = vec![uri(&format!("spiffe://{DOMAIN}"))];
        let certificate = params.self_signed(&key).unwrap();
        Arc::new(Self {
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    fn leaf(&self, id: &str, key: &impl PublicKeyData, life: Duration) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(1)).into();
        params.not_after = (now + life).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = vec![uri(id)];
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        certificate.der().clone()
    }

    fn sign(&self, csr: &[u8], id: &str, life: Duration) -> CertificateDer<'static> {
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        self.leaf(id, &csr.public_key, life)
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn uuid() -> String {
    format!("{:x}", rand::random::<u128>())
}

/// What the server knows, and how it lies.
pub(crate) struct State {
    pub(crate) ca: Arc<Ca>,
    /// Signs the server's own certificate instead of `ca`.
    pub(crate) other_ca: Option<Arc<Ca>>,
    pub(crate) server_id: String,
    /// Not told in the bundle.
    pub(crate) hide_bundle: bool,
    pub(crate) more_authorities: Vec<types::X509Certificate>,
    pub(crate) taint: bool,
    pub(crate) sequence: u64,
    pub(crate) federated: BTreeMap<String, types::Bundle>,
    pub(crate) tokens: HashSet<String>,
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
    /// Calls by name, as they come in.
    pub(crate) calls: BTreeMap<&'static str, usize>,
    /// Calls with these names wait until it is empty again.
    pub(crate) held: HashSet<&'static str>,
    /// How many entries were sent whole.
    pub(crate) sent: usize,
}

#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
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
            calls: BTreeMap::new(),
            held: HashSet::new(),
            sent: 0,
        };
        let mut fake = Self {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::new(watch::Sender::new(0)),
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
                        .add_service(SvidServer::new(fake.clone()));
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

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Agent for Fake {
    type AttestAgentStream = Answers<AttestAgentResponse>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        let Some(attest_agent_request::Step::Params(params)) = first.step else {
            return Err(Status::invalid_argument("params first"));
        };
        self.note("AttestAgent").await;
        let payload = params.data.unwrap().payload;
        let token = String::from_utf8(payload.to_vec()).unwrap();
        let csr = params.params.unwrap().csr;
        let read = CertificateSigningRequestParams::from_der(&csr.clone().into()).unwrap();
        let key = read.public_key.subject_public_key_info();
        let (id, life, reattestable) = {
            let mut state = self.state();
            if let Some(reason @ types::permission_denied_details::Reason::AgentBanned) =
                state.denied
            {
                return Err(denying(reason));
            }
            let taker = state.takers.as_ref().and_then(|takers| takers.get(&token));
            let known = state.tokens.contains(&token) || taker == Some(&key);
            if !known {
                return Err(Status::invalid_argument(
                    "failed to attest: join token does not exist or has already been used",
                ));
            }
            if !state.reattestable {
                state.tokens.remove(&token);
                if let Some(takers) = &mut state.takers {
                    takers.insert(token, key);
                }
            }
            (state.agent_id.clone(), state.agent_life, state.reattestable)
        };
        self.note("AttestAnswer").await;
        let svid = self.issue(&csr, &id, life);
        let result = attest_agent_response::Result {
            svid: Some(svid),
            reattestable,
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender
            .send(Ok(AttestAgentResponse {
                step: Some(attest_agent_response::Step::Result(result)),
            }))
            .await
            .unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew_agent(
        &self,
        request: Request<RenewAgentRequest>,
    ) -> Result<Response<RenewAgentResponse>, Status> {
        self.note("RenewAgent").await;
        self.authorize()?;
        let (id, life) = {
            let state = self.state();
            (state.agent_id.clone(), state.agent_life)
        };
        let csr = request.into_inner().params.unwrap().csr;
        Ok(Response::new(RenewAgentResponse {
            svid: Some(self.issue(&csr, &id, life)),
        }))
    }

    async fn post_status(
        &self,
        _request: Request<PostStatusRequest>,
    ) -> Result<Response<PostStatusResponse>, Status> {
        self.note("PostStatus").await;
        Ok(Response::new(PostStatusResponse {}))
    }

    async fn count_agents(
        &self,
        _: Request<CountAgentsRequest>,
    ) -> Result<Response<CountAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_agent(
        &self,
        _: Request<GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_agent(&self, _: Request<DeleteAgentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn ban_agent(&self, _: Request<BanAgentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn create_join_token(
        &self,
        _: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Bundle for Fake {
    async fn get_bundle(
        &self,
        _request: Request<GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        self.note("GetBundle").await;
        let state = self.state();
        let mut authorities = state.more_authorities.clone();
        if !state.hide_bundle {
            authorities.push(types::X509Certificate {
                asn1: state.ca.der.to_vec().into(),
                tainted: state.taint,
            });
        }
        Ok(Response::new(types::Bundle {
            trust_domain: DOMAIN.into(),
            x509_authorities: authorities,
            sequence_number: state.sequence,
            ..types::Bundle::default()
        }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let domain = request.into_inner().trust_domain;
        let found = self.state().federated.get(&domain).cloned();
        found
            .map(Response::new)
            .ok_or_else(|| Status::not_found("bundle not found"))
    }

    async fn count_bundles(
        &self,
        _: Request<CountBundlesRequest>,
    ) -> Result<Response<CountBundlesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn append_bundle(
        &self,
        _: Request<AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn publish_jwt_authority(
        &self,
        _: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn publish_wit_authority(
        &self,
        _: Request<PublishWitAuthorityRequest>,
    ) -> Result<Response<PublishWitAuthorityResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_federated_bundles(
        &self,
        _: Request<ListFederatedBundlesRequest>,
    ) -> Result<Response<ListFederatedBundlesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_create_federated_bundle(
        &self,
        _: Request<BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<BatchCreateFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_update_federated_bundle(
        &self,
        _: Request<BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<BatchUpdateFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_set_federated_bundle(
        &self,
        _: Request<BatchSetFederatedBundleRequest>,
    ) -> Result<Response<BatchSetFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_delete_federated_bundle(
        &self,
        _: Request<BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<BatchDeleteFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Revisions on a page of the fake.
const PAGE: usize = 2;

#[tonic::async_trait]
impl Entry for Fake {
    type SyncAuthorizedEntriesStream = Answers<SyncAuthorizedEntriesResponse>;

    async fn get_authorized_entries(
        &self,
        _request: Request<GetAuthorizedEntriesRequest>,
    ) -> Result<Response<GetAuthorizedEntriesResponse>, Status> {
        self.note("GetAuthorizedEntries").await;
        self.authorize()?;
        let entries = self.state().entries.values().cloned().collect();
        Ok(Response::new(GetAuthorizedEntriesResponse { entries }))
    }

    /// As upstream: few entries come whole, more as pages of revisions.
    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        self.note("SyncAuthorizedEntries").await;
        self.authorize()?;
        let mut requests = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let fake = self.clone();
        let entries = self.state().entries.clone();
        tokio::spawn(async move {
            let _ = requests.message().await;
            if entries.len() <= PAGE {
                let entries: Vec<_> = entries.into_values().collect();
                fake.state().sent += entries.len();
                let whole = SyncAuthorizedEntriesResponse {
                    entries,
                    ..SyncAuthorizedEntriesResponse::default()
                };
                let _ = sender.send(Ok(whole)).await;
                return;
            }
            let revisions: Vec<_> = entries
                .values()
                .map(|entry| EntryRevision {
                    id: entry.id.clone(),
                    revision_number: entry.revision_number,
                    created_at: entry.created_at,
                })
                .collect();
            let pages = revisions.chunks(PAGE).count();
            for (n, page) in revisions.chunks(PAGE).enumerate() {
                let page = SyncAuthorizedEntriesResponse {
                    entry_revisions: page.to_vec(),
                    more: n + 1 < pages,
                    ..SyncAuthorizedEntriesResponse::default()
                };
                let _ = sender.send(Ok(page)).await;
            }
            while let Ok(Some(request)) = requests.message().await {
                let found: Vec<_> = request
                    .ids
                    .iter()
                    .filter_map(|id| entries.get(id).cloned())
                    .collect();
                fake.state().sent += found.len();
                let page = SyncAuthorizedEntriesResponse {
                    entries: found,
                    ..SyncAuthorizedEntriesResponse::default()
                };
                let _ = sender.send(Ok(page)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn count_entries(
        &self,
        _: Request<CountEntriesRequest>,
    ) -> Result<Response<CountEntriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_entries(
        &self,
        _: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_entry(
        &self,
        _: Request<GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_create_entry(
        &self,
        _: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_update_entry(
        &self,
        _: Request<BatchUpdateEntryRequest>,
    ) -> Result<Response<BatchUpdateEntryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_delete_entry(
        &self,
        _: Request<BatchDeleteEntryRequest>,
    ) -> Result<Response<BatchDeleteEntryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Svid for Fake {
    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        self.note("BatchNewX509SVID").await;
        self.authorize()?;
        let mut results = Vec::new();
        for params in request.into_inner().params {
            let (entry, life) = {
                let state = self.state();
                (
                    state.entries.get(&params.entry_id).cloned(),
                    state.svid_life,
                )
            };
            results.push(match entry {
                Some(entry) => {
                    let id = entry.spiffe_id.unwrap();
                    let id = format!("spiffe://{}{}", id.trust_domain, id.path);
                    batch_new_x509svid_response::Result {
                        status: Some(types::Status::default()),
                        svid: Some(self.issue(&params.csr, &id, life)),
                    }
                }
                None => batch_new_x509svid_response::Result {
                    status: Some(types::Status {
                        code: 5,
                        message: "entry not found or not authorized".into(),
                    }),
                    svid: None,
                },
            });
        }
        Ok(Response::new(BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<NewJwtsvidRequest>,
    ) -> Result<Response<NewJwtsvidResponse>, Status> {
        self.note("NewJWTSVID").await;
        let request = request.into_inner();
        let state = self.state();
        if state.jwt_down {
            return Err(Status::unavailable("no"));
        }
        let entry = &state.entries[&request.entry_id];
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let issued_at = i64::try_from(now.as_secs()).unwrap();
        let life = i64::try_from(state.jwt_life.as_secs()).unwrap();
        Ok(Response::new(NewJwtsvidResponse {
            svid: Some(types::Jwtsvid {
                token: format!("e30.{}.c2ln", state.calls["NewJWTSVID"]),
                id: entry.spiffe_id.clone(),
                issued_at,
                expires_at: issued_at + life,
                hint: String::new(),
            }),
        }))
    }

    async fn mint_x509svid(
        &self,
        _: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_jwtsvid(
        &self,
        _: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_witsvid(
        &self,
        _: Request<MintWitsvidRequest>,
    ) -> Result<Response<MintWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_new_witsvid(
        &self,
        _: Request<BatchNewWitsvidRequest>,
    ) -> Result<Response<BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn new_downstream_x509ca(
        &self,
        _: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
