//! One task that keeps the node attested and the cache in step with the server, and comes back from every fault that
//! the node can get over by itself.

mod attesting;
mod settings;
mod signing;
mod syncing;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Backoff, Clock, Explained};
use ah_spire_attest::node::AgentHalf;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use settings::AgentSettings;

use crate::cache::{Cache, CacheSettings, JwtSettings};
use crate::data::DataDirectory;
use crate::health::{Health, one_line};
use crate::identities::Identities;
use crate::keys::KeyManager;
use crate::metrics::{AgentMetrics, CacheMetrics};
use crate::own::OwnIdentity;
use crate::server_client::{
    Credentials, Denied, ServerClient, ServerFault, ServerSettings, SyncedEntries,
};
use crate::svid_store::StoreCache;
use crate::warm::WarmStart;

/// Everything that the task works on.
pub struct Agent<A> {
    settings: AgentSettings,
    half: A,
    keys: Arc<dyn KeyManager>,
    data: DataDirectory,
    clock: Arc<dyn Clock>,
    client: Arc<ServerClient>,
    cache: Arc<Cache>,
    health: Health,
    metrics: AgentMetrics,
    warm: Option<WarmStart>,
    /// The agent's own identity of the moment, for those who show it.
    own: watch::Sender<Option<Arc<OwnIdentity>>>,
    /// For SVIDStores, where there are some.
    stored: Option<Arc<StoreCache>>,
    known: SyncedEntries,
    /// Since when the server has been untrusted; forgotten when it is trusted again.
    untrusted_since: Option<SystemTime>,
    /// When the wall clock was last looked at, and what it said.
    wall: (Instant, SystemTime),
}

/// A stay with the server of this length shows that it was no accident.
const SOUND: Duration = Duration::from_secs(60);

/// Why the agent stopped being served by its server.
enum Lost {
    /// Its SVID has expired.
    Expired,
    /// The server denies it.
    Denied(Denied),
    /// The server's CA is another one, for longer than `rebootstrap_delay`.
    Rebootstrap,
}

impl<A: AgentHalf> Agent<A> {
    /// Opens the data directory. What was kept by a process before is served from now on, whether there is a server
    /// or not.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(
        settings: AgentSettings,
        half: A,
        keys: Arc<dyn KeyManager>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Explained> {
        let data = DataDirectory::open(&settings.data_dir)?;
        let server = ServerSettings {
            address: settings.server.clone(),
            trust_domain: settings.trust_domain.clone(),
            post_quantum_only: settings.post_quantum_only,
            clock: clock.clone(),
        };
        let nobody = Credentials {
            roots: Some(data.data().bundle.clone()),
            identity: None,
        };
        let client = Arc::new(ServerClient::new(server, &nobody)?);
        let limits = CacheSettings {
            x509: settings.x509_cache,
            jwt: JwtSettings {
                limit: settings.jwt_cache,
                patience_with_valid: settings.jwt_patience_with_valid,
            },
        };
        let health = Health::default();
        let metrics = AgentMetrics::new(&settings.metrics, half.name());
        metrics.bootstrap(data.data().bootstrap);
        let cache = Cache::new(
            limits,
            client.clone(),
            clock.clone(),
            health.clone(),
            CacheMetrics::new(&settings.metrics),
        );
        let cache = Arc::new(cache);
        let warm = WarmStart::open(&settings, &data, keys.as_ref());
        let wall = (Instant::now(), clock.now());
        let mut agent = Self {
            settings,
            half,
            keys,
            data,
            clock,
            client,
            cache,
            health,
            metrics,
            warm,
            own: watch::Sender::new(None),
            stored: None,
            known: SyncedEntries::new(),
            untrusted_since: None,
            wall,
        };
        agent.start_warm();
        Ok(agent)
    }

    /// What the Workload API serves.
    pub fn identities(&self) -> Arc<impl Identities + use<A>> {
        self.cache.clone()
    }

    /// What is held for workloads.
    pub(crate) fn cache(&self) -> Arc<Cache> {
        self.cache.clone()
    }

    /// From now on entries with `store_svid` get X509-SVIDs, too.
    pub(crate) fn store_svids(&mut self) -> Arc<StoreCache> {
        self.stored.get_or_insert_default().clone()
    }

    /// Who the agent is, as that changes.
    pub(crate) fn own(&self) -> watch::Receiver<Option<Arc<OwnIdentity>>> {
        self.own.subscribe()
    }

    /// What the agent says of itself.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// Only what nobody but a person can mend: everything else is told on the health check and tried again.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Explained> {
        let ended = stop.clone();
        tokio::select! {
            biased;
            () = ended.cancelled() => Ok(()),
            fault = Box::pin(self.keep_up()) => Err(fault),
        }
    }

    async fn keep_up(&mut self) -> Explained {
        let target = self.settings.availability_target;
        let mut own = OwnIdentity::remembered(self.data.data(), self.keys.as_ref(), target)
            .filter(|_| !self.data.data().bundle.is_empty());
        let mut denied = None;
        // A server may let the node attest and deny it all the same: that must not go round and round.
        let mut denials = Backoff::new(Duration::from_secs(1), Duration::from_secs(120));
        loop {
            let now = self.clock.now();
            let usable = own.take().filter(|own| own.is_valid(now));
            let attested = match (usable, denied.take()) {
                (Some(own), None) => own,
                (usable, why) => match Box::pin(self.attest(usable, why)).await {
                    Ok(attested) => attested,
                    Err(fatal) => return fatal,
                },
            };
            self.show(&attested);
            let began = Instant::now();
            let (last, lost) = Box::pin(self.serve(attested)).await;
            own = Some(last);
            if began.elapsed() > SOUND {
                denials.reset();
            }
            match lost {
                Lost::Expired => {
                    tracing::warn!("the agent's SVID has expired; the node has to attest again");
                    own = None;
                }
                Lost::Denied(why) => {
                    tracing::warn!(reason = why.as_str(), "the server denies this agent");
                    if why == Denied::Banned {
                        self.forget_workloads();
                    }
                    denied = Some(why);
                    wait_or_jump(self.clock.as_ref(), denials.next_wait()).await;
                }
                Lost::Rebootstrap => {
                    tracing::warn!(
                        "the server's CA is not the one that the agent knows; bootstrapping again"
                    );
                    own = None;
                    self.forget_server();
                }
            }
        }
    }

    fn show(&self, own: &OwnIdentity) {
        self.health.change(|state| {
            state.id = Some(own.id.clone());
            state.svid = own.svid.as_slice().into();
            state.svid_not_after = Some(own.not_after);
        });
        self.own.send_replace(Some(Arc::new(own.clone())));
    }

    /// A banned agent serves nobody.
    fn forget_workloads(&mut self) {
        self.known.clear();
        self.cache.clear();
        if let Some(stored) = &self.stored {
            stored.forget();
        }
        if let Some(warm) = &self.warm {
            warm.forget();
        }
    }

    /// Whether the clock was set back since this was last asked: what is held may be from the future.
    fn was_set_back(&mut self) -> bool {
        let (then, wall) = self.wall;
        let now = self.clock.now();
        self.wall = (Instant::now(), now);
        now + JUMP < wall + then.elapsed()
    }

    fn forget_server(&mut self) {
        let forgotten = self.data.update(|data| {
            data.svid.clear();
            data.bundle.clear();
            data.bootstrap.use_ = crate::data::REBOOTSTRAP;
        });
        self.metrics.bootstrap(self.data.data().bootstrap);
        if let Err(error) = forgotten {
            tracing::error!(
                error = one_line(&error),
                "the data directory cannot be written"
            );
        }
    }

    /// Says that `fault` is in the way, in the log and on the health check.
    fn tell(&self, fault: &Explained, retry_in: Duration) {
        tracing::warn!(
            error = one_line(fault),
            retry_in = ?retry_in,
            "the agent is not in touch with its server"
        );
        self.health
            .change(|state| state.fault = Some(fault.clone()));
    }

    /// Whether a server that nobody we trust vouches for is to be bootstrapped again, now.
    fn may_rebootstrap(&mut self, fault: &ServerFault, reattestable: bool) -> bool {
        use ah_spire_plugin::agent::RebootstrapMode;
        if !matches!(fault, ServerFault::UnknownAuthority(_)) {
            return false;
        }
        let now = self.clock.now();
        let since = *self.untrusted_since.get_or_insert(now);
        if self.settings.rebootstrap_mode == RebootstrapMode::Never || !reattestable {
            return false;
        }
        now.duration_since(since)
            .is_ok_and(|waited| waited >= self.settings.rebootstrap_delay)
    }

    fn start_warm(&mut self) {
        let Some(kept) = self.warm.as_ref().and_then(WarmStart::load) else {
            return;
        };
        let now = self.clock.now();
        let svids = kept
            .svids
            .into_iter()
            .filter(|held| now < held.identity.not_after)
            .collect::<Vec<_>>();
        tracing::info!(
            entries = kept.entries.len(),
            svids = svids.len(),
            "serving what was kept by the process before"
        );
        self.cache
            .update(&kept.entries, kept.bundle, kept.federated);
        self.cache.put(svids);
        self.known = kept.entries;
        self.health.change(|state| state.serving = true);
    }
}

/// A step of the wall clock that is none of its own going.
const JUMP: Duration = Duration::from_secs(60);

/// Waits for `wait`, in steps short enough to see that the machine slept or its clock was set: then it returns early.
async fn wait_or_jump(clock: &dyn Clock, wait: Duration) {
    const STEP: Duration = Duration::from_secs(5);
    let deadline = Instant::now() + wait;
    loop {
        let (began, wall) = (Instant::now(), clock.now());
        let step = deadline.saturating_duration_since(began).min(STEP);
        if step.is_zero() {
            return;
        }
        tokio::time::sleep(step).await;
        let (passed, now) = (began.elapsed(), clock.now());
        if now > wall + passed + JUMP || now + JUMP < wall + passed {
            tracing::info!("the clock jumped, or the machine slept: looking at everything again");
            return;
        }
    }
}
