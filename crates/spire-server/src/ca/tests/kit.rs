//! A clock that the test holds, keys and names.

mod store;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_wire::jwt::{UnverifiedJwt, validate_jwt_svid};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use tempfile::TempDir;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::ca::authority::Token;
use crate::ca::{
    Authorities, HolderKey, JwtSvidRequest, Manager, Profile, Settings, Signer, WitSvidRequest,
    X509SvidRequest, prepare,
};
use crate::keys::{DiskKeys, KeyManager, KeyType, LocalKey, MemoryKeys, SigningKey};

pub(super) use store::{Life, MemoryStore, MortalKeys};

/// 2027-01-15.
pub(super) const START: u64 = 1_800_000_000;

#[derive(Debug)]
pub(super) struct HeldClock(Mutex<SystemTime>);

impl HeldClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(at(0))))
    }

    pub(super) fn set(&self, seconds: i64) {
        *self.0.lock().unwrap() = at(seconds);
    }

    pub(super) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for HeldClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// The clock that a test with paused time turns.
#[derive(Debug)]
pub(super) struct PausedClock(tokio::time::Instant);

impl PausedClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(tokio::time::Instant::now()))
    }
}

impl Clock for PausedClock {
    fn now(&self) -> SystemTime {
        at(0) + self.0.elapsed()
    }
}

/// So many seconds after [`START`].
pub(super) fn at(seconds: i64) -> SystemTime {
    let since = START.checked_add_signed(seconds).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since)
}

pub(super) fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

pub(super) fn key(kind: KeyType) -> Arc<dyn SigningKey> {
    Arc::new(LocalKey::generate("k", kind).unwrap())
}

/// With a self-signed CA and keys for tokens of this type.
pub(super) fn authorities(profile: Profile, kind: KeyType) -> (Authorities, Arc<HeldClock>) {
    let clock = HeldClock::new();
    let x509 = prepare::self_signed(&profile, key(kind), clock.now()).unwrap();
    let [jwt, wit] = [(); 2].map(|()| prepare::token(&profile, key(kind), clock.now()).unwrap());
    let authorities = Authorities::new(profile, clock.clone());
    authorities.set_x509(Some(Arc::new(x509)));
    authorities.set_token(Token::Jwt, Some(Arc::new(jwt)));
    authorities.set_token(Token::Wit, Some(Arc::new(wit)));
    (authorities, clock)
}

pub(super) fn request(path: &str) -> X509SvidRequest {
    X509SvidRequest {
        spiffe_id: SpiffeId::new(format!("spiffe://example.org{path}")).unwrap(),
        spki: key(KeyType::EcP256).spki().to_vec(),
        dns_names: Vec::new(),
        ttl: None,
    }
}

pub(super) fn settings() -> Settings {
    Settings {
        ca_key_type: KeyType::EcP256,
        jwt_key_type: KeyType::EcP256,
        disable_jwt: false,
        wit_key_type: Some(KeyType::EcP256),
        upstream: None,
    }
}

/// A server's start.
pub(super) async fn start<K: KeyManager>(
    store: &MemoryStore,
    keys: K,
    clock: Arc<dyn Clock>,
) -> Result<Manager<MemoryStore, K>, crate::ca::CaError> {
    let authorities = Arc::new(Authorities::new(Profile::new(domain()), clock));
    Manager::start(authorities, Arc::new(store.clone()), keys, settings()).await
}

/// Of a test's own: a directory, a store, a clock.
pub(super) fn place() -> (TempDir, MemoryStore, Arc<HeldClock>) {
    let dir = tempfile::tempdir().unwrap();
    (dir, MemoryStore::default(), HeldClock::new())
}

pub(super) fn keys_in(dir: &TempDir) -> DiskKeys {
    DiskKeys::open(&dir.path().join("keys.json")).unwrap()
}

/// A server that has started with the keys in `dir`.
pub(super) async fn on_disk<C: Clock>(
    dir: &TempDir,
    store: &MemoryStore,
    clock: &Arc<C>,
) -> Manager<MemoryStore, DiskKeys> {
    start(store, keys_in(dir), clock.clone()).await.unwrap()
}

/// A server that has started with new keys, which end with it.
pub(super) async fn started<C: Clock>(
    store: &MemoryStore,
    clock: &Arc<C>,
) -> Manager<MemoryStore, MemoryKeys> {
    let keys = MemoryKeys::default();
    start(store, keys, clock.clone()).await.unwrap()
}

pub(super) fn jwt_request() -> JwtSvidRequest {
    JwtSvidRequest {
        spiffe_id: SpiffeId::new("spiffe://example.org/w").unwrap(),
        audience: vec!["a".into(), String::new(), "b".into()],
        ttl: None,
        include_jti: false,
    }
}

pub(super) fn wit_request() -> WitSvidRequest {
    WitSvidRequest {
        spiffe_id: SpiffeId::new("spiffe://example.org/w").unwrap(),
        holder: HolderKey::new(key(KeyType::EcP256).spki(), "ES256").unwrap(),
        ttl: None,
    }
}

/// Fails unless the chain leads from its leaf to one of `roots`, for both ends of a connection.
pub(super) fn verify<'a>(
    chain: &[Vec<u8>],
    roots: impl IntoIterator<Item = &'a [u8]>,
    now: SystemTime,
) {
    let roots: Vec<_> = roots.into_iter().map(CertificateDer::from).collect();
    let anchors: Vec<_> = roots
        .iter()
        .map(|root| anchor_from_trusted_cert(root).unwrap())
        .collect();
    let chain: Vec<_> = chain
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let leaf = EndEntityCert::try_from(&chain[0]).unwrap();
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &chain[1..],
            UnixTime::since_unix_epoch(now),
            usage,
            None,
            None,
        )
        .unwrap();
    }
}

/// All kinds of SVID are believed by whoever has the bundle in the store (SV-53).
pub(super) fn signs_for_the_bundle(authorities: &Authorities, store: &MemoryStore) {
    let now = authorities.clock().now();
    let bundle = store.own();
    let svid = authorities.sign_x509_svid(request("/w")).unwrap();
    verify(
        &svid.chain,
        bundle.x509.iter().map(|ca| ca.der.as_slice()),
        now,
    );
    let svid = authorities.sign_jwt_svid(jwt_request()).unwrap();
    validate_jwt_svid(&svid.token, "a", |_| Some(&bundle), now).unwrap();
    let svid = authorities.sign_wit_svid(wit_request()).unwrap();
    let token = UnverifiedJwt::parse(&svid.token).unwrap();
    let mut keys = bundle.wit.iter();
    let key = keys.find(|key| token.key_id.as_ref() == Some(&key.id));
    token.verify(&key.unwrap().spki).unwrap();
}
