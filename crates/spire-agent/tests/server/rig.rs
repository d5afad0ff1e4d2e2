//! Agents in this process, each with a directory of its own.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, Explained};
use ah_spire_attest::AttestError;
use ah_spire_attest::node::NoChallenge;
use ah_spire_attest::node::join_token::{JoinTokenAgent, Token};
use ah_spire_attest::node::{AgentHalf, Payload};
use ah_spire_plugin::agent::{Bootstrap, RebootstrapMode, TrustBundleFormat};
use ah_spire_telemetry::Metrics;
use ah_spire_wire::model::Selector;
use spiffe::TrustDomain;
use spire_agent::agent::{Agent, AgentSettings};
use spire_agent::health::{AgentState, Health};
use spire_agent::identities::{Identities, WorkloadUpdate};
use spire_agent::keys::{DiskKeys, KeyKind};
use spire_agent::server_client::ServerAddress;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::fake::{DOMAIN, Fake};

pub(crate) fn workload() -> Vec<Selector> {
    vec![
        Selector::new("unix", "gid:5"),
        Selector::new("unix", "uid:1"),
    ]
}

/// A join token that an operator may replace.
#[derive(Clone)]
pub(crate) struct Half(pub(crate) Arc<Mutex<String>>);

impl AgentHalf for Half {
    type Conversation = NoChallenge;

    fn name(&self) -> &str {
        "join_token"
    }

    async fn begin(&self) -> Result<(Payload, NoChallenge), AttestError> {
        let text = Zeroizing::new(self.0.lock().unwrap().clone());
        JoinTokenAgent::new(Some(Token::new(&text)?)).begin().await
    }
}

/// The machine's clock, as far ahead as a test wants it.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestClock(Arc<Mutex<Duration>>);

impl TestClock {
    pub(crate) fn jump(&self, ahead: Duration) {
        *self.0.lock().unwrap() += ahead;
    }

    pub(crate) fn set_back(&self, by: Duration) {
        *self.0.lock().unwrap() -= by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        SystemTime::now() + *self.0.lock().unwrap()
    }
}

/// A node: what stays when its agent ends.
pub(crate) struct Node {
    pub(crate) directory: TempDir,
    pub(crate) settings: AgentSettings,
    pub(crate) half: Half,
    pub(crate) clock: TestClock,
}

impl Node {
    pub(crate) fn new(fake: &Fake) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("bundle.pem");
        write_bundle(&bundle, fake);
        let settings = AgentSettings {
            trust_domain: TrustDomain::new(DOMAIN).unwrap(),
            server: ServerAddress::new("127.0.0.1", fake.address.port()),
            data_dir: directory.path().join("data"),
            bootstrap: Bootstrap::File {
                path: bundle,
                format: TrustBundleFormat::Pem,
            },
            rebootstrap_mode: RebootstrapMode::Never,
            rebootstrap_delay: Duration::ZERO,
            sync_interval: Duration::from_millis(50),
            use_sync_authorized_entries: true,
            availability_target: None,
            workload_key: KeyKind::EcP256,
            x509_cache: 1000,
            jwt_cache: 1000,
            jwt_patience_with_valid: Some(Duration::from_millis(100)),
            post_quantum_only: false,
            metrics: Metrics::off(),
            warm_start: true,
        };
        Self {
            directory,
            settings,
            half: Half(Arc::new(Mutex::new("token".into()))),
            clock: TestClock::default(),
        }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.settings.data_dir
    }

    pub(crate) fn start(&self) -> Running<impl Identities + use<>> {
        let keys = Arc::new(DiskKeys::open(self.data()).unwrap());
        let agent = Agent::open(
            self.settings.clone(),
            self.half.clone(),
            keys,
            Arc::new(self.clock.clone()),
        )
        .unwrap();
        let (identities, health) = (agent.identities(), agent.health());
        let stop = CancellationToken::new();
        let task = tokio::spawn(agent.run(stop.clone()));
        Running {
            identities,
            health,
            stop,
            task,
        }
    }
}

/// `spire-server bundle show`
pub(crate) fn write_bundle(path: &Path, fake: &Fake) {
    let pem = ah_identity_provider::pem::certificate_pem(&fake.state().ca.der);
    std::fs::write(path, pem).unwrap();
}

/// An agent that runs.
pub(crate) struct Running<I> {
    pub(crate) identities: Arc<I>,
    pub(crate) health: Health,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Explained>>,
}

impl<I: Identities> Running<I> {
    pub(crate) async fn stop(self) -> Result<(), Explained> {
        self.stop.cancel();
        self.task.await.unwrap()
    }

    /// The task's own end.
    pub(crate) async fn ended(self) -> Result<(), Explained> {
        soon(self.task).await.unwrap()
    }

    pub(crate) async fn subscribe(&self) -> watch::Receiver<Arc<WorkloadUpdate>> {
        soon(self.identities.subscribe(&workload())).await
    }

    /// Waits for a state that `wanted` holds for.
    pub(crate) async fn until(&self, wanted: impl Fn(&AgentState) -> bool) -> AgentState {
        let mut changes = self.health.watch();
        let found = soon(changes.wait_for(|state| wanted(state)));
        found.await.unwrap().clone()
    }

    /// The report of the next fault.
    pub(crate) async fn fault(&self) -> String {
        let state = self.until(|state| state.fault.is_some()).await;
        state.fault.unwrap().report()
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(ah_testkit::process::DEADLINE, future)
        .await
        .expect("it takes too long")
}

/// Waits for an update that `wanted` holds for.
pub(crate) async fn update(
    receiver: &mut watch::Receiver<Arc<WorkloadUpdate>>,
    wanted: impl Fn(&WorkloadUpdate) -> bool,
) -> Arc<WorkloadUpdate> {
    let found = soon(receiver.wait_for(|update| wanted(update)));
    found.await.unwrap().clone()
}

pub(crate) fn ids(update: &WorkloadUpdate) -> Vec<String> {
    let identities = update.identities.iter();
    identities
        .map(|identity| identity.entry.spiffe_id.path().to_owned())
        .collect()
}
