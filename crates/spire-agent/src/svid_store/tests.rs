mod aws;
mod google;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Provider as _;
use ah_identity_provider::files::{FilesConfig, FilesProvider};
use ah_spire_telemetry::Metrics;
use ah_spire_wire::model::{Bundle, Entry, Selector, X509Authority};
use rcgen::{CertificateParams, KeyPair};
use spiffe::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

use super::*;
use crate::cache::Held;
use crate::identities::X509Identity;
use crate::server_client::SyncedEntries;

/// Says what it was told, and fails as often as it was told to.
#[derive(Default)]
struct Fake {
    told: Mutex<Vec<String>>,
    faults: Mutex<VecDeque<StoreFault>>,
    called: tokio::sync::Notify,
}

impl Fake {
    fn tell(&self, text: String) -> Result<(), StoreFault> {
        let fault = self.faults.lock().unwrap().pop_front();
        let mark = if fault.is_some() { "!" } else { "" };
        self.told.lock().unwrap().push(format!("{mark}{text}"));
        self.called.notify_one();
        fault.map_or(Ok(()), Err)
    }

    /// Waits until it was told this much, and forgets it.
    async fn told(&self, count: usize) -> Vec<String> {
        loop {
            {
                let mut told = self.told.lock().unwrap();
                if told.len() >= count {
                    return std::mem::take(&mut told);
                }
            }
            self.called.notified().await;
        }
    }
}

#[tonic::async_trait]
impl SvidStore for Arc<Fake> {
    fn name(&self) -> &str {
        "fake"
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<(), StoreFault> {
        let (leaf, roots) = (svid.chain[0].len(), svid.bundle.len());
        self.tell(format!(
            "put {} {leaf} {roots} {} at {}",
            svid.spiffe_id,
            svid.federated.len(),
            metadata.join(",")
        ))
    }

    async fn delete(&self, metadata: &[String]) -> Result<(), StoreFault> {
        self.tell(format!("delete {}", metadata.join(",")))
    }
}

fn entry(place: &str, revision: i64) -> Arc<Entry> {
    Arc::new(Entry {
        revision,
        store_svid: true,
        federates_with: vec![TrustDomain::new("other.example").unwrap()],
        id: "e1".into(),
        ..Entry::new(
            SpiffeId::new("spiffe://example.org/w").unwrap(),
            SpiffeId::new("spiffe://example.org/parent").unwrap(),
            vec![Selector::new("fake", format!("name:{place}"))],
        )
    })
}

fn bundle(domain: &str, roots: usize) -> Bundle {
    let root = X509Authority {
        der: vec![1],
        tainted: false,
    };
    Bundle {
        trust_domain: TrustDomain::new(domain).unwrap(),
        x509: vec![root; roots],
        jwt: Vec::new(),
        wit: Vec::new(),
        refresh_hint: 0,
        sequence: 0,
    }
}

/// An SVID that is told apart by the length of its leaf.
fn held(entry: &Arc<Entry>, length: usize) -> Held {
    let now = SystemTime::now();
    Held {
        identity: Arc::new(X509Identity {
            entry: entry.clone(),
            chain: vec![vec![0; length]],
            key: Zeroizing::new(vec![7]),
            not_after: now + Duration::from_secs(3600),
        }),
        rotate_at: now + Duration::from_secs(1800),
    }
}

struct Rig {
    cache: Arc<StoreCache>,
    fake: Arc<Fake>,
    _service: tokio_util::task::AbortOnDropHandle<()>,
}

impl Rig {
    fn start() -> Self {
        let (cache, fake) = (Arc::<StoreCache>::default(), Arc::<Fake>::default());
        let store: Arc<dyn SvidStore> = Arc::new(fake.clone());
        let service = StoreService::new(cache.clone(), vec![store], &Metrics::off());
        let service = tokio::spawn(service.run());
        Self {
            cache,
            fake,
            _service: tokio_util::task::AbortOnDropHandle::new(service),
        }
    }

    fn update(&self, entries: &[&Arc<Entry>], roots: usize) {
        let entries = entries
            .iter()
            .map(|entry| (entry.id.clone(), (*entry).clone()));
        let entries: SyncedEntries = entries.collect();
        let federated = bundle("other.example", 1);
        let federated = [(federated.trust_domain.clone(), federated)].into();
        let own = bundle("example.org", roots);
        self.cache
            .update(&entries, &own, &federated, SystemTime::now());
    }

    /// Makes what is missing.
    fn sign(&self, length: usize) {
        let unsigned = self.cache.unsigned(SystemTime::now());
        let made = unsigned.iter().map(|entry| held(entry, length));
        self.cache.put(made.collect());
    }
}

// Inventory: SVIDStore; entries with store_svid.
#[tokio::test(start_paused = true)]
async fn an_svid_is_put_when_it_changes_moved_with_its_entry_and_taken_away_with_it() {
    let rig = Rig::start();
    let first = entry("one", 1);
    rig.update(&[&first], 1);
    rig.sign(10);
    let id = "spiffe://example.org/w";
    assert_eq!(
        rig.fake.told(1).await,
        [format!("put {id} 10 1 1 at name:one")]
    );
    assert!(rig.cache.unsigned(SystemTime::now()).is_empty());
    // Another bundle, same SVID.
    rig.update(&[&first], 2);
    assert_eq!(
        rig.fake.told(1).await,
        [format!("put {id} 10 2 1 at name:one")]
    );
    // A renewed SVID.
    let tainted = rig.cache.taint(|_| true);
    assert_eq!((tainted, rig.cache.tainted()), (1, 1));
    rig.sign(11);
    assert_eq!(rig.cache.tainted(), 0);
    assert_eq!(
        rig.fake.told(1).await,
        [format!("put {id} 11 2 1 at name:one")]
    );
    // Elsewhere: away there first, and that until the store does it.
    rig.fake
        .faults
        .lock()
        .unwrap()
        .push_back(StoreFault::Failed("busy".into()));
    let moved = entry("two", 2);
    rig.update(&[&moved], 2);
    let told = rig.fake.told(3).await;
    assert_eq!(
        told,
        [
            "!delete name:one".to_owned(),
            "delete name:one".to_owned(),
            format!("put {id} 11 2 1 at name:two")
        ]
    );
    rig.sign(12);
    assert_eq!(
        rig.fake.told(1).await,
        [format!("put {id} 12 2 1 at name:two")]
    );
    // Gone.
    rig.update(&[], 2);
    assert_eq!(rig.fake.told(1).await, ["delete name:two"]);
    rig.update(&[&moved], 2);
    assert_eq!(rig.cache.unsigned(SystemTime::now()).len(), 1);
    assert_eq!(rig.cache.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_tried_again_and_one_that_is_missing_is_no_end() {
    let rig = Rig::start();
    let first = entry("one", 1);
    for _ in 0..3 {
        let fault = StoreFault::Failed("busy".into());
        rig.fake.faults.lock().unwrap().push_back(fault);
    }
    rig.update(&[&first], 1);
    rig.sign(10);
    let told = rig.fake.told(4).await;
    assert!(told[..3].iter().all(|told| told.starts_with('!')));
    assert!(told[3].starts_with("put"), "{told:?}");
    // Nobody is asked about a store that is not there; the others go on.
    let mut elsewhere = Entry::clone(&first);
    elsewhere.id = "e0".into();
    elsewhere.selectors = vec![Selector::new("elsewhere", "name:x")];
    rig.update(&[&Arc::new(elsewhere), &first], 2);
    rig.sign(11);
    assert!(rig.fake.told(1).await[0].contains("name:one"));
    // What a store can make nothing of has nothing there either.
    let fault = StoreFault::Malformed("what?".into());
    rig.fake.faults.lock().unwrap().push_back(fault);
    rig.update(&[], 2);
    assert_eq!(rig.fake.told(1).await, ["!delete name:one"]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(rig.fake.told.lock().unwrap().is_empty());
    // What was not answered may be there.
    let fault = StoreFault::Failed("no answer".into());
    rig.fake.faults.lock().unwrap().push_back(fault);
    rig.update(&[&first], 2);
    rig.sign(12);
    assert!(rig.fake.told(1).await[0].starts_with("!put"));
    rig.update(&[], 2);
    assert_eq!(rig.fake.told(1).await, ["delete name:one"]);
}

/// A real pair, so that somebody can use it.
fn real() -> StoredSvid {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    StoredSvid {
        spiffe_id: "spiffe://example.org/w".into(),
        chain: vec![der.clone()],
        key: Zeroizing::new(key.serialize_der()),
        bundle: vec![der.clone()],
        not_after: SystemTime::now(),
        federated: [("other.example".to_owned(), vec![der])].into(),
    }
}

fn files_below(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

// SVIDStore `directory`: what the files provider reads is always a pair.
#[tokio::test]
async fn a_directory_is_swapped_whole() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let store = Directory::new(folder.path().join("svids"));
    let metadata = ["name:web".to_owned()];
    let inner = folder.path().join("svids/web");
    for _ in 0..3 {
        let svid = real();
        store.put(&svid, &metadata).await.unwrap();
        let read = |name: &str| std::fs::read(inner.join(name)).unwrap();
        let chain = ah_identity_provider::pem::certificates(&read("tls.crt")).unwrap();
        assert_eq!(chain[0].as_ref(), svid.chain[0]);
        assert!(read("current/federated-other.example.crt").starts_with(b"-----BEGIN"));
        let key = std::fs::metadata(inner.join("tls.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let config = FilesConfig {
            cert: inner.join("tls.crt"),
            key: inner.join("tls.key"),
            ca: vec![inner.join("ca.crt")],
            key_passphrase_file: None,
            strict_key_permissions: true,
        };
        FilesProvider::new(config).next().await.unwrap();
        // Three links, the link to the folder, and that.
        assert_eq!(files_below(&inner), 5);
    }
    store.delete(&metadata).await.unwrap();
    assert!(!inner.exists());
    store.delete(&metadata).await.unwrap();
    // What somebody else put there stays.
    store.put(&real(), &metadata).await.unwrap();
    std::fs::write(inner.join("notes"), "mine").unwrap();
    store.delete(&metadata).await.unwrap();
    assert_eq!(files_below(&inner), 1);
}

#[tokio::test]
async fn a_selector_that_names_no_folder_is_malformed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Directory::new(folder.path().to_owned());
    for metadata in ["name:..", "name:", "name:a/b", "name", "path:a"] {
        let refused = store.put(&real(), &[metadata.to_owned()]).await;
        assert!(
            matches!(refused, Err(StoreFault::Malformed(_))),
            "{metadata}: {refused:?}"
        );
    }
    assert_eq!(files_below(folder.path()), 0);
}
