//! A server in this process, on a unix socket and on TLS, with a CA of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, PrivateKey, TrustBundles};
use ah_spire_telemetry::{Metrics, RpcMetrics};
use ah_spire_wire::model::{Bundle, Entry, JwtKey, Selector, X509Authority};
use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::agent::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, CreateJoinTokenRequest,
    attest_agent_request, attest_agent_response,
};
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::types::permission_denied_details::Reason;
use ah_spire_wire::{Channel, types};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use spire_server::api::{
    Ask, Attested, Attestors, Authority, Core, Holdings, LogLevel, RateLimits, RegoPolicy,
};
use spire_server::ca::{
    Authorities, JwtSvid, JwtSvidRequest, LocalAuthorities, Manager, Profile, Settings, SignError,
    Signer, UpstreamAuthority, WitSvid, WitSvidRequest, X509Svid, X509SvidRequest,
};
use spire_server::endpoints::{ClientTrust, Configs, LocalSocket, Network, ServerSvid, bind};
use spire_server::entries::{CachedStore, EntryCache};
use spire_server::federation;
use spire_server::keys::{KeyType, MemoryKeys};
use spire_server::store::{Bundles, Journals, SqlStore, StoreConfig};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

pub(crate) const DOMAIN: &str = "example.org";

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://{DOMAIN}{path}")).unwrap()
}

pub(crate) fn wire(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid {
        trust_domain: DOMAIN.into(),
        path: path.into(),
    })
}

/// Why a call failed: some answers cannot be printed.
pub(crate) fn refused<T>(answer: Result<T, Status>) -> Status {
    answer.map(|_| ()).unwrap_err()
}

/// A CA of a trust domain.
pub(crate) struct TestAuthority {
    ca: CertifiedIssuer<'static, KeyPair>,
    wit: AtomicBool,
}

impl TestAuthority {
    pub(crate) fn new(domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let uri = format!("spiffe://{domain}").try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            ca,
            wit: AtomicBool::new(false),
        }
    }

    /// As the feature flag `wit-svid` does.
    pub(crate) fn allow_wit(&self) {
        self.wit.store(true, Ordering::Relaxed);
    }

    pub(crate) fn root(&self) -> Vec<u8> {
        self.ca.as_ref().der().to_vec()
    }

    pub(crate) fn sign(&self, request: &X509SvidRequest) -> Result<X509Svid, SignError> {
        let invalid = |error: rcgen::Error| SignError::Invalid(error.to_string());
        let key = SubjectPublicKeyInfo::from_der(&request.spki).map_err(invalid)?;
        let mut params = CertificateParams::new(request.dns_names.clone()).map_err(invalid)?;
        let uri = request.spiffe_id.to_string().try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "SPIRE");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let serial = u128::from(rand::random::<u64>()) + (1 << 64);
        params.serial_number = Some(serial.to_be_bytes().to_vec().into());
        let not_after = SystemTime::now() + request.ttl.unwrap_or(Duration::from_secs(3600));
        params.not_before = (SystemTime::now() - Duration::from_secs(10)).into();
        params.not_after = not_after.into();
        let cert = params.signed_by(&key, &self.ca).map_err(invalid)?;
        Ok(X509Svid {
            chain: vec![cert.der().to_vec()],
            serial_number: serial.to_string(),
            not_after,
        })
    }

    /// A key, and a certificate for it.
    pub(crate) fn issue(&self, id: &SpiffeId) -> Identity {
        let key = KeyPair::generate().unwrap();
        let request = X509SvidRequest {
            spiffe_id: id.clone(),
            spki: rcgen::PublicKeyData::subject_public_key_info(&key),
            dns_names: Vec::new(),
            ttl: None,
        };
        Identity {
            chain: self.sign(&request).unwrap().chain,
            key: key.serialize_der(),
        }
    }
}

impl Signer for TestAuthority {
    fn sign_x509_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError> {
        self.sign(&request)
    }

    fn sign_agent_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError> {
        self.sign(&request)
    }

    fn sign_jwt_svid(&self, request: JwtSvidRequest) -> Result<JwtSvid, SignError> {
        let issued_at = SystemTime::now();
        Ok(JwtSvid {
            token: format!("{} for {}", request.spiffe_id, request.audience.join(",")),
            issued_at,
            expires_at: issued_at + request.ttl.unwrap_or(Duration::from_secs(300)),
        })
    }

    fn sign_wit_svid(&self, request: WitSvidRequest) -> Result<WitSvid, SignError> {
        let issued_at = SystemTime::now();
        Ok(WitSvid {
            token: format!("{} with {:?}", request.spiffe_id, request.holder),
            issued_at,
            expires_at: issued_at + request.ttl.unwrap_or(Duration::from_secs(3600)),
        })
    }
}

#[tonic::async_trait]
impl Authority for TestAuthority {
    fn sign_downstream_ca(
        &self,
        spki: &[u8],
        _ttl: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, SignError> {
        let invalid = |error: rcgen::Error| SignError::Invalid(error.to_string());
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(invalid)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.signed_by(&key, &self.ca).map_err(invalid)?;
        Ok(vec![cert.der().to_vec()])
    }

    fn jwt_disabled(&self) -> bool {
        false
    }

    fn wit_disabled(&self) -> bool {
        !self.wit.load(Ordering::Relaxed)
    }

    async fn publish_jwt_key(&self, key: JwtKey) -> Result<Vec<JwtKey>, SignError> {
        Ok(vec![key])
    }
}

/// One attestor, `echo`: it lets in who answers its challenge with the payload.
struct Echo;

#[tonic::async_trait]
impl Attestors for Echo {
    async fn attest(
        &self,
        name: &str,
        payload: &[u8],
        _address: Option<IpAddr>,
        agent: &mut dyn Ask,
    ) -> Option<Result<Attested, Status>> {
        if name != "echo" {
            return None;
        }
        Some(match agent.ask(b"say it again".to_vec()).await {
            Ok(answer) if answer == payload => Ok(Attested {
                id: id("/spire/agent/echo/1"),
                selectors: vec![Selector::new("echo", "yes")],
                can_reattest: true,
            }),
            Ok(_) => Err(Status::permission_denied("wrong echo")),
            Err(status) => Err(status),
        })
    }
}

struct Level(AtomicI32);

impl LogLevel for Level {
    fn current(&self) -> types::LogLevel {
        types::LogLevel::try_from(self.0.load(Ordering::SeqCst)).unwrap()
    }

    fn launch(&self) -> types::LogLevel {
        types::LogLevel::Info
    }

    fn set(&self, level: types::LogLevel) -> Result<(), String> {
        self.0.store(level.into(), Ordering::SeqCst);
        Ok(())
    }
}

/// The machine's clock, as many seconds ahead as a test wants it.
#[derive(Debug, Default)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn jump(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// A chain with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: Vec<u8>,
}

pub(crate) struct Rig {
    pub(crate) authority: Arc<TestAuthority>,
    pub(crate) store: Arc<CachedStore<SqlStore>>,
    pub(crate) cache: Arc<EntryCache>,
    pub(crate) socket: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) bundles: watch::Sender<Arc<TrustBundles>>,
    pub(crate) folder: TempDir,
    pub(crate) clock: Arc<TestClock>,
    _svid: watch::Sender<Option<Arc<ServerSvid>>>,
    _chain: watch::Sender<Vec<Vec<u8>>>,
    stop: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn config(folder: &Path) -> StoreConfig {
    StoreConfig {
        database_type: "sqlite3".into(),
        connection_string: folder.join("db.sqlite3").display().to_string(),
        ..StoreConfig::default()
    }
}

async fn manager<S: Bundles + Journals + 'static>(
    store: Arc<S>,
    upstream: Option<Arc<dyn UpstreamAuthority>>,
    clock: Arc<dyn Clock>,
) -> Arc<dyn LocalAuthorities> {
    let profile = Profile::new(TrustDomain::new(DOMAIN).unwrap());
    let settings = Settings {
        ca_key_type: KeyType::EcP256,
        jwt_key_type: KeyType::EcP256,
        disable_jwt: false,
        wit_key_type: None,
        upstream,
    };
    let authorities = Arc::new(Authorities::new(profile, clock));
    let started = Manager::start(authorities, store, MemoryKeys::default(), settings).await;
    Arc::new(started.unwrap())
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(admin_ids: &[SpiffeId]) -> Self {
        Self::build(admin_ids, None, None).await
    }

    /// With authorities of its own in the bundle, below `upstream` where there is one. What is served is signed by the
    /// test's authority all the same.
    pub(crate) async fn with_authorities(upstream: Option<Arc<dyn UpstreamAuthority>>) -> Self {
        Self::build(&[], Some(upstream), None).await
    }

    /// With a policy in Rego.
    pub(crate) async fn with_policy(policy: RegoPolicy) -> Self {
        Self::build(&[], None, Some(policy)).await
    }

    async fn build(
        admin_ids: &[SpiffeId],
        authorities: Option<Option<Arc<dyn UpstreamAuthority>>>,
        policy: Option<RegoPolicy>,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let store = SqlStore::open(&config(folder.path())).await.unwrap();
        let authority = Arc::new(TestAuthority::new(DOMAIN));
        let ours = TrustDomain::new(DOMAIN).unwrap();
        let bundle = Bundle {
            trust_domain: ours.clone(),
            x509: vec![X509Authority {
                der: authority.root(),
                tainted: false,
            }],
            jwt: Vec::new(),
            wit: Vec::new(),
            refresh_hint: 0,
            sequence: 1,
        };
        store.put_bundle(&bundle).await.unwrap();
        let own = authority.issue(&id("/spire/server"));
        let (chain_sender, own_chain) = watch::channel(own.chain.clone());
        let (svid_sender, svid) = watch::channel(Some(Arc::new(ServerSvid {
            chain: own.chain,
            key: PrivateKey::pkcs8(own.key),
        })));
        let root = CertificateDer::from(authority.root());
        let trusted = TrustBundles {
            unscoped: Vec::new(),
            domains: [(ours.clone(), vec![root])].into(),
        };
        let (bundles, trusted) = watch::channel(Arc::new(trusted));
        let admin_ids: BTreeSet<SpiffeId> = admin_ids.iter().cloned().collect();
        let cache = EntryCache::load(&store, ours.clone()).await.unwrap();
        let cache = Arc::new(cache);
        let store = Arc::new(CachedStore::new(store, cache.clone()));
        let clock = Arc::new(TestClock::default());
        let federation = Arc::new(federation::Manager::new(
            ours.clone(),
            BTreeMap::new(),
            store.clone(),
            clock.clone(),
            Metrics::off(),
            false,
        ));
        let local_authorities: Arc<dyn LocalAuthorities> = match authorities {
            Some(upstream) => manager(store.clone(), upstream, clock.clone()).await,
            None => {
                let elsewhere = folder.path().join("elsewhere");
                std::fs::create_dir(&elsewhere).unwrap();
                let apart = SqlStore::open(&config(&elsewhere)).await.unwrap();
                manager(Arc::new(apart), None, clock.clone()).await
            }
        };
        let core = Arc::new(Core {
            trust_domain: ours.clone(),
            store: store.clone(),
            authority: authority.clone(),
            local_authorities,
            holdings: Holdings::default(),
            entries: cache.clone(),
            agent_staleness: None,
            federation: federation.clone(),
            attestors: Arc::new(Echo),
            admin_ids: admin_ids.clone(),
            policy: policy.map(Arc::new),
            rpc: RpcMetrics::default(),
            limits: RateLimits::new(false, true, &ah_spire_telemetry::Metrics::off()),
            clock: clock.clone(),
            agent_id_as_selector: false,
            log: Arc::new(Level(AtomicI32::new(types::LogLevel::Info.into()))),
            audit_log: false,
            own_chain,
            started: SystemTime::now(),
        });
        let socket = folder.path().join("private/api.sock");
        let local = LocalSocket::bind(&socket).unwrap();
        let clients = ClientTrust {
            trust_domain: ours,
            admin_ids,
        };
        let configs = Configs::new(svid, trusted, clients, clock.clone(), false);
        let network = Network::new(bind("127.0.0.1:0".parse().unwrap()).unwrap(), configs);
        let address = network.address().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            federation.run().await;
        }));
        tokio::spawn(local.run(core.clone(), stop.clone()));
        tokio::spawn(network.run(core, stop.clone()));
        Self {
            authority,
            store,
            cache,
            socket,
            address,
            bundles,
            folder,
            clock,
            _svid: svid_sender,
            _chain: chain_sender,
            stop,
        }
    }

    /// Tells it to end.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Its database, as another server opens it.
    pub(crate) async fn database(&self) -> SqlStore {
        SqlStore::open(&config(self.folder.path())).await.unwrap()
    }

    pub(crate) async fn local(&self) -> Channel {
        Channel::unix(&self.socket).await.unwrap()
    }

    pub(crate) async fn agents(&self) -> AgentClient<Channel> {
        AgentClient::with_origin(self.local().await, Channel::origin())
    }

    pub(crate) async fn entries(&self) -> EntryClient<Channel> {
        EntryClient::with_origin(self.local().await, Channel::origin())
    }

    pub(crate) async fn svids(&self) -> SvidClient<Channel> {
        SvidClient::with_origin(self.local().await, Channel::origin())
    }

    pub(crate) async fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::with_origin(self.local().await, Channel::origin())
    }

    /// A connection over TLS, with a client certificate or without.
    pub(crate) async fn network(&self, identity: Option<&Identity>) -> std::io::Result<Channel> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let chain = identity
                    .chain
                    .iter()
                    .cloned()
                    .map(CertificateDer::from)
                    .collect();
                let key = PrivatePkcs8KeyDer::from(identity.key.clone());
                config.with_client_auth_cert(chain, key.into()).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = tokio::net::TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("spire-server").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        Channel::over(tls.connect(name, tcp).await?).await
    }

    pub(crate) async fn token(&self) -> String {
        let request = CreateJoinTokenRequest {
            ttl: 60,
            ..Default::default()
        };
        let token = self
            .agents()
            .await
            .create_join_token(request)
            .await
            .unwrap();
        token.into_inner().value
    }

    /// Attests with a token: the agent's ID and identity.
    pub(crate) async fn attested(&self) -> (SpiffeId, Identity) {
        let token = self.token().await;
        let key = KeyPair::generate().unwrap();
        let result = self.attest("join_token", token.as_bytes(), csr(&key)).await;
        let svid = result.unwrap().svid.unwrap();
        let chain = svid.cert_chain.iter().map(|der| der.to_vec()).collect();
        let agent = id(&svid.id.unwrap().path);
        let key = key.serialize_der();
        (agent, Identity { chain, key })
    }

    pub(crate) async fn attest(
        &self,
        kind: &str,
        payload: &[u8],
        csr: Vec<u8>,
    ) -> Result<attest_agent_response::Result, Status> {
        let (sender, requests) = tokio::sync::mpsc::channel(4);
        sender
            .send(attest_params(kind, payload, csr))
            .await
            .unwrap();
        let channel = self.network(None).await.unwrap();
        let mut client = AgentClient::with_origin(channel, Channel::origin());
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = client.attest_agent(requests).await?.into_inner();
        loop {
            let AttestAgentResponse { step } = answers.message().await?.unwrap();
            match step.unwrap() {
                attest_agent_response::Step::Result(result) => return Ok(result),
                attest_agent_response::Step::Challenge(_) => {
                    let step = attest_agent_request::Step::ChallengeResponse(payload.to_vec());
                    let answer = AttestAgentRequest { step: Some(step) };
                    sender.send(answer).await.unwrap();
                }
            }
        }
    }
}

pub(crate) fn attest_params(kind: &str, payload: &[u8], csr: Vec<u8>) -> AttestAgentRequest {
    AttestAgentRequest {
        step: Some(attest_agent_request::Step::Params(
            attest_agent_request::Params {
                data: Some(types::AttestationData {
                    r#type: kind.into(),
                    payload: payload.to_vec().into(),
                }),
                params: Some(AgentX509svidParams { csr }),
            },
        )),
    }
}

pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
    csr_for(key, &[], &[])
}

pub(crate) fn csr_for(key: &KeyPair, uris: &[&str], dns: &[&str]) -> Vec<u8> {
    let dns: Vec<String> = dns.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(dns).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for uri in uris {
        let uri = (*uri).try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
    }
    params.serialize_request(key).unwrap().der().to_vec()
}

pub(crate) fn entry(path: &str, parent: &SpiffeId) -> Entry {
    Entry::new(
        id(path),
        parent.clone(),
        vec![Selector::new("unix", "uid:0")],
    )
}

#[derive(Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// The reason in the details of a refusal, as upstream's agents read it.
pub(crate) fn reason(status: &Status) -> Option<Reason> {
    assert_eq!(
        status.code(),
        Code::PermissionDenied,
        "{}",
        status.message()
    );
    let details = RpcStatus::decode(status.details()).unwrap().details;
    let details = details.first()?;
    assert_eq!(
        details.type_url,
        "type.googleapis.com/spire.api.types.PermissionDeniedDetails"
    );
    let details = types::PermissionDeniedDetails::decode(details.value.as_slice()).unwrap();
    Some(details.reason())
}

/// What is tested is the server's look at its clients, not theirs at it.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
