//! What the agent may serve, and has got, for the workloads of its node.

mod index;
mod jwt;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_wire::model::{Bundle, Entry, Selector};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::{Notify, watch};

use crate::bundles::Bundles;
use crate::health::Health;
use crate::identities::{Identities, JwtError, JwtIdentity, WorkloadUpdate, X509Identity};
use crate::metrics::CacheMetrics;
use crate::server_client::{Holds, ServerClient, SyncedEntries, roots_of};

pub(crate) use jwt::JwtSettings;
pub(crate) use state::{Held, Snapshot};

use jwt::JwtCache;
use state::{EntryChanges, SelectorSet, State};

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheSettings {
    /// X509-SVIDs; those that somebody is served with count, and are kept beyond it.
    pub(crate) x509: usize,
    pub(crate) jwt: JwtSettings,
}

/// The cache. One task fills it; the Workload API reads it.
pub(crate) struct Cache {
    settings: CacheSettings,
    clock: Arc<dyn Clock>,
    client: Arc<ServerClient>,
    health: Health,
    metrics: Arc<CacheMetrics>,
    state: Mutex<State>,
    jwt: JwtCache,
    /// Somebody waits for an X509-SVID that is not there.
    wanted: Notify,
    /// Counts the rounds of signing, whether they succeeded or not.
    rounds: watch::Sender<u64>,
}

impl Cache {
    pub(crate) fn new(
        settings: CacheSettings,
        client: Arc<ServerClient>,
        clock: Arc<dyn Clock>,
        health: Health,
        metrics: CacheMetrics,
    ) -> Self {
        let metrics = Arc::new(metrics);
        Self {
            jwt: JwtCache::new(settings.jwt, metrics.clone()),
            metrics,
            settings,
            clock,
            client,
            health,
            state: Mutex::new(State::default()),
            wanted: Notify::new(),
            rounds: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the server said. Entries of SVIDStore plugins are none of ours; those that ended are dropped.
    pub(crate) fn update(
        &self,
        entries: &SyncedEntries,
        bundle: Bundle,
        federated: BTreeMap<TrustDomain, Bundle>,
    ) {
        let now = self.clock.now();
        let tainted_keys: Vec<String> = bundle
            .jwt
            .iter()
            .filter(|key| key.tainted)
            .map(|key| key.id.clone())
            .collect();
        self.jwt.drop_signed_by(&tainted_keys);
        let mut state = self.state();
        let changes = state.set_entries(
            entries
                .values()
                .filter(|entry| !entry.store_svid && !has_ended(entry, now)),
        );
        self.count(&changes, state.expiring(now));
        state.set_bundles(bundle, federated);
        state.publish(now);
        self.measure(&state);
    }

    fn count(&self, changes: &EntryChanges, expiring: usize) {
        let metrics = &self.metrics;
        metrics.added.add(changes.added);
        metrics.updated.add(changes.updated);
        metrics.removed.add(changes.removed);
        for (summary, svids) in [
            (&metrics.expiring, expiring),
            (&metrics.outdated, changes.outdated),
        ] {
            if svids > 0 {
                summary.observe(svids as f64);
            }
        }
    }

    fn measure(&self, state: &State) {
        self.metrics.entries.set_count(state.len());
        self.metrics.x509_svids.set_count(state.svids());
    }

    /// X509-SVIDs that are held.
    pub(crate) fn x509_svids(&self) -> usize {
        self.state().svids()
    }

    /// JWT-SVIDs that are held.
    pub(crate) fn jwt_svids_held(&self) -> usize {
        self.jwt.len()
    }

    /// The entries that need an X509-SVID now, most urgent first.
    pub(crate) fn unsigned(&self) -> Vec<Arc<Entry>> {
        let now = self.clock.now();
        self.state().unsigned(now, self.settings.x509)
    }

    /// When the first X509-SVID is due for replacement.
    pub(crate) fn next_rotation(&self) -> Option<SystemTime> {
        self.state().next_rotation()
    }

    /// Takes over X509-SVIDs, and publishes what became of the sets.
    pub(crate) fn put(&self, svids: Vec<Held>) {
        let now = self.clock.now();
        let mut state = self.state();
        for held in svids {
            state.put(held);
        }
        state.evict(self.settings.x509);
        state.publish(now);
        self.measure(&state);
    }

    /// Ends a round of signing: who waited looks again.
    pub(crate) fn end_round(&self) {
        let now = self.clock.now();
        self.state().publish(now);
        self.rounds.send_modify(|round| *round += 1);
    }

    /// Marks what `issued_by` says for replacement, at once.
    pub(crate) fn taint(&self, issued_by: impl Fn(&X509Identity) -> bool) {
        self.replace(issued_by, None);
    }

    /// As [`Cache::taint`] for what is still good for a while: a batch at a time.
    pub(crate) fn taint_in_batches(&self, issued_by: impl Fn(&X509Identity) -> bool) {
        self.replace(issued_by, Some(self.clock.now()));
    }

    fn replace(&self, issued_by: impl Fn(&X509Identity) -> bool, spread: Option<SystemTime>) {
        let processing = self.metrics.taint_x509.start();
        let tainted = self.state().taint(issued_by, spread);
        self.metrics.tainted_x509.observe(tainted as f64);
        processing.done(tonic::Code::Ok);
    }

    /// The bundle that workloads are served with, and how many of their X509-SVIDs are of tainted authorities.
    pub(crate) fn holds(&self) -> Holds {
        let state = self.state();
        Holds {
            bundle_sequence: state.bundle().map_or(0, |bundle| bundle.sequence),
            tainted_svids: state.tainted(),
        }
    }

    /// The roots that workloads trust now.
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.state().bundle().map(roots_of).unwrap_or_default()
    }

    /// Forgets all entries, SVIDs and tokens: this agent may serve nobody.
    pub(crate) fn clear(&self) {
        let now = self.clock.now();
        self.jwt.clear();
        let mut state = self.state();
        let changes = state.set_entries([].iter());
        self.count(&changes, 0);
        state.publish(now);
        self.measure(&state);
    }

    /// Waits until somebody wants an X509-SVID that is not there.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Counts the changes of what [`Cache::snapshot`] holds.
    pub(crate) fn changes(&self) -> u64 {
        self.state().changes()
    }

    /// The entries of a workload with `selectors`, oldest first.
    ///
    /// # Errors
    /// It is not known yet what there is.
    pub(crate) fn matching(&self, selectors: &[Selector]) -> Result<Vec<Arc<Entry>>, JwtError> {
        let set = state::selector_set(selectors);
        let state = self.state();
        if !state.is_filled() {
            return Err(JwtError::Unavailable(
                "the agent has not got its entries from the server yet".into(),
            ));
        }
        Ok(state.matching_entries(&set))
    }

    /// A JWT-SVID for `entry`, from the cache where that is still good.
    pub(crate) async fn jwt_svid(
        &self,
        entry: &Arc<Entry>,
        audience: &[String],
    ) -> Result<JwtIdentity, JwtError> {
        let clock = self.clock.as_ref();
        self.jwt.token(&self.client, entry, audience, clock).await
    }

    /// The bundles of all trust domains that entries of this agent have to do with, as they change.
    pub(crate) fn bundles(&self) -> watch::Receiver<Bundles> {
        self.state().bundles()
    }

    /// All there is, to be kept for the next start.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        self.state().snapshot()
    }
}

/// Whether `expires_at` has come.
pub(crate) fn has_ended(entry: &Entry, now: SystemTime) -> bool {
    let Ok(end) = u64::try_from(entry.expires_at) else {
        return true;
    };
    end != 0 && now >= SystemTime::UNIX_EPOCH + Duration::from_secs(end)
}

/// Counts as a subscription for as long as it waits for its first set.
struct Waiting<'a> {
    cache: &'a Cache,
    set: SelectorSet,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.cache.state().stop_waiting(&self.set);
    }
}

impl Identities for Cache {
    async fn subscribe(&self, selectors: &[Selector]) -> watch::Receiver<Arc<WorkloadUpdate>> {
        let set = state::selector_set(selectors);
        let mut rounds = self.rounds.subscribe();
        let now = self.clock.now();
        if let Some(receiver) = self.state().subscribe(&set, now, false) {
            return receiver;
        }
        self.state().start_waiting(&set);
        let waiting = Waiting { cache: self, set };
        let mut whole_round = false;
        loop {
            self.wanted.notify_one();
            // The sender lives in `self`.
            let _ = rounds.changed().await;
            let now = self.clock.now();
            // The first round may have begun before we came. After one that failed, what there is is better than
            // nothing.
            if let Some(receiver) = self.state().subscribe(&waiting.set, now, whole_round) {
                return receiver;
            }
            whole_round = true;
        }
    }

    async fn jwt_svids(
        &self,
        selectors: &[Selector],
        audience: &[String],
        spiffe_id: Option<&SpiffeId>,
    ) -> Result<Vec<JwtIdentity>, JwtError> {
        let mut entries = self.matching(selectors)?;
        entries.retain(|entry| spiffe_id.is_none_or(|id| entry.spiffe_id == *id));
        if entries.is_empty() {
            return Err(JwtError::NoIdentity);
        }
        let mut tokens = Vec::with_capacity(entries.len());
        for entry in entries {
            tokens.push(self.jwt_svid(&entry, audience).await?);
        }
        Ok(tokens)
    }

    fn not_ready(&self) -> Option<String> {
        self.health.state().not_ready()
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.state().entries()
    }
}
