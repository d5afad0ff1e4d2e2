//! A Workload API on a socket of its own, and what it serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_wire::Channel;
use ah_spire_wire::model::{Bundle, Entry, JwtKey, Selector, X509Authority};
use ah_spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use ah_testkit::ca::{TestCa, TestLeaf};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use spiffe::{SpiffeId, TrustDomain};
use spire_agent::identities::{Identities, JwtError, JwtIdentity, WorkloadUpdate, X509Identity};
use spire_agent::workload::{Attest, Config, WorkloadApi};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::Request;
use zeroize::Zeroizing;

pub(crate) const WORKLOAD: &str = "spiffe://example.org/workload";

/// A server on threads of its own, so that tests block as their clients do.
pub(crate) struct Rig {
    pub(crate) identities: Arc<TestIdentities>,
    pub(crate) attestor: Arc<TestAttestor>,
    pub(crate) config: Config,
    pub(crate) directory: TempDir,
    runtime: Runtime,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Rig {
    /// Serves one X509-SVID to everybody.
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new(
            directory.path().join("public/api.sock"),
            domain("example.org"),
        );
        change(&mut config);
        let mut rig = Self {
            identities: Arc::new(TestIdentities::new()),
            attestor: Arc::default(),
            config,
            directory,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            running: None,
        };
        rig.start();
        rig
    }

    pub(crate) fn start(&mut self) {
        let entered = self.runtime.enter();
        let api = WorkloadApi::bind(
            self.config.clone(),
            Arc::clone(&self.identities),
            Arc::clone(&self.attestor),
        );
        let api = api.unwrap_or_else(|error| panic!("{}", error.report()));
        drop(entered);
        let (stop, stopped) = oneshot::channel();
        let task = self.runtime.spawn(api.serve(async {
            let _ = stopped.await;
        }));
        self.running = Some((stop, task));
    }

    pub(crate) fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.send(()).unwrap();
        self.run(task).unwrap();
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.config.socket
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Waits for `future`, for as long as any test waits.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            tokio::time::timeout(ah_testkit::process::DEADLINE, future)
                .await
                .expect("it takes too long")
        })
    }

    pub(crate) fn channel(&self) -> Channel {
        self.run(Channel::unix(self.socket())).unwrap()
    }

    pub(crate) fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::with_origin(self.channel(), Channel::origin())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.stop();
        }
    }
}

/// With the header that the Workload API wants.
pub(crate) fn secured<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = "true".parse().unwrap();
    request.metadata_mut().insert("workload.spiffe.io", value);
    request
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

/// The user of the test, as the attestor tells it.
pub(crate) fn own_selector() -> Selector {
    Selector::new("unix", format!("uid:{}", nix::unistd::getuid()))
}

/// Tells each process by its user. Can be made to wait, or to fail.
#[derive(Default)]
pub(crate) struct TestAttestor {
    pub(crate) begun: watch::Sender<usize>,
    /// While set, an attestation waits.
    pub(crate) held: watch::Sender<bool>,
    pub(crate) given_up: Arc<watch::Sender<usize>>,
    pub(crate) broken: watch::Sender<bool>,
}

impl Attest for TestAttestor {
    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        self.begun.send_modify(|begun| *begun += 1);
        let watched = GivenUp(Some(Arc::clone(&self.given_up)));
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| !held).await;
        watched.defuse();
        peer.verify()?;
        if *self.broken.borrow() {
            let broken = ah_identity_provider::Explained::new(
                ah_identity_provider::Code::Other,
                "the attestor is broken",
            );
            return Err(AttestError::Internal(broken));
        }
        Ok(vec![Selector::new("unix", format!("uid:{}", peer.uid()))])
    }
}

struct GivenUp(Option<Arc<watch::Sender<usize>>>);

impl GivenUp {
    fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(given_up) = &self.0 {
            given_up.send_modify(|count| *count += 1);
        }
    }
}

/// A cache with one set for whoever has the entry's selector, and none for others.
pub(crate) struct TestIdentities {
    pub(crate) ca: TestCa,
    pub(crate) signer: Signer,
    pub(crate) served: watch::Sender<Arc<WorkloadUpdate>>,
    nobody: watch::Sender<Arc<WorkloadUpdate>>,
    pub(crate) entries: Mutex<Vec<Arc<Entry>>>,
    pub(crate) jwt_fault: Mutex<Option<JwtError>>,
    pub(crate) subscriptions: AtomicUsize,
}

impl TestIdentities {
    fn new() -> Self {
        let ca = TestCa::new("example.org");
        let signer = Signer::new("key-1");
        let bundle = Arc::new(bundle_of("example.org", &[&ca], &[&signer]));
        let entry = entry(WORKLOAD, "");
        let nobody = WorkloadUpdate {
            identities: Vec::new(),
            bundle: Arc::clone(&bundle),
            federated: BTreeMap::new(),
        };
        let served = WorkloadUpdate {
            identities: vec![identity(&svid(&ca, WORKLOAD), &entry)],
            ..nobody.clone()
        };
        Self {
            ca,
            signer,
            served: watch::Sender::new(Arc::new(served)),
            nobody: watch::Sender::new(Arc::new(nobody)),
            entries: Mutex::new(vec![entry]),
            jwt_fault: Mutex::default(),
            subscriptions: AtomicUsize::new(0),
        }
    }

    /// Publishes the set after `change`.
    pub(crate) fn change(&self, change: impl FnOnce(&mut WorkloadUpdate)) {
        self.served.send_modify(|update| {
            let mut next = WorkloadUpdate::clone(update);
            change(&mut next);
            *update = Arc::new(next);
        });
    }

    /// A new X509-SVID in the place of the first.
    pub(crate) fn rotate(&self) -> TestLeaf {
        let leaf = svid(&self.ca, WORKLOAD);
        self.change(|update| {
            let entry = Arc::clone(&update.identities[0].entry);
            update.identities[0] = identity(&leaf, &entry);
        });
        leaf
    }

    /// No entry matches anybody from now on.
    pub(crate) fn unregister(&self) {
        let entry = Entry {
            selectors: vec![Selector::new("unix", "uid:4294967294"), own_selector()],
            ..Entry::clone(&self.entries.lock().unwrap()[0])
        };
        *self.entries.lock().unwrap() = vec![Arc::new(entry)];
        self.change(|update| {
            update.identities.clear();
            update.federated.clear();
        });
    }
}

impl Identities for TestIdentities {
    async fn subscribe(&self, selectors: &[Selector]) -> watch::Receiver<Arc<WorkloadUpdate>> {
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        if selectors.contains(&own_selector()) {
            return self.served.subscribe();
        }
        self.nobody.subscribe()
    }

    async fn jwt_svids(
        &self,
        selectors: &[Selector],
        audience: &[String],
        spiffe_id: Option<&SpiffeId>,
    ) -> Result<Vec<JwtIdentity>, JwtError> {
        if let Some(fault) = self.jwt_fault.lock().unwrap().clone() {
            return Err(fault);
        }
        let entries = self.entries.lock().unwrap().clone();
        let matching = entries
            .iter()
            .filter(|entry| {
                entry
                    .selectors
                    .iter()
                    .all(|asked| selectors.contains(asked))
            })
            .filter(|entry| spiffe_id.is_none_or(|wanted| *wanted == entry.spiffe_id));
        let svids: Vec<_> = matching
            .map(|entry| {
                let subject = entry.spiffe_id.to_string();
                JwtIdentity {
                    spiffe_id: entry.spiffe_id.clone(),
                    token: self.signer.svid(&subject, audience),
                    issued_at: SystemTime::now(),
                    expires_at: SystemTime::now() + Duration::from_secs(300),
                    hint: entry.hint.clone(),
                }
            })
            .collect();
        if svids.is_empty() {
            return Err(JwtError::NoIdentity);
        }
        Ok(svids)
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().unwrap().clone()
    }
}

/// With a name that TLS clients without SPIFFE know, and with the basic constraints that some clients insist on.
pub(crate) fn svid(ca: &TestCa, id: &str) -> TestLeaf {
    const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
    let leaf = ca.leaf().spiffe(id).dns("localhost");
    leaf.extension(BASIC_CONSTRAINTS, true, &[0x30, 0]).issue()
}

pub(crate) fn identity(leaf: &TestLeaf, entry: &Arc<Entry>) -> Arc<X509Identity> {
    Arc::new(X509Identity {
        entry: Arc::clone(entry),
        chain: leaf.chain().iter().map(|der| der.to_vec()).collect(),
        key: Zeroizing::new(leaf.key_der().to_vec()),
        not_after: SystemTime::now() + Duration::from_secs(3600),
    })
}

/// An entry for the user of the test.
pub(crate) fn entry(id: &str, hint: &str) -> Arc<Entry> {
    static CREATED: AtomicUsize = AtomicUsize::new(1);
    let nth = CREATED.fetch_add(1, Ordering::Relaxed);
    Arc::new(Entry {
        id: format!("entry-{nth}"),
        hint: hint.to_owned(),
        created_at: i64::try_from(nth).unwrap(),
        ..Entry::new(
            SpiffeId::new(id).unwrap(),
            SpiffeId::new("spiffe://example.org/spire/agent/a").unwrap(),
            vec![own_selector()],
        )
    })
}

pub(crate) fn bundle_of(name: &str, roots: &[&TestCa], signers: &[&Signer]) -> Bundle {
    Bundle {
        trust_domain: domain(name),
        x509: roots
            .iter()
            .map(|ca| X509Authority {
                der: ca.der().to_vec(),
                tainted: false,
            })
            .collect(),
        jwt: signers.iter().map(|signer| signer.key()).collect(),
        wit: Vec::new(),
        refresh_hint: 60,
        sequence: 7,
    }
}

/// Signs JWTs of any content.
pub(crate) struct Signer {
    id: String,
    pair: EcdsaKeyPair,
}

impl Signer {
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        }
    }

    fn key(&self) -> JwtKey {
        JwtKey {
            spki: self.pair.public_key().as_der().unwrap().as_ref().to_vec(),
            id: self.id.clone(),
            expires_at: 0,
            tainted: false,
        }
    }

    /// A JWT-SVID of five minutes.
    pub(crate) fn svid(&self, subject: &str, audience: &[String]) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap().as_secs();
        self.sign(&json!({"sub": subject, "aud": audience, "exp": now + 300, "iat": now}))
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "kid": self.id, "typ": "JWT"});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature.unwrap().as_ref());
        format!("{signed}.{signature}")
    }
}
