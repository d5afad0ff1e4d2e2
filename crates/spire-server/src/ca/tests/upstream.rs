use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::Clock;
use ah_spire_wire::bundle::pem;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::kit::{
    HeldClock, MemoryStore, at, domain, keys_in, place, settings, signs_for_the_bundle,
};
use crate::ca::{
    Authorities, CaError, DiskAuthority, Files, LocalAuthorities as _, Manager, MintedCa, Profile,
    UpstreamAuthority, UpstreamError,
};
use crate::keys::MemoryKeys;

pub(super) fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.not_before = (at(0) - Duration::from_secs(3600)).into();
    params.not_after = (at(0) + Duration::from_secs(30 * 24 * 3600)).into();
    params
}

/// A CA that signed itself.
pub(super) fn root(dir: &Path) -> Files {
    let key = KeyPair::generate().unwrap();
    let certificate = params("root").self_signed(&key).unwrap();
    write(dir, &certificate.pem(), &key, None)
}

/// A CA below a root.
pub(super) fn intermediate(dir: &Path) -> Files {
    let root_key = KeyPair::generate().unwrap();
    let root = params("root").self_signed(&root_key).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let issuer = Issuer::new(params("root"), root_key);
    let certificate = params("intermediate").signed_by(&key, &issuer).unwrap();
    write(dir, &certificate.pem(), &key, Some(&root.pem()))
}

fn write(dir: &Path, certificate: &str, key: &KeyPair, bundle: Option<&str>) -> Files {
    let files = Files {
        certificate: dir.join("ca.pem"),
        key: dir.join("ca-key.pem"),
        bundle: bundle.map(|_| dir.join("bundle.pem")),
    };
    std::fs::write(&files.certificate, certificate).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    if let (Some(path), Some(text)) = (&files.bundle, bundle) {
        std::fs::write(path, text).unwrap();
    }
    files
}

/// What `signer` makes of a CSR, for stand-ins that cannot wait for it.
pub(super) fn signed(signer: &DiskAuthority, csr: &[u8], ttl: Duration) -> MintedCa {
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let minted = signer.mint_x509_ca(csr, ttl);
        runtime.unwrap().block_on(minted).unwrap()
    };
    std::thread::scope(|scope| scope.spawn(wait).join().unwrap())
}

pub(super) async fn below(
    upstream: impl UpstreamAuthority,
    store: &MemoryStore,
    clock: Arc<HeldClock>,
) -> Result<Manager<MemoryStore, MemoryKeys>, CaError> {
    let authorities = Arc::new(Authorities::new(Profile::new(domain()), clock));
    let mut settings = settings();
    settings.upstream = Some(Arc::new(upstream));
    let store = Arc::new(store.clone());
    Manager::start(authorities, store, MemoryKeys::default(), settings).await
}

#[tokio::test]
async fn a_ca_below_a_root_on_disk() {
    let (dir, store, clock) = place();
    let upstream = DiskAuthority::open(root(dir.path()), domain(), clock.clone()).unwrap();
    let manager = below(upstream, &store, clock.clone()).await.unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
    let roots = std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    assert_eq!(pem(&store.own().x509[0].der), roots.replace("\r\n", "\n"));
    assert_eq!(store.own().x509.len(), 1);
    let active = manager.x509_states().await.unwrap().active;
    assert_eq!(active.upstream_id.len(), 40);
    // Only the upstream's own operator can do that.
    for answer in [
        manager.taint_x509(&active.id).await.map(|_| ()),
        manager.revoke_x509(&active.id).await,
    ] {
        assert!(
            matches!(answer, Err(CaError::Precondition(_))),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_ca_below_an_intermediate_brings_its_chain() {
    let (dir, store, clock) = place();
    let upstream = DiskAuthority::open(intermediate(dir.path()), domain(), clock.clone()).unwrap();
    let manager = below(upstream, &store, clock.clone()).await.unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
    use crate::ca::Signer as _;
    let svid = manager
        .authorities()
        .sign_x509_svid(super::kit::request("/w"))
        .unwrap();
    assert_eq!(svid.chain.len(), 3);
    let downstream = manager
        .authorities()
        .sign_downstream_ca(super::kit::key(crate::keys::KeyType::EcP256).spki(), None)
        .unwrap();
    assert_eq!(downstream.chain.len(), 3);
}

// The files are read anew for every CA.
#[tokio::test]
async fn a_new_root_on_disk_is_used_and_added_to_the_bundle() {
    let (dir, store, clock) = place();
    let upstream = DiskAuthority::open(root(dir.path()), domain(), clock.clone()).unwrap();
    let manager = below(upstream, &store, clock.clone()).await.unwrap();
    root(dir.path());
    clock.advance(Duration::from_secs(21 * 3600));
    manager.rotate().await.unwrap();
    assert_eq!(store.own().x509.len(), 2);
    signs_for_the_bundle(manager.authorities(), &store);
    // Gone, what was read last serves.
    std::fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
    clock.advance(Duration::from_secs(21 * 3600));
    manager.rotate().await.unwrap();
    assert_eq!(store.own().x509.len(), 2);
    signs_for_the_bundle(manager.authorities(), &store);
}

#[tokio::test]
async fn a_ca_of_the_upstream_is_found_again() {
    let (dir, store, clock) = place();
    let files = root(dir.path());
    let mut ids = Vec::new();
    for _ in 0..2 {
        let upstream = DiskAuthority::open(files.clone(), domain(), clock.clone()).unwrap();
        let authorities = Arc::new(Authorities::new(Profile::new(domain()), clock.clone()));
        let mut settings = settings();
        settings.upstream = Some(Arc::new(upstream));
        let keys = keys_in(&dir);
        let manager = Manager::start(authorities, Arc::new(store.clone()), keys, settings)
            .await
            .unwrap();
        ids.push(manager.authorities().x509_authority().unwrap().id());
        signs_for_the_bundle(manager.authorities(), &store);
    }
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn files_that_do_not_fit_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HeldClock::new();
    let open = |files: &Files| -> String {
        let clock: Arc<dyn Clock> = clock.clone();
        DiskAuthority::open(files.clone(), domain(), clock)
            .map(|_| ())
            .unwrap_err()
            .0
    };
    let files = intermediate(dir.path());
    let other = tempfile::tempdir().unwrap();
    let foreign = Files {
        bundle: Some(root(other.path()).certificate),
        ..files.clone()
    };
    assert!(open(&foreign).contains("cannot be validated with the provided bundle"));
    let mut two = std::fs::read_to_string(&files.certificate).unwrap();
    two.push_str(&std::fs::read_to_string(files.bundle.as_ref().unwrap()).unwrap());
    std::fs::write(dir.path().join("two.pem"), two).unwrap();
    let two = Files {
        certificate: dir.path().join("two.pem"),
        bundle: None,
        ..files.clone()
    };
    assert_eq!(
        open(&two),
        "with no bundle_file_path configured only self-signed CAs are supported"
    );
    std::fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert_eq!(
        open(&files),
        "unable to load upstream CA: certificate and private key do not match"
    );
    std::fs::write(&files.key, "no key").unwrap();
    assert!(open(&files).starts_with("unable to load upstream CA key: "));
    std::fs::remove_file(&files.certificate).unwrap();
    let files = Files {
        key: root(dir.path()).key,
        certificate: dir.path().join("none.pem"),
        bundle: None,
    };
    assert!(open(&files).starts_with("unable to load upstream CA cert: "));
}

/// Answers what it is told to.
struct Wrong(crate::ca::MintedCa);

impl UpstreamAuthority for Wrong {
    fn mint_x509_ca<'a>(
        &'a self,
        _: &'a [u8],
        _: Duration,
    ) -> crate::ca::Answer<'a, crate::ca::MintedCa> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn publish_jwt_key<'a>(
        &'a self,
        _: &'a ah_spire_wire::model::JwtKey,
    ) -> crate::ca::Answer<'a, Option<Vec<ah_spire_wire::model::JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}

#[tokio::test]
async fn a_ca_that_is_none_is_refused() {
    let clock = HeldClock::new();
    let key = KeyPair::generate().unwrap();
    let other = params("other").self_signed(&key).unwrap();
    let mut leaf = params("leaf");
    leaf.is_ca = IsCa::NoCa;
    let leaf = leaf.self_signed(&key).unwrap();
    for (chain, said) in [
        (vec![], "there is none"),
        (vec![b"x".to_vec()], "is invalid"),
        (vec![leaf.der().to_vec()], "cA constraint is not set"),
        (vec![other.der().to_vec()], "it is of another key"),
    ] {
        let wrong = Wrong(crate::ca::MintedCa {
            chain,
            roots: vec![other.der().to_vec()],
        });
        let error = below(wrong, &MemoryStore::default(), clock.clone())
            .await
            .err()
            .unwrap();
        assert!(
            matches!(&error, CaError::Upstream(UpstreamError(why)) if why.contains(said)),
            "{error}"
        );
    }
}

/// Works once.
struct Once(DiskAuthority, std::sync::atomic::AtomicBool);

impl UpstreamAuthority for Once {
    fn mint_x509_ca<'a>(
        &'a self,
        csr: &'a [u8],
        ttl: Duration,
    ) -> crate::ca::Answer<'a, crate::ca::MintedCa> {
        if self.1.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return Box::pin(async { Err(UpstreamError("unreachable".into())) });
        }
        self.0.mint_x509_ca(csr, ttl)
    }

    fn publish_jwt_key<'a>(
        &'a self,
        key: &'a ah_spire_wire::model::JwtKey,
    ) -> crate::ca::Answer<'a, Option<Vec<ah_spire_wire::model::JwtKey>>> {
        self.0.publish_jwt_key(key)
    }
}

#[tokio::test]
async fn jwt_keys_rotate_while_the_upstream_is_away() {
    let (dir, store, clock) = place();
    let upstream = DiskAuthority::open(root(dir.path()), domain(), clock.clone()).unwrap();
    let manager = below(Once(upstream, false.into()), &store, clock.clone())
        .await
        .unwrap();
    let x509 = manager.x509_states().await.unwrap().active;
    let jwt = manager.jwt_states().await.unwrap().active;
    clock.advance(Duration::from_secs(21 * 3600));
    assert!(matches!(manager.rotate().await, Err(CaError::Upstream(_))));
    assert_eq!(manager.x509_states().await.unwrap().active, x509);
    assert_ne!(manager.jwt_states().await.unwrap().active, jwt);
    signs_for_the_bundle(manager.authorities(), &store);
}

// Two servers of one store: what one of them taints above its old authority, the other one leaves.
#[tokio::test]
async fn an_upstream_authority_that_another_server_taints_is_left() {
    let (dir, store, clock) = place();
    let files = root(dir.path());
    let open = || DiskAuthority::open(files.clone(), domain(), clock.clone()).unwrap();
    let one = below(open(), &store, clock.clone()).await.unwrap();
    let other = below(open(), &store, clock.clone()).await.unwrap();
    let old = one.x509_states().await.unwrap().active.upstream_id;
    root(dir.path());
    let prepared = one.prepare_x509().await.unwrap();
    one.activate_x509(&prepared.id).await.unwrap();
    let mut tainted = other.tainted();
    one.taint_x509_upstream(&old).await.unwrap();
    assert_eq!(other.x509_states().await.unwrap().active.upstream_id, old);
    assert!(!tainted.has_changed().unwrap());
    other.rotate().await.unwrap();
    let active = other.x509_states().await.unwrap().active;
    assert_eq!(active.upstream_id, prepared.upstream_id);
    assert!(tainted.has_changed().unwrap());
    signs_for_the_bundle(other.authorities(), &store);
    one.revoke_x509_upstream(&old).await.unwrap();
    signs_for_the_bundle(one.authorities(), &store);
    signs_for_the_bundle(other.authorities(), &store);

    // An upstream authority that has nothing else is not asked over and over.
    tainted.mark_unchanged();
    use crate::store::{BundleChange, Bundles as _};
    let taint_all = |bundle: Option<ah_spire_wire::model::Bundle>| {
        let mut bundle = bundle?;
        bundle.x509.iter_mut().for_each(|root| root.tainted = true);
        Some(bundle)
    };
    let how = BundleChange::Update;
    store
        .update_bundle(&domain(), how, taint_all)
        .await
        .unwrap();
    other.rotate().await.unwrap();
    let first = other.x509_states().await.unwrap();
    assert_eq!(first.active, active);
    other.rotate().await.unwrap();
    assert_eq!(other.x509_states().await.unwrap(), first);
    assert!(!tainted.has_changed().unwrap());
}
