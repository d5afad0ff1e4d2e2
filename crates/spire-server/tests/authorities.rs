//! The authorities on the real store and the real disk (SV-53): kill -9, and several servers on one datastore.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::SystemClock;
use ah_spire_wire::jwt::validate_jwt_svid;
use ah_spire_wire::stored::journal::{Entries, Status};
use ah_testkit::child;
use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use spire_server::ca::{
    Authorities, JwtSvidRequest, LocalAuthorities as _, Manager, Profile, Settings, Signer,
    X509SvidRequest,
};
use spire_server::keys::{DiskKeys, KeyManager, KeyType, LocalKey, MemoryKeys, SigningKey};
use spire_server::store::{Bundles, Journals, SqlStore, StoreConfig};

fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

async fn open(dir: &Path) -> Arc<SqlStore> {
    let config = StoreConfig {
        database_type: "sqlite3".into(),
        connection_string: dir.join("datastore.sqlite3").display().to_string(),
        ..StoreConfig::default()
    };
    Arc::new(SqlStore::open(&config).await.unwrap())
}

async fn start<K: KeyManager>(store: &Arc<SqlStore>, keys: K) -> Manager<SqlStore, K> {
    let profile = Profile::new(domain());
    let authorities = Arc::new(Authorities::new(profile, Arc::new(SystemClock)));
    let settings = Settings {
        ca_key_type: KeyType::EcP256,
        jwt_key_type: KeyType::EcP256,
        disable_jwt: false,
        wit_key_type: Some(KeyType::EcP256),
        upstream: None,
    };
    Manager::start(authorities, store.clone(), keys, settings)
        .await
        .unwrap()
}

/// Both kinds of SVID are believed by whoever has the bundle in the store.
async fn signs_for_the_bundle(authorities: &Authorities, store: &SqlStore) {
    let bundle = store.bundle(&domain()).await.unwrap().unwrap();
    let spiffe_id = SpiffeId::new("spiffe://example.org/w").unwrap();
    let request = X509SvidRequest {
        spiffe_id: spiffe_id.clone(),
        spki: LocalKey::generate("k", KeyType::EcP256)
            .unwrap()
            .spki()
            .to_vec(),
        dns_names: Vec::new(),
        ttl: None,
    };
    let svid = authorities.sign_x509_svid(request).unwrap();
    let roots: Vec<_> = bundle
        .x509
        .iter()
        .map(|ca| CertificateDer::from(ca.der.as_slice()))
        .collect();
    let anchors: Vec<_> = roots
        .iter()
        .map(|root| webpki::anchor_from_trusted_cert(root).unwrap())
        .collect();
    let leaf = CertificateDer::from(svid.chain[0].as_slice());
    webpki::EndEntityCert::try_from(&leaf)
        .unwrap()
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            UnixTime::now(),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .unwrap();
    let request = JwtSvidRequest {
        spiffe_id,
        audience: vec!["a".into()],
        ttl: None,
        include_jti: false,
    };
    let svid = authorities.sign_jwt_svid(request).unwrap();
    validate_jwt_svid(&svid.token, "a", |_| Some(&bundle), SystemTime::now()).unwrap();
}

/// How many authorities of each kind a journal calls active.
fn active(journal: &[u8]) -> [usize; 3] {
    let entries = Entries::decode(journal).unwrap();
    let is_active = |status: i32| status == i32::from(Status::Active);
    let x509 = entries.x509_c_as.iter().filter(|e| is_active(e.status));
    let jwt = entries.jwt_keys.iter().filter(|e| is_active(e.status));
    let wit = entries.wit_keys.iter().filter(|e| is_active(e.status));
    [x509.count(), jwt.count(), wit.count()]
}

/// Prepares and activates authorities without end, telling each step.
async fn rotate_for_ever(dir: &Path) {
    let store = open(dir).await;
    let keys = DiskKeys::open(&dir.join("keys.json")).unwrap();
    let manager = start(&store, keys).await;
    signs_for_the_bundle(manager.authorities(), &store).await;
    println!("started {}", manager.x509_states().await.unwrap().active.id);
    loop {
        let x509 = manager.prepare_x509().await.unwrap().id;
        println!("prepared");
        manager.activate_x509(&x509).await.unwrap();
        println!("activated");
        let jwt = manager.prepare_jwt().await.unwrap().id;
        println!("prepared");
        manager.activate_jwt(&jwt).await.unwrap();
        println!("activated");
        signs_for_the_bundle(manager.authorities(), &store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_while_it_rotates_starts_again() {
    if let Some(dir) = child::argument() {
        return rotate_for_ever(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    for lines in 1..=8 {
        let name = "a_server_killed_while_it_rotates_starts_again";
        let mut child = child::start(name, dir.path());
        // One line for each of the steps, after the harness's own two.
        let told = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .take(2 + lines)
            .last();
        assert!(told.is_some_and(|line| line.is_ok()));
        child.kill().unwrap();
        child.wait().unwrap();

        let store = open(dir.path()).await;
        let keys = DiskKeys::open(&dir.path().join("keys.json")).unwrap();
        let manager = start(&store, keys).await;
        signs_for_the_bundle(manager.authorities(), &store).await;
        let journals = store.journals().await.unwrap();
        assert_eq!(journals.len(), 1, "after {lines} lines");
        assert_eq!(active(&journals[0].1), [1; 3], "after {lines} lines");
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_rotate_at_once_share_one_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (open(dir.path()).await, open(dir.path()).await);
    let (one, other) = tokio::join!(
        start(&a, MemoryKeys::default()),
        start(&b, MemoryKeys::default())
    );
    for _ in 0..5 {
        let (x, y) = tokio::join!(one.prepare_x509(), other.prepare_x509());
        let (x, y) = (x.unwrap().id, y.unwrap().id);
        let (x, y) = tokio::join!(one.activate_x509(&x), other.activate_x509(&y));
        x.unwrap();
        y.unwrap();
        // Each believes the other.
        signs_for_the_bundle(one.authorities(), &b).await;
        signs_for_the_bundle(other.authorities(), &a).await;
    }
    let bundle = a.bundle(&domain()).await.unwrap().unwrap();
    assert_eq!((bundle.x509.len(), bundle.jwt.len()), (12, 2));
    let journals = a.journals().await.unwrap();
    assert_eq!(journals.len(), 2);
    assert!(journals.iter().all(|(_, data)| active(data) == [1; 3]));
}
